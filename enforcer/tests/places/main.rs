//! Whose a connection is, where many network namespaces share one loopback address: real processes in real
//! namespaces and cgroups meet a meter in each.
//!
//! Needs root. Nothing leaves the namespaces that a test makes.
#![allow(clippy::unwrap_used, reason = "a test's helper says what it expects by unwrapping")]
mod controllers;
mod flood;
mod nested;
#[path = "../support/mod.rs"]
mod support;

use std::io::Read as _;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::time::Duration;

use aya::maps::{Array, HashMap, Map, MapData};
use enforcer::bottle::cgroup::Cgroup;
use enforcer::kernel::loader::Loader;
use enforcer::kernel::{Guard, Kernel as _, Place};
use enforcer_ebpf::{EVENT_NAMESPACE, Flow, FlowKey, MAPPED};
use support::eventually;
use support::host::{Host, LISTENER, SLOT, here, place};
use support::meter::{Meter, accept, accept_within, canonical, original};
use support::network::{Network, PRIVATE4, PUBLIC4, PUBLIC6, in_own_network};
use support::sender::{ARRIVAL, Sender};

/// A second network namespace with a meter of its own at the same loopback address, and its listener's id.
struct Elsewhere {
    network: Network,
    meter: Meter,
    listener: u32,
}

impl Elsewhere {
    /// `meter`'s address once more; the kernel plane is told of it.
    fn like(meter: &Meter, loader: &Loader, listener: u32) -> Self {
        let network = Network::new();
        let elsewhere = Self { meter: network.inside(|| Meter::at(meter.port())), network, listener };
        loader.set_place(elsewhere.cookie(), &elsewhere.place()).unwrap();
        elsewhere
    }

    fn cookie(&self) -> u64 {
        self.network.inside(here)
    }

    fn place(&self) -> Place {
        Place { listener: self.listener, ..place(&self.meter.guard_with_ip6()) }
    }
}

/// Attaches a bottle below the host's cgroup, open.
fn bottle(host: &Host, loader: &Loader, name: &str, slot: u32, meter: &Meter) -> PathBuf {
    let path = host.cgroup.join(name);
    let cgroup = Cgroup::create(&path).unwrap();
    loader.attach(name, &cgroup, Guard { slot, ..meter.guard() }).unwrap();
    loader.open(slot);
    path
}

fn flow_counts(host: &Host) -> Array<MapData, u64> {
    let map = MapData::from_pin(host.pins().join("FLOW_COUNTS")).unwrap();
    Array::try_from(Map::Array(map)).unwrap()
}

/// An IPv4 address as the keys of `FLOWS` hold it.
fn mapped(address: SocketAddr) -> [u32; 4] {
    let IpAddr::V4(ip) = address.ip() else { panic!("{address} is not IPv4") };
    [0, 0, MAPPED, u32::from_ne_bytes(ip.octets())]
}

#[test]
fn root_one_address_in_two_namespaces_is_two_connections() {
    in_own_network(|| {
        let host = Host::new("twins");
        let meter = Meter::new();
        let loader = host.load();
        loader.set_place(here(), &place(&meter.guard_with_ip6())).unwrap();
        let elsewhere = Elsewhere::like(&meter, &loader, LISTENER + 1);
        let paths = [bottle(&host, &loader, "one", 1, &meter), bottle(&host, &loader, "two", 2, &meter)];
        let mut first = Sender::start(Some(&paths[0]));
        let mut second = elsewhere.network.inside(|| Sender::start(Some(&paths[1])));
        let (from, local) = ("127.0.0.1:45678", meter.ip4.local_addr().unwrap());
        for asked in [format!("{PUBLIC4}:443"), local.to_string()] {
            for sender in [&mut first, &mut second] {
                assert_eq!(sender.order(&format!("connect-from {from} {asked}")), from);
            }
            let (mut one, peer) = accept_within(&meter.ip4, ARRIVAL).unwrap();
            let (mut two, same) = accept_within(&elsewhere.meter.ip4, ARRIVAL).unwrap();
            assert_eq!((peer, one.local_addr().unwrap()), (same, two.local_addr().unwrap()));
            for (listener, slot) in [(LISTENER, 1), (elsewhere.listener, 2)] {
                let flow = loader.flow(peer, local, listener).unwrap();
                assert_eq!((flow.slot, original(&flow)), (slot, canonical(&asked)));
            }
            assert_eq!((first.order("write"), second.order("write")), ("ok".into(), "ok".into()));
            one.read_exact(&mut [0]).unwrap();
            two.read_exact(&mut [0]).unwrap();

            assert_eq!(first.order("close"), "ok");
            drop(one);
            eventually(|| loader.flow(peer, local, LISTENER).is_none());
            assert!(loader.flow(peer, local, elsewhere.listener).is_some(), "the other one lives");
            assert_eq!(second.order("close"), "ok");
            drop(two);
            eventually(|| loader.flow(peer, local, elsewhere.listener).is_none());
        }
        assert_eq!(flow_counts(&host).get(&1, 0).unwrap() + flow_counts(&host).get(&2, 0).unwrap(), 0);
    });
}

