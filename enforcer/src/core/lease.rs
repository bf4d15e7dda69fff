//! The lease: open bottles lose their way out when this thread is not at the wheel, and the audit says when it was
//! not. The hooks compare the heartbeat by themselves; here it is given, and missed ones are noticed.
//!
//! A beat is a message in the core's own queue, so it comes only after everything that was asked before it. The disk
//! is not waited for: a ledger that does not answer closes the gate (`durable`), not the network.
use std::time::{Duration, Instant};

use super::durable::action;
use super::{Core, Message};
use crate::audit::ActionKind;
use crate::lane::is_own_guard;

/// The heartbeats of this core.
pub(super) struct Heart {
    /// The one before.
    last: Instant,
    /// The next is in the queue.
    coming: bool,
}

impl Default for Heart {
    fn default() -> Self {
        Self { last: Instant::now(), coming: false }
    }
}

impl Core {
    /// Puts the next heartbeat at the end of the queue; none while one is on its way.
    pub(super) fn ask_for_beat(&mut self) {
        if !self.heart.coming {
            self.heart.coming = self.itself.send(Message::Beat).is_ok();
        }
    }

    /// Everything that was asked before this has been done.
    pub(super) fn beat(&mut self) {
        let silence = self.heart.last.elapsed();
        self.heart = Heart::default();
        self.kernel.beat();
        self.record_silence(silence, "the controller was held up");
    }

    /// Starts the heart over what an earlier controller left.
    pub(super) fn first_beat(&mut self) {
        let silence = self.kernel.silence();
        self.heart = Heart::default();
        self.kernel.beat();
        if let Some(silence) =
            silence.filter(|_| !self.kernel.adopted().iter().all(|pinned| is_own_guard(&pinned.name)))
        {
            self.record_silence(silence, "no controller ran");
        }
    }

    /// Gives a bottle its lease; it holds for a cut one too, whose lane it closes.
    pub(super) fn lend(&self, slot: u32) {
        self.kernel.set_lease(slot, self.settings.lease);
    }

    /// A silence that was longer than the lease is told: from its end on, nothing left any bottle.
    fn record_silence(&mut self, silence: Duration, why: &str) {
        let Some(lease) = self.settings.lease.filter(|lease| silence > *lease) else { return };
        let mut row = action(ActionKind::Lease, None, None, "controller");
        row.done = false;
        row.detail = Some(format!(
            "{why} for {:.1} s: bottles had no way out after {:.1} s of it, and have it again",
            silence.as_secs_f64(),
            lease.as_secs_f64()
        ));
        self.record(row);
    }
}
