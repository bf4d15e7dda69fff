//! Where meter and lane listen, as the kernel is told of it.
use std::net::{Ipv6Addr, SocketAddr};

use crate::kernel::Place;

/// Where the meter listens in the host's network namespace.
#[derive(Clone, Copy, Debug)]
pub struct Listener {
    /// Address and port, as set.
    pub address: SocketAddr,
    /// Loopback of the other family at the same port, where it could be had.
    pub beside: Option<SocketAddr>,
    /// Id in the kernel's entries and flows.
    pub id: u32,
    /// Where the refusal lane is, here and at the same port on loopback in every other namespace.
    pub lane: Option<LaneAddress>,
}

/// Where the refusal lane listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LaneAddress {
    /// On IPv4's loopback.
    pub ip4: SocketAddr,
    /// On IPv6's, at the same port, where it could be had.
    pub ip6: Option<Ipv6Addr>,
}

impl Listener {
    /// As the kernel's entries hold it: the IPv4 one, where there is one, and the IPv6 one beside it.
    #[must_use]
    pub fn endpoints(&self) -> (SocketAddr, Option<Ipv6Addr>) {
        match (self.address, self.beside) {
            (SocketAddr::V4(_), Some(SocketAddr::V6(ip6))) => (self.address, Some(*ip6.ip())),
            (SocketAddr::V6(ip6), Some(ip4 @ SocketAddr::V4(_))) => (ip4, Some(*ip6.ip())),
            _ => (self.address, None),
        }
    }

    /// What the kernel is told of the host's network namespace while no lane serves.
    #[must_use]
    pub fn place(&self) -> Place {
        let (meter, meter_ip6) = self.endpoints();
        Place { meter_ip6, ..Place::new(self.id, meter) }
    }

    /// What the kernel is told of the host's network namespace while the lane serves.
    #[must_use]
    pub fn place_with_lane(&self) -> Place {
        let (lane, lane_ip6) = self.lane_endpoints();
        Place { lane, lane_ip6, ..self.place() }
    }

    /// The lane's, as the kernel's entries hold it.
    #[must_use]
    pub fn lane_endpoints(&self) -> (Option<SocketAddr>, Option<Ipv6Addr>) {
        (self.lane.map(|lane| lane.ip4), self.lane.and_then(|lane| lane.ip6))
    }
}
