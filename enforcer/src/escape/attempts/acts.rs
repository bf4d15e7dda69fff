//! What a process inside the bottle does to get out, one small function a way.
//!
//! Each does what an agent could do that wants to reach a provider beside the meter.
use std::fs;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::time::Duration;

use io_uring::{IoUring, opcode, squeue, types};
use nix::sys::socket::{SockaddrLike as _, SockaddrStorage};
use rustix::net::sockopt::{self, Timeout};
use rustix::net::{AddressFamily, Protocol, SendFlags, SocketType, ipproto};

use super::super::network::{LO, PUBLIC4};
use super::super::packets;
use super::{Family, Target};

/// What is sent where something is: it stands for a request with a key in it.
const WORDS: &[u8] = b"GET /v1/messages HTTP/1.1\r\n\r\n";
/// How long a connection may take; over `lo` it is there or refused at once.
const PATIENCE: Duration = Duration::from_millis(300);

pub(super) fn socket(family: Family, kind: SocketType, protocol: Option<Protocol>) -> io::Result<OwnedFd> {
    let family = match family {
        Family::Ip4 => AddressFamily::INET,
        Family::Ip6 | Family::Mapped => AddressFamily::INET6,
        Family::Packet => AddressFamily::PACKET,
        Family::Vsock => AddressFamily::VSOCK,
        Family::Xdp => AddressFamily::XDP,
    };
    let socket = rustix::net::socket(family, kind, protocol)?;
    sockopt::set_socket_timeout(&socket, Timeout::Send, Some(PATIENCE))?;
    Ok(socket)
}

/// A TCP socket for [`super::Stand::WithOldSocket`].
///
/// # Errors
/// When the kernel refuses one.
pub fn old_socket(family: Family) -> io::Result<OwnedFd> {
    socket(family, SocketType::STREAM, None)
}

/// Whether the kernel has a protocol now. One that is not loaded stays so: a test does not change the host.
pub(super) fn loaded(name: &str, family: Family, kind: SocketType, protocol: Protocol) -> io::Result<()> {
    is_registered(name)?;
    socket(family, kind, Some(protocol)).map(drop)
}

/// As [`loaded`], for a family without protocols.
pub(super) fn known_family(name: &str, family: Family, kind: SocketType) -> io::Result<()> {
    is_registered(name)?;
    socket(family, kind, None).map(drop)
}

fn is_registered(name: &str) -> io::Result<()> {
    let protocols = fs::read_to_string("/proc/net/protocols")?;
    let is_there = protocols.lines().any(|line| line.split_whitespace().next() == Some(name));
    if is_there {
        Ok(())
    } else {
        Err(io::Error::new(ErrorKind::Unsupported, format!("{name} is not loaded")))
    }
}

pub(super) fn ring_is_offered(family: Family) -> io::Result<()> {
    IoUring::new(1)?;
    socket(family, SocketType::STREAM, None).map(drop)
}

pub(super) fn tcp(target: &Target, port: u16) -> io::Result<()> {
    let fresh;
    let stream = match &target.old_socket {
        Some(socket) => socket,
        None => {
            fresh = socket(target.family, SocketType::STREAM, None)?;
            &fresh
        }
    };
    rustix::net::connect(stream, &target.at(port))?;
    Ok(rustix::net::send(stream, WORDS, SendFlags::empty()).map(drop)?)
}

pub(super) fn multipath(target: &Target) -> io::Result<()> {
    let stream = socket(target.family, SocketType::STREAM, Some(ipproto::MPTCP))?;
    rustix::net::connect(&stream, &target.at(443))?;
    Ok(rustix::net::send(&stream, WORDS, SendFlags::empty()).map(drop)?)
}

pub(super) fn sctp(target: &Target) -> io::Result<()> {
    let stream = socket(target.family, SocketType::STREAM, Some(ipproto::SCTP))?;
    Ok(rustix::net::connect(&stream, &target.at(443))?)
}

/// The first words travel with the connection's first packet, and there is no call of connect().
pub(super) fn fast_open(target: &Target) -> io::Result<()> {
    let stream = socket(target.family, SocketType::STREAM, None)?;
    let flags = SendFlags::from_bits_retain(libc::MSG_FASTOPEN.cast_unsigned());
    Ok(rustix::net::sendto(&stream, WORDS, flags, &target.at(443)).map(drop)?)
}

pub(super) fn udp(target: &Target, to: SocketAddr) -> io::Result<()> {
    let datagrams = socket(target.family, SocketType::DGRAM, None)?;
    Ok(rustix::net::sendto(&datagrams, WORDS, SendFlags::empty(), &to).map(drop)?)
}

