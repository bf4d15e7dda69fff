//! connect(): TCP to :80 and :443 of public addresses goes to the meter of the socket's own network namespace; a cut
//! bottle is refused at once, or sent to the lane.
//!
//! UDP is not refused here while the bottle is open, whatever its port: a resolving program tries its addresses by
//! connecting to them, and a refusal would turn their order. Its packets are `sendmsg`'s and `skb`'s. Only the lane's
//! own address is nobody's who is open.
use aya_ebpf::programs::SockAddrContext;
use enforcer_ebpf::address::{is_endpoint, is_endpoint_anywhere, is_redirected};
use enforcer_ebpf::{Bottle, FLAG_REDIRECT, Original, Place};

use crate::sock_addr::{Destination, REFUSE};
use crate::state::{self, State};
use crate::way::{Way, go4, go6};
use crate::{BOTTLES, egress, endpoint, flows, is_web, lane, originals, place, read, slot};

/// An IPv4 socket connects.
#[inline(always)]
pub fn connect4(socket: &SockAddrContext) -> i32 {
    let to = Destination::v4(socket);
    let slot = slot();
    let Some(bottle) = BOTTLES.get(slot) else { return REFUSE };
    go4(socket, &to, slot, bottle, way(socket, &to, slot, bottle))
}

/// An IPv6 socket connects.
#[inline(always)]
pub fn connect6(socket: &SockAddrContext) -> i32 {
    let to = Destination::v6(socket);
    let slot = slot();
    let Some(bottle) = BOTTLES.get(slot) else { return REFUSE };
    go6(socket, &to, slot, bottle, way(socket, &to, slot, bottle))
}

/// Decides.
#[inline(always)]
fn way(socket: &SockAddrContext, to: &Destination, slot: u32, bottle: &Bottle) -> Way {
    match state::of(bottle) {
        _ if slot == 0 => Way::Refused,
        State::Open => open_way(socket, to, slot, bottle),
        State::Answered => lane::way(socket, to, slot, bottle),
        // the lane connects to nobody
        State::Cut | State::Leaseless | State::Lane => Way::Refused,
    }
}

/// As [`way`] for a bottle that is open. Remembers in the socket whose it is and where it was going.
#[inline(always)]
fn open_way(socket: &SockAddrContext, to: &Destination, slot: u32, bottle: &Bottle) -> Way {
    if !egress::may_connect(socket, bottle, slot, to) {
        return Way::Refused;
    }
    if originals::is_owned_inside(socket, slot) {
        return Way::Straight;
    }
    // an open bottle has no business there, and what it connected to would outlast an answered cut
    if lane::is_far_end(&to.ip, to.port, bottle) {
        return Way::Refused;
    }
    if !to.is_tcp() {
        originals::forget(socket);
        return Way::Straight;
    }
    let place = place::of(place::cookie(socket));
    if !is_for_meter(to, bottle, place) {
        originals::forget(socket);
        return Way::Straight;
    }
    let Some(place) = place else { return Way::NoPlace };
    let original = Original {
        ip: to.ip,
        // who asks for the meter gets it, in whatever form it has here
        port: if is_to_meter(to, bottle, Some(place)) { 0 } else { to.port },
        slot,
        generation: read(&bottle.generation),
        listener: read(&place.listener),
    };
    if flows::has_room(slot) && originals::remember(socket, original) {
        Way::To(endpoint(&place.meter))
    } else {
        Way::Refused
    }
}

/// Whether a TCP connection is the meter's: one to be redirected, or one that asks for the meter itself.
#[inline(always)]
pub fn is_for_meter(to: &Destination, bottle: &Bottle, place: Option<&Place>) -> bool {
    let redirect = read(&bottle.flags) & FLAG_REDIRECT != 0 && is_web(to.port) && is_redirected(&to.ip);
    redirect || is_to_meter(to, bottle, place)
}

/// Whether a connection asks for the meter: where it is in this namespace, in the host's, or will be here.
#[inline(always)]
fn is_to_meter(to: &Destination, bottle: &Bottle, place: Option<&Place>) -> bool {
    is_endpoint_anywhere(&to.ip, to.port, &endpoint(&bottle.meter))
        || place.is_some_and(|place| is_endpoint(&to.ip, to.port, &endpoint(&place.meter)))
}
