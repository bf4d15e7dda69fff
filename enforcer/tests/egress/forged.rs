//! What is not TCP or UDP, or claims to be another than it is, and sockets of families that the hooks do not see.
use std::net::IpAddr;
use std::os::fd::OwnedFd;

use enforcer::kernel::{Guard, Kernel as _};
use rustix::net::{AddressFamily, RecvFlags, SocketType, sockopt};

use super::support::host::{Host, SLOT};
use super::support::network::{PRIVATE4, PUBLIC6, in_own_network};
use super::support::packets::{
    ICMP, ICMP6, OPTIONS, SCTP, TCP, UDP, UDP_LITE, behind_options, hex, ip4, ip6, to_port,
};
use super::support::sender::{ARRIVAL, Sender};
use super::{Meter, REFUSED, allowed, confined};

/// EAFNOSUPPORT, for which the standard library has no kind.
const NO_SUCH_FAMILY: &str = "Uncategorized";

/// A receiver of one protocol's packets, whatever is in them.
fn packets(family: AddressFamily, protocol: u8) -> OwnedFd {
    let protocol = rustix::net::Protocol::from_raw(u32::from(protocol).try_into().unwrap());
    let socket = rustix::net::socket(family, SocketType::RAW, Some(protocol)).unwrap();
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(ARRIVAL)).unwrap();
    socket
}

fn hear(socket: &OwnedFd) -> usize {
    rustix::net::recv(socket, &mut [0; 256], RecvFlags::empty()).map_or(0, |(read, _)| read)
}

#[test]
fn root_other_protocols_and_forged_packets_do_not_leave() {
    in_own_network(|| {
        let host = Host::new("raw");
        let meter = Meter::new();
        let mut sender = Sender::start(Some(&host.cgroup));
        let echo = [8, 0, 0xf7, 0xff, 0, 0, 0, 0];
        // with the checksum over the addresses: nobody is given one without
        let echo6 = [128, 0, 0x51, 0xfc, 0, 0, 0, 0];
        let closed: [(&str, IpAddr, u8, Vec<u8>); 9] = [
            ("ICMP", PRIVATE4.into(), ICMP, ip4(PRIVATE4, ICMP, 0, &echo)),
            ("SCTP", PRIVATE4.into(), SCTP, ip4(PRIVATE4, SCTP, 0, &to_port(9000))),
            ("UDP-Lite", PRIVATE4.into(), UDP_LITE, ip4(PRIVATE4, UDP_LITE, 0, &to_port(9000))),
            ("an unlisted UDP port", PRIVATE4.into(), UDP, ip4(PRIVATE4, UDP, 0, &to_port(9001))),
            ("too short for a port", PRIVATE4.into(), TCP, ip4(PRIVATE4, TCP, 0, &[1])),
            ("a fragment", PRIVATE4.into(), UDP, ip4(PRIVATE4, UDP, 0x2000, &to_port(9000))),
            ("ICMPv6", PUBLIC6.into(), ICMP6, ip6(PUBLIC6, ICMP6, &echo6)),
            ("SCTP", PUBLIC6.into(), SCTP, ip6(PUBLIC6, SCTP, &to_port(9000))),
            (
                "behind options",
                PUBLIC6.into(),
                UDP,
                ip6(PUBLIC6, OPTIONS, &behind_options(UDP, &to_port(9000))),
            ),
        ];
        let send = |sender: &mut Sender, to: IpAddr, packet: &[u8]| {
            sender.order(&format!("send-raw {to} {}", hex(packet)))
        };
        let check = |sender: &mut Sender, family: &str, confined: bool| {
            for (what, to, protocol, packet) in
                closed.iter().filter(|(_, to, ..)| to.is_ipv4() == (family == "4"))
            {
                let inet = if to.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
                let far = packets(inet, *protocol);
                let (answer, bytes) = (send(sender, *to, packet), hear(&far));
                if confined {
                    assert_eq!((answer.as_str(), bytes), (REFUSED, 0), "{what} to {to}");
                } else {
                    assert_eq!(answer, "ok", "{what} to {to}");
                    // a fragment without the rest is delivered to nobody
                    assert!(
                        bytes > 0 || what.contains("fragment"),
                        "{what} to {to}: the far end hears nothing"
                    );
                }
            }
        };
        for family in ["4", "6"] {
            assert_eq!(sender.order(&format!("hold-raw {family}")), "ok", "before it is confined");
            check(&mut sender, family, false);
            let loader = host.opened(meter.guard());
            let list = [allowed("10.9.8.7/32", &[9000]), allowed("2001:db8::7/128", &[9000])];
            loader.set_allowed(SLOT, &list).unwrap();
            check(&mut sender, family, true);
            for order in ["hold-raw 4", "hold-raw 6"] {
                // where the kernel lets an LSM hook fire, that one answers first
                let said = sender.order(order);
                assert!([REFUSED, NO_SUCH_FAMILY].contains(&said.as_str()), "{order}: {said}");
            }
            loader.detach("b", SLOT).unwrap();
            drop(loader);
            sender = Sender::start(Some(&host.cgroup));
        }
    });
}

/// What the kernel plane cannot promise everywhere: that a confined bottle makes no packet, vsock or XDP socket.
#[test]
fn root_lsm_refuses_every_family_that_the_hooks_do_not_see() {
    const EAFNOSUPPORT: &str = "97";
    in_own_network(|| {
        let (_host, meter, loader, mut sender) = confined("lsm");
        if let Some(why) = loader.why_not_every_family() {
            assert!(!loader.refuses_packet_sockets());
            println!("not applicable here, and no proof of anything: {why}");
            return;
        }
        let (stream, datagram, raw, packet) = (1, 2, 3, 17);
        for (what, order) in [
            ("packet", format!("socket {packet} {raw} 768")),
            ("packet, cooked", format!("socket {packet} {datagram} 768")),
            ("vsock", format!("socket 40 {stream} 0")),
            ("XDP", format!("socket 44 {raw} 0")),
            ("ALG", "socket 38 5 0".to_owned()),
            ("raw IPv4", format!("socket 2 {raw} 17")),
            ("raw IPv6", format!("socket 10 {raw} 17")),
        ] {
            assert_eq!(sender.order(&order), EAFNOSUPPORT, "{what}");
        }
        for (what, order) in [
            ("unix", "socket 1 1 0"),
            ("IPv4", "socket 2 1 0"),
            ("IPv6", "socket 10 2 0"),
            ("netlink", "socket 16 3 0"),
        ] {
            assert_eq!(sender.order(order), "ok", "{what}");
        }
        loader.refresh(Guard { lockdown: false, ..meter.guard() });
        assert_eq!(sender.order(&format!("socket {packet} {raw} 768")), "ok", "an open bottle may");
    });
}
