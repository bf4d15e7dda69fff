//! An answered cut: the bottle reaches the refusal lane, which says why, and nothing else. What would have gone to
//! the meter is sent there; packets pass between the bottle and the lane's address and port alone.
//!
//! Whether a bottle is in this state is `state`'s to say. Where no lane is, an answered cut is a silent one.
use aya_ebpf::programs::SockAddrContext;
use enforcer_ebpf::address::{is_endpoint, is_endpoint_anywhere};
use enforcer_ebpf::{Bottle, Original, Place};

use crate::connect::{Way, is_for_meter};
use crate::sock_addr::Destination;
use crate::{endpoint, flows, originals, place, read};

/// What becomes of a connection.
#[inline(always)]
pub fn way(socket: &SockAddrContext, to: &Destination, slot: u32, bottle: &Bottle) -> Way {
    if !to.is_tcp() {
        return Way::Refused;
    }
    let place = place::of(place::cookie(socket));
    let for_meter = is_for_meter(to, bottle, place);
    let Some(place) = place else { return if for_meter { Way::NoPlace } else { Way::Refused } };
    let lane = endpoint(&place.lane);
    let for_lane = is_endpoint(&to.ip, to.port, &lane);
    if lane.port == 0 || !(for_meter || for_lane) {
        return Way::Refused;
    }
    if for_lane && originals::is_owned_inside(socket, slot) {
        return Way::Straight;
    }
    if flows::has_room(slot) && originals::remember(socket, original(socket, to, slot, bottle, place)) {
        Way::To(lane)
    } else {
        Way::Refused
    }
}

/// Whose the connection is: this bottle's, for its cut is what the lane has to explain. Where it was going, a bottle
/// inside this one may have remembered already.
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
    if originals::is_owned_inside(socket, slot)
        && let Some(inside) = originals::of(socket)
        && read(&inside.port) != 0
    {
        original.ip = read(&inside.ip);
        original.port = read(&inside.port);
    }
    original
}

/// Whether an address and port of TCP are the lane's, in whatever network namespace.
#[inline(always)]
pub fn is_far_end(ip: &[u32; 4], port: u32, bottle: &Bottle) -> bool {
    is_endpoint_anywhere(ip, port, &endpoint(&bottle.lane))
}
