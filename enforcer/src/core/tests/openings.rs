//! Orders that end the same verdict at once, while the disk is slow: none leaves a bottle cut without need, and none
//! opens what a later order closed.
use proptest::prelude::*;

use super::budgets::{order, set};
use super::processes::{freeze, kill, thaw};
use super::*;
use crate::audit::Processes;
use crate::policy::Act;

/// What its budget holds, tokens.
const LIMIT: u64 = 100;
/// Exchanges that are let in before anything is cut, so that they can use something later.
const UNDER_WAY: u64 = 8;
/// Commits after which nothing that was begun is still going on: more than one order can need, each with those that it
/// meets.
const ROUNDS: u64 = 8;

type Answer = oneshot::Receiver<Result<(), Problem>>;

#[derive(Clone, Copy, Debug)]
enum Step {
    Freeze,
    Thaw,
    Kill,
    Cut,
    Restore {
        add: u64,
        force: bool,
    },
    Add(u64),
    Set(u64),
    /// An exchange that was under way has used so many tokens.
    Use(u64),
    /// From now on nothing becomes durable,
    Hold,
    /// but for one commit,
    One,
    /// and from now on everything.
    Release,
    /// From now on nothing can be written, until the release.
    Refuse,
}

/// One bottle, its orders, and what was done to its processes.
struct Race {
    bench: Bench,
    bottle: BottleRef,
    used: u64,
    answers: Vec<Answer>,
    stands_still: bool,
}

impl Race {
    fn new(policy: Policy) -> Self {
        let bench = Bench::new(&format!("budget: {{ claude: {LIMIT} }}"));
        let bottle = bench.attach_with("b1", policy);
        for exchange in 1..=UNDER_WAY {
            bench.reserve(exchange, bottle, 1);
            assert_eq!(bench.order(), ToMeter::Permit { exchange });
        }
        Self { bench, bottle, used: 0, answers: Vec::new(), stands_still: false }
    }

    /// A race that begins after these steps, each of them done.
    fn after(policy: Policy, steps: &[Step]) -> Self {
        let mut race = Self::new(policy);
        for step in steps {
            race.step(*step);
            race.come_to_rest();
        }
        race.answers.clear();
        race
    }

    /// Gives the orders while nothing becomes durable, lets everything, and tells how each was answered.
    fn at_once(&mut self, steps: &[Step]) -> Vec<Result<(), Problem>> {
        self.step(Step::Hold);
        steps.iter().for_each(|step| self.step(*step));
        self.step(Step::Release);
        self.come_to_rest()
    }

    fn step(&mut self, step: Step) {
        let by = || "uid:7".to_owned();
        let received = Instant::now();
        match step {
            Step::Freeze => self.say(freeze("b1")),
            Step::Thaw => self.say(thaw("b1")),
            Step::Kill => self.say(kill("b1")),
            Step::Cut => {
                let (name, order) = ("b1".into(), api::Cut::default());
                self.say(|reply| Message::Cut { name, order, by: by(), received, reply });
            }
            Step::Restore { add, force } => {
                let add = (add > 0).then(|| ("claude".to_owned(), add)).into_iter().collect();
                let (name, order) = ("b1".into(), api::Restore { add, force });
                self.say(|reply| Message::Restore { name, order, by: by(), reply });
            }
            Step::Add(tokens) => self.state(BudgetVerb::Add(tokens)),
            Step::Set(tokens) => self.state(set(tokens)),
            Step::Use(tokens) => {
                self.used += 1;
                self.bench.settle(self.used, tokens);
            }
            Step::Hold => self.bench.silent.store(true, Ordering::SeqCst),
            Step::One => self.bench.step.store(true, Ordering::SeqCst),
            Step::Release => {
                self.bench.silent.store(false, Ordering::SeqCst);
                self.bench.step.store(false, Ordering::SeqCst);
                self.bench.refusing.store(false, Ordering::SeqCst);
            }
            Step::Refuse => self.bench.refusing.store(true, Ordering::SeqCst),
        }
        self.bench.ask(|reply| Message::UnderWay { reply });
    }

    fn state(&mut self, verb: BudgetVerb) {
        let (order, by, received) = (order("global", verb), "uid:7".into(), Instant::now());
        self.say(|reply| Message::StateBudget { order, by, received, reply });
    }

    fn say(&mut self, message: impl FnOnce(oneshot::Sender<Result<(), Problem>>) -> Message) {
        let (reply, answer) = oneshot::channel();
        self.bench.core.tell(message(reply));
        self.answers.push(answer);
    }

    /// Does what is ordered of processes until nothing goes on any more; every order is answered then.
    fn come_to_rest(&mut self) -> Vec<Result<(), Problem>> {
        let until = Instant::now() + SOON;
        // what is owed is paid, and the next that is written says that the ledger answers again
        while self.bench.budget("agent:nobody", set(0)).is_err()
            || self.bench.ask(|reply| Message::View { reply }).1.is_some()
        {
            assert!(Instant::now() < until, "what is owed is never paid");
            std::thread::sleep(Duration::from_millis(5));
        }
        for round in 1..=ROUNDS {
            self.bench.budget("agent:nobody", set(round)).unwrap();
            while let Some(order) = self.bench.held.given() {
                self.stands_still = matches!(order.act, Act::Freeze { .. });
                self.bench.acted(order, Ok(String::new()));
            }
        }
        let answers = self.answers.drain(..);
        answers.map(|mut answer| answer.try_recv().expect("every order is answered")).collect()
    }

