//! The core by its messages: a fake kernel, a real ledger in a temporary file (or one that fails), and the
//! test in the place of the meter and the registry.
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::mpsc::Receiver;

use enforcer_ebpf::LISTENER_HOST;
use meter_proxy::protocol::{BottleRef, Refusal, Reserve, Settle, Upstream};
use meter_proxy::tokens::{Ending, Provenance, Tokens};

mod budgets;

use super::*;
use crate::act::{self, Abort, Which};
use crate::budget::weights::Weights;
use crate::kernel::fake::FakeKernel;
use crate::kernel::{Allowed, AllowedPorts, Face, Pinned};
use crate::ledger::sqlite::SqliteLedger;
use crate::ledger::{FlowRow, Ledger, LedgerError, Reader, Snapshot, UsageQuery};
use crate::settings::{Egress, Policy};
use crate::{hooks, policy};

mod processes;
mod reload;

const SOON: Duration = Duration::from_secs(5);

struct Bench {
    core: CoreHandle,
    kernel: Arc<FakeKernel>,
    orders: Receiver<ToMeter>,
    told: Receiver<ToLane>,
    aborts: Receiver<Abort>,
    held: policy::Orders,
    calls: tokio::sync::mpsc::Receiver<hooks::Call>,
    reader: Box<dyn Reader>,
    refusing: Arc<AtomicBool>,
    silent: Arc<AtomicBool>,
    never: Arc<AtomicI64>,
    dir: tempfile::TempDir,
}

/// A ledger that refuses while it is told to, or does not answer.
struct Moody {
    ledger: SqliteLedger,
    refusing: Arc<AtomicBool>,
    silent: Arc<AtomicBool>,
    /// The exchange whose settlement is refused; 0: none.
    never: Arc<AtomicI64>,
}

impl Ledger for Moody {
    fn load(&mut self) -> Result<Snapshot, LedgerError> {
        self.ledger.load()
    }

    fn commit(&mut self, entries: &[Entry]) -> Result<(), LedgerError> {
        while self.silent.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(5));
        }
        let never = self.never.load(Ordering::SeqCst);
        let refused = |entry: &Entry| matches!(entry, Entry::Settle(settlement) if settlement.id == never);
        if self.refusing.load(Ordering::SeqCst) || entries.iter().any(refused) {
            return Err(LedgerError::Database { path: "test".into(), what: "disk full".into() });
        }
        self.ledger.commit(entries)
    }

    fn reader(&self) -> Result<Box<dyn Reader>, LedgerError> {
        self.ledger.reader()
    }
}

fn listener() -> Listener {
    let lane = LaneAddress { ip4: "127.0.0.1:7081".parse().unwrap(), ip6: None };
    Listener { address: meter_address(), beside: None, id: 1, lane: Some(lane) }
}

fn settings(yaml: &str) -> Settings {
    Settings::parse(yaml, std::path::Path::new("settings.yml")).unwrap()
}

impl Bench {
    fn new(yaml: &str) -> Self {
        Self::over(yaml, tempfile::tempdir().unwrap(), FakeKernel::new())
    }

    /// A core that starts on the ledger in this directory and on what this kernel holds.
    fn over(yaml: &str, dir: tempfile::TempDir, kernel: FakeKernel) -> Self {
        let mut ledger = SqliteLedger::open(&dir.path().join("ledger.db")).unwrap();
        let snapshot = ledger.load().unwrap();
        let reader = ledger.reader().unwrap();
        let refusing = Arc::new(AtomicBool::new(false));
        let silent = Arc::new(AtomicBool::new(false));
        let never = Arc::new(AtomicI64::new(0));
        let moody =
            Moody { ledger, refusing: refusing.clone(), silent: silent.clone(), never: never.clone() };
        let (writer, _thread) = Writer::spawn(Box::new(moody));
        let kernel = Arc::new(kernel);
        let (changes, _) = broadcast::channel(16);
        let (actor, aborts) = act::orders();
        let (hand, held) = policy::orders();
        let (hooks, calls) = hooks::calls();
        let parts = Parts {
            settings: Arc::new(settings(yaml)),
            kernel: kernel.clone(),
            writer,
            listener: listener(),
            actor,
            hand,
            hooks,
            changes,
        };
        let (core, _thread) = start(parts, snapshot).unwrap();
        let (link, orders) = channel();
        core.tell(Message::MeterUp { epoch: 1, link });
        let (link, told) = channel();
        core.tell(Message::LaneUp { epoch: 1, link });
        Self { core, kernel, orders, told, aborts, held, calls, reader, refusing, silent, never, dir }
    }

    /// The controller dies and another starts; the kernel holds what it held.
    fn restart(self, yaml: &str, pinned: Vec<Pinned>) -> Self {
        self.restart_with(yaml, pinned, [])
    }

    /// As [`Self::restart`], with what slots may reach.
    fn restart_with(
        self,
        yaml: &str,
        pinned: Vec<Pinned>,
        allowed: impl IntoIterator<Item = (u32, Vec<Allowed>)>,
    ) -> Self {
        self.core.tell(Message::Stop);
        drop(self.core);
        let kernel = FakeKernel::with_pinned(pinned);
        for (slot, allowed) in allowed {
            kernel.set_allowed(slot, &allowed).unwrap();
        }
        Self::over(yaml, self.dir, kernel)
    }

    fn ask<T>(&self, question: impl FnOnce(oneshot::Sender<T>) -> Message) -> T {
        let (reply, answer) = oneshot::channel();
        self.core.tell(question(reply));
        answer.blocking_recv().unwrap()
    }

    fn admit(&self, name: &str, cgroup: &str, launch_budget: &[(&str, u64)]) -> Attachment {
        self.admit_as(name, cgroup, launch_budget, Policy::Cutoff)
    }

