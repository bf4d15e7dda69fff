//! The core: one thread that holds every sum and every verdict, and stores verdicts into the kernel's map.
//!
//! It never touches the disk and never waits: what must be durable goes to the writer, whose answer comes back
//! as a message. Closing (a cut) is stored first and committed after; opening (a permit, an attach, a restore)
//! is committed first and done after. `requests` follows the meter's messages, `gate` lets them in, `rows` bounds what is written of them, `accounts` says what they are
//! charged to, `budgets` takes what operators say of them, `windows` begins them anew, `warnings` warns, `usage` sums
//! what is shown, `bottles` finds the attached ones, `verdicts` cuts, `restore` opens, `processes` freezes, thaws and
//! kills, `reload` takes changed settings, `members` attaches and detaches, `adopt` takes over what an earlier
//! controller left, `durable` talks to the writer, `lease` beats the heart, `drops` tells what the kernel dropped, `lane` says why, `view` shows the state.
mod accounts;
mod adopt;
mod bottles;
mod budgets;
mod drops;
mod durable;
mod gate;
mod lane;
mod lease;
mod members;
mod processes;
mod reload;
mod requests;
mod restore;
mod rows;
#[cfg(test)]
mod tests;
mod usage;
mod verdicts;
mod view;
mod warnings;
mod windows;

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::net::{Ipv6Addr, SocketAddr};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use meter_proxy::protocol::{Notice, ToController, ToLane, ToMeter};
use tokio::sync::{broadcast, oneshot};

pub use self::adopt::AdoptError;
use self::bottles::Bottles;
pub use self::budgets::{BudgetOrder, BudgetVerb};
use self::durable::{Committed, Outstanding};
use self::gate::Waiting;
pub use self::lane::Why;
use self::lease::Heart;
pub use self::members::Admission;
use self::processes::Asker;
pub use self::reload::Reloading;
use self::requests::Live;
use self::rows::RowLimit;
use self::usage::UsedByBottles;
pub use self::view::BottleModel;
use self::windows::Turn;
use crate::act::Actor;
use crate::audit::{ActionKind, Cause};
use crate::budget::window::Hour;
use crate::budget::{AccountId, Accounts, Path};
use crate::clock::now_ms;
use crate::control::api::{self, Problem};
use crate::hooks::{Called, Hooks};
use crate::kernel::{Event, Kernel, Place};
use crate::ledger::writer::Writer;
use crate::ledger::{Attachment, AttachmentId, Entry, ExchangeId, UnixMs, UsageRow};
use crate::policy::{Acted, Hand, Snapshotted};
use crate::settings::Settings;

/// How often the core looks at what only time changes: waits at the gate, writes to be tried again.
const TICK: Duration = Duration::from_millis(100);

/// The slot that stands for the host itself (`unattached: meter`).
pub const HOST_SLOT: u32 = 0;

/// The controller's end of the running meter's socket: what is put in is sent in order.
pub type MeterLink = Sender<ToMeter>;

/// The controller's end of the running lane's socket.
pub type LaneLink = Sender<ToLane>;

/// Something changed; who listens looks up what he needs.
#[derive(Clone, Debug)]
pub enum Change {
    /// A bottle's state, or the meter's.
    State,
    /// An exchange was settled.
    Usage(Box<UsageRow>),
    /// Rows were added to the audit.
    Audit,
    /// The kernel dropped something of a bottle.
    Dropped(Box<api::Dropped>),
}

/// Where the meter listens in the host's network namespace.
#[derive(Clone, Copy, Debug)]
pub struct Listener {
    /// Address and port, as set.
    pub address: SocketAddr,
    /// Loopback of the other family at the same port, where it could be had.
    pub beside: Option<SocketAddr>,
    /// Id in the kernel's entries and flows.
    pub id: u32,
    /// Where the refusal lane is, here and at the same port on loopback in every other namespace.
    pub lane: Option<LaneAddress>,
}

/// Where the refusal lane listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LaneAddress {
    /// On IPv4's loopback.
    pub ip4: SocketAddr,
    /// On IPv6's, at the same port, where it could be had.
    pub ip6: Option<Ipv6Addr>,
}

impl Listener {
    /// As the kernel's entries hold it: the IPv4 one, where there is one, and the IPv6 one beside it.
    #[must_use]
    pub fn endpoints(&self) -> (SocketAddr, Option<Ipv6Addr>) {
        match (self.address, self.beside) {
            (SocketAddr::V4(_), Some(SocketAddr::V6(ip6))) => (self.address, Some(*ip6.ip())),
            (SocketAddr::V6(ip6), Some(ip4 @ SocketAddr::V4(_))) => (ip4, Some(*ip6.ip())),
            _ => (self.address, None),
        }
    }

