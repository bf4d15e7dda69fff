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

mod skb;
mod sock_ops;

use aya_ebpf::bindings::BPF_F_MMAPABLE;
use aya_ebpf::macros::{cgroup_skb, map, sock_ops};
use aya_ebpf::maps::{Array, CgroupStorage, HashMap, PerCpuArray};
use aya_ebpf::programs::{SkBuffContext, SockOpsContext};
use enforcer_ebpf::{Bottle, Counters, FLAG_LIVE, FLOWS as FLOW_ENTRIES, Flow, FlowKey, OPEN, SLOTS};

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

/// How many entries of `FLOWS` each slot holds.
#[map]
static FLOW_COUNTS: Array<u64> = Array::pinned(SLOTS, 0);

/// A packet leaves a socket of the bottle: 1 lets it pass, 0 drops it.
#[cgroup_skb(egress)]
pub fn enforcer_egress(packet: SkBuffContext) -> i32 {
    skb::judge(&packet)
}

/// A packet reaches a socket of the bottle: without this some 64 kB keep arriving after a cut.
#[cgroup_skb(ingress)]
pub fn enforcer_ingress(packet: SkBuffContext) -> i32 {
    skb::judge(&packet)
}

/// A TCP socket of the bottle changes: remembers its connections to the meter. Always 1, it decides nothing.
#[sock_ops]
pub fn enforcer_sock_ops(socket: SockOpsContext) -> u32 {
    sock_ops::track(&socket);
    1
}

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

/// Whether the bottle's packets pass. What is not in use is closed.
#[inline(always)]
fn is_open(bottle: &Bottle) -> bool {
    read(&bottle.flags) & FLAG_LIVE != 0 && read(&bottle.cut) == OPEN
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";
