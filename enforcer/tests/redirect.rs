//! The redirect against the real kernel: processes in real cgroups connect to public addresses and meet the meter.
//!
//! Needs root. Every test has a network of its own, where those addresses are on `lo`: what passes the meter by
//! arrives at the test, not at somebody's server.
#![allow(clippy::unwrap_used, reason = "a test's helper says what it expects by unwrapping")]
mod support;

use std::io::Read as _;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use aya::maps::{Array, Map, MapData};
use enforcer::bottle::cgroup::Cgroup;
use enforcer::kernel::{Guard, Kernel as _};
use support::host::{Host, SLOT, guard, here, place, turn_to};
use support::meter::{Meter, accept, accept_within, canonical, original};
use support::network::{PRIVATE4, PUBLIC4, PUBLIC6, in_own_network};
use support::packets::{OPTIONS, TCP, behind_options, hex, ip4, ip4_with_options, ip6, syn};
use support::sender::{ARRIVAL, Sender};

#[test]
fn root_web_connections_to_public_addresses_arrive_at_the_meter() {
    in_own_network(|| {
        let host = Host::new("redirected");
        let meter = Meter::new();
        let loader = host.opened(meter.guard());
        let mut sender = Sender::start(Some(&host.cgroup));
        let mapped = format!("[::ffff:{PUBLIC4}]:443");
        for asked in
            [&format!("{PUBLIC4}:443"), &format!("{PUBLIC4}:80"), &format!("[{PUBLIC6}]:443"), &mapped]
        {
            let own: SocketAddr = sender.order(&format!("connect {asked}")).parse().unwrap();
            let (mut stream, flow) = accept(&loader, &meter.ip4);
            assert_eq!(canonical(&own.to_string()), stream.peer_addr().unwrap());
            let flow = flow.unwrap_or_else(|| panic!("{asked}: a connection of nobody"));
            assert_eq!((flow.slot, flow.generation), (SLOT, 7), "{asked}");
            assert_eq!(flow.cgroup_id, host.cgroup().id());
            assert_eq!(original(&flow), canonical(asked));
            assert_eq!(sender.order("peer"), *asked, "the program sees what it asked for");
            assert_eq!(sender.order("write"), "ok");
            stream.read_exact(&mut [0]).unwrap();
        }
    });
}

#[test]
fn root_an_ipv6_listener_is_used_where_there_is_one_and_needed_by_ipv6_only_sockets() {
    in_own_network(|| {
        let host = Host::new("redirected6");
        let meter = Meter::new();
        let loader = host.opened(meter.guard());
        let mut sender = Sender::start(Some(&host.cgroup));
        let asked = format!("[{PUBLIC6}]:443");
        assert_eq!(sender.order(&format!("connect-only6 {asked}")), "NetworkUnreachable");

        turn_to(&loader, meter.guard_with_ip6());
        for order in ["connect", "connect-only6"] {
            sender.order(&format!("{order} {asked}")).parse::<SocketAddr>().unwrap();
            let (_stream, flow) = accept(&loader, &meter.ip6);
            assert_eq!(original(&flow.unwrap()), canonical(&asked));
            assert_eq!(sender.order("peer"), asked);
        }
        let mapped = format!("[::ffff:{PUBLIC4}]:443");
        sender.order(&format!("connect {mapped}")).parse::<SocketAddr>().unwrap();
        let (_stream, flow) = accept(&loader, &meter.ip4);
        assert_eq!(original(&flow.unwrap()), canonical(&mapped));
    });
}

