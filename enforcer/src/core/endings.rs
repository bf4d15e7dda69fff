//! How a verdict ends, whoever ends it: what is left of it has been decided, and is durable. It holds if nothing else
//! was decided since; if something was, the order is decided again, as things stand then, or given up and the ledger
//! told what stands. Not here: who may end it, and what is left (`restore`, `processes`, `windows`).
use meter_proxy::protocol::Upstream;

use super::durable::After;
use super::{Core, Stage};
use crate::audit::{Cause, CauseKind};
use crate::control::api::Problem;
use crate::ledger::{AttachmentId, Entry, Verdict};

/// Why a verdict does not end although that is durable.
pub(super) enum Stands {
    /// Its bottle was detached meanwhile.
    Nothing,
    /// Another one stands in this slot.
    Another(u32),
}

impl Core {
    /// Ends a verdict that is still the one that was to end, leaving what is told of it: without that the bottle opens.
    /// Gives the slot, and the verdict that ended.
    pub(super) fn end_verdict(
        &mut self,
        attachment: AttachmentId,
        verdict: u64,
        left: Option<Cause>,
    ) -> Result<(u32, Option<Cause>), Stands> {
        let slot = self.slot_of_attachment(attachment).ok_or(Stands::Nothing)?;
        let left = left.map(|left| Cause { face: self.face_for(slot, left.face), ..left });
        let bottle = self.bottles.get_mut(&slot).ok_or(Stands::Nothing)?;
        if bottle.verdict != verdict {
            return Err(Stands::Another(slot));
        }
        let ended = std::mem::replace(&mut bottle.cause, left.clone());
        bottle.verdict += 1;
        match left {
            Some(left) => self.show_left(slot, ended.as_ref(), &left),
            None if bottle.stage == Stage::Attached => {
                self.kernel.open(slot);
                self.tell_meter_of(slot, Upstream::Hold);
                self.end_lane_below(slot);
            }
            None => {}
        }
        Ok((slot, ended))
    }

    /// Has the bottle see what is left of its cut.
    fn show_left(&self, slot: u32, ended: Option<&Cause>, left: &Cause) {
        self.store_cut(slot, left.face);
        if left.kind == CauseKind::Budget {
            self.tell_meter_of(slot, Upstream::Close);
        }
        self.show_face(slot, ended.map(|cause| cause.face), left.face);
    }

    /// Whether somebody has ordered the bottle closed since it had this verdict.
    pub(super) fn is_ordered_since(&self, slot: u32, verdict: u64) -> bool {
        self.bottles.get(&slot).is_some_and(|bottle| bottle.ordered > verdict)
    }

    /// What was to open stays cut.
    pub(super) fn stays_cut(&mut self, slot: u32, why: &str) -> Problem {
        self.record_standing(slot);
        Problem::refused(format!("{} stays cut: {why}", self.name_of(slot)))
    }

    /// An opening is given up that may be written: the ledger must say what stands.
    pub(super) fn record_standing(&mut self, slot: u32) {
        if let Some(entry) = self.standing(slot) {
            self.submit_done(vec![entry], After::Nothing);
        }
    }

    /// The ledger has refused an opening, which says not that none of it is written.
    pub(super) fn record_standing_of(&mut self, attachment: AttachmentId) {
        if let Some(slot) = self.slot_of_attachment(attachment) {
            self.record_standing(slot);
        }
    }

    /// What is owed of a verdict is what stands now: later ones may be written already.
    pub(super) fn as_it_stands(&mut self, owed: Entry) -> Entry {
        let Entry::Verdict(Verdict { attachment, .. }) = owed else { return owed };
        let slot = self.slot_of_attachment(attachment);
        slot.and_then(|slot| self.standing(slot)).unwrap_or(owed)
    }

    /// The record of what stands. What is to open is decided again: its own is not the last any more.
    fn standing(&mut self, slot: u32) -> Option<Entry> {
        let bottle = self.bottles.get_mut(&slot)?;
        bottle.verdict += 1;
        Some(Entry::Verdict(Verdict { attachment: bottle.attachment.id, cause: bottle.cause.clone() }))
    }
}
