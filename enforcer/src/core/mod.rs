//! The core: one thread that holds every sum and every verdict, and stores verdicts into the kernel's map.
//!
//! It never touches the disk and never waits: what must be durable goes to the writer, whose answer comes back
//! as a message. Closing (a cut) is stored first and committed after; opening (a permit, an attach, a restore)
//! is committed first and done after. `messages` is what it is told and asked. `requests` follows the meter's messages,
//! `gate` lets them in, `rows` bounds what is written of them, `accounts` says what they are charged to, `budgets` takes
//! what operators say of them, `windows` begins them anew, `warnings` warns, `usage` sums what is shown, `bottles` finds
//! the attached ones, `verdicts` cuts, `endings` ends cuts, `restore` opens, `processes` freezes, thaws and kills,
//! `reload` takes changed settings, `members` attaches and detaches, `adopt` takes over what an earlier controller
//! left, `durable` talks to the writer, `lease` beats the heart, `precedence` has the thread run before others, `drops`
//! tells what the kernel dropped, `lane` says why, `listener` is where meter and lane are, `view` shows the state.
mod accounts;
mod adopt;
mod bottles;
mod budgets;
mod drops;
mod durable;
mod endings;
mod gate;
mod lane;
mod lease;
mod listener;
mod members;
mod messages;
mod precedence;
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
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use meter_proxy::protocol::ToMeter;
use tokio::sync::{broadcast, oneshot};

pub use self::adopt::AdoptError;
use self::bottles::Bottles;
pub use self::budgets::{BudgetOrder, BudgetVerb};
use self::durable::Outstanding;
use self::gate::Waiting;
pub use self::lane::Why;
use self::lease::Heart;
pub use self::listener::{LaneAddress, Listener};
pub use self::members::Admission;
pub use self::messages::{Change, CoreGone, CoreHandle, LaneLink, Message, MeterLink};
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
use crate::hooks::Hooks;
use crate::kernel::Kernel;
use crate::ledger::writer::Writer;
use crate::ledger::{Attachment, AttachmentId, Entry, ExchangeId};
use crate::policy::Hand;
use crate::settings::Settings;

/// How often the core looks at what only time changes: waits at the gate, writes to be tried again.
const TICK: Duration = Duration::from_millis(100);

/// The slot that stands for the host itself (`unattached: meter`).
pub const HOST_SLOT: u32 = 0;

/// One attached bottle.
struct Bottle {
    attachment: Attachment,
    /// Its accounts, by provider; filled as providers are used.
    paths: HashMap<String, Path>,
    /// Why it is cut; `None`: open.
    cause: Option<Cause>,
    /// Grows with each change of the verdict and each record of it as it stands, so that an opening that is durable
    /// knows whether it was decided on what still holds, and is the last that was written.
    verdict: u64,
    /// The verdict's number when somebody last ordered it closed: what was ordered to open before does not undo that.
    ordered: u64,
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
    let decide = move || {
        precedence::take();
        core.run(&receiver);
    };
    let thread = std::thread::Builder::new().name("core".into()).spawn(decide)?;
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
