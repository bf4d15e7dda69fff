//! TCP sockets of a bottle: remembers each connection to the meter for as long as it lives.
//!
//! It never decides about a packet. A connection that is not remembered is nobody's, and the meter refuses it.
use core::arch::asm;

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::{
    BPF_NOEXIST, BPF_SOCK_OPS_STATE_CB, BPF_SOCK_OPS_STATE_CB_FLAG, BPF_SOCK_OPS_TCP_CONNECT_CB,
    BPF_TCP_CLOSE,
};
use aya_ebpf::helpers::generated::bpf_get_socket_cookie;
use aya_ebpf::programs::SockOpsContext;
use enforcer_ebpf::{Bottle, Endpoint, FLAG_LIVE, FLOWS_PER_BOTTLE, Flow, FlowKey, MAPPED};

use crate::{BOTTLES, FLOW_COUNTS, FLOWS, read, slot};

/// Adds the connection when it is made, takes it away when it is closed.
#[inline(always)]
pub fn track(socket: &SockOpsContext) {
    let opening = socket.op() == BPF_SOCK_OPS_TCP_CONNECT_CB;
    let closing = socket.op() == BPF_SOCK_OPS_STATE_CB && socket.arg(1) == BPF_TCP_CLOSE;
    if !opening && !closing {
        return;
    }
    let slot = slot();
    let Some(bottle) = BOTTLES.get(slot) else { return };
    let key = key(socket, read(&bottle.listener));
    // SAFETY: the context is the one that the kernel gave this program.
    let cookie = unsafe { bpf_get_socket_cookie(socket.as_ptr()) };
    if closing {
        forget(&key, cookie);
    } else if is_meter(&key, &bottle.meter) && remember(&key, slot, bottle, cookie) {
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

/// Whether the connection goes to this endpoint, by its IPv4 form (v4-mapped too) or its IPv6 form.
#[inline(always)]
fn is_meter(key: &FlowKey, meter: &Endpoint) -> bool {
    let [a, b, c, d] = key.destination_ip;
    let ip4 = read(&meter.ip4);
    let mapped = ip4 != 0 && (a, b, c, d) == (0, 0, MAPPED, ip4);
    let ip6 = read(&meter.ip6);
    let is_set = ip6[0] | ip6[1] | ip6[2] | ip6[3] != 0;
    let port = u32::from(u16::from_be(read(&meter.port) as u16));
    key.destination_port == port && (mapped || (is_set && (a, b, c, d) == (ip6[0], ip6[1], ip6[2], ip6[3])))
}

/// Remembers the connection as this slot's; whether it was added. An entry that is there stays: of the same
/// socket, it is an inner bottle's, whose hook ran first; of another socket, it is only replaced when stale.
#[inline(always)]
fn remember(key: &FlowKey, slot: u32, bottle: &Bottle, cookie: u64) -> bool {
    // SAFETY: the entry is only read; one removed meanwhile yields another connection's cookie, never ours.
    if let Some(there) = unsafe { FLOWS.get(key) } {
        if there.cookie == cookie || !is_stale(there) {
            return false;
        }
        forget(key, there.cookie);
    }
    // may be passed by as many connections as there are CPUs, each having read the count before the others
    if read(&bottle.flags) & FLAG_LIVE == 0 || count(slot).is_none_or(|n| n >= u64::from(FLOWS_PER_BOTTLE)) {
        return false;
    }
    let flow = Flow {
        original_ip: key.destination_ip,
        original_port: key.destination_port,
        slot,
        generation: read(&bottle.generation),
        pad: 0,
        cgroup_id: read(&bottle.cgroup_id),
        cookie,
    };
    let added = FLOWS.insert(key, flow, u64::from(BPF_NOEXIST)).is_ok();
    if added {
        add(slot, 1);
    }
    added
}

/// Removes the entry if it is this socket's.
#[inline(always)]
fn forget(key: &FlowKey, cookie: u64) {
    // SAFETY: as in `remember`.
    let Some(there) = (unsafe { FLOWS.get(key) }) else { return };
    let slot = there.slot;
    if there.cookie == cookie && FLOWS.remove(key).is_ok() {
        add(slot, u64::MAX);
    }
}

/// Whether the entry's bottle is gone: its slot free, or given to another.
#[inline(always)]
fn is_stale(flow: &Flow) -> bool {
    let Some(bottle) = BOTTLES.get(flow.slot) else { return true };
    read(&bottle.flags) & FLAG_LIVE == 0 || read(&bottle.generation) != flow.generation
}

/// How many connections the slot holds.
#[inline(always)]
fn count(slot: u32) -> Option<u64> {
    FLOW_COUNTS.get(slot).map(read)
}

/// Adds to the slot's count, wrapping (`u64::MAX` takes one away).
#[inline(always)]
fn add(slot: u32, n: u64) {
    if let Some(count) = FLOW_COUNTS.get_ptr_mut(slot) {
        // SAFETY: the pointer is an aligned word of the map; core has no atomic addition for this target.
        unsafe { asm!("lock *(u64 *)({count} + 0) += {n}", count = in(reg) count, n = in(reg) n) };
    }
}
