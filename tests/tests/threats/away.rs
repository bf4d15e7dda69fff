//! A way out to try: somebody in a network of their own, and an origin at the other end of its only cable.
use std::net::SocketAddr;

use support::capture::{Capture, Packet};
use support::cgroup::TestCgroup;
use support::clock::wait_until;
use support::inmate::Inmate;
use support::network::{Namespace, PUBLIC4, PUBLIC6};
use support::sink::Sink;

use crate::SOON;

/// An inmate that is root of its own network, and the origin that it must not reach by itself.
pub struct Away {
    pub inmate: Inmate,
    pub wire: Capture,
    origins: [Sink; 2],
    _far: Namespace,
}

impl Away {
    /// In a bottle's cgroup, or outside of all.
    pub fn new(cgroup: Option<&TestCgroup>) -> Self {
        let far = Namespace::new();
        let inmate = Inmate::with_own_network(cgroup, &far);
        let origins = far.enter(|| [PUBLIC4, PUBLIC6].map(|ip| Sink::tcp_at(SocketAddr::new(ip, 443))));
        let wire = Capture::of(&far);
        Self { inmate, wire, origins, _far: far }
    }

    /// Bytes that the origins have received.
    pub fn bytes(&self) -> usize {
        self.origins.iter().map(Sink::bytes).sum()
    }

    /// Packets to the origins' addresses that have come, once all that was sent has had its time.
    pub fn came(&self) -> Vec<Packet> {
        let mut packets = self.wire.settled();
        packets.retain(|packet| packet.destination == PUBLIC4 || packet.destination == PUBLIC6);
        packets
    }

    /// Connects there and writes, and waits for the bytes at the origin: the way leads out.
    #[track_caller]
    pub fn assert_leads_out(&mut self, to: SocketAddr) {
        let before = self.bytes();
        self.inmate.ok(&format!("connect {to}"));
        self.inmate.ok("write");
        let came = wait_until(SOON, || (self.bytes() > before).then_some(()));
        assert!(came.is_some(), "{to}: nothing came out");
    }
}
