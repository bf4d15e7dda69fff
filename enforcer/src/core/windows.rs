//! Windows that begin anew, and the bottles that open with them. The hour that windows stand at is the latest that the
//! clock has shown and the ledger has recorded: a clock that is set back opens nothing and counts nothing again.
use std::time::Instant;

use tokio::sync::oneshot;

use super::durable::{After, action};
use super::endings::Stands;
use super::processes::Asker;
use super::{Change, Core, Stage, answer};
use crate::audit::{ActionKind, Cause, Processes};
use crate::budget::window::{Hour, Window};
use crate::clock::now_ms;
use crate::control::api::Problem;
use crate::ledger::{AttachmentId, Entry, Verdict};
use crate::settings::Reopen;

/// Between a window and its end.
const UNTIL: &str = " until ";
/// After an hour.
const FULL_HOUR: &str = ":00Z";

/// How the clock stands to the hour that windows have reached.
#[derive(Default)]
pub(super) struct Turn {
    /// The record of a later hour is being committed.
    coming: bool,
    /// The clock was found behind, and the audit says so.
    behind: bool,
}

/// A bottle that a budget has cut and that is to open once its verdict is durable.
pub(super) struct Opening {
    attachment: AttachmentId,
    /// The verdict's number when that was decided.
    verdict: u64,
    /// What keeps it closed all the same: an operator's freeze.
    left: Option<Cause>,
}

/// Why bottles open that budgets have cut.
pub(super) struct Reopening {
    /// `controller` or `uid:N`.
    pub(super) by: String,
    /// What happened, for the audit.
    pub(super) why: String,
    /// Told when it is done.
    pub(super) reply: Option<oneshot::Sender<Result<(), Problem>>>,
}

impl Core {
    /// Looks at the clock. A later hour is recorded before it counts: a new window opens what the old one had closed.
    pub(super) fn look_at_clock(&mut self) {
        let (now, reached) = (Hour::of(now_ms()), self.accounts.hour());
        if now < reached {
            return self.clock_is_behind(now, reached);
        }
        self.turn.behind = false;
        if now > reached && !self.turn.coming {
            self.turn.coming = true;
            self.submit(vec![Entry::Reached(now)], After::Reached { hour: now });
        }
    }

    fn clock_is_behind(&mut self, now: Hour, reached: Hour) {
        if !std::mem::replace(&mut self.turn.behind, true) {
            let detail = format!(
                "the clock shows {now}:00 UTC, and has shown {reached}:00 before: windows stand still until it is later"
            );
            self.warn(None, detail, true);
        }
    }

    /// The hour is durable, or is tried again at the next look.
    pub(super) fn reached(&mut self, hour: Hour, result: Result<(), Problem>) {
        self.turn.coming = false;
        if result.is_err() {
            return;
        }
        let mut closed: Vec<u32> = self.bottles.keys().copied().collect();
        // one that had room before was left cut by changed settings: its window is not why it may open
        closed.retain(|slot| self.used_up(*slot).is_some());
        self.accounts.roll(hour);
        self.forget_crossings();
        closed.extend(self.cut_in_ended_windows());
        self.reopen_with_window(closed);
        self.admit_waiting();
        self.publish(Change::State);
    }

    /// Opens what a window had cut that ended before: its opening was not recorded, or an earlier controller died first.
    pub(super) fn reopen_what_is_late(&mut self) {
        let late = self.cut_in_ended_windows();
        self.reopen_with_window(late);
    }

    fn reopen_with_window(&mut self, mut slots: Vec<u32>) {
        if self.settings.reopen == Reopen::Auto {
            slots.sort_unstable();
            slots.dedup();
            let why = format!("a window began anew at {}:00 UTC", self.accounts.hour());
            self.reopen_covered(slots, Reopening { by: "controller".into(), why, reply: None });
        }
    }

    /// Bottles that were cut for a budget in a window that has ended.
    fn cut_in_ended_windows(&self) -> Vec<u32> {
        let hour = self.accounts.hour();
        let has_ended = |cause: &Cause| window_end(cause).is_some_and(|end| end <= hour);
        let cut = self.bottles.iter().filter(|(_, bottle)| bottle.cause.as_ref().is_some_and(has_ended));
        cut.map(|(slot, _)| *slot).collect()
    }

