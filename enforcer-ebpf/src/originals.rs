//! Whose each socket to the meter is and where it was going, kept in the socket itself: bounded by sockets, gone
//! with them.
//!
//! In nested bottles the inner one's hook runs first and the outer one sees the rewritten address; while both are
//! open the innermost one's entry is never overwritten.
use aya_ebpf::helpers::generated::bpf_sk_storage_get;
use aya_ebpf::programs::{SkBuffContext, SockAddrContext, SockOpsContext};
use enforcer_ebpf::Original;

use crate::flows::is_current;
use crate::skb::socket_of;
use crate::{ORIGINALS, read};

/// Remembers what becomes of the socket; whether that could be.
#[inline(always)]
pub fn remember(socket: &SockAddrContext, mut original: Original) -> bool {
    // SAFETY: the context is the one that the kernel gave this program; it locks the socket while it connects.
    unsafe {
        let entry = ORIGINALS.get_or_insert_ptr_mut(socket, Some(&mut original));
        if !entry.is_null() {
            *entry = original;
        }
        !entry.is_null()
    }
}

/// Forgets what an earlier connect() of the socket left, when this one goes elsewhere.
#[inline(always)]
pub fn forget(socket: &SockAddrContext) {
    // SAFETY: as in `remember`.
    unsafe {
        let entry = ORIGINALS.get_ptr_mut(socket);
        if !entry.is_null() {
            (*entry).port = 0;
            (*entry).listener = 0;
        }
    }
}

/// What is remembered of a socket to the meter or the lane.
#[inline(always)]
pub fn of(socket: &SockAddrContext) -> Option<&'static Original> {
    // SAFETY: the context is the one that the kernel gave this program; a socket's storage lives as long as it.
    let entry = unsafe { ORIGINALS.get_ptr_mut(socket).as_ref() }?;
    (read(&entry.listener) != 0).then_some(entry)
}

/// As [`of`], for a socket that connects or closes.
#[inline(always)]
pub fn of_tcp(socket: &SockOpsContext) -> Option<&'static Original> {
    // SAFETY: the kernel's context of this program; the helper takes a socket that is not null, and its storage
    // lives as long as it.
    let entry = unsafe {
        let sk = (*socket.ops).__bindgen_anon_2.sk;
        if sk.is_null() {
            return None;
        }
        let map = (&raw const ORIGINALS).cast_mut().cast();
        bpf_sk_storage_get(map, sk.cast(), core::ptr::null_mut(), 0).cast::<Original>().as_ref()
    }?;
    (read(&entry.listener) != 0).then_some(entry)
}

/// As [`of`], for a packet that leaves the socket or reaches it.
#[inline(always)]
pub fn of_packet(packet: &SkBuffContext) -> Option<&'static Original> {
    let sk = socket_of(packet)?;
    // SAFETY: as in `of_tcp`.
    let entry = unsafe {
        let map = (&raw const ORIGINALS).cast_mut().cast();
        bpf_sk_storage_get(map, sk.cast(), core::ptr::null_mut(), 0).cast::<Original>().as_ref()
    }?;
    (read(&entry.listener) != 0).then_some(entry)
}

/// Whether this very call is that of a bottle inside this one, whose hook has just run.
#[inline(always)]
pub fn is_owned_inside(socket: &SockAddrContext, slot: u32) -> bool {
    let Some(original) = of(socket) else { return false };
    let owner = read(&original.slot);
    owner != slot && is_current(owner, read(&original.generation))
}
