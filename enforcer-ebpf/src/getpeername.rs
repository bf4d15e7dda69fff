//! getpeername(): a redirected socket is told the address that its program asked for. It refuses nothing.
//!
//! A program that uses MPTCP sees the meter: its socket is not the one inside it that connected.
use aya_ebpf::programs::SockAddrContext;
use enforcer_ebpf::Original;

use crate::sock_addr::{set_ip4, set_ip6, set_port};
use crate::{originals, read};

/// An IPv4 socket asks.
#[inline(always)]
pub fn getpeername4(socket: &SockAddrContext) {
    if let Some(original) = redirected(socket) {
        set_ip4(socket, read(&original.ip[3]));
        set_port(socket, network_port(read(&original.port)));
    }
}

/// An IPv6 socket asks.
#[inline(always)]
pub fn getpeername6(socket: &SockAddrContext) {
    if let Some(original) = redirected(socket) {
        set_ip6(socket, read(&original.ip));
        set_port(socket, network_port(read(&original.port)));
    }
}

/// Where the socket was going, if it goes elsewhere.
#[inline(always)]
fn redirected(socket: &SockAddrContext) -> Option<&'static Original> {
    originals::of(socket).filter(|original| read(&original.port) != 0)
}

/// A port in network byte order, in the low 16 bits.
#[inline(always)]
fn network_port(port: u32) -> u32 {
    u32::from((port as u16).to_be())
}
