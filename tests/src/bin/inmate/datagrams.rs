//! Packets that are no connections: UDP in its ways, UDP-Lite, and whatever a raw socket can be made to send.
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{MsgFlags, SockaddrStorage, sendto};

use crate::streams::unspecified;

const PAYLOAD: &[u8] = b"out of the bottle";

/// One datagram, the address given with it.
pub fn send(to: SocketAddr) -> io::Result<()> {
    UdpSocket::bind((unspecified(to), 0))?.send_to(PAYLOAD, to).map(drop)
}

/// One datagram on a connected socket, as QUIC clients send them.
pub fn send_connected(to: SocketAddr) -> io::Result<()> {
    let socket = UdpSocket::bind((unspecified(to), 0))?;
    socket.connect(to)?;
    socket.send(PAYLOAD).map(drop)
}

/// One datagram of UDP-Lite (RFC 3828).
pub fn send_lite(to: SocketAddr) -> io::Result<()> {
    send_on(&other_socket(to, libc::SOCK_DGRAM, libc::IPPROTO_UDPLITE)?, to, PAYLOAD)
}

/// One packet of any IP protocol with this payload.
pub fn send_raw(protocol: i32, to: SocketAddr, hex: &str) -> io::Result<()> {
    let digits = |at: usize| hex.get(at..at + 2).and_then(|pair| u8::from_str_radix(pair, 16).ok());
    let payload: Option<Vec<u8>> = (0..hex.len()).step_by(2).map(digits).collect();
    let payload = payload.ok_or_else(|| io::Error::other("no bytes in hex"))?;
    // a raw socket of IPv6 takes no port
    let to = SocketAddr::new(to.ip(), 0);
    send_on(&other_socket(to, libc::SOCK_RAW, protocol)?, to, &payload)
}

fn send_on(socket: &OwnedFd, to: SocketAddr, payload: &[u8]) -> io::Result<()> {
    sendto(socket.as_raw_fd(), payload, &SockaddrStorage::from(to), MsgFlags::empty())?;
    Ok(())
}

/// A socket of a protocol that has no type of its own.
fn other_socket(to: SocketAddr, kind: libc::c_int, protocol: libc::c_int) -> io::Result<OwnedFd> {
    let family = if to.is_ipv6() { libc::AF_INET6 } else { libc::AF_INET };
    // SAFETY: socket(2) takes three numbers and no memory.
    let descriptor = Errno::result(unsafe { libc::socket(family, kind | libc::SOCK_CLOEXEC, protocol) })?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}