    /// What the kernel is told of the host's network namespace while no lane serves.
    #[must_use]
    pub fn place(&self) -> Place {
        let (meter, meter_ip6) = self.endpoints();
        Place { meter_ip6, ..Place::new(self.id, meter) }
    }

    /// What the kernel is told of the host's network namespace while the lane serves.
    #[must_use]
    pub fn place_with_lane(&self) -> Place {
        let (lane, lane_ip6) = self.lane_endpoints();
        Place { lane, lane_ip6, ..self.place() }
    }

    /// The lane's, as the kernel's entries hold it.
    #[must_use]
    pub fn lane_endpoints(&self) -> (Option<SocketAddr>, Option<Ipv6Addr>) {
        (self.lane.map(|lane| lane.ip4), self.lane.and_then(|lane| lane.ip6))
    }
}

/// What the core is told and asked. Answers go to the `reply` that comes with a question.
pub enum Message {
    /// A new meter process is connected.
    MeterUp {
        /// Its turn; grows with each meter process.
        epoch: u64,
        /// Its socket.
        link: MeterLink,
    },
    /// The meter said something.
    Meter {
        /// Which meter's.
        epoch: u64,
        /// What.
        message: ToController,
        /// When it was received.
        received: Instant,
    },
    /// The meter process is gone.
    MeterLost {
        /// Which.
        epoch: u64,
    },
    /// The kernel dropped or refused something of a bottle.
    Dropped(Event),
    /// A new refusal lane is connected.
    LaneUp {
        /// Its turn; grows with each lane process.
        epoch: u64,
        /// Its socket.
        link: LaneLink,
    },
    /// The lane asks why a connection may not go on.
    Why {
        /// Which lane.
        epoch: u64,
        /// Whose connection, and the number to answer to.
        why: Why,
    },
    /// The lane process is gone.
    LaneLost {
        /// Which.
        epoch: u64,
    },
    /// The core's own heartbeat has come through its queue.
    Beat,
    /// Something of a bottle stays closed, and the operator should read why.
    Closed(Notice),
    /// The writer is done with a submission.
    Committed(Committed),
    /// May this bottle be attached? Gives it a slot.
    Admit {
        /// What is asked.
        admission: Admission,
        /// The attachment to put hooks on for.
        reply: oneshot::Sender<Result<Attachment, Problem>>,
    },
    /// The hooks are on: record it, then open.
    Guarded {
        /// Whose.
        attachment: AttachmentId,
        /// `controller` or `uid:N`.
        by: String,
        /// What the audit is to say of it beside its cgroup.
        found: Vec<String>,
        /// Done.
        reply: oneshot::Sender<Result<(), Problem>>,
    },
    /// A bottle was not attached although the settings say so: for the audit.
    NotAttached {
        /// Name.
        name: String,
        /// The refusal.
        why: String,
    },
    /// The hooks are off (or could not be put on): its slot and name are free.
    Forget {
        /// Whose.
        attachment: AttachmentId,
    },
    /// Let the bottle go: records the detach. The hooks may be taken off when this is answered.
    Release {
        /// Name.
        name: String,
        /// Also when it is cut.
        force: bool,
        /// Whether its cut goes over to the next attachment of that name.
        keep_cut: bool,
        /// `controller` or `uid:N`.
        by: String,
        /// The attachment to take the hooks off.
        reply: oneshot::Sender<Result<Attachment, Problem>>,
    },
    /// Cut a bottle.
    Cut {
        /// Name.
        name: String,
        /// How.
        order: api::Cut,
        /// `controller` or `uid:N`.
        by: String,
        /// When the order came.
        received: Instant,
        /// Done and durable.
        reply: oneshot::Sender<Result<(), Problem>>,
    },
    /// Open a bottle.
    Restore {
        /// Name.
        name: String,
        /// How.
        order: api::Restore,
        /// `controller` or `uid:N`.
        by: String,
        /// Done.
        reply: oneshot::Sender<Result<(), Problem>>,
    },
    /// Cut a bottle and freeze its processes.
    Freeze {
        /// Name.
        name: String,
        /// Why.
        order: api::Reason,
        /// `controller` or `uid:N`.
        by: String,
        /// When the order came.
        received: Instant,
        /// Done and durable.
        reply: oneshot::Sender<Result<(), Problem>>,
    },
    /// Let a frozen bottle's processes go on.
    Thaw {
        /// Name.
        name: String,
        /// `controller` or `uid:N`.
        by: String,
        /// When the order came.
        received: Instant,
        /// Done.
        reply: oneshot::Sender<Result<(), Problem>>,
    },
    /// Cut a bottle and kill its processes.
    Kill {
        /// Name.
        name: String,
        /// Why.
        order: api::Reason,
        /// `controller` or `uid:N`.
        by: String,
        /// When the order came.
        received: Instant,
        /// Done and durable.
        reply: oneshot::Sender<Result<(), Problem>>,
    },
    /// An order for a bottle's processes was done, or not.
    Acted(Box<Acted>),
    /// A snapshot was taken, or not.
    Snapshotted(Snapshotted),
    /// A hook ended.
    Called(Called),
    /// Set, add to or clear a budget.
    StateBudget {
        /// What.
        order: BudgetOrder,
        /// `controller` or `uid:N`.
        by: String,
        /// When the order came.
        received: Instant,
        /// Done and durable; what it opens is open.
        reply: oneshot::Sender<Result<(), Problem>>,
    },
    /// Which budgets are there?
    Budgets {
        /// Each with its figures.
        reply: oneshot::Sender<Vec<api::BudgetRow>>,
    },
    /// Have other settings hold.
    Reload(Reloading),
    /// Changed settings were not taken: for the audit.
    NotReloaded {
        /// `controller` or `uid:N`.
        by: String,
        /// Why.
        why: String,
    },
    /// Settled exchanges that began in this time, a day's or a part of it, are older than the settings keep.
    RollUp(Range<UnixMs>),
    /// Something that the operator should read in the audit.
    Warn {
        /// Whom it concerns.
        bottle: Option<String>,
        /// One line.
        detail: String,
        /// Whether it is something that did not work.
        failed: bool,
    },
    /// What is attached and in which state?
    View {
        /// All bottles, by name, and why requests are refused although the meter serves.
        reply: oneshot::Sender<(Vec<BottleModel>, Option<String>)>,
    },
    /// The same of one bottle.
    ViewOne {
        /// Name.
        name: String,
        /// `None` when there is none of that name.
        reply: oneshot::Sender<Option<BottleModel>>,
    },
    /// Which bottles are attached?
    List {
        /// Name and cgroup id of each.
        reply: oneshot::Sender<Vec<(String, u64)>>,
    },
    /// Does a bottle hold this cgroup?
    Holds {
        /// Absolute path.
        cgroup: PathBuf,
        /// Whether it is a bottle's or below one's.
        reply: oneshot::Sender<bool>,
    },
    /// Close the connections to providers of every bottle: the controller is about to stop.
    CloseUpstreams,
    /// How many exchanges are under way?
    UnderWay {
        /// That many.
        reply: oneshot::Sender<usize>,
    },
    /// End the thread.
    Stop,
}

