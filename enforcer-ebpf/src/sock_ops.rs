//! TCP sockets of a bottle: remembers each connection to the meter or the lane for as long as it lives.
//!
//! It never decides about a packet. A connection that is not remembered is nobody's, and the meter refuses it.
use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::{
    BPF_SOCK_OPS_STATE_CB, BPF_SOCK_OPS_STATE_CB_FLAG, BPF_SOCK_OPS_TCP_CONNECT_CB, BPF_TCP_CLOSE,
};
use aya_ebpf::helpers::generated::bpf_get_socket_cookie;
use aya_ebpf::programs::SockOpsContext;
use enforcer_ebpf::{Bottle, Flow, FlowKey, Original};

use crate::flows::{forget, remember};
use crate::{BOTTLES, originals, place, read, slot};

/// Adds the connection when it is made, takes it away when it is closed. Whose it is, and through which listener,
/// the hook on connect() has left in the socket. That may be long ago (TCP Fast Open connects when it sends first):
/// what is not the listener of the socket's namespace now is not remembered.
#[inline(always)]
pub fn track(socket: &SockOpsContext) {
    let opening = socket.op() == BPF_SOCK_OPS_TCP_CONNECT_CB;
    let closing = socket.op() == BPF_SOCK_OPS_STATE_CB && socket.arg(1) == BPF_TCP_CLOSE;
    if !opening && !closing {
        return;
    }
    let Some(original) = originals::of_tcp(socket) else { return };
    let listener = read(&original.listener);
    let key = key(socket, listener);
    // SAFETY: the context is the one that the kernel gave this program.
    let cookie = unsafe { bpf_get_socket_cookie(socket.as_ptr()) };
    if closing {
        return forget(&key, cookie);
    }
    if place::of(place::cookie_of_tcp(socket)).is_none_or(|place| read(&place.listener) != listener) {
        return;
    }
    let slot = slot();
    let Some(bottle) = BOTTLES.get(slot) else { return };
    if read(&original.slot) == slot && remember(&key, &flow(&key, original, bottle, cookie)) {
        // without the callback the entry would outlive its connection: rather none
        let flags = socket.cb_flags() | BPF_SOCK_OPS_STATE_CB_FLAG;
        if socket.set_cb_flags(flags as i32).is_err() {
            forget(&key, cookie);
        }
    }
}

/// The connection as both ends see it. Called before the SYN leaves: the source is already chosen. The kernel
/// keeps the addresses of IPv4 sockets in v4-mapped form beside their own, so no branch is needed (one would let
/// the compiler compute the context's offset, which the verifier refuses).
#[inline(always)]
fn key(socket: &SockOpsContext, listener: u32) -> FlowKey {
    // SAFETY: the kernel's context of this program; read word by word, as the verifier wants it.
    let context = unsafe { &*socket.ops };
    let words = |ip: &[u32; 4]| [read(&ip[0]), read(&ip[1]), read(&ip[2]), read(&ip[3])];
    FlowKey {
        source_ip: words(&context.local_ip6),
        destination_ip: words(&context.remote_ip6),
        source_port: read(&context.local_port),
        // the kernel gives the remote port in network byte order in the upper half
        destination_port: u32::from_be(read(&context.remote_port)),
        listener,
        pad: 0,
    }
}

/// Whose connection it is, and where it was going before it was redirected: where it goes, when it was not.
#[inline(always)]
fn flow(key: &FlowKey, original: &Original, bottle: &Bottle, cookie: u64) -> Flow {
    let port = read(&original.port);
    let redirected = port != 0;
    Flow {
        original_ip: if redirected { read(&original.ip) } else { key.destination_ip },
        original_port: if redirected { port } else { key.destination_port },
        slot: read(&original.slot),
        generation: read(&original.generation),
        pad: 0,
        cgroup_id: read(&bottle.cgroup_id),
        cookie,
    }
}
