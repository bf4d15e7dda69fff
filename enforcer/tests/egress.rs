//! Lockdown against the real kernel: what a confined bottle sends does not arrive, unless the list or the mode says so.
//!
//! Needs root. Every test has a network of its own, where the far ends are on `lo`: what leaves arrives at the test.
#![allow(clippy::unwrap_used, reason = "a test's helper says what it expects by unwrapping")]
mod support;

use std::io::{ErrorKind, Read as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd as _, OwnedFd};
use std::time::{Duration, Instant};

use enforcer::bottle::cgroup::Cgroup;
use enforcer::kernel::loader::Loader;
use enforcer::kernel::{Allowed, AllowedPorts, Guard, Kernel as _, Place, namespace_cookie};
use nix::sched::{CloneFlags, unshare};
use rustix::net::{AddressFamily, RecvFlags, SocketType, sockopt};
use support::host::{Host, SLOT, guard, here, place};
use support::network::{PRIVATE4, PUBLIC4, PUBLIC6, in_own_network, set_up};
use support::sender::{ARRIVAL, Sender};

const REFUSED: &str = "PermissionDenied";
/// EAFNOSUPPORT, for which the standard library has no kind.
const NO_SUCH_FAMILY: &str = "Uncategorized";

/// The meter's stand-in.
struct Meter(TcpListener);

impl Meter {
    fn new() -> Self {
        Self(TcpListener::bind("127.0.0.1:0").unwrap())
    }

    fn guard(&self) -> Guard {
        Guard { lockdown: true, ..guard(self.0.local_addr().unwrap()) }
    }
}

/// A confined bottle, its loader, and a process in it.
fn confined(test: &str) -> (Host, Meter, Loader, Sender) {
    let host = Host::new(test);
    let meter = Meter::new();
    let loader = host.opened(meter.guard());
    let sender = Sender::start(Some(&host.cgroup));
    (host, meter, loader, sender)
}

fn allowed(range: &str, ports: &[u16]) -> Allowed {
    let listed = ports.iter().copied().collect();
    Allowed { range: range.parse().unwrap(), ports: AllowedPorts { any: false, dns: false, listed } }
}

/// A far end that counts what arrives.
enum Far {
    Tcp(TcpListener),
    Udp(UdpSocket),
}

impl Far {
    fn tcp(address: &str) -> Self {
        let listener = TcpListener::bind(address).unwrap();
        listener.set_nonblocking(true).unwrap();
        Self::Tcp(listener)
    }

    fn udp(address: &str) -> Self {
        let socket = UdpSocket::bind(address).unwrap();
        socket.set_read_timeout(Some(ARRIVAL)).unwrap();
        Self::Udp(socket)
    }

    fn address(&self) -> SocketAddr {
        match self {
            Self::Tcp(listener) => listener.local_addr().unwrap(),
            Self::Udp(socket) => socket.local_addr().unwrap(),
        }
    }

    /// Bytes (of TCP: and connections) that arrive within [`ARRIVAL`].
    fn arrived(&self) -> usize {
        match self {
            Self::Udp(socket) => socket.recv(&mut [0; 64]).unwrap_or(0),
            Self::Tcp(listener) => accept(listener).map_or(0, |mut stream| {
                stream.set_read_timeout(Some(ARRIVAL)).unwrap();
                1 + stream.read(&mut [0; 64]).unwrap_or(0)
            }),
        }
    }

    /// Has the sender send here; whether it was let and whether anything came.
    fn is_reached(&self, sender: &mut Sender) -> (String, usize) {
        let to = self.address();
        let answer = match self {
            Self::Udp(_) => sender.order(&format!("udp {to}")),
            Self::Tcp(_) => match sender.order(&format!("connect {to}")) {
                own if own.parse::<SocketAddr>().is_ok() => sender.order("write"),
                refused => refused,
            },
        };
        (answer, self.arrived())
    }

    #[track_caller]
    fn assert_reached(&self, sender: &mut Sender) {
        let (answer, bytes) = self.is_reached(sender);
        assert!(answer == "ok" && bytes > 0, "{}: {answer}, {bytes} bytes", self.address());
    }

