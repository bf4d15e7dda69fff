//! Lockdown against the real kernel: what a confined bottle sends does not arrive, unless the list or the mode says so.
//!
//! Needs root. Every test has a network of its own, where the far ends are on `lo`: what leaves arrives at the test.
#![allow(clippy::unwrap_used, reason = "a test's helper says what it expects by unwrapping")]
mod forged;
mod loopback;
#[path = "../support/mod.rs"]
mod support;

use std::io::{ErrorKind, Read as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use enforcer::bottle::cgroup::Cgroup;
use enforcer::kernel::loader::Loader;
use enforcer::kernel::{Allowed, AllowedPorts, Guard, Kernel as _};
use support::host::{Host, SLOT, guard};
use support::network::{PRIVATE4, PUBLIC4, PUBLIC6, in_own_network};
use support::sender::{ARRIVAL, Sender};

const REFUSED: &str = "PermissionDenied";

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