#[test]
fn root_a_connection_goes_to_the_meter_of_its_own_namespace_by_ipv6_too() {
    in_own_network(|| {
        let host = Host::new("places6");
        let meter = Meter::new();
        let loader = host.opened(meter.guard());
        let elsewhere = Elsewhere::like(&meter, &loader, LISTENER + 1);
        let mut sender = elsewhere.network.inside(|| Sender::start(Some(&host.cgroup)));
        let asked = format!("[{PUBLIC6}]:443");
        let own = elsewhere.meter.ip6.local_addr().unwrap().to_string();
        for (order, asked) in [("connect", &asked), ("connect-only6", &asked), ("connect", &own)] {
            sender.order(&format!("{order} {asked}")).parse::<SocketAddr>().unwrap();
            let (stream, peer) = accept_within(&elsewhere.meter.ip6, ARRIVAL).unwrap();
            let flow = loader.flow(peer, stream.local_addr().unwrap(), elsewhere.listener).unwrap();
            assert_eq!((flow.slot, original(&flow)), (SLOT, canonical(asked)));
            assert_eq!(sender.order("peer"), *asked);
        }
    });
}

#[test]
fn root_the_host_s_meter_asked_for_by_its_own_address_is_met_in_the_namespace() {
    in_own_network(|| {
        let host = Host::new("asked");
        let meter = TcpListener::bind((PRIVATE4, 0)).unwrap();
        let address = meter.local_addr().unwrap();
        let loader = host.opened(support::host::guard(address));
        let network = Network::new();
        let inside = network.inside(|| TcpListener::bind(("127.0.0.1", address.port())).unwrap());
        let there = inside.local_addr().unwrap();
        loader.set_place(network.inside(here), &Place::new(LISTENER + 1, there)).unwrap();
        let mut sender = network.inside(|| Sender::start(Some(&host.cgroup)));
        sender.order(&format!("connect {address}")).parse::<SocketAddr>().unwrap();
        let (_stream, peer) = accept_within(&inside, ARRIVAL).unwrap();
        let flow = loader.flow(peer, there, LISTENER + 1).unwrap();
        assert_eq!(original(&flow), there, "as if it had asked for this one");
    });
}