    #[track_caller]
    fn assert_not_reached(&self, sender: &mut Sender) {
        let (answer, bytes) = self.is_reached(sender);
        assert_eq!((answer.as_str(), bytes), (REFUSED, 0), "{}", self.address());
    }
}

fn accept(listener: &TcpListener) -> Option<TcpStream> {
    let end = Instant::now() + ARRIVAL;
    while Instant::now() < end {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false).unwrap();
                return Some(stream);
            }
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    None
}

/// Far ends of both transports and families at a port, public and private.
fn everywhere(port: u16) -> Vec<Far> {
    let ips = [IpAddr::from(PRIVATE4), IpAddr::from(PUBLIC4), IpAddr::from(PUBLIC6)];
    let at = |ip: &IpAddr| SocketAddr::new(*ip, port).to_string();
    ips.iter().flat_map(|ip| [Far::tcp(&at(ip)), Far::udp(&at(ip))]).collect()
}

#[test]
fn root_under_lockdown_nothing_is_reached_but_the_meter() {
    in_own_network(|| {
        let (_host, meter, loader, mut sender) = confined("lockdown");
        for far in everywhere(8080).iter().chain(&everywhere(53)) {
            far.assert_not_reached(&mut sender);
        }
        let straight = meter.0.local_addr().unwrap();
        meter.0.set_nonblocking(true).unwrap();
        for asked in [straight, SocketAddr::new(PUBLIC4.into(), 443), SocketAddr::new(PUBLIC6.into(), 80)] {
            sender.order(&format!("connect {asked}")).parse::<SocketAddr>().unwrap();
            assert_eq!(sender.order("write"), "ok");
            let mut stream = accept(&meter.0).unwrap();
            stream.read_exact(&mut [0]).unwrap();
        }
        assert!(loader.counters(SLOT).unwrap().dropped_packets > 0);
        loader.refresh(Guard { lockdown: false, ..meter.guard() });
        Far::tcp("10.9.8.7:8081").assert_reached(&mut sender);
    });
}

#[test]
fn root_what_the_list_names_is_reached_and_nothing_beside_it() {
    in_own_network(|| {
        let (_host, _meter, loader, mut sender) = confined("listed");
        let lists: [(&str, &str, IpAddr); 6] = [
            ("10.9.8.7/32", "10.9.8.6/32", PRIVATE4.into()),
            ("10.0.0.0/8", "11.0.0.0/8", PRIVATE4.into()),
            ("0.0.0.0/0", "::/0", PRIVATE4.into()),
            ("2001:db8::7/128", "2001:db8::8/128", PUBLIC6.into()),
            ("2001:db8::/32", "2001:db9::/32", PUBLIC6.into()),
            ("::/0", "0.0.0.0/0", PUBLIC6.into()),
        ];
        for (port, (listed, other, ip)) in (9_000..).zip(lists) {
            let at = SocketAddr::new(ip, port).to_string();
            // as the controller writes it: no IPv6 range speaks for IPv4
            let list = |range: &str, ports: &[u16]| -> Vec<Allowed> {
                let all_ip4 = (range != "0.0.0.0/0").then(|| allowed("0.0.0.0/0", &[]));
                [allowed(range, ports)].into_iter().chain(all_ip4).collect()
            };
            for far in [Far::tcp(&at), Far::udp(&at)] {
                loader.set_allowed(SLOT, &list(listed, &[1, port])).unwrap();
                far.assert_reached(&mut sender);
                loader.set_allowed(SLOT, &list(listed, &[port + 1])).unwrap();
                far.assert_not_reached(&mut sender);
                loader.set_allowed(SLOT, &list(other, &[port])).unwrap();
                far.assert_not_reached(&mut sender);
                let any = AllowedPorts { any: true, ..AllowedPorts::default() };
                let any = Allowed { range: listed.parse().unwrap(), ports: any };
                loader.set_allowed(SLOT, &[any]).unwrap();
                far.assert_reached(&mut sender);
                loader.set_allowed(2, &list(listed, &[port])).unwrap();
                loader.set_allowed(SLOT, &[]).unwrap();
                far.assert_not_reached(&mut sender);
            }
        }
    });
}

