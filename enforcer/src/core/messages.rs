//! What the core is told and asked, the handle to do that by, and the changes that it tells of.
use std::ops::Range;
use std::path::PathBuf;
use std::sync::mpsc::Sender;
use std::time::Instant;

use meter_proxy::protocol::{Notice, ToController, ToLane, ToMeter};
use tokio::sync::oneshot;

use super::durable::Committed;
use super::{Admission, BottleModel, BudgetOrder, Reloading, Why};
use crate::control::api::{self, Problem};
use crate::hooks::Called;
use crate::kernel::Event;
use crate::ledger::{Attachment, AttachmentId, UnixMs, UsageRow};
use crate::policy::{Acted, Snapshotted};

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

/// A way to talk to the core from any thread.
#[derive(Clone)]
pub struct CoreHandle {
    pub(super) sender: Sender<Message>,
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
