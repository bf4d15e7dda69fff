//! In which network namespace each socket of a confined bottle was made, kept in the socket itself.
//!
//! A packet does not tell its namespace on every kernel that this runs on; the socket does when it is made, and
//! whenever it connects or sends with an address. Sockets that a listener accepts inherit its note. One without a
//! note (a listener from before the bottle was attached) is in no known namespace.
use core::ptr::null;

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::bpf_map_type::BPF_MAP_TYPE_SK_STORAGE;
use aya_ebpf::bindings::{BPF_F_CLONE, BPF_F_NO_PREALLOC, BPF_SK_STORAGE_GET_F_CREATE};
use aya_ebpf::helpers::generated::{bpf_get_netns_cookie, bpf_sk_storage_get};
use aya_ebpf::programs::{SkBuffContext, SockAddrContext, SockContext};

use crate::skb::socket_of;
use crate::{HOMES, read};

/// A socket storage whose entries go along to accepted sockets; aya's own kind cannot say that.
#[repr(C)]
pub struct Homes {
    r#type: *const [i32; BPF_MAP_TYPE_SK_STORAGE as usize],
    key: *const i32,
    value: *const u64,
    max_entries: *const [i32; 0],
    map_flags: *const [i32; (BPF_F_NO_PREALLOC | BPF_F_CLONE) as usize],
}

// SAFETY: the fields only describe the map to the loader and are never read.
unsafe impl Sync for Homes {}

impl Homes {
    /// A description of the map.
    pub const fn new() -> Self {
        Self { r#type: null(), key: null(), value: null(), max_entries: null(), map_flags: null() }
    }

    fn as_ptr(&self) -> *mut core::ffi::c_void {
        core::ptr::from_ref(self).cast_mut().cast()
    }
}

/// Notes where a socket is made. Without room for the note it has none.
#[inline(always)]
pub fn note_new(socket: &SockContext) {
    // SAFETY: the context is the one that the kernel gave this program, and stands for the socket.
    unsafe {
        let mut cookie = bpf_get_netns_cookie(socket.as_ptr());
        let create = u64::from(BPF_SK_STORAGE_GET_F_CREATE);
        bpf_sk_storage_get(HOMES.as_ptr(), socket.as_ptr(), (&raw mut cookie).cast(), create);
    }
}

/// Notes where a socket is that may be older than its bottle; its namespace's cookie.
#[inline(always)]
pub fn note(socket: &SockAddrContext) -> u64 {
    // SAFETY: the context is the one that the kernel gave this program, and its socket is not null.
    unsafe {
        let mut cookie = bpf_get_netns_cookie(socket.as_ptr());
        let sk = (*socket.sock_addr).__bindgen_anon_1.sk;
        let create = u64::from(BPF_SK_STORAGE_GET_F_CREATE);
        bpf_sk_storage_get(HOMES.as_ptr(), sk.cast(), (&raw mut cookie).cast(), create);
        cookie
    }
}

/// Cookie of the namespace that the packet's socket was made in, where that was noted.
#[inline(always)]
pub fn of_packet(packet: &SkBuffContext) -> Option<u64> {
    let sk = socket_of(packet)?;
    // SAFETY: the helper takes a socket that is not null; its storage lives as long as it.
    let noted = unsafe {
        bpf_sk_storage_get(HOMES.as_ptr(), sk.cast(), core::ptr::null_mut(), 0).cast::<u64>().as_ref()
    };
    noted.map(read)
}
