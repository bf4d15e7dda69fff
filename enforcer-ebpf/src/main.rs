//! The kernel programs' maps and entry points. Each hook family has its own file; this one decides nothing.
//!
//! Built for `bpfel-unknown-none` alone, by `enforcer/build.rs`. The slot of the bottle that a program runs
//! for comes from the place it is attached to (`CG`), so one loaded object serves every bottle, nested ones too.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]
#![allow(deprecated, reason = "its successor CGRP_STORAGE cannot be used on the packet path")]

#[cfg(not(target_arch = "bpf"))]
compile_error!("the programs are built for bpfel-unknown-none, by enforcer/build.rs");

mod bind;
mod connect;
mod egress;
mod events;
mod flows;
mod homes;
mod lane;
mod lsm;
mod originals;
mod peer;
mod place;
mod sendmsg;
mod skb;
mod sock_addr;
mod sock_create;
mod sock_ops;
mod state;
mod way;

use core::arch::asm;

use aya_ebpf::bindings::BPF_F_MMAPABLE;
use aya_ebpf::btf_maps::SkStorage;
use aya_ebpf::macros::{btf_map, cgroup_skb, cgroup_sock, cgroup_sock_addr, lsm_cgroup, map, sock_ops};
use aya_ebpf::maps::{Array, CgroupStorage, HashMap, LpmTrie, LruHashMap, PerCpuArray, RingBuf};
use aya_ebpf::programs::{LsmContext, SkBuffContext, SockAddrContext, SockContext, SockOpsContext};
use enforcer_ebpf::address::{is_endpoint, is_redirected};
use enforcer_ebpf::{
    ALLOW as ALLOW_ENTRIES, ASKERS as ASKER_ENTRIES, AllowKey, AllowPorts, Asker, Bottle, Counters,
    EVENT_BYTES, Endpoint, EventState, FLAG_REDIRECT, FLOWS as FLOW_ENTRIES, Flow, FlowKey,
    NAMESPACES as NAMESPACE_ENTRIES, Original, Place, SLOTS,
};

/// The slot of the bottle at this attach point; 0 until the controller has written it.
#[map]
static CG: CgroupStorage<u32> = CgroupStorage::pinned();

/// One entry a slot; written by the controller alone, through shared memory.
#[map]
static BOTTLES: Array<Bottle> = Array::pinned(SLOTS, BPF_F_MMAPABLE);

/// Packets and bytes, one entry a slot.
#[map]
static COUNTERS: PerCpuArray<Counters> = PerCpuArray::pinned(SLOTS, 0);

/// Live connections to the meter. Not an LRU: a flood must not evict a neighbour's connection.
#[map]
static FLOWS: HashMap<FlowKey, Flow> = HashMap::pinned(FLOW_ENTRIES, 0);

/// How many answers the lane owes to whom. An LRU: what was never answered goes by itself, and a query takes the lane
/// less time than a flood needs to fill this.
#[map]
static ASKERS: LruHashMap<Asker, u64> = LruHashMap::pinned(ASKER_ENTRIES, 0);

/// How many entries of `FLOWS` each slot holds; the controller, which removes some, writes through shared memory.
#[map]
static FLOW_COUNTS: Array<u64> = Array::pinned(SLOTS, BPF_F_MMAPABLE);

/// Where the meter is in each network namespace, by its cookie; written by the controller alone.
#[map]
static NAMESPACES: HashMap<u64, Place> = HashMap::pinned(NAMESPACE_ENTRIES, 0);

/// The controller's last heartbeat, CLOCK_MONOTONIC_COARSE nanoseconds; written through shared memory.
#[map]
static HEART: Array<u64> = Array::pinned(1, BPF_F_MMAPABLE);

/// The last listener id that a controller gave, through shared memory. Here only to be pinned: no program reads it.
#[map]
static LAST_LISTENER: Array<u64> = Array::pinned(1, BPF_F_MMAPABLE);

/// What bottles under lockdown may reach; written by the controller alone.
#[map]
static ALLOW: LpmTrie<AllowKey, AllowPorts> = LpmTrie::pinned(ALLOW_ENTRIES, 0);

/// What the controller is told.
#[map]
static EVENTS: RingBuf = RingBuf::pinned(EVENT_BYTES, 0);

/// When each slot told of its drops last.
#[map]
static EVENT_STATES: Array<EventState> = Array::pinned(SLOTS, 0);

/// Where each redirected socket was going, in the socket itself.
#[btf_map]
static ORIGINALS: SkStorage<Original> = SkStorage::new();

/// In which network namespace each socket of a confined bottle was made, by its cookie, in the socket itself.
#[btf_map]
static HOMES: homes::Homes = homes::Homes::new();

/// A packet leaves a socket of the bottle: 1 lets it pass, 0 drops it.
#[cgroup_skb(egress)]
pub fn enforcer_egress(packet: SkBuffContext) -> i32 {
    skb::egress(&packet)
}

/// A packet reaches a socket of the bottle: without this some 64 kB keep arriving after a cut.
#[cgroup_skb(ingress)]
pub fn enforcer_ingress(packet: SkBuffContext) -> i32 {
    skb::ingress(&packet)
}

/// A TCP socket of the bottle changes: remembers its connections to the meter. Always 1, it decides nothing.
#[sock_ops]
pub fn enforcer_sock_ops(socket: SockOpsContext) -> u32 {
    sock_ops::track(&socket);
    1
}

/// An IPv4 socket of the bottle connects: sends it to the meter or the lane, or refuses it with 0.
#[cgroup_sock_addr(connect4)]
pub fn enforcer_connect4(socket: SockAddrContext) -> i32 {
    connect::connect4(&socket)
}