    /// Kernel, ledger and processes are as the core says.
    fn assert_same(&self) {
        let view = self.bench.view("b1");
        let cause = view.cause.clone();
        assert_eq!(self.bench.kernel.is_open(self.bottle.slot), cause.is_none(), "{cause:?}");
        assert_eq!(self.stands_still, view.processes == Processes::Frozen, "{cause:?}");
        assert_eq!(self.bench.written(), [cause], "what the ledger says, and the core");
    }

    /// So they are, and no budget cuts that has room.
    fn assert_sound(&self) {
        self.assert_same();
        let view = self.bench.view("b1");
        let cause = view.cause;
        if cause.as_ref().is_some_and(Cause::is_budget_s) {
            let budget = &view.budget["claude"];
            assert!(budget.used >= budget.limit, "it has room, and cuts: {budget:?}, {cause:?}");
        }
    }

    fn is_open(&self) -> bool {
        self.assert_sound();
        self.bench.kernel.is_open(self.bottle.slot)
    }
}

impl Drop for Race {
    fn drop(&mut self) {
        // many are run in one process
        self.bench.core.tell(Message::Stop);
    }
}

const USED_UP: Step = Step::Use(LIMIT);
const MORE: Step = Step::Add(50);
const RESTORE: Step = Step::Restore { add: 50, force: false };

#[test]
fn a_thaw_and_more_tokens_at_once_open_whichever_is_durable_first() {
    let forced = Step::Restore { add: 0, force: true };
    for (policy, before) in [
        (Policy::Cutoff, [USED_UP, Step::Freeze].as_slice()),
        (Policy::Freeze, &[USED_UP, Step::Freeze]),
        (Policy::Freeze, &[USED_UP]),
        // the freeze alone holds it: the thaw finds a budget that is used up, and that has room when it is durable
        (Policy::Cutoff, &[USED_UP, forced, Step::Freeze]),
    ] {
        for at_once in [[MORE, Step::Thaw], [Step::Thaw, MORE]] {
            let mut race = Race::after(policy, before);
            let answers = race.at_once(&at_once);
            assert!(race.is_open(), "{policy:?}, {before:?}, {at_once:?}: {answers:?}");
        }
    }
}

#[test]
fn a_thaw_and_a_restore_at_once_open_whichever_is_durable_first() {
    for policy in [Policy::Cutoff, Policy::Freeze] {
        for at_once in [[RESTORE, Step::Thaw], [Step::Thaw, RESTORE]] {
            let mut race = Race::after(policy, &[USED_UP, Step::Freeze]);
            let answers = race.at_once(&at_once);
            assert!(race.is_open(), "{policy:?}, {at_once:?}: {answers:?}");
            assert!(answers.iter().all(|answer| match answer {
                Ok(()) => true,
                Err(problem) => problem.error == "b1 is not frozen",
            }));
        }
    }
}

#[test]
fn a_freeze_while_tokens_are_added_is_all_that_its_thaw_has_to_end() {
    // before the tokens are durable, and between them and the opening
    for at_once in
        [[MORE, Step::Freeze].as_slice(), &[MORE, Step::One, Step::Freeze], &[RESTORE, Step::Freeze]]
    {
        for policy in [Policy::Cutoff, Policy::Freeze] {
            let mut race = Race::after(policy, &[USED_UP]);
            let answers = race.at_once(at_once);
            assert!(!race.is_open(), "{at_once:?}: {answers:?}");
            let cause = race.bench.view("b1").cause.unwrap();
            assert!(cause.is_freeze(), "{at_once:?}: {cause:?}");
            race.step(Step::Thaw);
            assert_eq!(race.come_to_rest(), [Ok(())]);
            assert!(race.is_open(), "{at_once:?}");
        }
    }
}

#[test]
fn a_thaw_while_the_end_of_a_window_is_written_opens() {
    let yaml = "budget: { claude: { tokens: 100, window: daily } }";
    let mut bench = Bench::new(yaml);
    let bottle = bench.attach("b1");
    bench.spend(1, bottle, LIMIT);
    let (reply, answer) = oneshot::channel();
    bench.core.tell(freeze("b1")(reply));
    let order = bench.held();
    bench.acted(order, Ok(String::new()));
    answer.blocking_recv().unwrap().unwrap();
    let pinned = pinned(&bench.view("b1").attachment, true);
    bench.core.tell(Message::Stop);
    let ledger = rusqlite::Connection::open(bench.dir.path().join("ledger.db")).unwrap();
    assert_eq!(ledger.execute("UPDATE reached SET window_key = '2090-01-01T00'", []).unwrap(), 1);
    drop(ledger);

    // the new controller finds the window ended, and is told to thaw before it has written that
    let bench = Bench::over_disk(yaml, bench.dir, FakeKernel::with_pinned(vec![pinned]), true);
    let mut race = Race { bench, bottle, used: 1, answers: Vec::new(), stands_still: true };
    assert_eq!(race.at_once(&[Step::Thaw]), [Ok(())]);
    assert!(race.is_open());
}

