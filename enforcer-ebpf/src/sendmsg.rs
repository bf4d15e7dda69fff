//! sendto() and sendmsg() with an address on a UDP socket: refused when cut, and towards public addresses on :443,
//! where QUIC would pass the meter by. Sockets that are connected send without an address: `skb` judges those.
//!
//! A bottle that is cut and answered has its DNS queries sent to the lane; the lane answers those, and nobody else.
use aya_ebpf::programs::SockAddrContext;
use enforcer_ebpf::Bottle;
use enforcer_ebpf::address::has_ip6;

use crate::sock_addr::{Destination, REFUSE};
use crate::state::{self, State};
use crate::way::{Way, go4, go6};
use crate::{BOTTLES, egress, goes_around, lane, originals, slot};

/// An IPv4 socket sends, or an IPv6 one to a v4-mapped address.
#[inline(always)]
pub fn sendmsg4(socket: &SockAddrContext) -> i32 {
    let to = Destination::v4(socket);
    let slot = slot();
    let Some(bottle) = BOTTLES.get(slot) else { return REFUSE };
    go4(socket, &to, slot, bottle, way(socket, &to, slot, bottle))
}

/// An IPv6 socket sends. Here the kernel takes no v4-mapped form in the place of another address.
#[inline(always)]
pub fn sendmsg6(socket: &SockAddrContext) -> i32 {
    let to = Destination::v6(socket);
    let slot = slot();
    let Some(bottle) = BOTTLES.get(slot) else { return REFUSE };
    let way = match way(socket, &to, slot, bottle) {
        Way::To(there) if !has_ip6(&there) => Way::Refused,
        way => way,
    };
    go6(socket, &to, slot, bottle, way)
}

/// Decides.
#[inline(always)]
fn way(socket: &SockAddrContext, to: &Destination, slot: u32, bottle: &Bottle) -> Way {
    let pass = match state::of(bottle) {
        _ if slot == 0 => false,
        State::Open => is_let_out(socket, to, slot, bottle),
        State::Answered => return lane::way(socket, to, slot, bottle),
        State::Lane => lane::is_answer(socket, to),
        State::Cut | State::Leaseless => false,
    };
    if pass { Way::Straight } else { Way::Refused }
}

/// Whether a datagram of an open bottle may be sent there. To the lane it may not, unless a bottle inside this one,
/// whose hook has just run, has sent it there.
#[inline(always)]
fn is_let_out(socket: &SockAddrContext, to: &Destination, slot: u32, bottle: &Bottle) -> bool {
    if lane::is_far_end(&to.ip, to.port, bottle) {
        return originals::is_owned_inside(socket, slot);
    }
    !goes_around(bottle, &to.ip, to.port, to.protocol) && egress::may_send(socket, bottle, slot, to)
}
