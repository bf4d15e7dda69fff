//! connect(): TCP to :80 and :443 of public addresses goes to the meter of the socket's own network namespace; a cut
//! bottle is refused at once.
//!
//! UDP is not refused here while the bottle is open, whatever its port: a resolving program tries its addresses by
//! connecting to them, and a refusal would turn their order. Its packets are `sendmsg`'s and `skb`'s.
use aya_ebpf::programs::SockAddrContext;
use enforcer_ebpf::address::{has_ip6, is_endpoint, is_endpoint_anywhere, is_redirected};
use enforcer_ebpf::{Bottle, Endpoint, FLAG_REDIRECT, MAPPED, Original, Place};

use crate::sock_addr::{ALLOW, Destination, REFUSE, miss, refuse, set_ip4, set_ip6, set_port};
use crate::state::{self, State};
use crate::{BOTTLES, egress, endpoint, flows, is_web, lane, originals, place, read, slot};

/// What becomes of a connection.
pub enum Way {
    /// Where the program asked.
    Straight,
    /// To the meter or the lane.
    To(Endpoint),
    /// Nowhere: EPERM.
    Refused,
    /// Nowhere, because nobody knows where the meter is in this network namespace.
    NoPlace,
}

/// An IPv4 socket connects.
#[inline(always)]
pub fn connect4(socket: &SockAddrContext) -> i32 {
    let to = Destination::v4(socket);
    let slot = slot();
    let Some(bottle) = BOTTLES.get(slot) else { return REFUSE };
    match way(socket, &to, slot, bottle) {
        Way::Straight => ALLOW,
        Way::To(there) if there.ip4 != 0 => {
            set_ip4(socket, there.ip4);
            set_port(socket, there.port);
            ALLOW
        }
        Way::To(_) | Way::Refused => refuse(socket, &to, slot, bottle),
        Way::NoPlace => miss(socket, &to, slot, bottle),
    }
}

/// An IPv6 socket connects. It goes to the IPv6 form where it asked for IPv6 and there is one, else to the v4-mapped
/// form, which the kernel itself refuses on a socket that takes IPv6 only (ENETUNREACH).
#[inline(always)]
pub fn connect6(socket: &SockAddrContext) -> i32 {
    let to = Destination::v6(socket);
    let slot = slot();
    let Some(bottle) = BOTTLES.get(slot) else { return REFUSE };
    match way(socket, &to, slot, bottle) {
        Way::Straight => ALLOW,
        Way::To(there) => {
            let native = has_ip6(&there) && !to.is_mapped();
            if !native && there.ip4 == 0 {
                return refuse(socket, &to, slot, bottle);
            }
            set_ip6(socket, if native { there.ip6 } else { [0, 0, MAPPED, there.ip4] });
            set_port(socket, there.port);
            ALLOW
        }
        Way::Refused => refuse(socket, &to, slot, bottle),
        Way::NoPlace => miss(socket, &to, slot, bottle),
    }
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
    if !to.is_tcp() || originals::is_owned_inside(socket, slot) {
        return Way::Straight;
    }
    // an open bottle has no business there, and what it connected to would outlast an answered cut
    if lane::is_far_end(&to.ip, to.port, bottle) {
        return Way::Refused;
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
