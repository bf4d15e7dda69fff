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
    pub origin: Origin,
}

/// What listens at :443 of both public addresses, and only counts.
pub struct Origin([Sink; 2]);

impl Origin {
    /// In the calling thread's network.
    pub fn new() -> Self {
        Self([PUBLIC4, PUBLIC6].map(|ip| Sink::tcp_at(SocketAddr::new(ip, 443))))
    }

    /// Bytes that it has received so far.
    pub fn bytes(&self) -> usize {
        self.0.iter().map(Sink::bytes).sum()
    }
}

impl Away {
    /// In a bottle's cgroup, or outside of all.
    pub fn new(cgroup: Option<&TestCgroup>) -> Self {
        let far = Namespace::new();
        let inmate = Inmate::with_own_network(cgroup, &far);
        let origin = far.enter(Origin::new);
        let wire = Capture::of(&far);
        Self { inmate, wire, origin }
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
        let before = self.origin.bytes();
        self.inmate.ok(&format!("connect {to}"));
        self.inmate.ok("write");
        let came = wait_until(SOON, || (self.origin.bytes() > before).then_some(()));
        assert!(came.is_some(), "{to}: nothing came out");
    }
}
