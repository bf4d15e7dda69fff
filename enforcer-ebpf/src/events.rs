//! What the controller is told: drops, seldom, and calls from network namespaces where the meter is missing.
//!
//! A bottle's first drop after a cut is told at once, then one a second with the number that was not: whoever floods
//! gets no room in the ring that others need. Who debugs is told of every drop, in a log of its own, by
//! programs that are compiled for it. Nothing is decided here.
use core::arch::asm;

use enforcer_ebpf::{Bottle, EVENT_NAMESPACE, Event, EventState};

use crate::state::now;
use crate::{EVENT_STATES, EVENTS, add, read};

/// Least time between two drop events of a slot, nanoseconds.
const DROPS_NS: u64 = 1_000_000_000;
/// Least time between two namespace events of a slot: the controller finds the others by itself.
const NAMESPACES_NS: u64 = 20_000_000;

/// [`EventState::told`]: the epoch's low bits stand above this bit.
const EPOCH_SHIFT: u32 = 48;
/// [`EventState::told`]: the time is counted in 2^16 nanoseconds, 66 µs: finer than its clock ticks.
const TIME_SHIFT: u32 = 16;

/// Whose call or packet an event is about, and where it went or came from.
pub struct Subject {
    /// The calling process; 0 for a packet.
    pub pid: u32,
    /// Cookie of the network namespace; 0 for a packet.
    pub cookie: u64,
    /// The far end.
    pub ip: [u32; 4],
    /// The far end's port, host byte order.
    pub port: u32,
    /// IPPROTO_*.
    pub protocol: u32,
}

/// Something was dropped or refused. Only when it is to be told, the subject is looked up.
#[inline(always)]
pub fn dropped(slot: u32, bottle: &Bottle, kind: u32, subject: impl Fn() -> Subject) {
    #[cfg(feature = "log")]
    log(slot, kind, &subject());
    let Some(state) = EVENT_STATES.get_ptr_mut(slot) else { return };
    // SAFETY: the pointer is the slot's entry and lives as long as the map.
    let Some(suppressed) = (unsafe { take_turn(state, read(&bottle.epoch)) }) else { return };
    if !tell(slot, bottle, kind, suppressed, &subject()) {
        // SAFETY: as above; the field is an aligned word.
        unsafe { add(&raw mut (*state).suppressed, suppressed + 1) };
    }
}

/// A call was refused because its namespace has no place.
#[inline(always)]
pub fn missing_place(slot: u32, bottle: &Bottle, subject: &Subject) {
    let Some(state) = EVENT_STATES.get_ptr_mut(slot) else { return };
    // SAFETY: as in `dropped`.
    if unsafe { is_namespace_due(state) } {
        // a ring that is full loses it, and the controller's own search finds the namespace later
        tell(slot, bottle, EVENT_NAMESPACE, 0, subject);
    }
}

/// Writes a drop into the log; one that finds no room is lost.
#[cfg(feature = "log")]
#[inline(never)]
fn log(slot: u32, kind: u32, subject: &Subject) {
    use core::net::Ipv6Addr;

    use aya_log_ebpf::debug;
    use enforcer_ebpf::{EVENT_CUT, EVENT_LEASE};

    let [a, b, c, d] = subject.ip.map(u32::from_be);
    let ip =
        Ipv6Addr::from_bits(u128::from(a) << 96 | u128::from(b) << 64 | u128::from(c) << 32 | u128::from(d));
    let why = match kind {
        EVENT_CUT => "cut",
        EVENT_LEASE => "without a lease",
        _ => "ruled out",
    };
    let (protocol, port, pid) = (subject.protocol, subject.port, subject.pid);
    debug!((), "slot {}: {}: protocol {}, {:i} port {}, process {}", slot, why, protocol, ip, port, pid);
}

/// How many drops were not told since the last that was, if this one is to be. Of programs that ask at once, one is
/// told so.
///
/// # Safety
/// The pointer is an entry of `EVENT_STATES`.
#[inline(always)]
unsafe fn take_turn(state: *mut EventState, epoch: u32) -> Option<u64> {
    // SAFETY: the caller's promise; the fields are aligned words.
    unsafe {
        let told = (&raw const (*state).told).read_volatile();
        // epoch and time in one word, so that one exchange claims both
        let claim = u64::from(epoch) << EPOCH_SHIFT | now() >> TIME_SHIFT;
        let same_epoch = (told ^ claim) >> EPOCH_SHIFT == 0;
        let due = !same_epoch || claim.wrapping_sub(told) >= DROPS_NS >> TIME_SHIFT;
        if due && replace(&raw mut (*state).told, told, claim) {
            return Some(take(&raw mut (*state).suppressed));
        }
        add(&raw mut (*state).suppressed, 1);
    }
    None
}

/// Whether a namespace may be told of now.
///
/// # Safety
/// As for [`take_turn`].
#[inline(always)]
unsafe fn is_namespace_due(state: *mut EventState) -> bool {
    // SAFETY: the caller's promise.
    unsafe {
        let last = &raw mut (*state).namespace_ns;
        let (then, now) = (last.read_volatile(), now());
        now.saturating_sub(then) >= NAMESPACES_NS && replace(last, then, now)
    }
}

/// Writes an event; whether there was room.
#[inline(always)]
fn tell(slot: u32, bottle: &Bottle, kind: u32, suppressed: u64, subject: &Subject) -> bool {
    let Some(mut event) = EVENTS.reserve::<Event>(0) else { return false };
    event.write(Event {
        kind,
        slot,
        generation: read(&bottle.generation),
        pid: subject.pid,
        at_ns: now(),
        cookie: subject.cookie,
        ip: subject.ip,
        port: subject.port,
        protocol: subject.protocol,
        suppressed: if suppressed > u64::from(u32::MAX) { u32::MAX } else { suppressed as u32 },
        pad: 0,
    });
    event.submit(0);
    true
}

/// Stores a word if it is still what was seen; whether it was.
///
/// # Safety
/// The pointer is an aligned word of a map.
#[inline(always)]
unsafe fn replace(word: *mut u64, seen: u64, new: u64) -> bool {
    let mut there = seen;
    // SAFETY: the caller's promise; core has no compare-and-exchange for this target.
    unsafe {
        asm!("r0 = cmpxchg_64({word} + 0, r0, {new})", word = in(reg) word, new = in(reg) new, inout("r0") there);
    }
    there == seen
}

/// Takes what is in a word, leaving 0.
///
/// # Safety
/// As for [`replace`].
#[inline(always)]
unsafe fn take(word: *mut u64) -> u64 {
    let mut there = 0;
    // SAFETY: as in `replace`.
    unsafe { asm!("{there} = xchg_64({word} + 0, {there})", word = in(reg) word, there = inout(reg) there) };
    there
}
