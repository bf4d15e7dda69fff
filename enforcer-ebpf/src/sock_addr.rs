//! What the hooks on socket addresses share: reading and writing the address in the kernel's context, refusing.
//!
//! Every field is read in straight code: reads in diverging branches let the compiler compute the offset, which the
//! verifier refuses.
use aya_ebpf::helpers::generated::bpf_get_current_pid_tgid;
use aya_ebpf::programs::SockAddrContext;
use enforcer_ebpf::{Bottle, MAPPED};

use crate::events::{self, Subject};
use crate::place::cookie;
use crate::{COUNTERS, add, read, state};

/// What a hook returns to let the call go on.
pub const ALLOW: i32 = 1;
/// What a hook returns to fail the call with EPERM.
pub const REFUSE: i32 = 0;

/// IPPROTO_TCP.
pub const TCP: u32 = 6;
/// IPPROTO_UDP.
pub const UDP: u32 = 17;
/// IPPROTO_MPTCP: TCP by another name.
const MPTCP: u32 = 262;

/// Where a call goes.
pub struct Destination {
    /// IPv4 as v4-mapped.
    pub ip: [u32; 4],
    /// Host byte order.
    pub port: u32,
    /// IPPROTO_*.
    pub protocol: u32,
}

impl Destination {
    /// The address of a call on an IPv4 socket.
    #[inline(always)]
    pub fn v4(socket: &SockAddrContext) -> Self {
        // SAFETY: the kernel's context of this program; read word by word, as the verifier wants it.
        let context = unsafe { &*socket.sock_addr };
        let ip = [0, 0, MAPPED, read(&context.user_ip4)];
        Self { ip, port: port(socket), protocol: read(&context.protocol) }
    }

    /// The address of a call on an IPv6 socket; it may be v4-mapped.
    #[inline(always)]
    pub fn v6(socket: &SockAddrContext) -> Self {
        // SAFETY: as in `v4`.
        let context = unsafe { &*socket.sock_addr };
        let [a, b, c, d] = &context.user_ip6;
        let ip = [read(a), read(b), read(c), read(d)];
        Self { ip, port: port(socket), protocol: read(&context.protocol) }
    }

    /// Whether it is a TCP connection.
    #[inline(always)]
    pub fn is_tcp(&self) -> bool {
        self.protocol == TCP || self.protocol == MPTCP
    }

    /// Whether it is an IPv4 address in IPv6 form.
    #[inline(always)]
    pub fn is_mapped(&self) -> bool {
        let [a, b, c, _] = self.ip;
        a == 0 && b == 0 && c == MAPPED
    }
}

/// Refuses a call that would have made a packet; counts it as one, and tells of it. Apart, as it has many callers.
#[inline(never)]
pub fn refuse(socket: &SockAddrContext, to: &Destination, slot: u32, bottle: &Bottle) -> i32 {
    if let Some(counters) = COUNTERS.get_ptr_mut(slot) {
        // SAFETY: the field is an aligned word of the map.
        unsafe { add(&raw mut (*counters).dropped_packets, 1) };
    }
    events::dropped(slot, bottle, state::of(bottle).drop_kind(), || subject(socket, to));
    REFUSE
}

/// Refuses a call from a namespace without a place; tells of it.
#[inline(always)]
pub fn miss(socket: &SockAddrContext, to: &Destination, slot: u32, bottle: &Bottle) -> i32 {
    events::missing_place(slot, bottle, &subject(socket, to));
    REFUSE
}

#[inline(always)]
fn subject(socket: &SockAddrContext, to: &Destination) -> Subject {
    // SAFETY: the helper takes nothing.
    let pid = unsafe { bpf_get_current_pid_tgid() } >> 32;
    Subject { pid: pid as u32, cookie: cookie(socket), ip: to.ip, port: to.port, protocol: to.protocol }
}

/// The port of the call's address, host byte order.
#[inline(always)]
pub fn port(socket: &SockAddrContext) -> u32 {
    // SAFETY: as in `Destination::v4`.
    let port = read(unsafe { &(*socket.sock_addr).user_port });
    u32::from((port as u16).to_be())
}

/// Sets the IPv4 address (network byte order) of the call.
#[inline(always)]
pub fn set_ip4(socket: &SockAddrContext, ip: u32) {
    // SAFETY: as in `Destination::v4`; the kernel lets these hooks write the field.
    unsafe { (&raw mut (*socket.sock_addr).user_ip4).write_volatile(ip) };
}

/// Sets the IPv6 address (network byte order) of the call.
#[inline(always)]
pub fn set_ip6(socket: &SockAddrContext, ip: [u32; 4]) {
    let [a, b, c, d] = ip;
    // SAFETY: as in `set_ip4`; word by word, as the verifier wants it.
    unsafe {
        (&raw mut (*socket.sock_addr).user_ip6[0]).write_volatile(a);
        (&raw mut (*socket.sock_addr).user_ip6[1]).write_volatile(b);
        (&raw mut (*socket.sock_addr).user_ip6[2]).write_volatile(c);
        (&raw mut (*socket.sock_addr).user_ip6[3]).write_volatile(d);
    }
}

/// Sets the port (network byte order, in the low 16 bits) of the call.
#[inline(always)]
pub fn set_port(socket: &SockAddrContext, port: u32) {
    // SAFETY: as in `set_ip4`.
    unsafe { (&raw mut (*socket.sock_addr).user_port).write_volatile(port) };
}
