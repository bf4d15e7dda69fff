//! connect(): TCP to :80 and :443 of public addresses goes to the meter of the socket's own network
//! namespace; a cut bottle is refused at once.
//!
//! UDP is not refused here, whatever its port: a resolving program tries its addresses by connecting to them, and
//! a refusal would turn their order. Its packets are `sendmsg`'s and `skb`'s.
use aya_ebpf::programs::SockAddrContext;
use enforcer_ebpf::address::{has_ip6, is_endpoint, is_redirected};
use enforcer_ebpf::{Endpoint, FLAG_REDIRECT, MAPPED, Original};

use crate::sock_addr::{ALLOW, Destination, refuse, set_ip4, set_ip6, set_port};
use crate::state::{self, State};
use crate::{BOTTLES, endpoint, flows, is_web, originals, place, read, slot};

/// What becomes of a connection.
enum Way {
    /// Where the program asked.
    Straight,
    /// To the meter instead.
    Meter(Endpoint),
    /// Nowhere: EPERM.
    Refused,
}

/// An IPv4 socket connects.
#[inline(always)]
pub fn connect4(socket: &SockAddrContext) -> i32 {
    match way(socket, &Destination::v4(socket)) {
        Way::Straight => ALLOW,
        Way::Meter(meter) if meter.ip4 != 0 => {
            set_ip4(socket, meter.ip4);
            set_port(socket, meter.port);
            ALLOW
        }
        Way::Meter(_) | Way::Refused => refuse(slot()),
    }
}

/// An IPv6 socket connects. It goes to the meter's IPv6 form where it asked for IPv6 and there is one, else to the
/// v4-mapped form, which the kernel itself refuses on a socket that takes IPv6 only (ENETUNREACH).
#[inline(always)]
pub fn connect6(socket: &SockAddrContext) -> i32 {
    let to = Destination::v6(socket);
    match way(socket, &to) {
        Way::Straight => ALLOW,
        Way::Meter(meter) => {
            let native = has_ip6(&meter) && !to.is_mapped();
            if !native && meter.ip4 == 0 {
                return refuse(slot());
            }
            set_ip6(socket, if native { meter.ip6 } else { [0, 0, MAPPED, meter.ip4] });
            set_port(socket, meter.port);
            ALLOW
        }
        Way::Refused => refuse(slot()),
    }
}

/// Decides, and remembers in the socket whose it is and where it was going.
#[inline(always)]
fn way(socket: &SockAddrContext, to: &Destination) -> Way {
    let slot = slot();
    let Some(bottle) = BOTTLES.get(slot) else { return Way::Refused };
    if slot == 0 || state::of(bottle) != State::Open {
        return Way::Refused;
    }
    if !to.is_tcp() || originals::is_owned_inside(socket, slot) {
        return Way::Straight;
    }
    let redirect = read(&bottle.flags) & FLAG_REDIRECT != 0 && is_web(to.port) && is_redirected(&to.ip);
    let Some(place) = place::of(place::cookie(socket)) else {
        return if redirect { Way::Refused } else { straight(socket) };
    };
    let meter = endpoint(&place.meter);
    if !redirect && !is_endpoint(&to.ip, to.port, &meter) {
        return straight(socket);
    }
    let original = Original {
        ip: to.ip,
        port: if redirect { to.port } else { 0 },
        slot,
        generation: read(&bottle.generation),
        listener: read(&place.listener),
    };
    if !flows::has_room(slot) || !originals::remember(socket, original) {
        return Way::Refused;
    }
    if redirect { Way::Meter(meter) } else { Way::Straight }
}

/// Not the meter's business.
#[inline(always)]
fn straight(socket: &SockAddrContext) -> Way {
    originals::forget(socket);
    Way::Straight
}