#[test]
fn root_a_squatter_in_namespaces_of_its_own_takes_and_blocks_nobody_s_connection() {
    in_own_network(|| {
        let host = Host::new("squatter");
        let meter = Meter::new();
        let loader = host.load();
        loader.set_place(here(), &place(&meter.guard())).unwrap();
        let victim = bottle(&host, &loader, "victim", 1, &meter);
        let attacker = bottle(&host, &loader, "attacker", 2, &meter);
        let local = meter.ip4.local_addr().unwrap();
        let mut squatter = Sender::start_apart(&attacker);
        assert_eq!(squatter.order("lo"), "ok", "it is root there");
        let network = Network::of(squatter.pid());
        let from = |port: u16| format!("127.0.0.1:{port}");

        // it has a listener nowhere at the meter's address: not by itself …
        for listen in
            [local.to_string(), format!("0.0.0.0:{}", local.port()), format!("[::]:{}", local.port())]
        {
            assert_eq!(squatter.order(&format!("listen {listen}")), "PermissionDenied", "{listen}");
        }
        // … and what another process holds open for it there is not connected to, nor remembered
        let accomplice = network.inside(|| TcpListener::bind(local).unwrap());
        for port in 46_000..46_008 {
            let refused = squatter.order(&format!("connect-from {} {local}", from(port)));
            assert_eq!(refused, "PermissionDenied");
        }
        // once the meter is there, the same addresses are another connection
        drop(accomplice);
        let twin = network.inside(|| Meter::at(local.port()));
        loader.set_place(network.inside(here), &Place::new(LISTENER + 1, local)).unwrap();
        let mut neighbour = Sender::start(Some(&victim));
        for port in 46_000..46_008 {
            let from = from(port);
            assert_eq!(squatter.order(&format!("connect-from {from} {local}")), from);
            assert_eq!(neighbour.order(&format!("connect-from {from} {local}")), from);
            let peer: SocketAddr = from.parse().unwrap();
            let (_theirs, _) = accept_within(&twin.ip4, ARRIVAL).unwrap();
            let (_ours, flow) = accept(&loader, &meter.ip4);
            assert_eq!(flow.unwrap().slot, 1, "the neighbour's is the neighbour's");
            assert_eq!(loader.flow(peer, local, LISTENER + 1).unwrap().slot, 2);
        }
        assert!(accept_within(&meter.ip4, Duration::from_millis(50)).is_none());
    });
}

#[test]
fn root_a_namespace_without_a_place_is_refused_and_told_of() {
    in_own_network(|| {
        let host = Host::new("nowhere");
        let meter = Meter::new();
        let loader = host.opened(meter.guard_with_ip6());
        let mut events = loader.events().unwrap();
        let network = Network::new();
        let cookie = network.inside(here);
        let mut sender = network.inside(|| Sender::start(Some(&host.cgroup)));
        let local = meter.ip4.local_addr().unwrap();
        let asked = [
            format!("{PUBLIC4}:443"),
            format!("{PUBLIC4}:80"),
            format!("[{PUBLIC6}]:443"),
            format!("[::ffff:{PUBLIC4}]:443"),
            local.to_string(),
            format!("[::1]:{}", local.port()),
        ];
        for asked in &asked {
            // longer than the least time between two such events
            std::thread::sleep(Duration::from_millis(30));
            assert_eq!(sender.order(&format!("connect {asked}")), "PermissionDenied", "{asked}");
            let event = events.next_event().unwrap();
            assert_eq!((event.kind, event.slot, event.generation), (EVENT_NAMESPACE, SLOT, 7));
            assert_eq!((event.cookie, event.pid), (cookie, sender.pid()));
            assert_eq!(event.port, u32::from(canonical(asked).port()));
        }
        for _ in 0..50 {
            sender.order(&format!("connect {PUBLIC4}:443"));
        }
        let told = std::iter::from_fn(|| events.next_event()).count();
        assert!(told < 50, "{told} events: they are limited");
        let private = network.inside(|| TcpListener::bind((PRIVATE4, 443)).unwrap());
        sender.order(&format!("connect {PRIVATE4}:443")).parse::<SocketAddr>().unwrap();
        drop(private.accept().unwrap());

        let twin = network.inside(|| Meter::at(local.port()));
        loader.set_place(cookie, &Place::new(LISTENER + 1, local)).unwrap();
        for asked in &asked[..5] {
            sender.order(&format!("connect {asked}")).parse::<SocketAddr>().unwrap();
            let (_stream, peer) = accept_within(&twin.ip4, ARRIVAL).unwrap();
            assert_eq!(loader.flow(peer, local, LISTENER + 1).unwrap().slot, SLOT);
        }
        loader.remove_place(cookie).unwrap();
        loader.remove_place(cookie).unwrap();
        assert_eq!(sender.order(&format!("connect {}", asked[0])), "PermissionDenied");
        loader.set_place(cookie, &Place::new(LISTENER + 1, local)).unwrap();
        drop(loader);
        let loader = host.load();
        assert_eq!(sender.order(&format!("connect {}", asked[0])), "PermissionDenied", "a new controller");
        assert!(loader.is_open(SLOT));
    });
}