#[test]
fn root_the_longest_prefix_decides_alone() {
    in_own_network(|| {
        let (_host, _meter, loader, mut sender) = confined("longest");
        let list = [allowed("10.9.8.0/24", &[7001, 7002]), allowed("10.9.8.7/32", &[7002])];
        loader.set_allowed(SLOT, &list).unwrap();
        Far::tcp("10.9.8.7:7001").assert_not_reached(&mut sender);
        Far::tcp("10.9.8.7:7002").assert_reached(&mut sender);
        loader.set_allowed(SLOT, &list[..1]).unwrap();
        Far::udp("10.9.8.7:7001").assert_reached(&mut sender);
    });
}

#[test]
fn root_a_list_opens_no_web_port_around_the_meter() {
    in_own_network(|| {
        let (_host, meter, loader, mut sender) = confined("web");
        let any = || AllowedPorts { any: true, ..AllowedPorts::default() };
        let all = ["0.0.0.0/0", "::/0"].map(|range| Allowed { range: range.parse().unwrap(), ports: any() });
        loader.set_allowed(SLOT, &all).unwrap();
        meter.0.set_nonblocking(true).unwrap();
        for ip in [IpAddr::from(PUBLIC4), IpAddr::from(PUBLIC6)] {
            let at = |port| SocketAddr::new(ip, port).to_string();
            let far = [Far::tcp(&at(443)), Far::tcp(&at(80))];
            for far in &far {
                sender.order(&format!("connect {}", far.address())).parse::<SocketAddr>().unwrap();
                assert!(accept(&meter.0).is_some(), "the meter has it");
                assert_eq!(far.arrived(), 0);
            }
            Far::udp(&at(443)).assert_not_reached(&mut sender);
            Far::udp(&at(80)).assert_reached(&mut sender);
        }
        Far::tcp("10.9.8.7:443").assert_reached(&mut sender);
    });
}

#[test]
fn root_dns_goes_to_the_resolvers_alone() {
    in_own_network(|| {
        let (_host, _meter, loader, mut sender) = confined("dns");
        let dns = |range: &str| {
            let ports = AllowedPorts { dns: true, ..AllowedPorts::default() };
            Allowed { range: range.parse().unwrap(), ports }
        };
        loader
            .set_allowed(SLOT, &[dns("10.9.8.7/32"), dns("2001:db8::7/128"), dns("127.0.0.53/32")])
            .unwrap();
        for server in ["10.9.8.7:53", "[2001:db8::7]:53", "127.0.0.53:53"] {
            Far::udp(server).assert_reached(&mut sender);
            Far::tcp(server).assert_reached(&mut sender);
        }
        for other in ["203.0.113.7:53", "10.9.8.7:54", "127.0.0.1:53", "[::1]:53"] {
            Far::udp(other).assert_not_reached(&mut sender);
            Far::tcp(other).assert_not_reached(&mut sender);
        }
    });
}

/// getaddrinfo() tries its addresses by connecting to them: one that is refused comes last.
#[test]
fn root_a_resolving_program_keeps_its_order() {
    in_own_network(|| {
        let (_host, _meter, _loader, mut sender) = confined("order");
        for (from, far) in
            [("0.0.0.0:0", Far::udp("203.0.113.7:9000")), ("[::]:0", Far::udp("[2001:db8::7]:9000"))]
        {
            sender.order(&format!("bind {from}")).parse::<SocketAddr>().unwrap();
            assert_eq!(sender.order(&format!("towards {}", far.address())), "ok", "nothing leaves by that");
            assert_eq!(sender.order("send"), REFUSED);
            assert_eq!(far.arrived(), 0);
        }
    });
}

