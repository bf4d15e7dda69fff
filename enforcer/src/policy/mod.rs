//! What a verdict does to a bottle's processes: freeze, snapshot and end, thaw, kill. On tasks of their own, so that
//! the core never waits; the orders of one bottle are done one after another, in the core's order.
//!
//! Whether it is done is the core's to say, which has cut the bottle before, and records what became of it. A newer
//! order interrupts a snapshot and nothing else. `steps` does what is asked of the kernel, `snapshot` what comes after a freeze.
mod snapshot;
mod steps;

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};

pub use self::snapshot::Snapshot;
use self::snapshot::Taking;
use crate::audit::Cause;
use crate::control::api::Problem;
use crate::core::{CoreHandle, Message};
use crate::ledger::AttachmentId;

/// What is to be done to processes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Act {
    /// Have them stand still; then, where this is set, take it, and say how that ended.
    Freeze {
        /// What is to be kept.
        snapshot: Option<Snapshot>,
    },
    /// End them: a snapshot has been taken. The cgroup stays, frozen.
    End,
    /// Let them go on.
    Thaw,
    /// Kill them all; a cgroup of our own making goes with them.
    Kill,
}

/// An order to do so.
#[derive(Debug)]
pub struct Order {
    /// What.
    pub act: Act,
    /// Whose attachment.
    pub attachment: AttachmentId,
    /// Its bottle's name.
    pub bottle: String,
    /// Its cgroup.
    pub cgroup: PathBuf,
    /// The cgroup's id: another one at that path is left alone.
    pub cgroup_id: u64,
    /// Whether we made it.
    pub owns_cgroup: bool,
    /// Grows with each order for the bottle's processes.
    pub number: u64,
    /// Whether an earlier controller had it done, or half done: it is no news to a hook.
    pub again: bool,
    /// For the audit.
    pub cause: Option<Cause>,
    /// `controller` or `uid:N`.
    pub by: String,
    /// When what led to it was received.
    pub received: Instant,
    /// Who waits for it.
    pub reply: Option<oneshot::Sender<Result<(), Problem>>>,
}

/// What became of an order: for the core.
pub struct Acted {
    /// The order, done or not.
    pub order: Order,
    /// What there is to say of it, or why it was not done.
    pub result: Result<String, String>,
    /// From what led to it to its effect.
    pub took: Duration,
}

/// How a snapshot ended: for the core.
pub struct Snapshotted {
    /// Whose attachment.
    pub attachment: AttachmentId,
    /// Its bottle's name.
    pub bottle: String,
    /// The number of the order that it belongs to.
    pub number: u64,
    /// For the audit.
    pub by: String,
    /// What the program said, or why there is no snapshot.
    pub result: Result<String, String>,
    /// How long it took.
    pub took: Duration,
}

/// Gives orders; never waits.
#[derive(Clone, Debug)]
pub struct Hand(mpsc::UnboundedSender<Word>);

/// What a hand is told.
#[derive(Debug)]
enum Word {
    Do(Box<Order>),
    Forget(AttachmentId),
}

/// Where orders come from.
#[derive(Debug)]
pub struct Orders(mpsc::UnboundedReceiver<Word>);

/// The end to give orders to, and the one that they come from.
#[must_use]
pub fn orders() -> (Hand, Orders) {
    let (sender, orders) = mpsc::unbounded_channel();
    (Hand(sender), Orders(orders))
}

impl Hand {
    /// Has an order done, soon.
    pub fn act(&self, order: Order) {
        self.tell(Word::Do(Box::new(order)));
    }

    /// There will be no more orders for this attachment.
    pub fn forget(&self, attachment: AttachmentId) {
        self.tell(Word::Forget(attachment));
    }

    fn tell(&self, word: Word) {
        if self.0.send(word).is_err() {
            tracing::debug!("nobody acts on processes any more: the controller is stopping");
        }
    }
}

impl Orders {
    /// The next order that was given, for who stands in for this room; `None`: there is none now.
    pub fn given(&mut self) -> Option<Order> {
        while let Ok(word) = self.0.try_recv() {
            if let Word::Do(order) = word {
                return Some(*order);
            }
        }
        None
    }

    /// Does what is ordered until nobody can order any more. What is under way then is dropped with the runtime: the
    /// next controller does it again.
    pub async fn run(mut self, core: CoreHandle) {
        let mut bottles: HashMap<AttachmentId, mpsc::UnboundedSender<Order>> = HashMap::new();
        while let Some(word) = self.0.recv().await {
            match word {
                Word::Do(order) => {
                    let begin = || {
                        let (sender, orders) = mpsc::unbounded_channel();
                        tokio::spawn(look_after(orders, core.clone()));
                        sender
                    };
                    let bottle = bottles.entry(order.attachment).or_insert_with(begin);
                    if bottle.send(*order).is_err() {
                        tracing::error!("a task that acts on processes panicked");
                    }
                }
                // what was ordered before is still done
                Word::Forget(attachment) => drop(bottles.remove(&attachment)),
            }
        }
    }
}

/// Does the orders of one bottle. What is asked of the kernel is done whole; a snapshot gives way to a newer order.
async fn look_after(mut orders: mpsc::UnboundedReceiver<Order>, core: CoreHandle) {
    let mut next = orders.recv().await;
    while let Some(order) = next.take() {
        let snapshot = Taking::after(&order);
        let Some(acted) = done(order).await else { return };
        let snapshot = snapshot.filter(|_| acted.result.is_ok());
        core.tell(Message::Acted(Box::new(acted)));
        next = match snapshot {
            None => orders.recv().await,
            Some(snapshot) => tokio::select! {
                biased;
                newer = orders.recv() => {
                    core.tell(Message::Snapshotted(snapshot.interrupted()));
                    newer
                }
                taken = snapshot.clone().take() => {
                    core.tell(Message::Snapshotted(taken));
                    orders.recv().await
                }
            },
        };
    }
}

/// Does one order; `None` when the runtime ends.
async fn done(order: Order) -> Option<Acted> {
    let acted = tokio::task::spawn_blocking(move || {
        let result = steps::done(&order);
        let took = order.received.elapsed();
        Acted { order, result, took }
    });
    acted.await.inspect_err(|error| tracing::error!(%error, "an order for processes was not done")).ok()
}