#[test]
fn root_a_connection_that_was_not_counted_goes_when_its_slot_is_given_away() {
    in_own_network(|| {
        let host = Host::new("late");
        let meter = Meter::new();
        let loader = host.opened(meter.guard());
        let mut sender = Sender::start(Some(&host.cgroup));
        let peer: SocketAddr = sender.order(&format!("connect {PUBLIC4}:443")).parse().unwrap();
        let key = FlowKey {
            source_ip: mapped(peer),
            destination_ip: mapped(meter.ip4.local_addr().unwrap()),
            source_port: peer.port().into(),
            destination_port: meter.port().into(),
            listener: LISTENER,
            pad: 0,
        };
        let flows = MapData::from_pin(host.pins().join("FLOWS")).unwrap();
        let mut flows: HashMap<_, FlowKey, Flow> = Map::HashMap(flows).try_into().unwrap();
        let flow = flows.get(&key, 0).unwrap();
        loader.detach("b", SLOT).unwrap();
        assert!(flows.get(&key, 0).is_err() && flow_counts(&host).get(&SLOT, 0).unwrap() == 0);
        // as a hook does that was under way meanwhile
        flows.insert(key, flow, 0).unwrap();
        loader.attach("again", &host.cgroup(), Guard { generation: 8, ..meter.guard() }).unwrap();
        assert!(flows.get(&key, 0).is_err());
    });
}

#[test]
fn root_of_two_connections_that_claim_one_entry_neither_has_it() {
    in_own_network(|| {
        let host = Host::new("claimed");
        let meter = Meter::new();
        let loader = host.load();
        let paths = [bottle(&host, &loader, "one", 1, &meter), bottle(&host, &loader, "two", 2, &meter)];
        let (from, local) = ("127.0.0.1:45683", meter.ip4.local_addr().unwrap());
        let peer: SocketAddr = from.parse().unwrap();
        // two namespaces with one id, as no controller writes them
        let senders = paths.each_ref().map(|path| {
            let network = Elsewhere::like(&meter, &loader, LISTENER + 1);
            let mut sender = network.network.inside(|| Sender::start(Some(path)));
            assert_eq!(sender.order(&format!("connect-from {from} {local}")), from);
            (network, sender)
        });
        assert_eq!(loader.flow(peer, local, LISTENER + 1), None);
        let counts = flow_counts(&host);
        assert_eq!([1, 2].map(|slot| counts.get(&slot, 0).unwrap()), [0, 0]);
        drop(senders);
    });
}

#[test]
fn root_nobody_takes_the_meter_s_place_when_everything_is_dead() {
    in_own_network(|| {
        let host = Host::new("dead");
        let (meter, lane) = (Meter::new(), Meter::new());
        let ports = [meter.port(), lane.port()];
        let loader = host.opened(Guard { lane: Some(lane.ip4.local_addr().unwrap()), ..meter.guard() });
        drop((meter, lane, loader));
        let mut apart = Sender::start_apart(&host.cgroup);
        assert_eq!(apart.order("lo"), "ok");
        for sender in [&mut Sender::start(Some(&host.cgroup)), &mut apart] {
            for port in ports {
                for ip in ["127.0.0.1", "127.0.0.2", "0.0.0.0", "[::1]", "[::]"] {
                    for order in ["listen", "bind"] {
                        let refused = sender.order(&format!("{order} {ip}:{port}"));
                        assert_eq!(refused, "PermissionDenied", "{order} {ip}:{port}");
                    }
                }
            }
            sender.order("listen 127.0.0.1:0").parse::<SocketAddr>().unwrap();
        }
    });
}
