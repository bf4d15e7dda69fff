//! The far end as a program sees it, by getpeername() and beside each datagram that it receives: a socket that was sent
//! elsewhere is told the address that its program asked for. It refuses nothing.
//!
//! A program that uses MPTCP sees the meter: its socket is not the one inside it that connected. One that has asked
//! several resolvers by one UDP socket hears every answer from the one that it asked last.
use aya_ebpf::programs::SockAddrContext;
use enforcer_ebpf::Original;

use crate::sock_addr::{Destination, set_ip4, set_ip6, set_port};
use crate::{lane, originals, read};

/// An IPv4 socket asks.
#[inline(always)]
pub fn show4(socket: &SockAddrContext) {
    if let Some(original) = redirected(socket, &Destination::v4(socket)) {
        set_ip4(socket, read(&original.ip[3]));
        set_port(socket, network_port(read(&original.port)));
    }
}

/// An IPv6 socket asks.
#[inline(always)]
pub fn show6(socket: &SockAddrContext) {
    if let Some(original) = redirected(socket, &Destination::v6(socket)) {
        set_ip6(socket, read(&original.ip));
        set_port(socket, network_port(read(&original.port)));
    }
}

/// Where the socket was going, if it goes elsewhere. A UDP socket may have more than one far end: only the lane stands
/// for another.
#[inline(always)]
fn redirected(socket: &SockAddrContext, there: &Destination) -> Option<&'static Original> {
    let original = originals::of(socket).filter(|original| read(&original.port) != 0)?;
    (there.is_tcp() || lane::is_here(socket, there)).then_some(original)
}

/// A port in network byte order, in the low 16 bits.
#[inline(always)]
fn network_port(port: u32) -> u32 {
    u32::from((port as u16).to_be())
}