    fn admit_as(
        &self,
        name: &str,
        cgroup: &str,
        launch_budget: &[(&str, u64)],
        policy: Policy,
    ) -> Attachment {
        let admission = Admission {
            name: name.into(),
            agent: None,
            parent: None,
            cgroup: cgroup.into(),
            cgroup_id: cgroup.bytes().map(u64::from).sum(),
            owns_cgroup: false,
            container: None,
            policy,
            egress: Egress::Open,
            launch_budget: launch_budget
                .iter()
                .map(|(provider, tokens)| ((*provider).into(), *tokens))
                .collect(),
            mute: name.starts_with("mute"),
        };
        let attachment = self.ask(|reply| Message::Admit { admission, reply }).unwrap();
        self.kernel.attach_id(name, attachment.cgroup_id, attachment.guard(listener()));
        attachment
    }

    fn attach_as(&self, name: &str, cgroup: &str, launch_budget: &[(&str, u64)]) -> BottleRef {
        let attachment = self.admit(name, cgroup, launch_budget);
        self.guarded(attachment.id);
        BottleRef { slot: attachment.slot, generation: attachment.generation }
    }

    fn guarded(&self, attachment: AttachmentId) {
        let by = "uid:0".into();
        self.ask(|reply| Message::Guarded { attachment, by, found: Vec::new(), reply }).unwrap();
    }

    fn release(&self, name: &str, force: bool, keep_cut: bool) -> Result<Attachment, Problem> {
        let (name, by) = (name.into(), "uid:0".into());
        self.ask(|reply| Message::Release { name, force, keep_cut, by, reply })
    }

    fn attach(&self, name: &str) -> BottleRef {
        self.attach_as(name, &format!("/sys/fs/cgroup/{name}"), &[])
    }

    fn say(&self, message: ToController) {
        self.core.tell(Message::Meter { epoch: 1, message, received: Instant::now() });
    }

    fn reserve(&self, exchange: u64, bottle: BottleRef, tokens: u64) {
        self.say(ToController::Reserve(Reserve {
            exchange,
            bottle,
            provider: "claude".into(),
            endpoint: "/v1/messages".into(),
            model: None,
            tokens,
        }));
    }

    fn settle(&self, exchange: u64, output: u64) {
        self.say(ToController::Settle(Settle {
            exchange,
            tokens: Tokens { output, ..Tokens::default() },
            provenance: Provenance::Reported,
            ending: Ending::Completed,
            http_status: Some(200),
            model: Some("m".into()),
            raw: None,
        }));
    }

    /// Charges a bottle with an exchange of so many tokens; whatever else the meter is told is swallowed.
    fn spend(&self, exchange: u64, bottle: BottleRef, tokens: u64) {
        self.reserve(exchange, bottle, 10);
        while self.order() != (ToMeter::Permit { exchange }) {}
        self.settle(exchange, tokens);
        while self.order() != (ToMeter::Settled { exchange }) {}
    }

    fn order(&self) -> ToMeter {
        self.orders.recv_timeout(SOON).expect("an order to the meter")
    }

    fn no_order(&self) {
        self.ask(|reply| Message::UnderWay { reply });
        assert_eq!(self.orders.recv_timeout(Duration::from_millis(30)).ok(), None);
    }

    fn view(&self, name: &str) -> BottleModel {
        let (models, _) = self.ask(|reply| Message::View { reply });
        models.into_iter().find(|model| model.attachment.name == name).unwrap()
    }

    fn flows(&mut self) -> Vec<FlowRow> {
        self.reader.flows(&UsageQuery::default(), &Weights::default()).unwrap()
    }

    fn actions(&mut self) -> Vec<crate::audit::Row> {
        self.reader.audit(0, 1_000).unwrap()
    }

    fn rows(&mut self, action: &str) -> Vec<crate::audit::Row> {
        self.actions().into_iter().filter(|row| row.action == action).collect()
    }