    /// Accounts that are not used up any more can be crossed again.
    pub(super) fn forget_crossings(&mut self) {
        let accounts = &self.accounts;
        self.crossed.retain(|account| accounts.is_used_up(*account));
    }

    /// Opens those of these bottles that budgets alone have cut and that no budget cuts any longer. What a budget has
    /// frozen goes on; of what an operator has frozen, the freeze alone is left; what was killed has nothing left to
    /// open for.
    pub(super) fn reopen_covered(&mut self, slots: Vec<u32>, reopening: Reopening) {
        let Reopening { by, why, .. } = &reopening;
        let (mut openings, mut entries) = (Vec::new(), Vec::new());
        for slot in slots {
            if !self.is_cut_without_need(slot) {
                continue;
            }
            let Some(bottle) = self.bottles.get(&slot) else { continue };
            let (attachment, verdict) = (bottle.attachment.id, bottle.verdict);
            let left = bottle.cause.clone().and_then(Cause::without_budget);
            let name = Some(bottle.attachment.name.clone());
            let mut row = action(ActionKind::Restore, name, bottle.cause.clone(), by);
            row.detail = Some(match &left {
                Some(freeze) => format!("{why}; it stays frozen by {}", freeze.by),
                None => why.clone(),
            });
            entries.push(Entry::Verdict(Verdict { attachment, cause: left.clone() }));
            entries.push(Entry::Action(row));
            openings.push(Opening { attachment, verdict, left });
        }
        match openings.is_empty() {
            true => reopening.reply.into_iter().for_each(|reply| answer(reply, Ok(()))),
            false => self.submit(entries, After::Reopened { openings, reopening }),
        }
    }

    /// Whether budgets alone have cut it, and none of them does so now.
    pub(super) fn is_cut_without_need(&mut self, slot: u32) -> bool {
        self.is_cut_by_budget_alone(slot) && self.used_up(slot).is_none()
    }

    fn is_cut_by_budget_alone(&self, slot: u32) -> bool {
        self.bottles.get(&slot).is_some_and(|bottle| {
            let cause = bottle.cause.as_ref();
            bottle.stage == Stage::Attached
                && cause.is_some_and(|cause| cause.is_budget_s() && cause.processes != Processes::Killed)
        })
    }

    /// Their verdicts are durable: each opens. One that was frozen, thawed or cut meanwhile is looked at again, and
    /// stays as it is or opens as far as budgets had cut it.
    pub(super) fn reopened(
        &mut self,
        openings: Vec<Opening>,
        result: Result<(), Problem>,
        reopening: Reopening,
    ) {
        if let Err(problem) = result {
            openings.iter().for_each(|opening| self.record_standing_of(opening.attachment));
            return reopening.reply.into_iter().for_each(|reply| answer(reply, Err(problem.clone())));
        }
        let again: Vec<u32> = openings.into_iter().filter_map(|opening| self.reopen(opening)).collect();
        self.reopen_covered(again, reopening);
        self.admit_waiting();
        self.publish(Change::State);
    }

    /// Opens a bottle whose verdict still is what was to end; gives the slot of one that is to be looked at again.
    fn reopen(&mut self, opening: Opening) -> Option<u32> {
        let Opening { attachment, verdict, left } = opening;
        let slot = self.slot_of_attachment(attachment)?;
        if !self.is_cut_without_need(slot) {
            self.record_standing(slot);
            return None;
        }
        let stays_frozen = left.is_some();
        match self.end_verdict(attachment, verdict, left) {
            Ok((slot, ended)) if !stays_frozen => {
                self.thaw_with(slot, ended.as_ref(), Asker::controller(Instant::now()));
                None
            }
            Ok(_) | Err(Stands::Nothing) => None,
            Err(Stands::Another(slot)) => Some(slot),
        }
    }
}

/// A budget's window as people read it: `daily until 2026-02-01T00:00Z`.
pub(super) fn window_words(window: Window, now: Hour) -> String {
    match window.end(now) {
        Some(end) => format!("{}{UNTIL}{end}{FULL_HOUR}", window.as_str()),
        None => window.as_str().into(),
    }
}

/// When the window ends that a cause names.
fn window_end(cause: &Cause) -> Option<Hour> {
    let (_, end) = cause.window.as_deref()?.split_once(UNTIL)?;
    end.strip_suffix(FULL_HOUR)?.parse().ok()
}