/// An IPv6 socket of the bottle connects: sends it to the meter or the lane, or refuses it with 0.
#[cgroup_sock_addr(connect6)]
pub fn enforcer_connect6(socket: SockAddrContext) -> i32 {
    connect::connect6(&socket)
}

/// An IPv4 socket of the bottle sends with an address: sends it to the lane, or refuses it with 0.
#[cgroup_sock_addr(sendmsg4)]
pub fn enforcer_sendmsg4(socket: SockAddrContext) -> i32 {
    sendmsg::sendmsg4(&socket)
}

/// An IPv6 socket of the bottle sends with an address: sends it to the lane, or refuses it with 0.
#[cgroup_sock_addr(sendmsg6)]
pub fn enforcer_sendmsg6(socket: SockAddrContext) -> i32 {
    sendmsg::sendmsg6(&socket)
}

/// An IPv4 socket of the bottle receives a datagram, and is told from whom. Always 1, it refuses nothing.
#[cgroup_sock_addr(recvmsg4)]
pub fn enforcer_recvmsg4(socket: SockAddrContext) -> i32 {
    peer::show4(&socket);
    1
}

/// An IPv6 socket of the bottle receives a datagram, and is told from whom. Always 1, it refuses nothing.
#[cgroup_sock_addr(recvmsg6)]
pub fn enforcer_recvmsg6(socket: SockAddrContext) -> i32 {
    peer::show6(&socket);
    1
}

/// An IPv4 socket of the bottle is asked for its peer. Always 1, it refuses nothing.
#[cgroup_sock_addr(getpeername4)]
pub fn enforcer_getpeername4(socket: SockAddrContext) -> i32 {
    peer::show4(&socket);
    1
}

/// An IPv6 socket of the bottle is asked for its peer. Always 1, it refuses nothing.
#[cgroup_sock_addr(getpeername6)]
pub fn enforcer_getpeername6(socket: SockAddrContext) -> i32 {
    peer::show6(&socket);
    1
}

/// An IPv4 socket of the bottle binds: 0 refuses it.
#[cgroup_sock_addr(bind4)]
pub fn enforcer_bind4(socket: SockAddrContext) -> i32 {
    bind::bind(&socket)
}

/// An IPv6 socket of the bottle binds: 0 refuses it.
#[cgroup_sock_addr(bind6)]
pub fn enforcer_bind6(socket: SockAddrContext) -> i32 {
    bind::bind(&socket)
}

/// A socket of IPv4 or IPv6 is made in the bottle: 0 refuses it.
#[cgroup_sock(sock_create)]
pub fn enforcer_sock_create(socket: SockContext) -> i32 {
    sock_create::create(&socket)
}

/// A socket of any family is made in the bottle: 0 refuses it. Optional: not every kernel takes it.
#[lsm_cgroup(hook = "socket_create")]
pub fn enforcer_socket_create(call: LsmContext) -> i32 {
    lsm::socket_create(&call)
}

/// The port of DNS.
const DNS: u32 = 53;

/// The slot this program runs for.
#[inline(always)]
fn slot() -> u32 {
    // SAFETY: the helper returns this attach point's own storage, never null; another CPU or the controller may
    // write it meanwhile, hence volatile.
    unsafe { CG.get_ptr_mut().read_volatile() }
}

/// Reads a field that the controller may be writing.
#[inline(always)]
fn read<T: Copy>(field: &T) -> T {
    // SAFETY: a reference is valid and aligned; volatile, because shared memory changes under it.
    unsafe { core::ptr::read_volatile(field) }
}

/// An endpoint as it is now.
#[inline(always)]
fn endpoint(there: &Endpoint) -> Endpoint {
    let [a, b, c, d] = &there.ip6;
    Endpoint { ip6: [read(a), read(b), read(c), read(d)], ip4: read(&there.ip4), port: read(&there.port) }
}

/// The TCP ports that are redirected.
#[inline(always)]
fn is_web(port: u32) -> bool {
    port == 80 || port == 443
}

/// Whether traffic to this address and port (host byte order) would reach beside the meter what is metered: TCP to
/// the redirected ports, and QUIC. What goes to the meter itself does not.
#[inline(always)]
fn goes_around(bottle: &Bottle, ip: &[u32; 4], port: u32, protocol: u32) -> bool {
    let guarded = match protocol {
        sock_addr::TCP => is_web(port) && !is_endpoint(ip, port, &endpoint(&bottle.meter)),
        sock_addr::UDP => port == 443,
        _ => false,
    };
    guarded && read(&bottle.flags) & FLAG_REDIRECT != 0 && is_redirected(ip)
}

/// Adds to a word that other programs add to meanwhile, wrapping.
///
/// # Safety
/// The pointer is an aligned word of a map.
#[inline(always)]
unsafe fn add(word: *mut u64, n: u64) {
    // SAFETY: the caller's promise; core has no atomic addition for this target.
    unsafe { asm!("lock *(u64 *)({word} + 0) += {n}", word = in(reg) word, n = in(reg) n) };
}

/// The same, and gives what was there before, whatever others add at this moment (Linux 5.12).
///
/// # Safety
/// As of [`add`].
#[inline(always)]
unsafe fn fetch_add(word: *mut u64, n: u64) -> u64 {
    let mut n = n;
    // SAFETY: the caller's promise.
    unsafe {
        asm!("{n} = atomic_fetch_add((u64 *)({word} + 0), {n})", word = in(reg) word, n = inout(reg) n);
    }
    n
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";
