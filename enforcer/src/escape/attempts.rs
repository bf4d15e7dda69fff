//! The ways out that are tried, as a table: what each is, in which families, from where, and how it is judged.
//!
//! What each does is in `acts`. Whether anything arrived is not for them to say; every one of them arrives where no
//! bottle is.
mod acts;

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;

use rustix::net::{SocketType, ipproto};

pub use self::acts::old_socket;
use self::acts::socket;
use super::Family;
use super::network::{PUBLIC4, PUBLIC6};

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
    pub act: fn(&Target) -> io::Result<()>,
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

/// What an open bottle must not get out by either: the rows of the table say how they differ from this.
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
    Attempt { name: "TCP :443", families: INTERNET, act: |to| acts::tcp(to, 443), ..METERED },
    Attempt { name: "TCP :80", families: INTERNET, act: |to| acts::tcp(to, 80), ..METERED },
    Attempt {
        name: "TCP :443 from a cgroup below",
        stand: Stand::Below,
        act: |to| acts::tcp(to, 443),
        ..METERED
    },
    Attempt {
        name: "TCP :443 from its own network namespace",
        stand: Stand::OwnNetwork,
        act: |to| acts::tcp(to, 443),
        ..METERED
    },
    Attempt {
        name: "TCP :443 by io_uring",
        offered: acts::ring_is_offered,
        act: acts::tcp_by_ring,
        ..METERED
    },
    Attempt { name: "TCP Fast Open :443", act: acts::fast_open, ..METERED },
    Attempt {
        name: "MPTCP :443",
        offered: |family| acts::loaded("MPTCP", family, SocketType::STREAM, ipproto::MPTCP),
        act: acts::multipath,
        ..METERED
    },
    Attempt { name: "QUIC", families: INTERNET, act: |to| acts::udp(to, to.at(443)), ..METERED },
    Attempt { name: "QUIC, connected", families: INTERNET, act: acts::connected_udp, ..METERED },
    Attempt { name: "QUIC by io_uring", offered: acts::ring_is_offered, act: acts::udp_by_ring, ..METERED },
    Attempt {
        name: "TCP :443 by a raw socket",
        offered: |family| socket(family, SocketType::RAW, Some(ipproto::RAW)).map(drop),
        act: acts::raw,
        ..METERED
    },
    Attempt {
        name: "taking the meter's port",
        evidence: Evidence::Grant,
        act: acts::take_meters_port,
        ..METERED
    },
    Attempt {
        name: "TCP :443 by a socket from before",
        stand: Stand::WithOldSocket,
        closed_by: Some("`enforcer run`, which hands none on; `attach` reports those of running processes"),
        act: |to| acts::tcp(to, 443),
        ..METERED
    },
    Attempt {
        name: "TCP :443 in a frame",
        families: &[Family::Packet],
        closed_by: Some(UNSEEN),
        offered: |_| socket(Family::Packet, SocketType::DGRAM, None).map(drop),
        act: acts::frame,
        ..METERED
    },
    Attempt { name: "TCP, another port", families: INTERNET, act: |to| acts::tcp(to, 8443), ..FREE },
    Attempt { name: "DNS", families: INTERNET, act: |to| acts::udp(to, to.at(53)), ..FREE },
    Attempt { name: "UDP to this host", act: |to| acts::udp(to, to.here(53)), ..FREE },
    Attempt {
        name: "ping",
        offered: |family| socket(family, SocketType::DGRAM, Some(acts::ping_protocol(family))).map(drop),
        act: acts::ping,
        ..FREE
    },
    Attempt {
        name: "UDP-Lite",
        offered: |family| acts::loaded("UDP-Lite", family, SocketType::DGRAM, ipproto::UDPLITE),
        act: acts::udp_lite,
        ..FREE
    },
    Attempt {
        name: "SCTP",
        offered: |family| acts::loaded("SCTP", family, SocketType::STREAM, ipproto::SCTP),
        act: acts::sctp,
        ..FREE
    },
    Attempt {
        name: "a socket to the hypervisor",
        families: &[Family::Vsock],
        evidence: Evidence::Grant,
        closed_by: Some(UNSEEN),
        offered: |family| acts::known_family("AF_VSOCK", family, SocketType::STREAM),
        act: |to| socket(to.family, SocketType::STREAM, None).map(drop),
        ..FREE
    },
    Attempt {
        name: "a socket to a network card",
        families: &[Family::Xdp],
        evidence: Evidence::Grant,
        closed_by: Some(UNSEEN),
        offered: |family| acts::known_family("XDP", family, SocketType::RAW),
        act: |to| socket(to.family, SocketType::RAW, None).map(drop),
        ..FREE
    },
];
