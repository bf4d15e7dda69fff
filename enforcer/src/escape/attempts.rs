//! The ways out that are tried, one small function each, and what each is expected to need.
//!
//! They run in a process inside the bottle. Each does what an agent could do that wants to reach a provider beside
//! the meter; whether anything arrived is not for them to say. Every one of them arrives where no bottle is.
use std::fs;
use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::time::Duration;

use io_uring::{IoUring, opcode, squeue, types};
use nix::sys::socket::{SockaddrLike as _, SockaddrStorage};
use rustix::net::sockopt::{self, Timeout};
use rustix::net::{AddressFamily, Protocol, SendFlags, SocketType, ipproto};

use super::network::{LO, PUBLIC4, PUBLIC6};
use super::{Family, packets};

/// What is sent where something is: it stands for a request with a key in it.
const WORDS: &[u8] = b"GET /v1/messages HTTP/1.1\r\n\r\n";
/// How long a connection may take; over `lo` it is there or refused at once.
const PATIENCE: Duration = Duration::from_millis(300);

const INTERNET: &[Family] = &[Family::Ip4, Family::Ip6, Family::Mapped];
const NATIVE: &[Family] = &[Family::Ip4, Family::Ip6];

/// Where the sender stands when it tries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stand {
    /// In the bottle's cgroup.
    Bottle,
    /// There, with a TCP socket made before it joined.
    WithOldSocket,
    /// There, in a network namespace that it made for itself.
    OwnNetwork,
    /// In a cgroup that it made below the bottle's.
    Below,
}

/// How it is known that an attempt got out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Evidence {
    /// The far end heard something.
    Arrival,
    /// The kernel granted what was asked: nothing more is needed, or no far end of this host can hear it.
    Grant,
}

/// A way out.
pub struct Attempt {
    /// What it is, for people; unique.
    pub name: &'static str,
    /// The address families in which it is tried.
    pub families: &'static [Family],
    /// Whether an open bottle must not get out by it either. The others are what an open bottle may do.
    pub is_metered: bool,
    /// From where.
    pub stand: Stand,
    /// How it is judged.
    pub evidence: Evidence,
    /// For what the hooks on a cgroup cannot see: what closes it.
    pub closed_by: Option<&'static str>,
    /// Whether the kernel has it at all, tried outside the bottle.
    pub offered: fn(Family) -> io::Result<()>,
    /// Tries.
    pub act: fn(Target) -> io::Result<()>,
}

/// Towards what.
pub struct Target {
    /// In which family.
    pub family: Family,
    /// The socket that was made before, for [`Stand::WithOldSocket`].
    pub old_socket: Option<OwnedFd>,
    /// Where the meter's listener is, or was.
    pub meter_port: u16,
}

impl Target {
    /// The public address, at a port.
    fn at(&self, port: u16) -> SocketAddr {
        match self.family {
            Family::Ip6 => (PUBLIC6, port).into(),
            Family::Mapped => (PUBLIC4.to_ipv6_mapped(), port).into(),
            _ => (PUBLIC4, port).into(),
        }
    }

    /// This host's own address, at a port.
    fn here(&self, port: u16) -> SocketAddr {
        match self.family {
            Family::Ip6 => (Ipv6Addr::LOCALHOST, port).into(),
            _ => (Ipv4Addr::LOCALHOST, port).into(),
        }
    }
}

/// What is always asked of an open bottle; the rows of the table say how they differ.
const METERED: Attempt = Attempt {
    name: "",
    families: NATIVE,
    is_metered: true,
    stand: Stand::Bottle,
    evidence: Evidence::Arrival,
    closed_by: None,
    offered: |family| socket(family, SocketType::STREAM, None).map(drop),
    act: |_| Ok(()),
};
const FREE: Attempt = Attempt { is_metered: false, ..METERED };
/// A family of its own, which no hook on packets sees.
const UNSEEN: &str = "the filter of `enforcer run`";

