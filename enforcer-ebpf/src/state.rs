//! Whether a bottle is open: its verdict and its lease, decided here for every hook.
use aya_ebpf::helpers::generated::bpf_ktime_get_coarse_ns;
use enforcer_ebpf::{
    Bottle, EVENT_CUT, EVENT_LEASE, EVENT_RULE, FACE_ANSWERED, FLAG_LANE, FLAG_LIVE, FLAG_MUTE, OPEN,
};

use crate::{HEART, read};

/// How long a cut is answered without a heartbeat where bottles have no lease: the lane's port goes with the
/// controller, and may be anybody's then.
const LANE_LEASE_NS: u64 = 10_000_000_000;

/// What may pass.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// What the rules let through.
    Open,
    /// What goes to the refusal lane and comes from there.
    Answered,
    /// Open, and the lane's own: what it answers.
    Lane,
    /// Nothing: cut.
    Cut,
    /// Nothing: nobody is at the wheel.
    Leaseless,
}

impl State {
    /// Why something is dropped in this state: `EVENT_*`.
    #[inline(always)]
    pub fn drop_kind(self) -> u32 {
        match self {
            Self::Open | Self::Lane => EVENT_RULE,
            Self::Answered | Self::Cut => EVENT_CUT,
            Self::Leaseless => EVENT_LEASE,
        }
    }
}

/// The bottle's state now. What is not in use is closed, and a lease that has run out outranks the lane.
#[inline(always)]
pub fn of(bottle: &Bottle) -> State {
    let flags = read(&bottle.flags);
    if flags & FLAG_LIVE == 0 {
        return State::Cut;
    }
    let cut = read(&bottle.cut) != OPEN;
    if cut && (read(&bottle.face) != FACE_ANSWERED || flags & FLAG_MUTE != 0) {
        return State::Cut;
    }
    if !has_lease(bottle, cut) {
        return State::Leaseless;
    }
    match (cut, flags & FLAG_LANE != 0) {
        (true, _) => State::Answered,
        (false, true) => State::Lane,
        (false, false) => State::Open,
    }
}

/// Whether the controller's heart has beaten within the lease, if there is one; a cut is answered under one always.
/// The clock is that of the ticks, a few milliseconds coarse; a beat that seems to lie ahead is a fresh one.
#[inline(always)]
fn has_lease(bottle: &Bottle, cut: bool) -> bool {
    let lease = match read(&bottle.lease_ns) {
        0 if cut => LANE_LEASE_NS,
        lease => lease,
    };
    lease == 0 || HEART.get(0).is_some_and(|beat| now().saturating_sub(read(beat)) <= lease)
}

/// CLOCK_MONOTONIC_COARSE, nanoseconds.
#[inline(always)]
pub fn now() -> u64 {
    // SAFETY: the helper takes nothing and only reads a clock.
    unsafe { bpf_ktime_get_coarse_ns() }
}