#[test]
fn root_other_ways_to_make_a_tcp_connection_are_redirected_too() {
    in_own_network(|| {
        let host = Host::new("ways");
        let meter = Meter::new();
        let loader = host.opened(meter.guard());
        let mut sender = Sender::start(Some(&host.cgroup));
        let asked = format!("{PUBLIC4}:443");
        // the program's own socket is not the one that connects: it sees the meter as its peer
        let seen = meter.ip4.local_addr().unwrap().to_string();
        for (order, peer) in [("connect-multipath", &seen), ("connect-sending", &asked)] {
            sender.order(&format!("{order} {asked}")).parse::<SocketAddr>().unwrap();
            let (_stream, flow) = accept(&loader, &meter.ip4);
            assert_eq!(original(&flow.unwrap()), canonical(&asked), "{order}");
            assert_eq!(sender.order("peer"), *peer, "{order}");
        }
    });
}

#[test]
fn root_local_destinations_and_other_ports_are_left_alone() {
    in_own_network(|| {
        let host = Host::new("untouched");
        let meter = Meter::new();
        let loader = host.opened(meter.guard_with_ip6());
        let mut sender = Sender::start(Some(&host.cgroup));
        let public = [format!("{PUBLIC4}:8080"), format!("[{PUBLIC6}]:8443")];
        let private = [format!("{PRIVATE4}:443"), format!("{PRIVATE4}:80")];
        let loopback = ["127.0.0.1:443", "127.0.0.2:80", "[::1]:443", "[::1]:80"].map(str::to_owned);
        for asked in public.iter().chain(&private).chain(&loopback) {
            let listener = TcpListener::bind(asked).unwrap();
            sender.order(&format!("connect {asked}")).parse::<SocketAddr>().unwrap();
            let (mut stream, flow) = accept(&loader, &listener);
            assert_eq!(flow, None, "{asked}: not a connection to the meter");
            assert_eq!(sender.order("peer"), *asked);
            assert_eq!(sender.order("write"), "ok");
            stream.read_exact(&mut [0]).unwrap();
        }
        let straight = meter.ip4.local_addr().unwrap();
        sender.order(&format!("connect {straight}")).parse::<SocketAddr>().unwrap();
        let (_stream, flow) = accept(&loader, &meter.ip4);
        assert_eq!(original(&flow.unwrap()), straight, "it asked for the meter itself");
    });
}

#[test]
fn root_a_guard_can_do_without_the_redirect() {
    in_own_network(|| {
        let host = Host::new("straight");
        let meter = Meter::new();
        let loader = host.opened(Guard { redirect: false, ..meter.guard() });
        let mut sender = Sender::start(Some(&host.cgroup));
        let asked = format!("{PUBLIC4}:443");
        let far = TcpListener::bind(&asked).unwrap();
        sender.order(&format!("connect {asked}")).parse::<SocketAddr>().unwrap();
        let (mut stream, _) = accept(&loader, &far);
        assert_eq!(sender.order("write"), "ok");
        stream.read_exact(&mut [0]).unwrap();

        loader.refresh(meter.guard());
        sender.order(&format!("connect {asked}")).parse::<SocketAddr>().unwrap();
        let (_stream, flow) = accept(&loader, &meter.ip4);
        assert_eq!(original(&flow.unwrap()), canonical(&asked));
    });
}

#[test]
fn root_quic_is_refused_and_a_resolver_s_connect_is_not() {
    in_own_network(|| {
        let host = Host::new("quic");
        let meter = Meter::new();
        let _loader = host.opened(meter.guard());
        let mut sender = Sender::start(Some(&host.cgroup));
        for (from, public) in
            [("127.0.0.1:0", format!("{PUBLIC4}:443")), ("[::1]:0", format!("[{PUBLIC6}]:443"))]
        {
            let far = UdpSocket::bind(&public).unwrap();
            far.set_read_timeout(Some(ARRIVAL)).unwrap();
            assert_eq!(sender.order(&format!("udp {public}")), "PermissionDenied");
            sender.order(&format!("bind {from}")).parse::<SocketAddr>().unwrap();
            assert_eq!(sender.order(&format!("towards {public}")), "ok");
            assert_eq!(sender.order("send"), "PermissionDenied");
            assert!(far.recv(&mut [0; 8]).is_err(), "{public}: a datagram arrived");
        }
        for other in [format!("{PUBLIC4}:53"), format!("{PRIVATE4}:443"), "[::1]:443".to_owned()] {
            let far = UdpSocket::bind(&other).unwrap();
            far.set_read_timeout(Some(ARRIVAL)).unwrap();
            assert_eq!(sender.order(&format!("udp {other}")), "ok");
            far.recv(&mut [0; 8]).unwrap();
        }
    });
}