/// Every way out that is tried.
pub const ATTEMPTS: &[Attempt] = &[
    Attempt { name: "TCP :443", families: INTERNET, act: |to| tcp(&to, 443), ..METERED },
    Attempt { name: "TCP :80", families: INTERNET, act: |to| tcp(&to, 80), ..METERED },
    Attempt { name: "TCP :443 from a cgroup below", stand: Stand::Below, act: |to| tcp(&to, 443), ..METERED },
    Attempt {
        name: "TCP :443 from its own network namespace",
        stand: Stand::OwnNetwork,
        act: |to| tcp(&to, 443),
        ..METERED
    },
    Attempt { name: "TCP :443 by io_uring", offered: ring_is_offered, act: tcp_by_ring, ..METERED },
    Attempt { name: "TCP Fast Open :443", act: fast_open, ..METERED },
    Attempt {
        name: "MPTCP :443",
        offered: |family| loaded("MPTCP", family, SocketType::STREAM, ipproto::MPTCP),
        act: multipath,
        ..METERED
    },
    Attempt { name: "QUIC", families: INTERNET, act: |to| udp(&to, to.at(443)), ..METERED },
    Attempt { name: "QUIC, connected", families: INTERNET, act: connected_udp, ..METERED },
    Attempt { name: "QUIC by io_uring", offered: ring_is_offered, act: udp_by_ring, ..METERED },
    Attempt {
        name: "TCP :443 by a raw socket",
        offered: |family| socket(family, SocketType::RAW, Some(ipproto::RAW)).map(drop),
        act: raw,
        ..METERED
    },
    Attempt { name: "taking the meter's port", evidence: Evidence::Grant, act: take_meters_port, ..METERED },
    Attempt {
        name: "TCP :443 by a socket from before",
        stand: Stand::WithOldSocket,
        closed_by: Some("`enforcer run`, which hands none on; `attach` reports those of running processes"),
        act: |to| tcp(&to, 443),
        ..METERED
    },
    Attempt {
        name: "TCP :443 in a frame",
        families: &[Family::Packet],
        closed_by: Some(UNSEEN),
        offered: |_| socket(Family::Packet, SocketType::DGRAM, None).map(drop),
        act: frame,
        ..METERED
    },
    Attempt { name: "TCP, another port", families: INTERNET, act: |to| tcp(&to, 8443), ..FREE },
    Attempt { name: "DNS", families: INTERNET, act: |to| udp(&to, to.at(53)), ..FREE },
    Attempt { name: "UDP to this host", act: |to| udp(&to, to.here(53)), ..FREE },
    Attempt {
        name: "ping",
        offered: |family| socket(family, SocketType::DGRAM, Some(ping_protocol(family))).map(drop),
        act: ping,
        ..FREE
    },
    Attempt {
        name: "UDP-Lite",
        offered: |family| loaded("UDP-Lite", family, SocketType::DGRAM, ipproto::UDPLITE),
        act: udp_lite,
        ..FREE
    },
    Attempt {
        name: "SCTP",
        offered: |family| loaded("SCTP", family, SocketType::STREAM, ipproto::SCTP),
        act: sctp,
        ..FREE
    },
    Attempt {
        name: "a socket to the hypervisor",
        families: &[Family::Vsock],
        evidence: Evidence::Grant,
        closed_by: Some(UNSEEN),
        offered: |family| known_family("AF_VSOCK", family, SocketType::STREAM),
        act: |to| socket(to.family, SocketType::STREAM, None).map(drop),
        ..FREE
    },
    Attempt {
        name: "a socket to a network card",
        families: &[Family::Xdp],
        evidence: Evidence::Grant,
        closed_by: Some(UNSEEN),
        offered: |family| known_family("XDP", family, SocketType::RAW),
        act: |to| socket(to.family, SocketType::RAW, None).map(drop),
        ..FREE
    },
];

