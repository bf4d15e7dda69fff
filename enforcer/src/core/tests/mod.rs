//! The core by its messages: a fake kernel, a real ledger in a temporary file (or one that fails), and the
//! test in the place of the meter and the registry.
mod budgets;
mod cuts;
mod faces;
mod gate;
mod identity;
mod ledger;
mod members;
mod openings;
mod processes;
mod reload;
mod takeover;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::mpsc::Receiver;

use enforcer_ebpf::LISTENER_HOST;
use meter_proxy::protocol::{BottleRef, Refusal, Reserve, Settle, ToController, ToLane, Upstream};
use meter_proxy::tokens::{Ending, Provenance, Tokens};

use super::*;
use crate::act::{self, Abort, Which};
use crate::budget::weights::Weights;
use crate::control::api::{self, Problem};
use crate::kernel::fake::FakeKernel;
use crate::kernel::{Allowed, AllowedPorts, Face, Pinned};
use crate::ledger::sqlite::SqliteLedger;
use crate::ledger::{FlowRow, Ledger, LedgerError, Reader, Snapshot, UsageQuery};
use crate::settings::{Egress, Policy};
use crate::{hooks, policy};

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
    step: Arc<AtomicBool>,
    never: Arc<AtomicI64>,
    dir: tempfile::TempDir,
}

/// A ledger that refuses while it is told to, or does not answer.
struct Moody {
    ledger: SqliteLedger,
    refusing: Arc<AtomicBool>,
    silent: Arc<AtomicBool>,
    /// Whether one commit goes through all the same.
    step: Arc<AtomicBool>,
    /// The exchange whose settlement is refused; 0: none.
    never: Arc<AtomicI64>,
}

impl Ledger for Moody {
    fn load(&mut self) -> Result<Snapshot, LedgerError> {
        self.ledger.load()
    }

    fn commit(&mut self, entries: &[Entry]) -> Result<(), LedgerError> {
        while self.silent.load(Ordering::SeqCst) && !self.step.swap(false, Ordering::SeqCst) {
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
        Self::over_disk(yaml, dir, kernel, false)
    }

    /// As [`Self::over`]; while the disk is silent, nothing becomes durable.
    fn over_disk(yaml: &str, dir: tempfile::TempDir, kernel: FakeKernel, silent: bool) -> Self {
        let mut ledger = SqliteLedger::open(&dir.path().join("ledger.db")).unwrap();
        let snapshot = ledger.load().unwrap();
        let reader = ledger.reader().unwrap();
        let refusing = Arc::new(AtomicBool::new(false));
        let silent = Arc::new(AtomicBool::new(silent));
        let step = Arc::new(AtomicBool::new(false));
        let never = Arc::new(AtomicI64::new(0));
        let moody = Moody {
            ledger,
            refusing: refusing.clone(),
            silent: silent.clone(),
            step: step.clone(),
            never: never.clone(),
        };
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
        Self { core, kernel, orders, told, aborts, held, calls, reader, refusing, silent, step, never, dir }
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
        self.settle_as(exchange, output, Ending::Completed);
    }

    fn settle_as(&self, exchange: u64, output: u64, ending: Ending) {
        self.say(ToController::Settle(Settle {
            exchange,
            tokens: Tokens { output, ..Tokens::default() },
            provenance: Provenance::Reported,
            ending,
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

    /// The verdict of each attachment as the ledger has it.
    fn written(&self) -> Vec<Option<Cause>> {
        let ledger = rusqlite::Connection::open(self.dir.path().join("ledger.db")).unwrap();
        let mut verdicts = ledger.prepare("SELECT cause_json FROM bottles ORDER BY id").unwrap();
        let read = |json: String| serde_json::from_str(&json).unwrap();
        let verdicts = verdicts.query_map([], |row| row.get::<_, Option<String>>(0)).unwrap();
        verdicts.map(|json| json.unwrap().map(read)).collect()
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