#[test]
fn root_a_cut_bottle_s_connect_fails_at_once() {
    in_own_network(|| {
        let host = Host::new("fast");
        let meter = Meter::new();
        let loader = host.opened(meter.guard_with_ip6());
        loader.cut(SLOT);
        let mut sender = Sender::start(Some(&host.cgroup));
        let straight = meter.ip4.local_addr().unwrap().to_string();
        for asked in
            [format!("{PUBLIC4}:443"), format!("[{PUBLIC6}]:443"), straight, format!("{PRIVATE4}:5432")]
        {
            let mut times: Vec<u64> = (0..21)
                .map(|_| {
                    let answer = sender.order(&format!("time-connect {asked}"));
                    let (micros, outcome) = answer.split_once(' ').unwrap();
                    assert_eq!(outcome, "PermissionDenied", "{asked}");
                    micros.parse().unwrap()
                })
                .collect();
            times.sort_unstable();
            assert!(times[10] < 1000, "{asked}: {times:?} µs");
        }
        assert_eq!(sender.order(&format!("udp {PRIVATE4}:53")), "PermissionDenied");
        loader.open(SLOT);
        sender.order(&format!("connect {PUBLIC4}:443")).parse::<SocketAddr>().unwrap();
    });
}

#[test]
fn root_a_bottle_cannot_take_the_meter_s_place() {
    in_own_network(|| {
        let host = Host::new("squat");
        let meter = Meter::new();
        let address = meter.ip4.local_addr().unwrap();
        let loader = host.opened(meter.guard());
        drop(meter);
        let mut sender = Sender::start(Some(&host.cgroup));
        for ip in ["127.0.0.1", "0.0.0.0", "[::1]", "[::]"] {
            assert_eq!(sender.order(&format!("listen {ip}:{}", address.port())), "PermissionDenied", "{ip}");
        }
        // a port that it got by chance, and that the meter or the lane turns out to have had
        let squatted: SocketAddr = sender.order("listen 127.0.0.1:0").parse().unwrap();
        for guard in [guard(squatted), Guard { lane: Some(squatted), ..guard(address) }] {
            turn_to(&loader, support::host::guard(address));
            TcpStream::connect_timeout(&squatted, ARRIVAL).unwrap();
            turn_to(&loader, guard);
            let answered = TcpStream::connect_timeout(&squatted, ARRIVAL);
            assert!(answered.is_err(), "the bottle answered in another's place");
        }
    });
}

#[test]
fn root_the_innermost_bottle_redirects() {
    in_own_network(|| {
        let host = Host::new("nested");
        let meter = Meter::new();
        let loader = host.opened(meter.guard());
        let path = host.cgroup.join("inner");
        let cgroup = Cgroup::create(&path).unwrap();
        let inner = Guard { slot: 2, generation: 9, ..meter.guard() };
        loader.attach("inner", &cgroup, inner).unwrap();
        loader.open(2);
        let mut sender = Sender::start(Some(&path));
        let asked = format!("{PUBLIC4}:443");
        let connect = |sender: &mut Sender| {
            sender.order(&format!("connect {asked}")).parse::<SocketAddr>().unwrap();
            let (stream, flow) = accept(&loader, &meter.ip4);
            let flow = flow.unwrap();
            assert_eq!(original(&flow), canonical(&asked));
            assert_eq!(sender.order("peer"), asked);
            (stream, flow.slot)
        };
        let (mut stream, slot) = connect(&mut sender);
        assert_eq!(slot, 2);
        assert_eq!(sender.order("write"), "ok");
        stream.read_exact(&mut [0]).unwrap();

        loader.cut(SLOT);
        assert_eq!(sender.order(&format!("connect {asked}")), "PermissionDenied", "the outer cut holds");
        loader.open(SLOT);
        loader.refresh(Guard { redirect: false, ..inner });
        assert_eq!(connect(&mut sender).1, SLOT, "the outer one redirects what the inner one lets pass");
        loader.refresh(inner);
        assert_eq!(connect(&mut sender).1, 2);
        loader.detach("inner", 2).unwrap();
        assert_eq!(connect(&mut sender).1, SLOT);
    });
}

