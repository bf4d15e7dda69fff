//! Where each redirected socket was going, kept in the socket itself: bounded by sockets, gone with them.
//!
//! In nested bottles the inner one's hook runs first and the outer one sees the rewritten address; the innermost
//! one's entry is never overwritten.
use aya_ebpf::helpers::generated::bpf_sk_storage_get;
use aya_ebpf::programs::{SockAddrContext, SockOpsContext};
use enforcer_ebpf::Original;
use enforcer_ebpf::address::is_endpoint;

use crate::flows::current;
use crate::sock_addr::Destination;
use crate::{ORIGINALS, endpoint, read};

/// Remembers where the socket was going; whether that could be.
#[inline(always)]
pub fn remember(socket: &SockAddrContext, to: &Destination, slot: u32, generation: u32) -> bool {
    let mut original = Original { ip: to.ip, port: to.port, slot, generation, pad: 0 };
    // SAFETY: the context is the one that the kernel gave this program; it locks the socket while it connects.
    unsafe {
        let entry = ORIGINALS.get_or_insert_ptr_mut(socket, Some(&mut original));
        if !entry.is_null() {
            *entry = original;
        }
        !entry.is_null()
    }
}

/// Forgets what an earlier connect() of the socket left, when this one is not redirected.
#[inline(always)]
pub fn forget(socket: &SockAddrContext) {
    // SAFETY: as in `remember`.
    unsafe {
        let entry = ORIGINALS.get_ptr_mut(socket);
        if !entry.is_null() {
            (*entry).port = 0;
        }
    }
}

/// Where the socket was going, if it is redirected.
#[inline(always)]
pub fn of(socket: &SockAddrContext) -> Option<&'static Original> {
    // SAFETY: the context is the one that the kernel gave this program; a socket's storage lives as long as it.
    let entry = unsafe { ORIGINALS.get_ptr_mut(socket).as_ref() }?;
    (read(&entry.port) != 0).then_some(entry)
}

/// As [`of`], for a socket whose SYN is about to leave.
#[inline(always)]
pub fn of_connecting(socket: &SockOpsContext) -> Option<&'static Original> {
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
    (read(&entry.port) != 0).then_some(entry)
}

/// Whether a bottle inside this one has redirected this very connect(): the destination is its meter.
#[inline(always)]
pub fn is_redirected_inside(socket: &SockAddrContext, to: &Destination, slot: u32) -> bool {
    let Some(original) = of(socket) else { return false };
    let Some(inner) = current(original.slot, original.generation) else { return false };
    original.slot != slot && is_endpoint(&to.ip, to.port, &endpoint(&inner.meter))
}