fn socket(family: Family, kind: SocketType, protocol: Option<Protocol>) -> io::Result<OwnedFd> {
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

/// A TCP socket for [`Stand::WithOldSocket`].
///
/// # Errors
/// When the kernel refuses one.
pub fn old_socket(family: Family) -> io::Result<OwnedFd> {
    socket(family, SocketType::STREAM, None)
}

/// Whether the kernel has a protocol now. One that is not loaded stays so: a test does not change the host.
fn loaded(name: &str, family: Family, kind: SocketType, protocol: Protocol) -> io::Result<()> {
    is_registered(name)?;
    socket(family, kind, Some(protocol)).map(drop)
}

/// As [`loaded`], for a family without protocols.
fn known_family(name: &str, family: Family, kind: SocketType) -> io::Result<()> {
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

fn ring_is_offered(family: Family) -> io::Result<()> {
    IoUring::new(1)?;
    socket(family, SocketType::STREAM, None).map(drop)
}

fn tcp(target: &Target, port: u16) -> io::Result<()> {
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

fn multipath(target: Target) -> io::Result<()> {
    let stream = socket(target.family, SocketType::STREAM, Some(ipproto::MPTCP))?;
    rustix::net::connect(&stream, &target.at(443))?;
    Ok(rustix::net::send(&stream, WORDS, SendFlags::empty()).map(drop)?)
}

fn sctp(target: Target) -> io::Result<()> {
    let stream = socket(target.family, SocketType::STREAM, Some(ipproto::SCTP))?;
    Ok(rustix::net::connect(&stream, &target.at(443))?)
}

/// The first words travel with the connection's first packet, and there is no call of connect().
fn fast_open(target: Target) -> io::Result<()> {
    let stream = socket(target.family, SocketType::STREAM, None)?;
    let flags = SendFlags::from_bits_retain(libc::MSG_FASTOPEN.cast_unsigned());
    Ok(rustix::net::sendto(&stream, WORDS, flags, &target.at(443)).map(drop)?)
}

fn udp(target: &Target, to: SocketAddr) -> io::Result<()> {
    let datagrams = socket(target.family, SocketType::DGRAM, None)?;
    Ok(rustix::net::sendto(&datagrams, WORDS, SendFlags::empty(), &to).map(drop)?)
}

fn connected_udp(target: Target) -> io::Result<()> {
    let datagrams = socket(target.family, SocketType::DGRAM, None)?;
    rustix::net::connect(&datagrams, &target.at(443))?;
    Ok(rustix::net::send(&datagrams, WORDS, SendFlags::empty()).map(drop)?)
}

fn udp_lite(target: Target) -> io::Result<()> {
    let datagrams = socket(target.family, SocketType::DGRAM, Some(ipproto::UDPLITE))?;
    Ok(rustix::net::sendto(&datagrams, WORDS, SendFlags::empty(), &target.at(443)).map(drop)?)
}

fn ping_protocol(family: Family) -> Protocol {
    if family == Family::Ip4 { ipproto::ICMP } else { ipproto::ICMPV6 }
}

fn ping(target: Target) -> io::Result<()> {
    let pings = socket(target.family, SocketType::DGRAM, Some(ping_protocol(target.family)))?;
    let request = packets::echo_request(target.family);
    Ok(rustix::net::sendto(&pings, &request, SendFlags::empty(), &target.at(0)).map(drop)?)
}

/// With its own network header.
fn raw(target: Target) -> io::Result<()> {
    let to = target.at(443);
    let raw = socket(target.family, SocketType::RAW, Some(ipproto::RAW))?;
    let address = SocketAddr::new(to.ip(), 0);
    Ok(rustix::net::sendto(&raw, &packets::syn(to), SendFlags::empty(), &address).map(drop)?)
}

/// Below the internet's layer.
fn frame(target: Target) -> io::Result<()> {
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
    drop(target);
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// With the meter dead, whoever has its port is given every request with its key.
fn take_meters_port(target: Target) -> io::Result<()> {
    let listener = socket(target.family, SocketType::STREAM, None)?;
    rustix::net::bind(&listener, &target.here(target.meter_port))?;
    Ok(rustix::net::listen(&listener, 1)?)
}

fn tcp_by_ring(target: Target) -> io::Result<()> {
    let stream = socket(target.family, SocketType::STREAM, None)?;
    let to = SockaddrStorage::from(target.at(443));
    let number = types::Fd(stream.as_fd().as_raw_fd());
    by_ring(&opcode::Connect::new(number, to.as_ptr(), to.len()).build())?;
    by_ring(&opcode::Send::new(number, WORDS.as_ptr(), words_length()?).build())
}

fn udp_by_ring(target: Target) -> io::Result<()> {
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