#[test]
fn root_a_socket_that_connects_again_forgets_where_it_went() {
    in_own_network(|| {
        let host = Host::new("again");
        let meter = Meter::new();
        let dead = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let loader = host.opened(guard(dead));
        let mut sender = Sender::start(Some(&host.cgroup));
        let attempt = format!("attempt {PUBLIC4}:443");
        let far = TcpListener::bind("127.0.0.1:0").unwrap();
        let straight = meter.ip4.local_addr().unwrap();

        assert_eq!(sender.order(&attempt), "ConnectionRefused");
        let elsewhere = far.local_addr().unwrap();
        sender.order(&format!("again {elsewhere}")).parse::<SocketAddr>().unwrap();
        assert_eq!(sender.order("peer"), elsewhere.to_string());
        assert_eq!(accept(&loader, &far).1, None);

        assert_eq!(sender.order(&attempt), "ConnectionRefused");
        turn_to(&loader, meter.guard());
        sender.order(&format!("again {straight}")).parse::<SocketAddr>().unwrap();
        assert_eq!(sender.order("peer"), straight.to_string());
        let (_stream, flow) = accept(&loader, &meter.ip4);
        assert_eq!(original(&flow.unwrap()), straight);
    });
}

#[test]
fn root_a_redirected_connection_outlives_the_controller() {
    in_own_network(|| {
        let host = Host::new("restart");
        let meter = Meter::new();
        drop(host.opened(meter.guard()));
        let mut sender = Sender::start(Some(&host.cgroup));
        let asked = format!("{PUBLIC4}:443");
        sender.order(&format!("connect {asked}")).parse::<SocketAddr>().unwrap();
        let loader = host.load();
        let (mut stream, flow) = accept(&loader, &meter.ip4);
        assert_eq!(original(&flow.unwrap()), canonical(&asked));
        assert_eq!(sender.order("peer"), asked);
        assert_eq!(sender.order("write"), "ok");
        stream.read_exact(&mut [0]).unwrap();
    });
}

#[test]
fn root_a_flood_refuses_its_own_connects() {
    in_own_network(|| {
        let host = Host::new("flood");
        let meter = Meter::new();
        let loader = host.load();
        loader.set_place(here(), &place(&meter.guard())).unwrap();
        let paths = [host.cgroup.join("flood"), host.cgroup.join("neighbour")];
        for (path, slot) in paths.iter().zip([SLOT, 2]) {
            let cgroup = Cgroup::create(path).unwrap();
            loader.attach(&slot.to_string(), &cgroup, Guard { slot, ..meter.guard() }).unwrap();
            loader.open(slot);
        }
        let [mut flood, mut neighbour] = paths.each_ref().map(|path| Sender::start(Some(path)));
        let counts = MapData::from_pin(host.pins().join("FLOW_COUNTS")).unwrap();
        let mut counts = Array::<_, u64>::try_from(Map::Array(counts)).unwrap();
        counts.set(SLOT, u64::from(enforcer_ebpf::FLOWS_PER_BOTTLE), 0).unwrap();
        let straight = meter.ip4.local_addr().unwrap().to_string();
        for asked in [format!("{PUBLIC4}:443"), format!("[{PUBLIC6}]:80"), straight] {
            assert_eq!(flood.order(&format!("connect {asked}")), "PermissionDenied", "{asked}");
        }
        neighbour.order(&format!("connect {PUBLIC4}:443")).parse::<SocketAddr>().unwrap();
        assert_eq!(counts.get(&2, 0).unwrap(), 1);
        counts.set(SLOT, 0, 0).unwrap();
        flood.order(&format!("connect {PUBLIC4}:443")).parse::<SocketAddr>().unwrap();
        assert_eq!(counts.get(&SLOT, 0).unwrap(), 1);
    });
}