/// One attached bottle.
struct Bottle {
    attachment: Attachment,
    /// Its accounts, by provider; filled as providers are used.
    paths: HashMap<String, Path>,
    /// Why it is cut; `None`: open.
    cause: Option<Cause>,
    /// Grows with each change of the verdict, so that a restore committed late does not undo a newer cut.
    verdict: u64,
    /// Grows with each order for its processes, so that a snapshot that ends late ends nobody.
    orders: u64,
    stage: Stage,
    /// Whether its cuts are silent ones, whatever was ordered; kept by the kernel over restarts.
    mute: bool,
}

/// Where a bottle is between attach and detach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Admitted; hooks are being put on, or their record is being committed.
    Attaching,
    /// Guarded; its verdict decides.
    Attached,
    /// Let go; the record of that is being committed.
    Detaching,
    /// Recorded as detached; its hooks are being taken off, and its processes are nobody's to hold.
    Detached,
}

/// The core's state. See the module's head for who changes what.
pub struct Core {
    settings: Arc<Settings>,
    kernel: Arc<dyn Kernel>,
    writer: Writer,
    listener: Listener,
    itself: Sender<Message>,
    changes: broadcast::Sender<Change>,
    meter: Option<(u64, MeterLink)>,
    lane: Option<(u64, LaneLink)>,
    actor: Actor,
    hand: Hand,
    hooks: Hooks,
    accounts: Accounts,
    /// Accounts whose crossing has been acted upon.
    crossed: HashSet<AccountId>,
    /// Slots of the bottles that are charged to each account.
    payers: HashMap<AccountId, BTreeSet<u32>>,
    /// How many statements operators have made.
    statements: u64,
    /// The last statement of each account that counted before it was durable: earlier ones do not count after it.
    overtaken: HashMap<AccountId, u64>,
    turn: Turn,
    bottles: Bottles,
    /// Bottles whose cgroup went while they were cut and that the settings attach again, by name: their last
    /// attachment, which stays in the ledger until the next one begins with its cut.
    kept_cuts: HashMap<String, (AttachmentId, Cause)>,
    host_paths: HashMap<String, Path>,
    usage: UsedByBottles,
    exchanges: HashMap<u64, Live>,
    waiting: VecDeque<Waiting>,
    rows: RowLimit,
    drops: drops::Rows,
    heart: Heart,
    /// What the writer has not answered yet.
    outstanding: Outstanding,
    /// Entries that must become durable but were refused, oldest first, without those that are being tried; while
    /// there are any of either, nothing opens.
    owed: VecDeque<Entry>,
    /// How many of the owed entries are being tried.
    paying: usize,
    closed: Option<String>,
    last_exchange: ExchangeId,
    last_attachment: AttachmentId,
    last_generation: u32,
}

