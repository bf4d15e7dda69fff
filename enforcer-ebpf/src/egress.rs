//! Lockdown: what a confined bottle reaches besides the meter. Nothing leaves but TCP to the meter, what `ALLOW` lists
//! for its slot (its resolvers among it), and loopback where that is the bottle's own.
//!
//! Loopback is the bottle's own in a network namespace for which the controller has written a place other than the
//! host's. One without a place is not known to be another than the host's, so it has none: neither before the
//! controller has written the place, nor while places are written anew after its restart, is there a moment in which
//! the host's loopback could be taken for the bottle's. Nested bottles: each judges by its own rules, and both must
//! let it pass.
use aya_ebpf::maps::lpm_trie::Key;
use aya_ebpf::programs::{SkBuffContext, SockAddrContext};
use enforcer_ebpf::address::{is_endpoint, is_loopback};
use enforcer_ebpf::{
    ALLOW_ANY_PORT, ALLOW_DNS, ALLOW_PORTS, AllowKey, Bottle, FLAG_LOCKDOWN, LISTENER_HOST, Place,
};

use crate::connect::is_for_meter;
use crate::skb::Header;
use crate::sock_addr::{Destination, TCP, UDP};
use crate::{ALLOW, BOTTLES, DNS, endpoint, homes, lane, place, read};

/// Bits of a whole key of `ALLOW`.
const WHOLE_KEY: u32 = 32 + 128;
/// socket()'s type of raw sockets, which send packets of any protocol.
pub const SOCK_RAW: u32 = 3;

/// Whether a socket may connect there. UDP may, anywhere: nothing leaves by that, and a resolving program that is
/// refused an address of one family tries those of the other first, which may have no route. What it sends is judged.
#[inline(always)]
pub fn may_connect(socket: &SockAddrContext, bottle: &Bottle, slot: u32, to: &Destination) -> bool {
    if !is_confined(bottle) {
        return true;
    }
    let cookie = homes::note(socket);
    if !to.is_tcp() {
        return to.protocol == UDP;
    }
    // what is redirected, or refused where it cannot be, is the redirect's to say
    is_for_meter(to, bottle, place::of(cookie))
        || lane::is_far_end(&to.ip, to.port, bottle)
        || may_reach(slot, cookie, &to.ip, to.port)
}

/// Whether a datagram may be sent there.
#[inline(always)]
pub fn may_send(socket: &SockAddrContext, bottle: &Bottle, slot: u32, to: &Destination) -> bool {
    !is_confined(bottle) || may_reach(slot, homes::note(socket), &to.ip, to.port)
}

/// Whether a packet of a confined bottle may leave. What has no port to be judged by may not: other protocols,
/// fragments (the kernel fragments after this hook), and what hides behind extension headers.
#[inline(always)]
pub fn may_leave(packet: &SkBuffContext, header: &Header, bottle: &Bottle, slot: u32) -> bool {
    if header.hides_ports || !header.has_ports() {
        return false;
    }
    let Some((_, port)) = header.ports(packet) else { return false };
    let (ip, is_tcp) = (&header.destination, header.protocol == TCP);
    // the lane's only where one around or inside this bottle is cut and answered: it closes who is not
    if lane::is_far_end(ip, port, bottle) {
        return is_tcp || lane::guest(packet).is_some();
    }
    if (is_tcp && is_endpoint(ip, port, &endpoint(&bottle.meter))) || is_listed(slot, ip, port) {
        return true;
    }
    if !is_loopback(ip) {
        return false;
    }
    // the host's meter may have a second address on loopback, which only its place tells
    let place = homes::of_packet(packet).and_then(place::of);
    place.is_some_and(|place| is_own(place) || (is_tcp && is_endpoint(ip, port, &endpoint(&place.meter))))
}

/// Whether the bottle in this slot is under lockdown; while the slot is not written, it may be.
#[inline(always)]
pub fn may_be_confined(slot: u32) -> bool {
    slot == 0 || BOTTLES.get(slot).is_none_or(is_confined)
}

/// Whether the bottle is under lockdown.
#[inline(always)]
pub fn is_confined(bottle: &Bottle) -> bool {
    read(&bottle.flags) & FLAG_LOCKDOWN != 0
}

/// Whether the allow-list names this destination, or it is the bottle's own loopback.
#[inline(always)]
fn may_reach(slot: u32, cookie: u64, ip: &[u32; 4], port: u32) -> bool {
    is_listed(slot, ip, port) || (is_loopback(ip) && place::of(cookie).is_some_and(is_own))
}

/// Whether this is the place of another namespace than the host's.
#[inline(always)]
fn is_own(place: &Place) -> bool {
    read(&place.listener) != LISTENER_HOST
}

/// Looks the destination up. The longest prefix alone is found; its entry lists what shorter ones do, too.
#[inline(always)]
fn is_listed(slot: u32, ip: &[u32; 4], port: u32) -> bool {
    let key = Key::new(WHOLE_KEY, AllowKey { slot, ip: *ip });
    let Some(allowed) = ALLOW.get(&key) else { return false };
    let flags = read(&allowed.flags);
    if flags & ALLOW_ANY_PORT != 0 || (flags & ALLOW_DNS != 0 && port == DNS) {
        return true;
    }
    let count = read(&allowed.count);
    let mut found = false;
    for at in 0..ALLOW_PORTS {
        found |= (at as u32) < count && u32::from(read(&allowed.ports[at])) == port;
    }
    found
}
