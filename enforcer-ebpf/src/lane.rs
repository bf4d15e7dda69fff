//! An answered cut: the bottle reaches the refusal lane, which says why, and nothing else. What would have gone to
//! the meter is sent there, and every DNS query, whomever it was for; packets pass between the bottle and the lane's
//! address and port alone.
//!
//! Of UDP only what a hook has sent there passes, while the bottle that it was sent for is in this state: a socket
//! that stays connected to the lane is refused from the restore on. Whether a bottle is in this state is `state`'s
//! to say. Where no lane is, an answered cut is a silent one.
use aya_ebpf::bindings::BPF_NOEXIST;
use aya_ebpf::programs::{SkBuffContext, SockAddrContext};
use enforcer_ebpf::address::{is_endpoint, is_endpoint_anywhere};
use enforcer_ebpf::{ANSWERS_OWED, Asker, Bottle, Original, Place};

use crate::connect::is_for_meter;
use crate::sock_addr::{Destination, UDP};
use crate::state::{self, State};
use crate::way::Way;
use crate::{ASKERS, BOTTLES, DNS, add, endpoint, fetch_add, flows, originals, place, read};

/// What becomes of a connection, or of a datagram.
#[inline(always)]
pub fn way(socket: &SockAddrContext, to: &Destination, slot: u32, bottle: &Bottle) -> Way {
    let is_udp = to.protocol == UDP;
    if !is_udp && !to.is_tcp() {
        return Way::Refused;
    }
    let place = place::of(place::cookie(socket));
    let wanted = if is_udp { to.port == DNS } else { is_for_meter(to, bottle, place) };
    let Some(place) = place else { return if wanted { Way::NoPlace } else { Way::Refused } };
    let lane = endpoint(&place.lane);
    let for_lane = is_endpoint(&to.ip, to.port, &lane);
    // an IPv6 socket that is connected to a v4-mapped address comes by here with that at each query
    let is_sent_here =
        if is_udp { originals::of(socket).is_some() } else { originals::is_owned_inside(socket, slot) };
    if for_lane && is_sent_here {
        return Way::Straight;
    }
    if lane.port == 0 || !(wanted || (for_lane && !is_udp)) {
        return Way::Refused;
    }
    // the lane is asked whose a connection is, not whose a query
    let has_room = is_udp || flows::has_room(slot);
    if has_room && originals::remember(socket, original(socket, to, slot, bottle, place)) {
        Way::To(lane)
    } else {
        Way::Refused
    }
}

/// Whose the connection is: this bottle's, for its cut is what the lane has to explain. Where it was going, a bottle
/// inside this one may have remembered already; of a query nothing is left to be remembered then.
#[inline(always)]
fn original(
    socket: &SockAddrContext,
    to: &Destination,
    slot: u32,
    bottle: &Bottle,
    place: &Place,
) -> Original {
    let mut original = Original {
        ip: to.ip,
        port: to.port,
        slot,
        generation: read(&bottle.generation),
        listener: read(&place.listener),
    };
    if to.is_tcp()
        && originals::is_owned_inside(socket, slot)
        && let Some(inside) = originals::of(socket)
        && read(&inside.port) != 0
    {
        original.ip = read(&inside.ip);
        original.port = read(&inside.port);
    }
    original
}

/// Whether an address and port are the lane's, in whatever network namespace.
#[inline(always)]
pub fn is_far_end(ip: &[u32; 4], port: u32, bottle: &Bottle) -> bool {
    is_endpoint_anywhere(ip, port, &endpoint(&bottle.lane))
}

/// Whether an address is the lane's in the socket's own network namespace.
#[inline(always)]
pub fn is_here(socket: &SockAddrContext, there: &Destination) -> bool {
    place::of(place::cookie(socket))
        .is_some_and(|place| is_endpoint(&there.ip, there.port, &endpoint(&place.lane)))
}

/// The owner of the packet's socket, if a hook sent that to the lane and its bottle is cut and answered now.
#[inline(always)]
pub fn guest(packet: &SkBuffContext) -> Option<&'static Original> {
    let original = originals::of_packet(packet)?;
    let bottle = BOTTLES.get(read(&original.slot))?;
    let is_current = read(&bottle.generation) == read(&original.generation);
    (is_current && state::of(bottle) == State::Answered).then_some(original)
}

/// Notes that a query is on its way from this address and port, to be answered once; whether that could be. Resolving
/// programs have several under way by one socket. It is looked for first: the map takes a free place, and makes some
/// where it is full, before it finds that there is an entry.
#[inline(always)]
pub fn note_asker(ip: [u32; 4], port: u32, guest: &Original) -> bool {
    let asker = Asker { ip, port, listener: read(&guest.listener) };
    if let Some(owed) = ASKERS.get_ptr_mut(&asker) {
        owe_one_more(owed);
        return true;
    }
    if ASKERS.insert(&asker, &1, u64::from(BPF_NOEXIST)).is_ok() {
        return true;
    }
    // another program was first
    ASKERS.get_ptr_mut(&asker).map(owe_one_more).is_some()
}

/// One answer more is owed, up to a bound.
#[inline(always)]
fn owe_one_more(owed: *mut u64) {
    // SAFETY: an aligned word of the map; volatile, because other programs add to it.
    if (unsafe { owed.read_volatile() } as i64) < ANSWERS_OWED {
        // SAFETY: as above.
        unsafe { add(owed, 1) };
    }
}

/// Whether a datagram of the lane's answers a query that was sent to it in this network namespace. There is at most
/// one to each, however many are sent at once: who finds none owed gives back what it took. (An entry that is down to
/// none stays: another query may be noted there at this moment.)
#[inline(always)]
pub fn is_answer(socket: &SockAddrContext, to: &Destination) -> bool {
    let Some(place) = place::of(place::cookie(socket)) else { return false };
    if to.protocol != UDP {
        return false;
    }
    let asker = Asker { ip: to.ip, port: to.port, listener: read(&place.listener) };
    let Some(owed) = ASKERS.get_ptr_mut(&asker) else { return false };
    // SAFETY: an aligned word of the map.
    let is_owed = unsafe { fetch_add(owed, u64::MAX) } as i64 > 0;
    if !is_owed {
        // SAFETY: as above.
        unsafe { add(owed, 1) };
    }
    is_owed
}
