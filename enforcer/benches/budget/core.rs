//! The same verdict where it is made: in the core's thread, from the meter's question to the answer, with every bottle
//! attached that there are slots for and the ledger and the kernel replaced by ones that cost nothing.
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use enforcer::core::{self, Admission, CoreHandle, Listener, Message, Parts};
use enforcer::kernel::fake::FakeKernel;
use enforcer::ledger::writer::Writer;
use enforcer::ledger::{Entry, Ledger, LedgerError, Reader, Snapshot};
use enforcer::settings::{Egress, Policy, Settings};
use enforcer::{act, hooks, policy};
use meter_proxy::protocol::{BottleRef, Reserve, Settle, ToController, ToMeter};
use meter_proxy::tokens::{Ending, Provenance, Tokens};
use tokio::sync::{broadcast, oneshot};

use crate::figures::report;

/// Rounds over all bottles.
const ROUNDS: usize = 20;

/// Settlements while others wait.
const SETTLEMENTS: u64 = 200;

/// Refuses everything: what is used up is refused without a word to the ledger.
const REFUSING: &str = "budget: { claude: 0 }\n";
/// Lets one question in.
const WAITING: &str = "budget: { claude: 1 }\n";

/// A ledger that is always done.
struct Nothing;

impl Ledger for Nothing {
    fn load(&mut self) -> Result<Snapshot, LedgerError> {
        Ok(Snapshot::default())
    }

    fn commit(&mut self, _: &[Entry]) -> Result<(), LedgerError> {
        Ok(())
    }

    fn reader(&self) -> Result<Box<dyn Reader>, LedgerError> {
        Err(LedgerError::Database { path: "none".into(), what: "nothing is kept".into() })
    }
}

/// A core without a bottle, and what its meter is told.
fn start(settings: &str) -> (CoreHandle, Receiver<ToMeter>) {
    let kernel = Arc::new(FakeKernel::new());
    let (writer, _thread) = Writer::spawn(Box::new(Nothing));
    let (actor, _aborts) = act::orders();
    let ((hand, _held), (hooks, _calls)) = (policy::orders(), hooks::calls());
    let listener = Listener { address: "127.0.0.1:7080".parse().unwrap(), beside: None, id: 1, lane: None };
    let parts = Parts {
        settings: Arc::new(Settings::parse(settings, std::path::Path::new("settings.yml")).unwrap()),
        kernel,
        writer,
        listener,
        actor,
        hand,
        hooks,
        changes: broadcast::channel(16).0,
    };
    let (core, _thread) = core::start(parts, Snapshot::default()).unwrap();
    let (link, answers) = channel();
    core.tell(Message::MeterUp { epoch: 1, link });
    (core, answers)
}

/// Asks for every bottle at once and takes all the answers; the mean of each round is one measurement.
pub fn verdicts(bottles: usize) {
    let (core, answers) = start(REFUSING);
    let attached: Vec<BottleRef> = (0..bottles).map(|bottle| attach(&core, bottle)).collect();
    while answers.recv_timeout(Duration::from_millis(200)).is_ok() {}

    let mut exchange = 0;
    let round = |_| {
        let start = Instant::now();
        for bottle in &attached {
            exchange += 1;
            core.tell(Message::Meter { epoch: 1, message: question(exchange, *bottle), received: start });
        }
        for _ in &attached {
            assert!(matches!(answers.recv(), Ok(ToMeter::Refused { .. })));
        }
        u64::try_from(start.elapsed().as_nanos() / attached.len() as u128).unwrap()
    };
    // the first also writes a row of the audit for each
    let means: Vec<u64> = (0..=ROUNDS).map(round).skip(1).collect();
    report(&format!("a refusal in the core, {bottles} attached: question to answer, means of rounds"), means);
}

/// One exchange at a time fits: each settlement lets in the first of all that wait.
pub fn waiting(bottles: usize) {
    let (core, answers) = start(WAITING);
    let attached: Vec<BottleRef> = (0..bottles).map(|bottle| attach(&core, bottle)).collect();
    let say = |message| core.tell(Message::Meter { epoch: 1, message, received: Instant::now() });
    for (exchange, bottle) in (1..).zip(&attached) {
        say(question(exchange, *bottle));
    }
    assert!(matches!(answers.recv(), Ok(ToMeter::Permit { exchange: 1 })));
    let round = |exchange| {
        let start = Instant::now();
        say(settlement(exchange));
        while !matches!(answers.recv(), Ok(ToMeter::Permit { .. })) {}
        u64::try_from(start.elapsed().as_nanos()).unwrap()
    };
    let took = (1..=SETTLEMENTS).map(round).collect();
    report(&format!("a settlement, {bottles} waiting at the gate: to the next one's permit"), took);
}

fn settlement(exchange: u64) -> ToController {
    ToController::Settle(Settle {
        exchange,
        tokens: Tokens::default(),
        provenance: Provenance::Reported,
        ending: Ending::Completed,
        http_status: Some(200),
        model: None,
        raw: None,
    })
}

fn question(exchange: u64, bottle: BottleRef) -> ToController {
    ToController::Reserve(Reserve {
        exchange,
        bottle,
        provider: "claude".into(),
        endpoint: "/v1/messages".into(),
        model: None,
        tokens: 10,
    })
}

fn attach(core: &CoreHandle, number: usize) -> BottleRef {
    let admission = Admission {
        name: format!("bottle-{number}"),
        agent: Some(format!("agent-{}", number % crate::AGENTS)),
        parent: None,
        cgroup: format!("/sys/fs/cgroup/bench/{number}"),
        cgroup_id: u64::try_from(number).unwrap() + 1,
        owns_cgroup: false,
        container: None,
        policy: Policy::Cutoff,
        egress: Egress::Open,
        launch_budget: Default::default(),
        mute: false,
    };
    let attachment = ask(core, |reply| Message::Admit { admission, reply }).unwrap();
    let (id, by) = (attachment.id, "uid:0".to_owned());
    ask(core, |reply| Message::Guarded { attachment: id, by, found: Vec::new(), reply }).unwrap();
    BottleRef { slot: attachment.slot, generation: attachment.generation }
}

fn ask<T>(core: &CoreHandle, question: impl FnOnce(oneshot::Sender<T>) -> Message) -> T {
    let (reply, answer) = oneshot::channel();
    core.tell(question(reply));
    answer.blocking_recv().unwrap()
}
