//! Where the meter is, by the network namespace of the socket that asks. A namespace that the controller has not
//! written yet has none: nothing can be sent to the meter from there.
use aya_ebpf::EbpfContext as _;
use aya_ebpf::helpers::generated::bpf_get_netns_cookie;
use aya_ebpf::programs::SockAddrContext;
use enforcer_ebpf::Place;

use crate::NAMESPACES;

/// Cookie of the socket's network namespace.
#[inline(always)]
pub fn cookie(socket: &SockAddrContext) -> u64 {
    // SAFETY: the context is the one that the kernel gave this program.
    unsafe { bpf_get_netns_cookie(socket.as_ptr()) }
}

/// The place of a namespace.
#[inline(always)]
pub fn of(cookie: u64) -> Option<&'static Place> {
    // SAFETY: the entry is only read. One that is taken away at this moment may be read as whatever is put in its
    // room: a connection is then sent to loopback or kept under another listener's id, and is nobody's either way,
    // because the meter has just left this namespace.
    unsafe { NAMESPACES.get(cookie) }
}