/// A way to talk to the core from any thread.
#[derive(Clone)]
pub struct CoreHandle {
    sender: Sender<Message>,
}

/// The core ended before it answered: the controller is stopping.
#[derive(Debug, thiserror::Error)]
#[error("the controller is stopping")]
pub struct CoreGone;

impl From<CoreGone> for Problem {
    fn from(gone: CoreGone) -> Self {
        Problem::failed(gone.to_string())
    }
}

impl CoreHandle {
    /// Tells the core something; nothing happens when it has ended.
    pub fn tell(&self, message: Message) {
        if self.sender.send(message).is_err() {
            tracing::debug!("the core has ended; a message was not delivered");
        }
    }

    /// Asks the core something and awaits its answer.
    ///
    /// # Errors
    /// When the core has ended.
    pub async fn ask<T>(&self, question: impl FnOnce(oneshot::Sender<T>) -> Message) -> Result<T, CoreGone> {
        let (reply, answer) = oneshot::channel();
        self.tell(question(reply));
        answer.await.map_err(|_| CoreGone)
    }
}

/// What the core is made of.
pub struct Parts {
    /// Budgets and defaults.
    pub settings: Arc<Settings>,
    /// Where verdicts are stored.
    pub kernel: Arc<dyn Kernel>,
    /// Where facts are made durable.
    pub writer: Writer,
    /// Where bottles are sent.
    pub listener: Listener,
    /// Who does to sockets what takes longer than a store.
    pub actor: Actor,
    /// Who does to processes what a verdict asks for.
    pub hand: Hand,
    /// Who calls the settings' hooks.
    pub hooks: Hooks,
    /// Who listens to changes.
    pub changes: broadcast::Sender<Change>,
}

/// Takes over what the ledger and the kernel hold, then starts the thread.
///
/// # Errors
/// When what is pinned and what is recorded cannot be brought together.
pub fn start(
    parts: Parts,
    snapshot: crate::ledger::Snapshot,
) -> Result<(CoreHandle, JoinHandle<()>), AdoptError> {
    let (sender, receiver) = channel();
    let hour = snapshot.reached.unwrap_or_else(|| Hour::of(now_ms()));
    let mut core = Core::new(parts, sender.clone(), hour);
    core.adopt(snapshot)?;
    let thread = std::thread::Builder::new().name("core".into()).spawn(move || core.run(&receiver))?;
    Ok((CoreHandle { sender }, thread))
}

impl Core {
    fn new(parts: Parts, itself: Sender<Message>, hour: Hour) -> Self {
        let accounts = Accounts::new(parts.settings.scope_rule, parts.settings.weights, hour);
        Self {
            settings: parts.settings,
            kernel: parts.kernel,
            writer: parts.writer,
            listener: parts.listener,
            itself,
            changes: parts.changes,
            meter: None,
            lane: None,
            actor: parts.actor,
            hand: parts.hand,
            hooks: parts.hooks,
            accounts,
            crossed: HashSet::new(),
            payers: HashMap::new(),
            statements: 0,
            overtaken: HashMap::new(),
            turn: Turn::default(),
            bottles: Bottles::default(),
            kept_cuts: HashMap::new(),
            host_paths: HashMap::new(),
            usage: UsedByBottles::default(),
            exchanges: HashMap::new(),
            waiting: VecDeque::new(),
            rows: RowLimit::default(),
            drops: drops::Rows::default(),
            heart: Heart::default(),
            outstanding: Outstanding::default(),
            owed: VecDeque::new(),
            paying: 0,
            closed: None,
            last_exchange: 0,
            last_attachment: 0,
            last_generation: 0,
        }
    }