pub(super) fn connected_udp(target: &Target) -> io::Result<()> {
    let datagrams = socket(target.family, SocketType::DGRAM, None)?;
    rustix::net::connect(&datagrams, &target.at(443))?;
    Ok(rustix::net::send(&datagrams, WORDS, SendFlags::empty()).map(drop)?)
}

pub(super) fn udp_lite(target: &Target) -> io::Result<()> {
    let datagrams = socket(target.family, SocketType::DGRAM, Some(ipproto::UDPLITE))?;
    Ok(rustix::net::sendto(&datagrams, WORDS, SendFlags::empty(), &target.at(443)).map(drop)?)
}

pub(super) fn ping_protocol(family: Family) -> Protocol {
    if family == Family::Ip4 { ipproto::ICMP } else { ipproto::ICMPV6 }
}

pub(super) fn ping(target: &Target) -> io::Result<()> {
    let pings = socket(target.family, SocketType::DGRAM, Some(ping_protocol(target.family)))?;
    let request = packets::echo_request(target.family);
    Ok(rustix::net::sendto(&pings, &request, SendFlags::empty(), &target.at(0)).map(drop)?)
}

/// With its own network header.
pub(super) fn raw(target: &Target) -> io::Result<()> {
    let to = target.at(443);
    let raw = socket(target.family, SocketType::RAW, Some(ipproto::RAW))?;
    let address = SocketAddr::new(to.ip(), 0);
    Ok(rustix::net::sendto(&raw, &packets::syn(to), SendFlags::empty(), &address).map(drop)?)
}

/// Below the internet's layer.
pub(super) fn frame(_: &Target) -> io::Result<()> {
    let packets_socket = socket(Family::Packet, SocketType::DGRAM, None)?;
    let address = libc::sockaddr_ll {
        sll_family: libc::sa_family_t::try_from(libc::AF_PACKET).map_err(io::Error::other)?,
        sll_protocol: 0x0800_u16.to_be(),
        sll_ifindex: LO,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 6,
        sll_addr: [0; 8],
    };
    let packet = packets::syn((PUBLIC4, 443).into());
    let length = libc::socklen_t::try_from(size_of_val(&address)).map_err(io::Error::other)?;
    // SAFETY: both addresses are given with their lengths and outlive the call.
    let sent = unsafe {
        let to = std::ptr::from_ref(&address).cast();
        libc::sendto(packets_socket.as_raw_fd(), packet.as_ptr().cast(), packet.len(), 0, to, length)
    };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// With the meter dead, whoever has its port is given every request with its key.
pub(super) fn take_meters_port(target: &Target) -> io::Result<()> {
    let listener = socket(target.family, SocketType::STREAM, None)?;
    rustix::net::bind(&listener, &target.here(target.meter_port))?;
    Ok(rustix::net::listen(&listener, 1)?)
}

pub(super) fn tcp_by_ring(target: &Target) -> io::Result<()> {
    let stream = socket(target.family, SocketType::STREAM, None)?;
    let to = SockaddrStorage::from(target.at(443));
    let number = types::Fd(stream.as_raw_fd());
    by_ring(&opcode::Connect::new(number, to.as_ptr(), to.len()).build())?;
    by_ring(&opcode::Send::new(number, WORDS.as_ptr(), words_length()?).build())
}

pub(super) fn udp_by_ring(target: &Target) -> io::Result<()> {
    let datagrams = socket(target.family, SocketType::DGRAM, None)?;
    let to = SockaddrStorage::from(target.at(443));
    let send = opcode::Send::new(types::Fd(datagrams.as_raw_fd()), WORDS.as_ptr(), words_length()?);
    by_ring(&send.dest_addr(to.as_ptr()).dest_addr_len(to.len()).build())
}

fn words_length() -> io::Result<u32> {
    u32::try_from(WORDS.len()).map_err(io::Error::other)
}

/// Has the kernel do one thing through a ring.
fn by_ring(entry: &squeue::Entry) -> io::Result<()> {
    let mut ring = IoUring::new(1)?;
    // SAFETY: what the entries above point to lives in their functions, which wait here for the completion.
    unsafe { ring.submission().push(entry) }.map_err(io::Error::other)?;
    ring.submit_and_wait(1)?;
    let done = ring.completion().next().ok_or(ErrorKind::UnexpectedEof)?;
    if done.result() < 0 { Err(io::Error::from_raw_os_error(-done.result())) } else { Ok(()) }
}
