//! The core's dealings with the writer: what is submitted, what follows when it is durable, what is owed, and how
//! long the writer has not answered.
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use meter_proxy::protocol::{Refusal, ToMeter};
use tokio::sync::oneshot;

use super::budgets::Pending;
use super::processes::{Asker, Thaw};
use super::reload::Reloading;
use super::restore::Restored;
use super::windows::{Opening, Reopening};
use super::{Change, Core, Message, answer};
use crate::audit::{Action, ActionKind, Cause};
use crate::budget::window::Hour;
use crate::clock::{DAY_MS, now_ms, rfc3339};
use crate::control::api::Problem;
use crate::ledger::{Attachment, AttachmentId, Entry, ExchangeId, LedgerError, UnixMs};

/// What follows once a submission is durable.
pub(super) enum After {
    /// The request may leave.
    Permit {
        /// The meter that asked.
        epoch: u64,
        /// Its exchange.
        exchange: u64,
        /// The ledger's name of it.
        id: ExchangeId,
    },
    /// What was held back may be delivered.
    Settled {
        /// The meter that settled.
        epoch: u64,
        /// Its exchange.
        exchange: u64,
    },
    /// The bottle may be opened for the first time.
    Attached { attachment: AttachmentId, reply: oneshot::Sender<Result<(), Problem>> },
    /// The hooks may be taken off.
    Released {
        attachment: Box<Attachment>,
        /// Whether its cut goes over to the next attachment of that name.
        keep_cut: bool,
        by: String,
        reply: oneshot::Sender<Result<Attachment, Problem>>,
    },
    /// The bottle may be opened, if nobody has ordered it closed since.
    Restored {
        restored: Restored,
        /// Tokens to add to accounts.
        additions: Vec<Pending>,
        reply: oneshot::Sender<Result<(), Problem>>,
    },
    /// The processes may go on, if nobody has ordered them closed since.
    Thawed { thaw: Box<Thaw>, asker: Asker },
    /// Changed settings hold.
    Reloaded(Reloading),
    /// The bottles may be opened that budgets do not cut any longer.
    Reopened { openings: Vec<Opening>, reopening: Reopening },
    /// What an operator said of a budget counts.
    Stated {
        pending: Pending,
        /// `controller` or `uid:N`.
        by: String,
        reply: oneshot::Sender<Result<(), Problem>>,
    },
    /// Windows may move on.
    Reached { hour: Hour },
    /// Tell who asked; what was to be done is done already.
    Report { reply: oneshot::Sender<Result<(), Problem>> },
    /// An owed entry has been tried once more.
    Paid,
    /// Nothing.
    Nothing,
}

/// The writer's answer to one submission.
pub struct Committed {
    pub(super) after: After,
    /// The entries come back when they could not be committed and must be tried again.
    pub(super) owed: Vec<Entry>,
    /// Whether the entries add rows to the audit.
    pub(super) audited: bool,
    pub(super) result: Result<(), Arc<LedgerError>>,
}

/// A writer that has not answered for this long closes the gate: longer than a busy disk takes, shorter than a
/// client's patience.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

/// When each submission was made that the writer has not answered, oldest first: it answers in their order.
#[derive(Default)]
pub(super) struct Outstanding(VecDeque<Instant>);

impl Outstanding {
    /// How long the oldest has been waited for.
    fn waited(&self) -> Duration {
        self.0.front().map_or(Duration::ZERO, Instant::elapsed)
    }
}

impl Core {
    /// Submits what opens something: when it cannot become durable, it is not done and forgotten.
    pub(super) fn submit(&mut self, entries: Vec<Entry>, after: After) {
        self.send_to_writer(entries, Vec::new(), after);
    }

    /// Submits what has happened already: when it cannot become durable now, it is tried again until it is.
    pub(super) fn submit_done(&mut self, entries: Vec<Entry>, after: After) {
        self.send_to_writer(entries.clone(), entries, after);
    }

    fn send_to_writer(&mut self, entries: Vec<Entry>, owed: Vec<Entry>, after: After) {
        self.outstanding.0.push_back(Instant::now());
        let itself = self.itself.clone();
        let adds_row = |entry: &Entry| matches!(entry, Entry::Action(_) | Entry::RollUp { row: Some(_), .. });
        let audited = entries.iter().any(adds_row);
        self.writer.submit(
            entries,
            Box::new(move |result| {
                let owed = if result.is_err() { owed } else { Vec::new() };
                if itself.send(Message::Committed(Committed { after, owed, audited, result })).is_err() {
                    tracing::debug!("the core has ended; what follows this commit is left to the next start");
                }
            }),
        );
    }

    /// The writer has answered its oldest submission.
    pub(super) fn answered(&mut self, committed: Committed) {
        self.outstanding.0.pop_front();
        self.committed(committed);
    }

