//! Freeze, thaw and kill by the core's messages; the test stands in for the room that acts on processes.
use super::*;
use crate::audit::Processes;
use crate::hooks::{Call, Occasion};
use crate::policy::{Act, Acted, Order, Snapshot, Snapshotted};

const SNAPSHOT: &str = "bottles: { b1: { shutdown: freeze, snapshot: [/bin/snap, \"{bottle}\"] } }";

impl Bench {
    /// The next order for processes.
    pub(super) fn held(&mut self) -> Order {
        let deadline = Instant::now() + SOON;
        while Instant::now() < deadline {
            if let Some(order) = self.held.given() {
                return order;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        panic!("no order for processes");
    }

    pub(super) fn nothing_held(&mut self) {
        self.ask(|reply| Message::UnderWay { reply });
        assert!(self.held.given().is_none());
    }

    pub(super) fn called(&mut self) -> Option<Call> {
        self.ask(|reply| Message::UnderWay { reply });
        self.calls.try_recv().ok()
    }

    /// Gives an order by the API's message, stands in for the room with this outcome, and gives the answer.
    pub(super) fn by_order(
        &mut self,
        message: impl FnOnce(oneshot::Sender<Result<(), Problem>>) -> Message,
        act: Act,
        result: Result<String, String>,
    ) -> Result<(), Problem> {
        let (reply, answer) = oneshot::channel();
        self.core.tell(message(reply));
        let order = self.held();
        assert_eq!(order.act, act);
        self.acted(order, result);
        answer.blocking_recv().unwrap()
    }

    pub(super) fn acted(&self, order: Order, result: Result<String, String>) {
        self.core.tell(Message::Acted(Box::new(Acted { order, result, took: Duration::from_micros(7) })));
    }

    fn freeze(&mut self, name: &str) -> Result<(), Problem> {
        let message = freeze(name);
        self.by_order(message, Act::Freeze { snapshot: None }, Ok("2 processes stand still".into()))
    }

    fn thaw(&mut self, name: &str) -> Result<(), Problem> {
        let message = thaw(name);
        self.by_order(message, Act::Thaw, Ok("2 processes go on".into()))
    }

    fn refused(&self, message: impl FnOnce(oneshot::Sender<Result<(), Problem>>) -> Message) -> Problem {
        self.ask(message).unwrap_err()
    }

    pub(super) fn attach_with(&self, name: &str, policy: Policy) -> BottleRef {
        let attachment = self.admit_as(name, &format!("/sys/fs/cgroup/{name}"), &[], policy);
        self.guarded(attachment.id);
        BottleRef { slot: attachment.slot, generation: attachment.generation }
    }

    /// Uses a budget up.
    fn use_up(&self, exchange: u64, bottle: BottleRef, tokens: u64) {
        self.reserve(exchange, bottle, 10);
        assert_eq!(self.order(), ToMeter::Permit { exchange });
        self.settle(exchange, tokens);
    }
}

pub(super) fn freeze(name: &str) -> impl FnOnce(oneshot::Sender<Result<(), Problem>>) -> Message + use<> {
    let (name, order) = (name.to_owned(), api::Reason { reason: Some("tea".into()) });
    move |reply| Message::Freeze { name, order, by: "uid:7".into(), received: Instant::now(), reply }
}

pub(super) fn thaw(name: &str) -> impl FnOnce(oneshot::Sender<Result<(), Problem>>) -> Message + use<> {
    let name = name.to_owned();
    move |reply| Message::Thaw { name, by: "uid:7".into(), received: Instant::now(), reply }
}

pub(super) fn kill(name: &str) -> impl FnOnce(oneshot::Sender<Result<(), Problem>>) -> Message + use<> {
    let name = name.to_owned();
    let order = api::Reason::default();
    move |reply| Message::Kill { name, order, by: "uid:7".into(), received: Instant::now(), reply }
}

#[test]
fn a_freeze_cuts_first_and_holds_upstream_and_its_thaw_opens() {
    let mut bench = Bench::new("");
    let bottle = bench.attach("b1");
    let (reply, answer) = oneshot::channel();
    bench.core.tell(freeze("b1")(reply));
    let order = bench.held();
    assert!(!bench.kernel.is_open(bottle.slot), "cut before anything is ordered");
    assert_eq!(bench.order(), ToMeter::Cut { bottle, upstream: Upstream::Hold });
    assert_eq!((order.by.as_str(), order.bottle.as_str(), order.number), ("uid:7", "b1", 1));
    bench.acted(order, Ok("1 process stands still".into()));
    answer.blocking_recv().unwrap().unwrap();
    let view = bench.view("b1");
    assert_eq!((view.processes, view.face), (Processes::Frozen, Some(Face::Silent)));
    let row = bench.awaited_rows("freeze", 1).pop().unwrap();
    assert_eq!((row.by.as_str(), row.outcome.as_str(), row.took_us), ("uid:7", "done", Some(7)));
    assert_eq!(row.cause.unwrap().reason.as_deref(), Some("tea"));

    bench.thaw("b1").unwrap();
    assert!(bench.kernel.is_open(bottle.slot));
    assert_eq!(bench.order(), ToMeter::Open { bottle });
    assert_eq!(bench.view("b1").cause, None);
    bench.awaited_rows("thaw", 1);
    let problem = bench.refused(thaw("b1"));
    assert_eq!((problem.error.as_str(), problem.exit_code), ("b1 is not frozen", 4));
}

#[test]
fn a_freeze_that_fails_is_told_and_the_bottle_stays_cut() {
    let mut bench = Bench::new("");
    let bottle = bench.attach("b1");
    let failed = bench.by_order(
        freeze("b1"),
        Act::Freeze { snapshot: None },
        Err("process 7 waits for a disk".into()),
    );
    assert_eq!(failed.unwrap_err().error, "b1: freeze: process 7 waits for a disk");
    assert!(!bench.kernel.is_open(bottle.slot));
    assert_eq!(bench.awaited_rows("freeze", 1).pop().unwrap().outcome, "failed");
}

#[test]
fn a_thaw_takes_back_the_freeze_and_no_other_cut() {
    let mut bench = Bench::new("budget: { claude: 100 }\nbottles: { b2: { budget: { claude: 100 } } }");
    let (cut, used_up) = (bench.attach("b1"), bench.attach("b2"));
    bench.cut("b1").unwrap();
    bench.freeze("b1").unwrap();
    bench.thaw("b1").unwrap();
    assert!(!bench.kernel.is_open(cut.slot), "it was cut before it was frozen");
    assert_eq!(bench.view("b1").processes, Processes::Running);

    bench.restore("b1", &[], false).unwrap();
    bench.freeze("b1").unwrap();
    bench.cut("b1").unwrap();
    bench.thaw("b1").unwrap();
    assert!(!bench.kernel.is_open(cut.slot), "it was cut after it was frozen");
    bench.freeze("b1").unwrap();
    bench.thaw("b1").unwrap();
    assert!(!bench.kernel.is_open(cut.slot), "that cut still stands");
    bench.restore("b1", &[], false).unwrap();
    assert!(bench.kernel.is_open(cut.slot));

    bench.reserve(1, used_up, 10);
    while bench.order() != (ToMeter::Permit { exchange: 1 }) {}
    bench.freeze("b2").unwrap();
    bench.settle(1, 100);
    bench.thaw("b2").unwrap();
    let cause = bench.view("b2").cause.unwrap();
    assert!(!bench.kernel.is_open(used_up.slot), "its budget was used up meanwhile");
    assert_eq!((cause.kind, cause.used), (crate::audit::CauseKind::Budget, Some(100)));
    assert_eq!(cause.flow, Some(bench.flows()[0].id), "by the exchange that crossed");
}

#[test]
fn a_thaw_leaves_a_budget_s_cut_as_it_was_without_the_freeze() {
    let mut bench = Bench::new("budget: { claude: 100 }");
    let bottle = bench.attach("b1");
    bench.spend(1, bottle, 100);
    let before = bench.view("b1").cause.unwrap();
    bench.freeze("b1").unwrap();
    assert_eq!(bench.kernel.face(bottle.slot), Some(Face::Silent));
    bench.thaw("b1").unwrap();
    assert_eq!(bench.view("b1").cause.unwrap(), before);
    assert_eq!(bench.kernel.face(bottle.slot), Some(Face::Answered), "its agent is told why again");
    bench.restore("b1", &[("claude", 100)], false).unwrap();
    assert!(bench.kernel.is_open(bottle.slot));

    // nothing but a cut that an operator ordered beside the freeze keeps more tokens from opening it
    bench.spend(2, bottle, 100);
    bench.freeze("b1").unwrap();
    bench.cut("b1").unwrap();
    bench.thaw("b1").unwrap();
    bench.add_to_global(100);
    assert!(!bench.kernel.is_open(bottle.slot));
}

#[test]
fn whom_a_budget_froze_is_told_why_once_thawed_unless_an_operator_silenced_it() {
    for (cut, told) in [("answered", Face::Answered), ("silent", Face::Silent)] {
        let mut bench = Bench::new(&format!("cut: {cut}\nbudget: {{ claude: 100 }}"));
        let bottle = bench.attach_with("b1", Policy::Freeze);
        bench.spend(1, bottle, 100);
        let by_budget = bench.held();
        bench.acted(by_budget, Ok(String::new()));
        assert_eq!(bench.kernel.face(bottle.slot), Some(Face::Silent));
        // once as the budget froze it, once with an operator's freeze over that
        for _ in 0..2 {
            bench.thaw("b1").unwrap();
            assert_eq!(bench.kernel.face(bottle.slot), Some(told));
            assert_eq!(bench.view("b1").cause.unwrap().face, told);
            bench.freeze("b1").unwrap();
            assert_eq!(bench.kernel.face(bottle.slot), Some(Face::Silent));
        }
        bench.cut("b1").unwrap();
        bench.thaw("b1").unwrap();
        assert_eq!(bench.kernel.face(bottle.slot), Some(Face::Silent), "an operator cut it silently");
    }
}

#[test]
fn more_tokens_end_a_budget_s_cut_and_leave_the_freeze_over_it() {
    let mut bench = Bench::new("budget: { claude: 100 }\nshutdown: freeze");
    let bottle = bench.attach_with("b1", Policy::Freeze);
    bench.spend(1, bottle, 100);
    let by_budget = bench.held();
    bench.acted(by_budget, Ok(String::new()));
    bench.freeze("b1").unwrap();
    bench.add_to_global(100);
    bench.nothing_held();
    let cause = bench.view("b1").cause.unwrap();
    assert_eq!((cause.kind, cause.by.as_str()), (crate::audit::CauseKind::Operator, "uid:7"));
    assert_eq!((cause.reason.as_deref(), cause.processes), (Some("tea"), Processes::Frozen));
    let row = bench.awaited_rows("restore", 1).pop().unwrap();
    assert!(row.detail.unwrap().ends_with("; it stays frozen by uid:7"));
    bench.thaw("b1").unwrap();
    assert!(bench.kernel.is_open(bottle.slot), "neither cuts it any longer");
}

#[test]
fn a_cut_that_is_answered_is_so_again_after_a_freeze_over_or_under_it() {
    let mut bench = Bench::new("");
    let bottle = bench.attach("b1");
    let cut = |bench: &Bench| {
        let order = api::Cut { face: Some(Face::Answered), ..api::Cut::default() };
        let (name, by, received) = ("b1".into(), "uid:0".into(), Instant::now());
        bench.ask(|reply| Message::Cut { name, order, by, received, reply }).unwrap();
    };
    for cut_first in [true, false] {
        if cut_first {
            cut(&bench);
        }
        bench.freeze("b1").unwrap();
        if !cut_first {
            cut(&bench);
        }
        assert_eq!(bench.kernel.face(bottle.slot), Some(Face::Silent));
        let pinned = Pinned { cut: Some(Face::Silent), ..pinned(&bench.view("b1").attachment, true) };
        bench = bench.restart("", vec![pinned]);
        let again = bench.held();
        bench.acted(again, Ok(String::new()));
        bench.thaw("b1").unwrap();
        assert_eq!(bench.kernel.face(bottle.slot), Some(Face::Answered));
        bench.restore("b1", &[], false).unwrap();
        assert!(bench.kernel.is_open(bottle.slot));
    }
}

#[test]
fn a_restore_thaws_and_a_detach_leaves_nobody_frozen() {
    let mut bench = Bench::new("");
    let bottle = bench.attach("b1");
    for _ in 0..2 {
        bench.freeze("b1").unwrap();
        let order = api::Restore::default();
        let restore = |reply| Message::Restore { name: "b1".into(), order, by: "uid:7".into(), reply };
        bench.by_order(restore, Act::Thaw, Ok(String::new())).unwrap();
        assert!(bench.kernel.is_open(bottle.slot));
    }
    bench.freeze("b1").unwrap();
    let release = |reply| Message::Release {
        name: "b1".into(),
        force: true,
        keep_cut: false,
        by: "uid:7".into(),
        reply,
    };
    bench.ask(release).unwrap();
    assert_eq!(bench.held().act, Act::Thaw);
}

#[test]
fn killed_is_final() {
    let mut bench = Bench::new("");
    let bottle = bench.attach("b1");
    bench.freeze("b1").unwrap();
    bench.order();
    bench.by_order(kill("b1"), Act::Kill, Ok("9 processes ended, 0 survivors".into())).unwrap();
    assert_eq!(bench.order(), ToMeter::Cut { bottle, upstream: Upstream::Close });
    assert_eq!(bench.aborts.recv_timeout(SOON).unwrap().which, Which::All);
    assert_eq!(bench.view("b1").processes, Processes::Killed);
    assert_eq!(
        bench.awaited_rows("kill", 1).pop().unwrap().detail.unwrap(),
        "9 processes ended, 0 survivors"
    );
    for problem in
        [bench.restore("b1", &[], true).unwrap_err(), bench.refused(thaw("b1")), bench.refused(freeze("b1"))]
    {
        assert_eq!(problem.exit_code, 4);
        assert!(problem.error.starts_with("b1 was killed, which is final"), "{problem:?}");
    }
    assert!(!bench.kernel.is_open(bottle.slot));
    bench.by_order(kill("b1"), Act::Kill, Ok(String::new())).unwrap();
}

#[test]
fn a_crossed_budget_does_what_the_bottle_s_policy_says() {
    let yaml = "budget: { claude: 100 }\nshutdown: freeze\nhooks: { cut: [/bin/h, \"{provider}\"] }\n\
                bottles: { k: { shutdown: kill }, c: { shutdown: cutoff } }";
    let mut bench = Bench::new(yaml);
    let frozen = bench.attach_with("f", Policy::Freeze);
    let killed = bench.attach_with("k", Policy::Kill);
    let cut = bench.attach_with("c", Policy::Cutoff);
    bench.use_up(1, frozen, 100);
    let mut acts = [bench.held(), bench.held()];
    bench.nothing_held();
    acts.sort_by(|a, b| a.bottle.cmp(&b.bottle));
    assert_eq!(acts[0].act, Act::Freeze { snapshot: None });
    assert_eq!((acts[1].bottle.as_str(), &acts[1].act), ("k", &Act::Kill));
    let faces = [frozen, killed, cut].map(|bottle| bench.kernel.face(bottle.slot));
    assert_eq!(faces, [Some(Face::Silent), Some(Face::Silent), Some(Face::Answered)]);
    let orders: Vec<ToMeter> = (0..3).map(|_| bench.order()).collect();
    assert!(orders.contains(&ToMeter::Cut { bottle: frozen, upstream: Upstream::Close }), "{orders:?}");
    let call = bench.called().unwrap();
    assert_eq!((call.occasion, call.about.provider.as_str()), (Occasion::Cut, "claude"));

    // whoever comes to a budget that is used up is cut, and may still be told why
    let late = bench.attach_with("late", Policy::Kill);
    bench.nothing_held();
    assert_eq!(bench.kernel.face(late.slot), Some(Face::Answered));
}

#[test]
fn processes_are_ended_only_after_their_snapshot() {
    let mut bench = Bench::new(SNAPSHOT);
    bench.attach("b1");
    let snapshot = Some(Snapshot::Program(vec!["/bin/snap".to_owned(), "b1".to_owned()]));
    let taken = |number, result| {
        Message::Snapshotted(Snapshotted {
            attachment: 1,
            bottle: "b1".into(),
            number,
            by: "uid:7".into(),
            result,
            took: Duration::ZERO,
        })
    };
    let act = Act::Freeze { snapshot };
    bench.by_order(freeze("b1"), act.clone(), Ok(String::new())).unwrap();
    bench.core.tell(taken(1, Err("no room".into())));
    bench.nothing_held();
    assert_eq!(bench.awaited_rows("snapshot", 1).pop().unwrap().outcome, "failed");
    assert_eq!(bench.view("b1").processes, Processes::Frozen);

    bench.by_order(freeze("b1"), act.clone(), Ok(String::new())).unwrap();
    bench.core.tell(taken(2, Ok("image 7".into())));
    let end = bench.held();
    assert_eq!(end.act, Act::End);
    bench.acted(end, Ok("2 processes ended".into()));
    assert_eq!(bench.view("b1").processes, Processes::Frozen);

    // one that ends after a thaw was ordered ends nobody
    bench.by_order(freeze("b1"), act, Ok(String::new())).unwrap();
    bench.thaw("b1").unwrap();
    bench.core.tell(taken(4, Ok("image 8".into())));
    bench.nothing_held();
    let row = bench.awaited_rows("snapshot", 4).pop().unwrap();
    assert!(row.detail.unwrap().contains("something else was ordered meanwhile"));
}

#[test]
fn a_new_controller_freezes_and_kills_again_what_was() {
    let mut bench = Bench::new(SNAPSHOT);
    bench.attach("b1");
    bench.attach("b2");
    let with_snapshot =
        Act::Freeze { snapshot: Some(Snapshot::Program(vec!["/bin/snap".into(), "b1".into()])) };
    bench.by_order(freeze("b1"), with_snapshot, Ok(String::new())).unwrap();
    // the kill was ordered and recorded, and never done
    let (reply, _answer) = oneshot::channel();
    bench.core.tell(kill("b2")(reply));
    bench.held();
    bench.awaited_rows("cut", 2);
    let pinned = ["b1", "b2"].map(|name| pinned(&bench.view(name).attachment, true)).to_vec();
    let mut bench = bench.restart(SNAPSHOT, pinned);
    let mut orders = [bench.held(), bench.held()];
    orders.sort_by(|a, b| a.bottle.cmp(&b.bottle));
    assert_eq!(orders[0].act, Act::Freeze { snapshot: None });
    assert_eq!((orders[1].bottle.as_str(), &orders[1].act), ("b2", &Act::Kill));
    assert_eq!(bench.view("b1").processes, Processes::Frozen);
    assert_eq!(bench.restore("b2", &[], true).unwrap_err().exit_code, 4);
}

#[test]
fn what_was_crossed_while_nobody_looked_is_acted_upon_and_what_an_operator_opened_is_cut_alone() {
    let yaml = "budget: { claude: 100 }";
    let bench = Bench::new(yaml);
    let bottle = bench.attach_with("b1", Policy::Freeze);
    bench.reserve(1, bottle, 150);
    assert_eq!(bench.order(), ToMeter::Permit { exchange: 1 });
    let held = pinned(&bench.view("b1").attachment, false);
    // the exchange is lost with its meter and its controller: its estimate crosses
    let mut bench = bench.restart(yaml, vec![held.clone()]);
    let order = bench.held();
    assert_eq!((&order.act, order.again), (&Act::Freeze { snapshot: None }, false));
    assert_eq!(bench.kernel.face(bottle.slot), Some(Face::Silent));

    bench.acted(order, Ok(String::new()));
    let order = api::Restore { force: true, ..api::Restore::default() };
    let restore = |reply| Message::Restore { name: "b1".into(), order, by: "uid:7".into(), reply };
    bench.by_order(restore, Act::Thaw, Ok(String::new())).unwrap();
    let mut bench = bench.restart(yaml, vec![held]);
    bench.nothing_held();
    assert_eq!(bench.kernel.face(bottle.slot), Some(Face::Answered));
    assert_eq!(bench.view("b1").processes, Processes::Running);
}

#[test]
fn nobody_is_held_before_the_attach_is_whole_or_after_the_detach() {
    let mut bench = Bench::new("budget: { claude: 100 }");
    let spender = bench.attach("s");
    bench.attach_with("left", Policy::Freeze);
    bench.release("left", false, false).unwrap();
    bench.order();
    let coming = bench.admit_as("coming", "/sys/fs/cgroup/coming", &[], Policy::Freeze);
    bench.use_up(1, spender, 100);
    // a failed attach would leave one frozen whom no command can thaw, and so would the detach
    bench.nothing_held();
    assert!(!bench.kernel.is_open(coming.slot));
    bench.guarded(coming.id);
    let order = bench.held();
    assert_eq!((order.bottle.as_str(), order.act), ("coming", Act::Freeze { snapshot: None }));
    bench.nothing_held();
}

#[test]
fn the_hooks_stay_on_until_the_detach_is_written_however_often_it_is_ordered() {
    let bench = Bench::new("");
    bench.attach("b1");
    bench.silent.store(true, Ordering::SeqCst);
    let release = || {
        let (reply, answer) = oneshot::channel();
        let (name, by) = ("b1".into(), "uid:0".into());
        bench.core.tell(Message::Release { name, force: false, keep_cut: false, by, reply });
        answer
    };
    let (first, second) = (release(), release());
    assert_eq!(second.blocking_recv().unwrap().unwrap_err().error, "b1 is being detached");
    bench.silent.store(false, Ordering::SeqCst);
    first.blocking_recv().unwrap().unwrap();
    release().blocking_recv().unwrap().unwrap();
}
