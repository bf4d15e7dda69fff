//! sendto() and sendmsg() with an address on a UDP socket: refused when cut, and towards public addresses on :443,
//! where QUIC would pass the meter by. Sockets that are connected send without an address: `skb` judges those.
use aya_ebpf::programs::SockAddrContext;

use crate::sock_addr::{ALLOW, Destination, REFUSE, refuse};
use crate::state::{self, State};
use crate::{BOTTLES, egress, goes_around, slot};

/// An IPv4 socket sends.
#[inline(always)]
pub fn sendmsg4(socket: &SockAddrContext) -> i32 {
    judge(socket, &Destination::v4(socket))
}

/// An IPv6 socket sends.
#[inline(always)]
pub fn sendmsg6(socket: &SockAddrContext) -> i32 {
    judge(socket, &Destination::v6(socket))
}

#[inline(always)]
fn judge(socket: &SockAddrContext, to: &Destination) -> i32 {
    let slot = slot();
    let Some(bottle) = BOTTLES.get(slot) else { return REFUSE };
    let pass = slot != 0
        && state::of(bottle) == State::Open
        && !goes_around(bottle, &to.ip, to.port, to.protocol)
        && egress::may_send(socket, bottle, slot, to);
    if pass { ALLOW } else { refuse(socket, to, slot, bottle) }
}