#[test]
fn root_a_connection_from_before_does_not_go_around_the_meter() {
    in_own_network(|| {
        let host = Host::new("before");
        let meter = Meter::new();
        for asked in [format!("{PUBLIC4}:443"), format!("[{PUBLIC6}]:80")] {
            let far = TcpListener::bind(&asked).unwrap();
            let mut sender = Sender::start(Some(&host.cgroup));
            sender.order(&format!("connect {asked}")).parse::<SocketAddr>().unwrap();
            let (mut stream, _) = accept_within(&far, ARRIVAL).unwrap();
            let loader = host.opened(meter.guard());
            assert_eq!(sender.order("write"), "ok", "it is queued");
            assert!(stream.read(&mut [0]).is_err(), "{asked}: a byte passed the meter by");
            assert!(loader.counters(SLOT).unwrap().dropped_packets > 0);
            loader.refresh(Guard { redirect: false, ..meter.guard() });
            stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            stream.read_exact(&mut [0]).unwrap();
            loader.detach("b", SLOT).unwrap();
        }
    });
}

#[test]
fn root_forged_packets_do_not_go_around_the_meter() {
    in_own_network(|| {
        let host = Host::new("raw");
        let meter = Meter::new();
        let guard = meter.guard();
        let loader = host.opened(guard);
        let mut sender = Sender::start(Some(&host.cgroup));
        let send = |sender: &mut Sender, to: IpAddr, packet: &[u8]| {
            sender.order(&format!("raw {to} {}", hex(packet)))
        };
        let (private, public) = (IpAddr::from(PRIVATE4), IpAddr::from(PUBLIC4));
        let forged = [
            ("a TCP segment", public, ip4(PUBLIC4, TCP, 0, &syn(443))),
            ("one with IP options", public, ip4_with_options(PUBLIC4, TCP, &syn(443))),
            ("a first fragment", public, ip4(PUBLIC4, TCP, 0x2000, &syn(8080))),
            ("a later fragment", public, ip4(PUBLIC4, TCP, 1, &syn(8080))),
            ("too short to have ports", public, ip4(PUBLIC4, TCP, 0, &[1])),
            ("a TCP segment", IpAddr::from(PUBLIC6), ip6(PUBLIC6, TCP, &syn(443))),
            (
                "behind an extension header",
                IpAddr::from(PUBLIC6),
                ip6(PUBLIC6, OPTIONS, &behind_options(TCP, &syn(443))),
            ),
        ];
        for (what, to, packet) in &forged {
            assert_eq!(send(&mut sender, *to, packet), "PermissionDenied", "{what} to {to}");
        }
        let allowed = [
            ("another port", public, ip4(PUBLIC4, TCP, 0, &syn(8080))),
            ("a private address", private, ip4(PRIVATE4, TCP, 0, &syn(443))),
            ("a fragment to a private address", private, ip4(PRIVATE4, TCP, 0x2000, &syn(443))),
        ];
        for (what, to, packet) in &allowed {
            assert_eq!(send(&mut sender, *to, packet), "ok", "{what} to {to}");
        }
        loader.refresh(Guard { redirect: false, ..guard });
        for (what, to, packet) in &forged {
            assert_eq!(send(&mut sender, *to, packet), "ok", "{what} to {to}: the redirect is off");
        }
    });
}