#[test]
fn what_is_used_while_a_restore_adds_more_than_that_does_not_keep_it_closed() {
    let mut race = Race::after(Policy::Cutoff, &[USED_UP]);
    assert_eq!(race.at_once(&[RESTORE, Step::Use(10)]), [Ok(())]);
    assert!(race.is_open());
    assert_eq!(race.bench.stand()[0], "global=110/150");
}

#[test]
fn what_is_used_of_a_budget_that_is_used_up_already_does_not_put_off_a_forced_restore() {
    let mut race = Race::after(Policy::Cutoff, &[USED_UP]);
    race.step(Step::Hold);
    race.step(Step::Restore { add: 0, force: true });
    race.step(Step::Use(1));
    race.step(Step::One);
    let answer = race.answers.remove(0);
    let until = Instant::now() + SOON;
    while !race.bench.kernel.is_open(race.bottle.slot) {
        assert!(Instant::now() < until, "one commit is not enough");
        std::thread::sleep(Duration::from_millis(2));
    }
    assert_eq!(answer.blocking_recv().unwrap(), Ok(()));
    race.step(Step::Release);
    race.come_to_rest();
    assert!(race.bench.kernel.is_open(race.bottle.slot));
}

#[test]
fn what_is_ordered_closed_while_its_opening_is_written_stays_so() {
    for (opening, closing, told) in [
        (RESTORE, Step::Freeze, "b1 stays cut: it was cut again while it was being restored"),
        (RESTORE, Step::Cut, "b1 stays cut: it was cut again while it was being restored"),
        (Step::Thaw, Step::Freeze, "b1 stays cut: it was cut again while it was being thawed"),
        (Step::Thaw, Step::Cut, "b1 stays cut: it was cut again while it was being thawed"),
    ] {
        let mut race = Race::after(Policy::Cutoff, &[USED_UP, Step::Freeze]);
        let answers = race.at_once(&[opening, closing]);
        assert!(!race.is_open(), "{opening:?}, {closing:?}");
        let Err(problem) = &answers[0] else { panic!("{answers:?}") };
        assert_eq!((problem.error.as_str(), problem.exit_code), (told, 4));
        assert_eq!(answers[1], Ok(()));
    }
    // a budget that is used up meanwhile is news to who forced it open without knowing
    let mut race = Race::after(Policy::Cutoff, &[Step::Cut]);
    let answers = race.at_once(&[Step::Restore { add: 0, force: true }, USED_UP]);
    assert!(!race.is_open());
    assert_eq!(answers[0].as_ref().unwrap_err().exit_code, 4);
}

#[test]
fn what_is_owed_of_a_verdict_takes_back_no_later_one() {
    for later in [Step::Cut, USED_UP] {
        let mut race = Race::new(Policy::Cutoff);
        race.step(Step::Refuse);
        race.step(Step::Freeze);
        while race.bench.ask(|reply| Message::View { reply }).1.is_none() {
            std::thread::sleep(Duration::from_millis(1));
        }
        // the freeze is owed, and about to be tried again
        race.step(Step::Hold);
        race.bench.refusing.store(false, Ordering::SeqCst);
        race.step(later);
        race.step(Step::Release);
        race.come_to_rest();
        race.assert_same();
    }
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => Just(Step::Freeze),
        3 => Just(Step::Thaw),
        1 => Just(Step::Cut),
        1 => Just(Step::Kill),
        1 => (0..200_u64).prop_map(Step::Set),
        2 => (0..3_u64, any::<bool>()).prop_map(|(some, force)| Step::Restore { add: some * 60, force }),
        3 => (1..120_u64).prop_map(Step::Add),
        2 => (0..120_u64).prop_map(Step::Use),
        3 => Just(Step::Hold),
        3 => Just(Step::One),
        1 => Just(Step::Release),
        1 => Just(Step::Refuse),
    ];
    proptest::collection::vec(step, 1..14).prop_filter("no more than are under way", |steps| {
        steps.iter().filter(|step| matches!(step, Step::Use(_))).count() as u64 <= UNDER_WAY
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn whatever_is_ordered_at_once_ends_sound(steps in steps(), freezes in any::<bool>()) {
        let mut race = Race::new(if freezes { Policy::Freeze } else { Policy::Cutoff });
        for step in &steps {
            race.step(*step);
        }
        race.step(Step::Release);
        race.come_to_rest();
        race.assert_same();
        // what could not be written when it was to open stays closed, and whoever ordered it was told
        if !steps.iter().any(|step| matches!(step, Step::Refuse)) {
            race.assert_sound();
        }
    }
}
