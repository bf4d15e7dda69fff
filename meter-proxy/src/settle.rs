//! Settlements: the final figures of an exchange go to the controller exactly once.
//!
//! Not here: the figures (`exchange`), and what waits for a durable settlement (`tail`).
use crate::controller::{Settling, Slot};
use crate::gate::Permit;
use crate::protocol::{MAX_RAW_BYTES, Settle};
use crate::tokens::Ending;

/// Ends an exchange; the returned value completes when the settlement is durable. `None` when it had ended.
#[must_use]
pub fn settle(mut permit: Box<Permit>, ending: Ending) -> Option<Settling> {
    let (slot, settle) = take(&mut permit, ending)?;
    Some(permit.controller.settle(slot, settle))
}

/// Ends an exchange without waiting; does nothing when it had ended.
pub fn end(permit: &mut Permit, ending: Ending) {
    if let Some((slot, settle)) = take(permit, ending) {
        permit.controller.end(slot, settle);
    }
}

/// The settlement and the place to send it from, the first time.
fn take(permit: &mut Permit, ending: Ending) -> Option<(Slot, Settle)> {
    let slot = permit.take_slot()?;
    let figures = permit.seen_now().end(ending);
    if let Some(alarm) = &figures.alarm {
        permit.controller.notice(Some(permit.bottle.id), &format!("exchange {}: {alarm}", permit.number));
    }
    let settle = Settle {
        exchange: permit.number,
        tokens: figures.tokens,
        provenance: figures.provenance,
        ending: figures.ending,
        http_status: permit.status,
        model: figures.model,
        raw: figures.raw.filter(|raw| raw.len() <= MAX_RAW_BYTES),
    };
    Some((slot, settle))
}