/// Runs it in another network namespace than the test's; its cookie.
fn elsewhere<T: Send>(work: impl FnOnce(u64) -> T + Send) -> T {
    std::thread::scope(|scope| {
        let inside = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            set_up().unwrap();
            work(namespace_cookie(UdpSocket::bind("127.0.0.1:0").unwrap().as_fd()).unwrap())
        });
        inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

#[test]
fn root_the_host_s_loopback_is_never_reached() {
    in_own_network(|| {
        let (_host, meter, loader, mut sender) = confined("host-lo");
        let forms = ["127.0.0.1:9000", "127.1.2.3:9000", "[::1]:9000"];
        let mut far: Vec<Far> = forms.iter().flat_map(|at| [Far::tcp(at), Far::udp(at)]).collect();
        far.push(Far::tcp("[::ffff:127.0.0.1]:9001"));
        let check = |sender: &mut Sender| {
            for far in &far {
                far.assert_not_reached(sender);
            }
            for unspecified in ["0.0.0.0:9000", "[::]:9000"] {
                assert_eq!(sender.order(&format!("connect {unspecified}")), REFUSED);
            }
        };
        check(&mut sender);
        // as between the start of a new controller and its first word about the place
        loader.remove_place(here()).unwrap();
        check(&mut sender);
        loader.set_place(here(), &place(&meter.guard())).unwrap();
        check(&mut sender);
    });
}

#[test]
fn root_a_namespace_s_own_loopback_is_reached_once_it_is_known() {
    in_own_network(|| {
        let host = Host::new("own-lo");
        let meter = Meter::new();
        let loader = host.opened(meter.guard());
        elsewhere(|cookie| {
            let mut sender = Sender::start(Some(&host.cgroup));
            let mut peer = Sender::start(Some(&host.cgroup));
            let far = [
                Far::tcp("127.0.0.1:9000"),
                Far::udp("127.0.0.1:9000"),
                Far::tcp("[::1]:9000"),
                Far::udp("[::1]:9000"),
            ];
            // a socket that is there before its namespace is known
            let listening: SocketAddr = peer.order("listen 127.0.0.1:0").parse().unwrap();
            for far in &far {
                far.assert_not_reached(&mut sender);
            }
            let there = Place { listener: 7, ..place(&meter.guard()) };
            loader.set_place(cookie, &there).unwrap();
            for far in &far {
                far.assert_reached(&mut sender);
            }
            // both ends in the bottle: what a listener accepts answers, too
            assert!(sender.order(&format!("connect {listening}")).parse::<SocketAddr>().is_ok());
            Far::tcp("10.9.8.7:9000").assert_not_reached(&mut sender);
            Far::udp("203.0.113.7:9000").assert_not_reached(&mut sender);
            loader.remove_place(cookie).unwrap();
            for far in &far {
                far.assert_not_reached(&mut sender);
            }
        });
    });
}

#[test]
fn root_sockets_from_before_reach_what_the_bottle_may_and_nothing_else() {
    in_own_network(|| {
        let host = Host::new("before");
        let meter = Meter::new();
        let mut sender = Sender::start(Some(&host.cgroup));
        let far = TcpListener::bind("10.9.8.7:9000").unwrap();
        sender.order("connect 10.9.8.7:9000").parse::<SocketAddr>().unwrap();
        let (mut stream, _) = far.accept().unwrap();
        stream.set_read_timeout(Some(ARRIVAL)).unwrap();
        let heard = Far::udp("10.9.8.7:9001");
        sender.order("bind 0.0.0.0:0").parse::<SocketAddr>().unwrap();
        assert_eq!(sender.order("towards 10.9.8.7:9001"), "ok");

        let loader = host.opened(meter.guard());
        assert_eq!(sender.order("write"), "ok", "it is queued");
        assert!(stream.read(&mut [0]).is_err(), "a byte arrived");
        assert_eq!((sender.order("send").as_str(), heard.arrived()), (REFUSED, 0));
        loader.set_allowed(SLOT, &[allowed("10.9.8.7/32", &[9000, 9001])]).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        stream.read_exact(&mut [0]).unwrap();
        assert_eq!(sender.order("send"), "ok");
        assert!(heard.arrived() > 0);
    });
}

#[test]
fn root_of_nested_bottles_both_must_let_it_pass() {
    in_own_network(|| {
        let (host, meter, loader, _sender) = confined("nested");
        let path = host.cgroup.join("inner");
        let cgroup = Cgroup::create(&path).unwrap();
        let inner = Guard { slot: 2, generation: 9, ..meter.guard() };
        loader.attach("inner", &cgroup, inner).unwrap();
        loader.open(2);
        let mut sender = Sender::start(Some(&path));
        for far in [Far::tcp("10.9.8.7:9000"), Far::udp("10.9.8.7:9000")] {
            for (outer, inner, reached) in [(true, false, false), (false, true, false), (true, true, true)] {
                for (slot, listed) in [(SLOT, outer), (2, inner)] {
                    let ports: &[u16] = if listed { &[9000] } else { &[] };
                    loader.set_allowed(slot, &[allowed("10.9.8.7/32", ports)]).unwrap();
                }
                if reached { far.assert_reached(&mut sender) } else { far.assert_not_reached(&mut sender) }
            }
        }
        meter.0.set_nonblocking(true).unwrap();
        sender.order(&format!("connect {PUBLIC4}:443")).parse::<SocketAddr>().unwrap();
        assert_eq!(sender.order("write"), "ok");
        accept(&meter.0).unwrap().read_exact(&mut [0]).unwrap();
        loader.refresh(Guard { lockdown: false, ..inner });
        Far::tcp("10.9.8.7:9002").assert_not_reached(&mut sender);
        loader.detach("inner", 2).unwrap();
    });
}

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

const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const OPTIONS: u8 = 60;
const ICMP6: u8 = 58;
const SCTP: u8 = 132;
const UDP_LITE: u8 = 136;

#[test]
fn root_other_protocols_and_forged_packets_do_not_leave() {
    in_own_network(|| {
        let host = Host::new("raw");
        let meter = Meter::new();
        let mut sender = Sender::start(Some(&host.cgroup));
        let echo = [8, 0, 0xf7, 0xff, 0, 0, 0, 0];
        // with the checksum over the addresses: nobody is given one without
        let echo6 = [128, 0, 0x51, 0xfc, 0, 0, 0, 0];
        let to_port =
            |port: u16| [&9u16.to_be_bytes()[..], &port.to_be_bytes(), &8u16.to_be_bytes(), &[0, 0]].concat();
        let closed: [(&str, IpAddr, u8, Vec<u8>); 9] = [
            ("ICMP", PRIVATE4.into(), ICMP, ip4(ICMP, 0, &echo)),
            ("SCTP", PRIVATE4.into(), SCTP, ip4(SCTP, 0, &to_port(9000))),
            ("UDP-Lite", PRIVATE4.into(), UDP_LITE, ip4(UDP_LITE, 0, &to_port(9000))),
            ("an unlisted UDP port", PRIVATE4.into(), UDP, ip4(UDP, 0, &to_port(9001))),
            ("too short for a port", PRIVATE4.into(), TCP, ip4(TCP, 0, &[1])),
            ("a fragment", PRIVATE4.into(), UDP, ip4(UDP, 0x2000, &to_port(9000))),
            ("ICMPv6", PUBLIC6.into(), ICMP6, ip6(ICMP6, &echo6)),
            ("SCTP", PUBLIC6.into(), SCTP, ip6(SCTP, &to_port(9000))),
            ("behind options", PUBLIC6.into(), UDP, ip6(OPTIONS, &behind_options(&to_port(9000)))),
        ];
        let hex = |packet: &[u8]| packet.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
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

/// A packet with this word of flags and fragment offset. The kernel fills in length and checksum.
fn ip4(protocol: u8, fragment: u16, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0; 20];
    packet[0] = 0x45;
    packet[6..8].copy_from_slice(&fragment.to_be_bytes());
    (packet[8], packet[9]) = (64, protocol);
    packet[12..16].copy_from_slice(&Ipv4Addr::LOCALHOST.octets());
    packet[16..20].copy_from_slice(&PRIVATE4.octets());
    packet.extend(payload);
    packet
}

fn ip6(next_header: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0; 40];
    packet[0] = 0x60;
    packet[4..6].copy_from_slice(&u16::try_from(payload.len()).unwrap().to_be_bytes());
    (packet[6], packet[7]) = (next_header, 64);
    packet[8..24].copy_from_slice(&Ipv6Addr::LOCALHOST.octets());
    packet[24..40].copy_from_slice(&PUBLIC6.octets());
    packet.extend(payload);
    packet
}

/// A header of destination options (padding) before a datagram.
fn behind_options(datagram: &[u8]) -> Vec<u8> {
    let mut payload = vec![UDP, 0, 1, 4, 0, 0, 0, 0];
    payload.extend(datagram);
    payload
}