    /// The rows of this action, once there are so many.
    fn awaited_rows(&mut self, action: &str, count: usize) -> Vec<crate::audit::Row> {
        let deadline = Instant::now() + SOON;
        loop {
            let rows = self.rows(action);
            if rows.len() >= count {
                return rows;
            }
            assert!(Instant::now() < deadline, "{count} rows of {action}: {rows:?}");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn cut(&self, name: &str) -> Result<(), Problem> {
        let order = api::Cut { reason: Some("too keen".into()), ..api::Cut::default() };
        let received = Instant::now();
        self.ask(|reply| Message::Cut { name: name.into(), order, by: "uid:7".into(), received, reply })
    }

    fn restore(&self, name: &str, add: &[(&str, u64)], force: bool) -> Result<(), Problem> {
        let add: BTreeMap<String, u64> =
            add.iter().map(|(provider, tokens)| ((*provider).into(), *tokens)).collect();
        let order = api::Restore { add, force };
        self.ask(|reply| Message::Restore { name: name.into(), order, by: "uid:7".into(), reply })
    }
}

fn meter_address() -> SocketAddr {
    "127.0.0.1:7080".parse().unwrap()
}

#[test]
fn a_connection_is_identified_with_where_it_was_going_when_it_was_redirected() {
    let bench = Bench::new("budget: { claude: 1000 }");
    let bottle = bench.attach("b1");
    let peer: SocketAddr = "127.0.0.1:40000".parse().unwrap();
    let local = meter_address();
    let identified = |bench: &Bench, peer| {
        bench.say(ToController::Identify { question: 7, peer, local, listener: 1 });
        match bench.order() {
            ToMeter::Identified { question: 7, identity } => identity,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(identified(&bench, peer), None, "a peer of no bottle");
    let asked = ["203.0.113.7:443", "[2001:db8::7]:443"].map(|asked| asked.parse::<SocketAddr>().unwrap());
    let cases = asked.map(|asked| (asked, Some(asked))).into_iter().chain([(local, None)]);
    for (port, (asked, original)) in (40_001..).zip(cases) {
        let peer = SocketAddr::new(peer.ip(), port);
        bench.kernel.connect(bottle.slot, peer, local, asked);
        let identity = identified(&bench, peer).unwrap();
        assert_eq!((identity.bottle, identity.name.as_str(), identity.original), (bottle, "b1", original));
    }
}

#[test]
fn a_peer_of_no_bottle_is_the_host_at_its_own_listener_alone() {
    let bench = Bench::new("unattached: meter");
    bench.attach("b1");
    let local = meter_address();
    let ask = |cgroup: Option<&str>, listener| {
        let peer =
            SocketAddr::from(([127, 0, 0, 1], 40000 + u16::try_from(cgroup.map_or(0, str::len)).unwrap()));
        if let Some(cgroup) = cgroup {
            bench.kernel.connect_unseen(cgroup.as_ref(), peer, local);
        }
        bench.say(ToController::Identify { question: 7, peer, local, listener });
        match bench.order() {
            ToMeter::Identified { question: 7, identity } => identity.map(|host| host.name),
            other => panic!("{other:?}"),
        }
    };
    let host = Some("host".to_owned());
    assert_eq!(ask(Some("/sys/fs/cgroup"), LISTENER_HOST), host);
    assert_eq!(ask(Some("/sys/fs/cgroup/b10"), LISTENER_HOST), host, "not below b1");
    assert_eq!(ask(Some("/sys/fs/cgroup"), LISTENER_HOST + 1), None);
    for bottle in ["/sys/fs/cgroup/b1", "/sys/fs/cgroup/b1/below"] {
        assert_eq!(
            ask(Some(bottle), LISTENER_HOST),
            None,
            "{bottle}: no hook has seen it, and it is not the host's"
        );
    }
    assert_eq!(ask(None, LISTENER_HOST), None, "whose it is cannot be told");
}

#[test]
fn a_permit_comes_after_its_reservation_is_durable() {
    let mut bench = Bench::new("budget: { claude: 1000 }");
    let bottle = bench.attach("b1");
    bench.reserve(1, bottle, 100);
    assert_eq!(bench.order(), ToMeter::Permit { exchange: 1 });
    let flows = bench.flows();
    assert_eq!((flows[0].status.as_str(), flows[0].reserved), ("open", 100));
    assert_eq!(bench.view("b1").budget["claude"].reserved, 100);

    bench.settle(1, 70);
    assert_eq!(bench.order(), ToMeter::Settled { exchange: 1 });
    let flows = bench.flows();
    assert_eq!((flows[0].status.as_str(), flows[0].usage.total), ("completed", 70));
    let budget = &bench.view("b1").budget["claude"];
    assert_eq!((budget.used, budget.reserved, budget.remaining), (70, 0, 930));
}

#[test]
fn crossing_in_the_middle_of_a_stream_cuts_before_anything_is_written() {
    let mut bench = Bench::new("budget: { claude: 100 }");
    let bottle = bench.attach("b1");
    bench.reserve(1, bottle, 10);
    assert_eq!(bench.order(), ToMeter::Permit { exchange: 1 });
    bench.refusing.store(true, Ordering::SeqCst);
    bench.say(ToController::Progress(vec![(1, Tokens { output: 99, ..Tokens::default() })]));
    bench.no_order();
    assert!(bench.kernel.is_open(bottle.slot));
    bench.say(ToController::Progress(vec![(1, Tokens { output: 100, ..Tokens::default() })]));
    assert_eq!(bench.order(), ToMeter::Cut { bottle, upstream: Upstream::Close });
    assert!(!bench.kernel.is_open(bottle.slot), "cut although the ledger refuses");

    bench.refusing.store(false, Ordering::SeqCst);
    let cause = bench.view("b1").cause.unwrap();
    assert_eq!((cause.scope.as_deref(), cause.limit, cause.used), (Some("global"), Some(100), Some(100)));
    assert_eq!(cause.flow, Some(bench.flows()[0].id));
    let cut = std::iter::repeat_with(|| {
        std::thread::sleep(Duration::from_millis(20));
        bench.actions()
    })
    .take(250)
    .find_map(|rows| rows.into_iter().find(|row| row.action == "cut"))
    .expect("the cut is recorded once the ledger answers again");
    assert!(cut.took_us.is_some());
}

#[test]
fn a_budget_that_is_used_up_refuses_with_its_figures() {
    let bench = Bench::new("budget: { claude: 100 }\nbottles: { b1: { budget: { claude: 50 } } }");
    let bottle = bench.attach("b1");
    bench.reserve(1, bottle, 10);
    bench.order();
    bench.settle(1, 60);
    assert_eq!(bench.order(), ToMeter::Cut { bottle, upstream: Upstream::Close });
    assert_eq!(bench.order(), ToMeter::Settled { exchange: 1 });
    bench.restore("b1", &[], true).unwrap();
    assert_eq!(bench.order(), ToMeter::Open { bottle });
    bench.reserve(2, bottle, 10);
    let ToMeter::Refused { exchange: 2, refusal } = bench.order() else { panic!("not refused") };
    let Refusal::Budget { scope, owner, limit, used, .. } = &refusal else { panic!("{refusal:?}") };
    assert_eq!((scope.as_str(), owner.as_str(), *limit, *used), ("bottle", "b1", 50, 60));
}

#[test]
fn a_request_waits_while_only_reservations_stand_in_its_way() {
    let bench = Bench::new("budget: { claude: 100 }");
    let bottle = bench.attach("b1");
    bench.reserve(1, bottle, 150);
    assert_eq!(bench.order(), ToMeter::Permit { exchange: 1 });
    bench.reserve(2, bottle, 10);
    bench.no_order();
    bench.settle(1, 5);
    let orders = [bench.order(), bench.order()];
    for order in [ToMeter::Settled { exchange: 1 }, ToMeter::Permit { exchange: 2 }] {
        assert!(orders.contains(&order), "{orders:?}");
    }
}

#[test]
fn a_cut_answers_the_bottle_s_own_requests_at_the_gate() {
    let bench = Bench::new("budget: { claude: 100 }");
    let (one, two) = (bench.attach("one"), bench.attach("two"));
    bench.reserve(1, two, 150);
    bench.order();
    bench.reserve(2, one, 10);
    bench.reserve(3, two, 10);
    bench.no_order();
    bench.cut("one").unwrap();
    let orders = [bench.order(), bench.order()];
    assert!(orders.contains(&ToMeter::Cut { bottle: one, upstream: Upstream::Hold }), "{orders:?}");
    let refused =
        |order: &ToMeter| matches!(order, ToMeter::Refused { exchange: 2, refusal: Refusal::Cut { .. } });
    assert!(orders.iter().any(refused), "{orders:?}");
    bench.no_order();
    bench.settle(1, 5);
    let orders = [bench.order(), bench.order()];
    assert!(orders.contains(&ToMeter::Permit { exchange: 3 }), "{orders:?}");
}

#[test]
fn who_hangs_up_at_the_gate_is_forgotten() {
    let bench = Bench::new("budget: { claude: 100 }");
    let bottle = bench.attach("b1");
    bench.reserve(1, bottle, 150);
    bench.order();
    bench.reserve(2, bottle, 10);
    bench.say(ToController::Withdraw { exchange: 2 });
    bench.settle(1, 5);
    assert_eq!(bench.order(), ToMeter::Settled { exchange: 1 });
    bench.no_order();
    assert_eq!(bench.ask(|reply| Message::UnderWay { reply }), 0);
}

#[test]
fn the_global_budget_cuts_whom_it_governs_and_nobody_else() {
    let bench = Bench::new("budget: { claude: 100 }\nbottles: { own: { budget: { claude: 500 } } }");
    let (one, two, own) = (bench.attach("one"), bench.attach("two"), bench.attach("own"));
    bench.reserve(1, one, 10);
    bench.order();
    bench.settle(1, 100);
    let cuts = [bench.order(), bench.order()];
    for bottle in [one, two] {
        assert!(cuts.contains(&ToMeter::Cut { bottle, upstream: Upstream::Close }), "{cuts:?}");
        assert!(!bench.kernel.is_open(bottle.slot));
    }
    assert!(bench.kernel.is_open(own.slot));
    bench.attach_as("late", "/sys/fs/cgroup/late", &[]);
    assert!(bench.view("late").cause.is_some(), "attached under a used-up budget: cut from the start");
}

#[test]
fn a_launch_budget_overrides_and_a_nested_bottle_charges_its_parent() {
    let bench = Bench::new("bottles: { outer: { budget: { claude: 100 } } }");
    let outer = bench.attach("outer");
    let inner = bench.attach_as("inner", "/sys/fs/cgroup/outer/inner", &[("claude", 1_000)]);
    assert_eq!(bench.view("inner").attachment.parent.as_deref(), Some("outer"));
    bench.reserve(1, inner, 10);
    bench.order();
    bench.settle(1, 100);
    let orders = [bench.order(), bench.order()];
    for bottle in [outer, inner] {
        assert!(orders.contains(&ToMeter::Cut { bottle, upstream: Upstream::Close }), "{orders:?}");
    }
    assert!(bench.kernel.is_open(inner.slot), "its own budget has 900 left");
    assert_eq!(bench.view("inner").budget["claude"].scope, "launch");
    assert_eq!(bench.order(), ToMeter::Settled { exchange: 1 });
    bench.reserve(2, inner, 10);
    assert!(
        matches!(bench.order(), ToMeter::Refused { refusal: Refusal::Cut { .. }, .. }),
        "the outer cut holds"
    );
    bench.restore("outer", &[("claude", 1_000)], false).unwrap();
    let orders = [bench.order(), bench.order()];
    for bottle in [outer, inner] {
        assert!(orders.contains(&ToMeter::Open { bottle }), "{orders:?}");
    }
}

#[test]
fn restore_opens_what_the_tokens_cover_and_keeps_debt() {
    let mut bench = Bench::new("budget: { claude: 100 }");
    let bottle = bench.attach("b1");
    bench.reserve(1, bottle, 10);
    bench.order();
    bench.settle(1, 150);
    bench.order();
    bench.order();
    let problem = bench.restore("b1", &[], false).unwrap_err();
    assert_eq!(problem.exit_code, 4);
    assert!(bench.restore("b1", &[("claude", 50)], false).is_err(), "50 only cover the debt");
    bench.restore("b1", &[("claude", 51)], false).unwrap();
    assert!(bench.kernel.is_open(bottle.slot));
    assert_eq!(bench.view("b1").budget["claude"].remaining, 1);
    let restored = bench.actions().into_iter().rfind(|row| row.action == "restore").unwrap();
    assert_eq!((restored.by.as_str(), restored.outcome.as_str()), ("uid:7", "done"));
}

#[test]
fn restore_is_written_before_anything_opens() {
    let bench = Bench::new("");
    let bottle = bench.attach("b1");
    bench.cut("b1").unwrap();
    assert_eq!(bench.order(), ToMeter::Cut { bottle, upstream: Upstream::Hold });
    bench.refusing.store(true, Ordering::SeqCst);
    assert!(bench.restore("b1", &[], false).is_err());
    assert!(!bench.kernel.is_open(bottle.slot));
    assert!(bench.view("b1").cause.is_some());
}

#[test]
fn requests_are_refused_while_the_ledger_refuses_and_granted_after() {
    let bench = Bench::new("");
    let bottle = bench.attach("b1");
    bench.reserve(1, bottle, 10);
    bench.order();
    bench.refusing.store(true, Ordering::SeqCst);
    bench.settle(1, 10);
    bench.reserve(2, bottle, 10);
    let ToMeter::Refused { exchange: 2, refusal: Refusal::Closed { reason } } = bench.order() else {
        panic!("granted without a ledger, or delivered unsettled")
    };
    assert!(reason.contains("disk full"), "{reason}");
    bench.refusing.store(false, Ordering::SeqCst);
    let until = Instant::now() + SOON;
    while bench.ask(|reply| Message::View { reply }).1.is_some() {
        assert!(Instant::now() < until, "the owed settlement is never paid");
        std::thread::sleep(Duration::from_millis(20));
    }
    bench.reserve(3, bottle, 10);
    assert_eq!(bench.order(), ToMeter::Permit { exchange: 3 });
}

#[test]
fn what_is_refused_for_ever_keeps_the_gate_closed_and_holds_back_nothing_else() {
    let mut bench = Bench::new("");
    let bottle = bench.attach("b1");
    for exchange in [1, 2] {
        bench.reserve(exchange, bottle, 10);
        assert_eq!(bench.order(), ToMeter::Permit { exchange });
    }
    bench.refusing.store(true, Ordering::SeqCst);
    bench.never.store(1, Ordering::SeqCst);
    bench.settle(1, 10);
    bench.settle(2, 20);
    bench.no_order();
    bench.refusing.store(false, Ordering::SeqCst);
    let wait_for = |bench: &mut Bench, settled: usize| {
        let until = Instant::now() + SOON;
        while bench.flows().iter().filter(|flow| flow.status == "completed").count() < settled {
            assert!(Instant::now() < until, "an owed settlement is never paid");
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    wait_for(&mut bench, 1);
    bench.reserve(3, bottle, 10);
    let refused = bench.order();
    assert!(
        matches!(refused, ToMeter::Refused { exchange: 3, refusal: Refusal::Closed { .. } }),
        "{refused:?}"
    );
    bench.never.store(0, Ordering::SeqCst);
    wait_for(&mut bench, 2);
    while bench.ask(|reply| Message::View { reply }).1.is_some() {
        std::thread::sleep(Duration::from_millis(5));
    }
    bench.reserve(4, bottle, 10);
    assert_eq!(bench.order(), ToMeter::Permit { exchange: 4 });
}

#[test]
fn what_was_under_way_when_the_meter_died_is_charged_at_its_reservation() {
    let mut bench = Bench::new("budget: { claude: 1000 }");
    let bottle = bench.attach("b1");
    bench.reserve(1, bottle, 300);
    bench.order();
    bench.say(ToController::Progress(vec![(1, Tokens { input: 40, output: 20, ..Tokens::default() })]));
    bench.core.tell(Message::MeterLost { epoch: 1 });
    assert_eq!(bench.view("b1").budget["claude"].used, 300);
    assert_eq!(bench.view("b1").usage["claude"].estimated, 300);
    let until = Instant::now() + SOON;
    while bench.flows()[0].status == "open" {
        assert!(Instant::now() < until, "the orphan is never settled");
        std::thread::sleep(Duration::from_millis(10));
    }
    let flow = bench.flows().remove(0);
    assert_eq!((flow.status.as_str(), flow.provenance.as_deref()), ("orphaned", Some("estimated")));
    assert_eq!((flow.usage.input, flow.usage.output), (40, 260));
}

#[test]
fn a_stale_generation_is_nobody() {
    let bench = Bench::new("");
    let bottle = bench.attach("b1");
    bench.reserve(1, BottleRef { generation: bottle.generation + 1, ..bottle }, 10);
    assert_eq!(bench.order(), ToMeter::Refused { exchange: 1, refusal: Refusal::Unattached });
}

#[test]
fn a_cut_bottle_is_let_go_only_by_force() {
    let bench = Bench::new("");
    let bottle = bench.attach("b1");
    bench.cut("b1").unwrap();
    bench.order();
    assert_eq!(bench.release("b1", false, false).unwrap_err().exit_code, 4);
    let attachment = bench.release("b1", true, false).unwrap();
    assert_eq!(bench.order(), ToMeter::Detached { bottle });
    assert!(!bench.kernel.is_open(bottle.slot), "closed until the hooks are off");
    bench.core.tell(Message::Forget { attachment: attachment.id });
    let again = bench.attach("b1");
    assert!(bench.kernel.is_open(again.slot), "whoever forces it means it");
}

#[test]
fn a_kept_cut_goes_over_to_the_next_attachment_until_it_is_restored() {
    let mut bench = Bench::new("");
    bench.attach("b1");
    bench.cut("b1").unwrap();
    let attachment = bench.release("b1", true, true).unwrap();
    bench.core.tell(Message::Forget { attachment: attachment.id });
    // the first try ends before it is guarded, and loses nothing
    let tried = bench.admit("b1", "/sys/fs/cgroup/b1", &[]);
    bench.core.tell(Message::Forget { attachment: tried.id });
    let again = bench.attach("b1");
    assert!(!bench.kernel.is_open(again.slot));
    assert_eq!(bench.view("b1").cause.unwrap().by, "uid:7");
    bench.restore("b1", &[], false).unwrap();
    assert!(bench.kernel.is_open(again.slot));
    let attachment = bench.release("b1", false, true).unwrap();
    bench.core.tell(Message::Forget { attachment: attachment.id });
    let last = bench.attach("b1");
    assert!(bench.kernel.is_open(last.slot), "there was no cut to keep");
    assert_eq!(bench.actions().iter().filter(|row| row.action == "cut").count(), 2, "the kept one too");
}

#[test]
fn a_cut_whose_cgroup_went_while_nobody_looked_is_kept_for_what_the_settings_attach_again() {
    let yaml = "bottles: { kept: { cgroup: /sys/fs/cgroup/kept }, lost: {} }";
    let bench = Bench::new(yaml);
    bench.attach("kept");
    bench.attach("lost");
    bench.cut("kept").unwrap();
    bench.cut("lost").unwrap();
    let gone =
        ["kept", "lost"].map(|name| Pinned { cgroup_id: 0, ..pinned(&bench.view(name).attachment, true) });
    let bench = bench.restart(yaml, gone.to_vec());
    // and once more before its cgroup is back
    let bench = bench.restart(yaml, vec![]);
    let [kept, lost] = ["kept", "lost"].map(|name| bench.attach(name));
    assert!(!bench.kernel.is_open(kept.slot));
    assert!(bench.kernel.is_open(lost.slot));
}

#[test]
fn a_cut_that_comes_while_a_bottle_is_being_attached_holds() {
    let mut bench = Bench::new("");
    let attachment = bench.admit("b1", "/sys/fs/cgroup/b1", &[]);
    bench.cut("b1").unwrap();
    bench.guarded(attachment.id);
    assert!(!bench.kernel.is_open(attachment.slot));
    assert!(bench.view("b1").cause.is_some());
    bench.restore("b1", &[], false).unwrap();
    assert!(bench.kernel.is_open(attachment.slot));
    assert!(bench.actions().iter().any(|row| row.action == "cut" && row.by == "uid:7"));
}

#[test]
fn the_gate_off_reserves_nothing_and_still_refuses_what_is_used_up() {
    let bench = Bench::new("gate: off\nbudget: { claude: 100 }");
    let bottle = bench.attach("b1");
    bench.reserve(1, bottle, 5_000);
    assert_eq!(bench.order(), ToMeter::Permit { exchange: 1 });
    assert_eq!(bench.view("b1").budget["claude"].reserved, 0);
    bench.settle(1, 100);
    bench.order();
    bench.order();
    bench.restore("b1", &[], true).unwrap();
    bench.order();
    bench.reserve(2, bottle, 10);
    assert!(matches!(bench.order(), ToMeter::Refused { refusal: Refusal::Budget { .. }, .. }));
}

#[test]
fn no_bottle_is_its_own_ancestor() {
    let bench = Bench::new("bottles: { base: { budget: { claude: 10 } }, reviewer: { extends: base } }");
    let admission = Admission {
        name: "base".into(),
        agent: None,
        parent: Some("reviewer".into()),
        cgroup: "/sys/fs/cgroup/base".into(),
        cgroup_id: 9,
        owns_cgroup: false,
        container: None,
        policy: Policy::Cutoff,
        egress: Egress::Open,
        launch_budget: BTreeMap::new(),
        mute: false,
    };
    let problem = bench.ask(|reply| Message::Admit { admission, reply }).unwrap_err();
    assert_eq!(problem.exit_code, 2);
}

/// What the kernel holds of an attachment, as a new controller finds it.
fn pinned(attachment: &Attachment, cut: bool) -> Pinned {
    Pinned {
        name: attachment.name.clone(),
        slot: attachment.slot,
        generation: attachment.generation,
        cgroup_id: attachment.cgroup_id,
        cut: cut.then_some(Face::Silent),
        mute: false,
    }
}

#[test]
fn a_new_controller_takes_the_more_closed_of_ledger_and_kernel() {
    let bench = Bench::new("");
    let (told, found, open) = (bench.attach("told"), bench.attach("found"), bench.attach("open"));
    bench.cut("told").unwrap();
    let held = ["told", "found", "open"].map(|name| bench.view(name).attachment);
    let bench =
        bench.restart("", vec![pinned(&held[0], false), pinned(&held[1], true), pinned(&held[2], false)]);
    assert!(!bench.kernel.is_open(told.slot), "the ledger says cut");
    assert!(!bench.kernel.is_open(found.slot), "the kernel says cut");
    assert!(bench.kernel.is_open(open.slot));
    assert!(bench.view("told").cause.is_some() && bench.view("found").cause.is_some());
    assert!(bench.view("open").cause.is_none());
}

fn anything_at(range: &str) -> Allowed {
    let ports = AllowedPorts { any: true, ..AllowedPorts::default() };
    Allowed { range: range.parse().unwrap(), ports }
}

#[test]
fn a_guard_that_the_ledger_does_not_know_is_kept_closed() {
    let bench = Bench::new("");
    bench.attach("known");
    let known = bench.view("known").attachment;
    // any cgroup that is there will do: the fake kernel attaches to none
    let somewhere = std::fs::metadata(crate::bottle::cgroup::mount().unwrap()).unwrap().ino();
    let strange = Pinned {
        name: "strange".into(),
        slot: 7,
        generation: 9,
        cgroup_id: somewhere,
        cut: None,
        mute: false,
    };
    let left = [7, known.slot].map(|slot| (slot, vec![anything_at("192.0.2.0/24")]));
    let bench = bench.restart_with("", vec![pinned(&known, false), strange], left.clone());
    assert!(!bench.kernel.is_open(7));
    assert!(bench.kernel.allowed(7).is_empty(), "nor is what an earlier controller let through");
    assert_eq!(bench.kernel.allowed(known.slot), left[1].1, "of others that is not the core's to change");
    let strange = bench.view("strange").attachment;
    assert_eq!(strange.egress, Egress::Metered);
    assert!(bench.kernel.guard(7).unwrap().lockdown);
    assert!(bench.view("strange").cause.unwrap().to_string().contains("not in the ledger"));
    assert!(bench.attach("next").generation > 9, "no generation is given out twice");
}

#[test]
fn a_guard_that_holds_something_else_ends_the_start() {
    let bench = Bench::new("");
    bench.attach("b1");
    let other = Pinned { cgroup_id: 1, ..pinned(&bench.view("b1").attachment, true) };
    let (dir, kernel) = (bench.dir, Arc::new(FakeKernel::with_pinned(vec![other])));
    bench.core.tell(Message::Stop);
    let mut ledger = SqliteLedger::open(&dir.path().join("ledger.db")).unwrap();
    let snapshot = ledger.load().unwrap();
    let (writer, _thread) = Writer::spawn(Box::new(ledger));
    let (changes, _) = broadcast::channel(16);
    let (actor, _aborts) = act::orders();
    let parts = Parts {
        settings: Arc::new(settings("")),
        kernel,
        writer,
        listener: listener(),
        actor,
        hand: policy::orders().0,
        hooks: hooks::calls().0,
        changes,
    };
    assert!(start(parts, snapshot).is_err());
}

#[test]
fn a_ledger_that_does_not_answer_closes_the_gate_until_it_does() {
    let bench = Bench::new("");
    let bottle = bench.attach("b1");
    bench.silent.store(true, Ordering::SeqCst);
    bench.reserve(1, bottle, 10);
    bench.no_order();
    std::thread::sleep(super::durable::PATIENCE);
    bench.reserve(2, bottle, 10);
    let ToMeter::Refused { exchange: 2, refusal: Refusal::Closed { reason } } = bench.order() else {
        panic!("nothing opens on a ledger that is not there");
    };
    assert_eq!(reason, "the ledger has not answered for 5 s");
    let (_, closed) = bench.ask(|reply| Message::View { reply });
    assert!(closed.unwrap().starts_with("the ledger has not answered"));
    assert!(bench.kernel.is_open(bottle.slot), "the network is not the disk's business");

    bench.silent.store(false, Ordering::SeqCst);
    assert_eq!(bench.order(), ToMeter::Permit { exchange: 1 });
    bench.reserve(3, bottle, 10);
    assert_eq!(bench.order(), ToMeter::Permit { exchange: 3 });
}

#[test]
fn the_heart_beats_by_itself_and_each_bottle_has_the_lease() {
    let bench = Bench::new("lease: 3s");
    let bottle = bench.attach("b1");
    assert_eq!(bench.kernel.lease(bottle.slot), Some(Duration::from_secs(3)));
    let before = bench.kernel.beats();
    let until = Instant::now() + SOON;
    while bench.kernel.beats() < before + 3 && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(bench.kernel.beats() >= before + 3, "it beats while nothing happens");
    let without = Bench::new("lease: off");
    assert_eq!(without.kernel.lease(without.attach("b1").slot), None);
}

impl Bench {
    fn cut_as(&self, name: &str, face: Option<Face>, hard: bool) {
        let order = api::Cut { face, hard, ..api::Cut::default() };
        let (by, received) = ("uid:7".into(), Instant::now());
        self.ask(|reply| Message::Cut { name: name.into(), order, by, received, reply }).unwrap();
    }

    /// Uses up what is allowed.
    fn cross(&self, bottle: BottleRef) {
        self.reserve(1, bottle, 10);
        assert_eq!(self.order(), ToMeter::Permit { exchange: 1 });
        self.settle(1, 1_000);
        self.view("b1");
    }

    fn faces(&self, bottle: BottleRef) -> [Option<Face>; 2] {
        [self.view("b1").face, self.kernel.face(bottle.slot)]
    }

    fn aborts(&self) -> Vec<Which> {
        self.aborts.try_iter().map(|abort| abort.which).collect()
    }
}

#[test]
fn a_crossing_shows_the_face_that_is_set_and_closes_upstream_whichever_it_is() {
    for (yaml, face, aborts) in
        [("", Face::Answered, &[Which::Metered][..]), ("cut: silent\n", Face::Silent, &[])]
    {
        let bench = Bench::new(&format!("{yaml}budget: {{ claude: 100 }}"));
        let bottle = bench.attach("b1");
        bench.cross(bottle);
        assert_eq!(bench.faces(bottle), [Some(face); 2]);
        assert_eq!(bench.aborts(), aborts);
        let told: Vec<ToMeter> = bench.orders.try_iter().collect();
        assert!(told.contains(&ToMeter::Cut { bottle, upstream: Upstream::Close }), "{told:?}");
    }
}

#[test]
fn of_two_faces_the_more_closed_stands_and_the_first_cause_with_it() {
    let budget = "budget: { claude: 100 }";
    // silence over an answer
    let bench = Bench::new(budget);
    let bottle = bench.attach("b1");
    bench.cross(bottle);
    bench.cut_as("b1", Some(Face::Answered), false);
    assert_eq!(bench.faces(bottle), [Some(Face::Answered); 2]);
    bench.cut_as("b1", None, false);
    assert_eq!(bench.faces(bottle), [Some(Face::Silent); 2]);
    assert_eq!(bench.told.try_iter().collect::<Vec<_>>(), [ToLane::Opened { bottle }]);
    let cause = bench.view("b1").cause.unwrap();
    assert_eq!((cause.kind, cause.face), (crate::audit::CauseKind::Budget, Face::Silent));

    // an answer never over silence
    let bench = Bench::new(budget);
    let bottle = bench.attach("b1");
    bench.reserve(1, bottle, 10);
    bench.cut_as("b1", None, false);
    bench.settle(1, 1_000);
    bench.cut_as("b1", Some(Face::Answered), false);
    assert_eq!(bench.faces(bottle), [Some(Face::Silent); 2]);
    assert!(bench.aborts().is_empty(), "its connections are held");

    bench.restore("b1", &[("claude", 5_000)], false).unwrap();
    assert_eq!(bench.faces(bottle), [None; 2]);
    bench.cut_as("b1", Some(Face::Answered), false);
    assert_eq!(bench.faces(bottle), [Some(Face::Answered); 2]);
    bench.told.try_iter().for_each(drop);
    bench.restore("b1", &[], false).unwrap();
    assert_eq!(bench.told.try_iter().collect::<Vec<_>>(), [ToLane::Opened { bottle }]);
}

#[test]
fn a_nested_bottle_sees_the_most_closed_of_the_cuts_around_it() {
    let bench = Bench::new("");
    let outer = bench.attach_as("outer", "/sys/fs/cgroup/o", &[]);
    let inner = bench.attach_as("b1", "/sys/fs/cgroup/o/i", &[]);
    bench.cut_as("outer", Some(Face::Answered), false);
    let abort = bench.aborts.recv_timeout(SOON).unwrap();
    let slots = [outer, inner].map(|bottle| (bottle.slot, bottle.generation)).to_vec();
    assert_eq!((abort.slot, abort.slots), (outer.slot, slots));
    assert_eq!(bench.view("b1").face, Some(Face::Answered));
    bench.cut_as("b1", None, true);
    assert_eq!(bench.aborts(), [Which::All]);
    assert_eq!((bench.view("b1").face, bench.view("outer").face), (Some(Face::Silent), Some(Face::Answered)));
}

#[test]
fn no_cut_is_answered_of_who_rules_over_its_network_nor_of_a_bottle_around_it() {
    let mut bench = Bench::new("budget: { claude: 100 }");
    let outer = bench.attach_as("outer", "/sys/fs/cgroup/o", &[]);
    let other = bench.attach("b1");
    bench.cut_as("outer", Some(Face::Answered), false);
    assert_eq!(bench.kernel.face(outer.slot), Some(Face::Answered));
    let mute = bench.attach_as("mute", "/sys/fs/cgroup/o/i", &[]);
    assert_eq!(bench.kernel.face(outer.slot), Some(Face::Silent), "it is in there too");
    assert_eq!(bench.view("outer").cause.unwrap().face, Face::Silent);
    bench.restore("outer", &[], false).unwrap();
    for name in ["outer", "mute"] {
        bench.cut_as(name, Some(Face::Answered), false);
        assert_eq!(bench.view(name).face, Some(Face::Silent));
        bench.restore(name, &[], false).unwrap();
    }
    bench.orders.try_iter().for_each(drop);
    bench.cross(mute);
    for (bottle, face) in [(mute, Face::Silent), (outer, Face::Silent), (other, Face::Answered)] {
        assert_eq!(bench.kernel.face(bottle.slot), Some(face));
    }
    // a cut by a budget waits for nobody's commit
    let told = |bench: &mut Bench| {
        let rows = bench.reader.audit(0, 100).unwrap().into_iter();
        rows.filter(|row| row.detail.as_deref().is_some_and(|detail| detail.contains("rules over"))).count()
    };
    let until = Instant::now() + SOON;
    while told(&mut bench) < 5 && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(told(&mut bench), 5, "each cut that was to be answered says why it is not");

    let held = Pinned { mute: true, ..pinned(&bench.view("mute").attachment, true) };
    let bench = bench.restart("", vec![held]);
    assert_eq!(bench.kernel.guard(mute.slot).map(|guard| guard.mute), Some(true));
    bench.restore("mute", &[], true).unwrap();
    bench.cut_as("mute", Some(Face::Answered), false);
    assert_eq!(bench.kernel.face(mute.slot), Some(Face::Silent), "a new controller knows");
}

#[test]
fn the_face_is_kept_by_the_ledger_and_the_more_closed_one_by_the_kernel() {
    for (in_kernel, face) in
        [(Some(Face::Answered), Face::Answered), (Some(Face::Silent), Face::Silent), (None, Face::Answered)]
    {
        let bench = Bench::new("");
        bench.attach("b1");
        bench.cut_as("b1", Some(Face::Answered), false);
        let held = Pinned { cut: in_kernel, ..pinned(&bench.view("b1").attachment, true) };
        let slot = held.slot;
        let bench = bench.restart("", vec![held]);
        assert_eq!((bench.view("b1").face, bench.kernel.face(slot)), (Some(face), Some(face)));
    }
}

#[test]
fn the_lane_is_told_why_of_an_answered_cut_alone() {
    let bench = Bench::new("budget: { claude: 100 }");
    let bottle = bench.attach("b1");
    let (peer, local) = ("127.0.0.1:40000".parse().unwrap(), "127.0.0.1:7081".parse().unwrap());
    let asked: SocketAddr = "203.0.113.7:443".parse().unwrap();
    bench.kernel.connect(bottle.slot, peer, local, asked);
    let because = |epoch, peer| {
        bench.told.try_iter().for_each(drop);
        let why = Why { question: 3, peer, local, listener: LISTENER_HOST };
        bench.core.tell(Message::Why { epoch, why });
        bench.view("b1");
        bench.told.try_iter().next()
    };
    let nothing = Some(ToLane::Because { question: 3, answer: None });
    assert_eq!(because(1, peer), nothing, "it is open");
    bench.cross(bottle);
    let Some(ToLane::Because { question: 3, answer: Some(answer) }) = because(1, peer) else {
        panic!("it is cut, and answered")
    };
    assert_eq!((answer.bottle, answer.name.as_str(), answer.original), (bottle, "b1", Some(asked)));
    let Refusal::Budget { provider, scope, limit, used, .. } = answer.refusal else { panic!("{answer:?}") };
    assert_eq!((provider.as_str(), scope.as_str(), limit, used), ("claude", "global", 100, 1_000));
    assert_eq!(because(1, "127.0.0.1:40001".parse().unwrap()), nothing, "nobody's");
    assert_eq!(because(2, peer), None, "an earlier lane's question");
    bench.cut_as("b1", None, false);
    assert_eq!(because(1, peer), nothing, "it is cut silently");
}

#[test]
fn a_socket_is_judged_as_a_request_would_be_and_nothing_is_reserved() {
    let mut bench = Bench::new("budget: { claude: 100 }");
    let bottle = bench.attach("b1");
    let judged = |bottle| {
        bench.say(ToController::Judge { question: 9, bottle, provider: "claude".into() });
        match bench.order() {
            ToMeter::Judged { question: 9, refusal } => refusal,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(judged(bottle), None);
    bench.reserve(1, bottle, 100);
    assert_eq!(bench.order(), ToMeter::Permit { exchange: 1 });
    assert_eq!(judged(bottle), None, "what others have reserved may come back");
    let stale = BottleRef { generation: bottle.generation + 1, ..bottle };
    assert_eq!(judged(stale), Some(Refusal::Unattached));
    bench.settle(1, 120);
    let told = [bench.order(), bench.order()];
    assert!(told.iter().any(|order| matches!(order, ToMeter::Cut { .. })), "{told:?}");
    assert!(matches!(judged(bottle), Some(Refusal::Cut { .. })));
    bench.restore("b1", &[], true).unwrap();
    assert!(matches!(bench.order(), ToMeter::Open { .. }));
    assert!(
        matches!(judged(bottle), Some(Refusal::Budget { limit: 100, used: 120, .. })),
        "open, and refused"
    );
    let told = bench.awaited_rows("refuse", 1);
    assert_eq!(told.len(), 1, "one row for all in this span: {told:?}");
    assert_eq!(bench.flows().len(), 1);
}

#[test]
fn what_the_host_has_under_way_is_stopped_where_its_budget_is_used_up() {
    let mut bench = Bench::new("unattached: meter\nbudget: { claude: 100 }");
    let other = bench.attach_as("b1", "/sys/fs/cgroup/b1", &[("claude", 1_000)]);
    let host = BottleRef { slot: HOST_SLOT, generation: 0 };
    for (exchange, bottle) in [(1, host), (2, host), (3, other)] {
        bench.reserve(exchange, bottle, 0);
        assert_eq!(bench.order(), ToMeter::Permit { exchange });
    }
    let seen = |exchange, output| {
        let tokens = Tokens { output, ..Tokens::default() };
        bench.say(ToController::Progress(vec![(exchange, tokens)]));
    };
    seen(1, 99);
    bench.no_order();
    seen(1, 100);
    let mut stopped = Vec::new();
    for _ in 0..2 {
        match bench.order() {
            ToMeter::Refused { exchange, refusal: Refusal::Budget { used: 100, limit: 100, .. } } => {
                stopped.push(exchange);
            }
            order => panic!("{order:?}"),
        }
    }
    stopped.sort_unstable();
    assert_eq!(stopped, [1, 2], "and nobody else's");
    bench.no_order();
    let told = bench.awaited_rows("refuse", 1);
    assert_eq!((told.len(), told[0].bottle.as_deref()), (1, Some("host")), "{told:?}");
}