    pub(super) fn committed(&mut self, committed: Committed) {
        let Committed { after, owed, audited, result } = committed;
        if matches!(after, After::Paid) {
            self.paying = self.paying.saturating_sub(1);
        }
        self.owed.extend(owed);
        if let Err(error) = &result {
            tracing::error!(%error, "the ledger refused; nothing opens until it answers again");
            self.closed = Some(error.to_string());
        } else {
            if !self.owes() {
                self.closed = None;
            }
            if audited {
                self.publish(Change::Audit);
            }
        }
        match after {
            After::Permit { epoch, exchange, id } => {
                self.reserved(epoch, exchange, id, result.map_err(not_done))
            }
            After::Settled { epoch, exchange } => {
                // on an error the meter's own time limit aborts the response: it is never delivered unsettled
                if result.is_ok() && self.is_current(epoch) {
                    self.tell_meter(ToMeter::Settled { exchange });
                }
            }
            After::Attached { attachment, reply } => {
                self.attached(attachment, result.map_err(not_done), reply)
            }
            After::Released { attachment, keep_cut, by, reply } => {
                self.released(*attachment, keep_cut, by, result.map_err(not_done), reply)
            }
            After::Restored { restored, additions, reply } => {
                self.restored(restored, &additions, result.map_err(not_done), reply);
            }
            After::Thawed { thaw, asker } => self.thawed(*thaw, result.map_err(not_done), asker),
            After::Reloaded(reloading) => self.reloaded(reloading, result.map_err(not_done)),
            After::Reopened { openings, reopening } => {
                self.reopened(openings, result.map_err(not_done), reopening);
            }
            After::Stated { pending, by, reply } => {
                self.stated(&pending, &by, result.map_err(not_done), reply)
            }
            After::Reached { hour } => self.reached(hour, result.map_err(not_done)),
            After::Report { reply } => answer(
                reply,
                result.map_err(|error| Problem::failed(format!("done, but not recorded yet: {error}"))),
            ),
            After::Paid | After::Nothing => {}
        }
    }

    /// Tries owed entries again, in order and each by itself: one that is refused for ever holds back no other, though
    /// it keeps the gate closed.
    pub(super) fn pay_what_is_owed(&mut self) {
        if self.paying > 0 {
            return;
        }
        for entry in std::mem::take(&mut self.owed) {
            self.paying += 1;
            let entry = self.as_it_stands(entry);
            self.submit_done(vec![entry], After::Paid);
        }
    }

    /// Whether there is anything that must become durable and was refused.
    fn owes(&self) -> bool {
        self.paying > 0 || !self.owed.is_empty()
    }

    /// Why nothing may open now, if so.
    pub(super) fn closed(&self) -> Option<Refusal> {
        self.behind().map(|reason| Refusal::Closed { reason })
    }

    /// What the ledger has not taken yet although it should have.
    pub(super) fn behind(&self) -> Option<String> {
        if self.owes() {
            return Some(self.closed.clone().unwrap_or_else(|| "the ledger is behind".into()));
        }
        let waited = self.outstanding.waited();
        (waited >= PATIENCE).then(|| format!("the ledger has not answered for {} s", waited.as_secs()))
    }

    /// Records an action of the audit by itself.
    pub(super) fn record(&mut self, action: Action) {
        self.submit_done(vec![Entry::Action(action)], After::Nothing);
    }

    /// Has old exchanges rolled up; the last part of a day with a row that says so. What cannot be done now is asked
    /// for again.
    pub(super) fn roll_up(&mut self, time: Range<UnixMs>) {
        let row = (time.end.rem_euclid(DAY_MS) == 0).then(|| {
            let date = rfc3339(time.start);
            let detail = format!("exchanges of {} are rolled up", date.get(..10).unwrap_or(&date));
            Action { detail: Some(detail), ..action(ActionKind::Retention, None, None, "controller") }
        });
        self.submit(vec![Entry::RollUp { time, row }], After::Nothing);
    }

    /// Writes a warning into the audit.
    pub(super) fn warn(&mut self, bottle: Option<String>, detail: String, failed: bool) {
        let row = action(ActionKind::Warn, bottle, None, "controller");
        self.record(Action { done: !failed, detail: Some(detail), ..row });
    }

    /// Tells whoever listens that something changed; nobody may.
    pub(super) fn publish(&self, change: Change) {
        // an error only says that nobody listens
        drop(self.changes.send(change));
    }
}

fn not_done(error: Arc<LedgerError>) -> Problem {
    Problem::failed(format!("not recorded, so not done: {error}"))
}

/// An action of the controller that worked; change what is different.
pub(super) fn action(kind: ActionKind, bottle: Option<String>, cause: Option<Cause>, by: &str) -> Action {
    Action {
        at: now_ms(),
        bottle,
        action: kind,
        cause,
        by: by.to_owned(),
        done: true,
        detail: None,
        took_us: None,
    }
}
