//! Where the meter is, by the network namespace of the socket that asks. A namespace that the controller has not
//! written yet has none: nothing can be sent to the meter from there.
use aya_ebpf::EbpfContext as _;
use aya_ebpf::helpers::generated::bpf_get_netns_cookie;
use aya_ebpf::programs::{SockAddrContext, SockOpsContext};
use enforcer_ebpf::Place;

use crate::NAMESPACES;

/// Cookie of the socket's network namespace.
#[inline(always)]
pub fn cookie(socket: &SockAddrContext) -> u64 {
    // SAFETY: the context is the one that the kernel gave this program.
    unsafe { bpf_get_netns_cookie(socket.as_ptr()) }
}

/// As [`cookie`], for a socket that connects or closes.
#[inline(always)]
pub fn cookie_of_tcp(socket: &SockOpsContext) -> u64 {
    // SAFETY: as in `cookie`.
    unsafe { bpf_get_netns_cookie(socket.as_ptr()) }
}

/// The place of a namespace.
#[inline(always)]
pub fn of(cookie: u64) -> Option<&'static Place> {
    // SAFETY: the entry is only read. One that is taken away at this moment may be read as whatever is put in its
    // room, another namespace's place: the connection is then sent to loopback with that one's id in its socket.
    // It is looked up again when the connection opens (`sock_ops`), and one whose ids differ is remembered as
    // nobody's; where that look races the same way, its key is one that a neighbour's connection finds taken, and
    // then both are nobody's (`flows`).
    unsafe { NAMESPACES.get(cookie) }
}