    fn run(mut self, messages: &Receiver<Message>) {
        let mut next_tick = Instant::now() + TICK;
        loop {
            match messages.recv_timeout(next_tick.saturating_duration_since(Instant::now())) {
                Ok(Message::Stop) | Err(RecvTimeoutError::Disconnected) => return,
                Ok(message) => self.handle(message),
                Err(RecvTimeoutError::Timeout) => {}
            }
            if Instant::now() >= next_tick {
                self.tick();
                next_tick = Instant::now() + TICK;
            }
        }
    }

    fn handle(&mut self, message: Message) {
        match message {
            Message::MeterUp { epoch, link } => self.meter_up(epoch, link),
            Message::Meter { epoch, message, received } => self.meter_said(epoch, message, received),
            Message::MeterLost { epoch } => self.meter_lost(epoch),
            Message::Dropped(event) => self.dropped(&event),
            Message::LaneUp { epoch, link } => self.lane = Some((epoch, link)),
            Message::Why { epoch, why } => self.why(epoch, &why),
            Message::LaneLost { epoch } => self.lane_lost(epoch),
            Message::Beat => self.beat(),
            Message::Closed(notice) => self.notice(ActionKind::Refuse, notice),
            Message::Committed(committed) => self.answered(committed),
            Message::Admit { admission, reply } => answer(reply, self.admit(admission)),
            Message::Guarded { attachment, by, found, reply } => self.guarded(attachment, &by, &found, reply),
            Message::NotAttached { name, why } => self.not_attached(name, why),
            Message::Forget { attachment } => self.forget(attachment),
            Message::Release { name, force, keep_cut, by, reply } => {
                self.release(&name, force, keep_cut, by, reply)
            }
            Message::Cut { name, order, by, received, reply } => {
                self.cut_by_order(&name, order, by, received, reply)
            }
            Message::Restore { name, order, by, reply } => self.restore(&name, &order, by, reply),
            Message::Freeze { name, order, by, received, reply } => {
                self.freeze_by_order(&name, order, Asker { by, received, reply: Some(reply) });
            }
            Message::Thaw { name, by, received, reply } => {
                self.thaw_by_order(&name, Asker { by, received, reply: Some(reply) });
            }
            Message::Kill { name, order, by, received, reply } => {
                self.kill_by_order(&name, order, Asker { by, received, reply: Some(reply) });
            }
            Message::Acted(acted) => self.acted(*acted),
            Message::Snapshotted(taken) => self.snapshotted(taken),
            Message::Called(called) => self.called(called),
            Message::Reload(reloading) => self.reload(reloading),
            Message::NotReloaded { by, why } => self.not_reloaded(&by, why),
            Message::RollUp(time) => self.roll_up(time),
            Message::StateBudget { order, by, received, reply } => {
                self.state_budget(&order, &by, received, reply)
            }
            Message::Budgets { reply } => answer(reply, self.budgets()),
            Message::Warn { bottle, detail, failed } => self.warn(bottle, detail, failed),
            Message::View { reply } => {
                let closed = self.behind().or_else(|| self.closed.clone());
                answer(reply, (self.view(), closed));
            }
            Message::ViewOne { name, reply } => answer(reply, self.view_one(&name)),
            Message::List { reply } => answer(reply, self.list()),
            Message::Holds { cgroup, reply } => answer(reply, self.holds(&cgroup)),
            Message::CloseUpstreams => self.close_upstreams(),
            Message::UnderWay { reply } => answer(reply, self.exchanges.len()),
            Message::Stop => {}
        }
    }

    fn tick(&mut self) {
        self.ask_for_beat();
        self.look_at_clock();
        self.give_up_waiting();
        self.tell_left_out(Instant::now());
        self.pay_what_is_owed();
    }

    /// The bottle in this slot, if it is still the one that is meant.
    fn bottle(&self, bottle: meter_proxy::protocol::BottleRef) -> Option<&Bottle> {
        self.bottles.get(&bottle.slot).filter(|found| found.attachment.generation == bottle.generation)
    }

    fn slot_of(&self, name: &str) -> Option<u32> {
        self.bottles.named(name)
    }

    fn slot_of_attachment(&self, id: AttachmentId) -> Option<u32> {
        self.bottles.of_attachment(id)
    }

    fn tell_meter(&self, message: ToMeter) {
        if let Some((_, link)) = &self.meter
            && link.send(message).is_err()
        {
            tracing::debug!("the meter is gone; its loss is about to be noticed");
        }
    }
}

/// Answers a question; whoever asked may have left.
fn answer<T>(reply: oneshot::Sender<T>, value: T) {
    if reply.send(value).is_err() {
        tracing::debug!("nobody waits for this answer any more");
    }
}
