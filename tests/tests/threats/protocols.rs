//! What is no TCP connection, a sender a protocol, in mode `open`: QUIC comes out nowhere, the rest is not the meter's.
//!
//! What the stricter modes let out is tested where they are.
use std::net::{IpAddr, SocketAddr};

use support::capture::{ICMP, ICMP6, SCTP, TCP, UDP, UDP_LITE};
use support::cgroup::TestCgroup;
use support::enforcer::Daemon;
use support::network::{PUBLIC4, PUBLIC6, in_own_network};

use crate::away::Away;

/// An echo request, an SCTP INIT and a TCP SYN to :443, a UDP datagram to :443: headers without checksums, which the
/// origin would not take, and which the wire carries.
const ECHO4: &str = "0800000000010001";
const ECHO6: &str = "8000000000010001";
const SCTP_INIT: &str = "0fa001bb0000000000000000010000140000000100010000000100010000000a";
const SYN: &str = "0fa001bb00000001000000005002ffff00000000";
const DATAGRAM: &str = "0fa001bb000900006f";

/// A way to send, the IP protocol that is seen on the wire, and what the sender is told in an open bottle.
fn ways(ip: IpAddr) -> Vec<(String, u8, &'static str)> {
    let at = |port| SocketAddr::new(ip, port);
    let (icmp, echo) = if ip.is_ipv4() { (ICMP, ECHO4) } else { (ICMP6, ECHO6) };
    let raw = |protocol: u8, payload| format!("raw {protocol} {} {payload}", at(0));
    vec![
        (format!("udp {}", at(443)), UDP, "EPERM"),
        (format!("udp-connected {}", at(443)), UDP, "EPERM"),
        (format!("ring-udp {}", at(443)), UDP, "EPERM"),
        (raw(UDP, DATAGRAM), UDP, "EPERM"),
        (raw(TCP, SYN), TCP, "EPERM"),
        (format!("udp {}", at(53)), UDP, "ok"),
        (format!("udp {}", at(444)), UDP, "ok"),
        (format!("udp-lite {}", at(444)), UDP_LITE, "ok"),
        (raw(SCTP, SCTP_INIT), SCTP, "ok"),
        (raw(icmp, echo), icmp, "ok"),
    ]
}

#[test]
fn root_quic_comes_out_nowhere_and_an_open_bottle_sends_the_rest() {
    in_own_network(|| {
        let daemon = Daemon::start("");
        let group = TestCgroup::new("protocols");
        daemon.attach("protocols", group.path(), &[]);
        let [mut free, mut held] = [None, Some(&group)].map(Away::new);
        for (order, protocol, expected) in [PUBLIC4, PUBLIC6].into_iter().flat_map(ways) {
            free.wire.clear();
            held.wire.clear();
            assert_eq!(free.inmate.order(&order), "ok", "{order}, outside of the bottle");
            assert_eq!(held.inmate.order(&order), expected, "{order}");
            let came = [&free, &held].map(|away| {
                let packets = away.came();
                packets
                    .iter()
                    .filter(|packet| packet.protocol == protocol)
                    .map(|packet| packet.bytes)
                    .sum::<usize>()
            });
            assert!(came[0] > 0, "{order}: the way leads out");
            assert_eq!(came[1], if expected == "ok" { came[0] } else { 0 }, "{order}: bytes that came out");
        }
    });
}
