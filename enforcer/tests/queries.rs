//! DNS in an answered cut: every query goes to the lane and seems to be answered by whom it was for; no resolver hears
//! of it, nothing else passes by UDP, and after the cut the lane is out of reach again.
#![allow(clippy::unwrap_used, reason = "a failed expectation should stop the test where it stands")]
mod support;

use std::io::ErrorKind;
use std::net::{Ipv6Addr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::Duration;

use aya::maps::{HashMap, Map, MapData};
use enforcer::bottle::cgroup::Cgroup;
use enforcer::kernel::loader::Loader;
use enforcer::kernel::{Allowed, AllowedPorts, Face, Guard, Kernel as _, Place};
use enforcer_ebpf::{ASKERS, EVENT_NAMESPACE};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use support::host::{Host, LISTENER, SLOT, guard, here, no_meter, place};
use support::network::{Network, PRIVATE4, PUBLIC4, PUBLIC6, in_own_network};
use support::sender::Sender;

/// Long enough to see that nothing comes.
const NOTHING: Duration = Duration::from_millis(20);

/// UDP sockets at one port of loopback, which stand in for the lane's.
struct Lane {
    ip4: UdpSocket,
    ip6: UdpSocket,
}

impl Lane {
    fn new() -> Self {
        Self::at(0)
    }

    fn at(port: u16) -> Self {
        let ip4 = UdpSocket::bind(("127.0.0.1", port)).unwrap();
        let ip6 = UdpSocket::bind(("::1", ip4.local_addr().unwrap().port())).unwrap();
        Self { ip4, ip6 }
    }

    fn address(&self) -> SocketAddr {
        self.ip4.local_addr().unwrap()
    }

    fn guard(&self) -> Guard {
        Guard { lane: Some(self.address()), lane_ip6: Some(Ipv6Addr::LOCALHOST), ..guard(no_meter()) }
    }

    /// Answers the query that is there.
    fn answer(&self, what: &str) {
        let asked = [&self.ip4, &self.ip6].into_iter().find_map(|socket| Some((socket, heard(socket)?)));
        let (socket, from) = asked.unwrap_or_else(|| panic!("the lane was not asked: {what}"));
        socket.send_to(b"y", from).unwrap();
    }

    fn hears_nothing(&self) {
        assert_eq!([&self.ip4, &self.ip6].map(heard), [None; 2]);
    }
}

/// Who has sent a datagram to this socket, if one is there or comes soon.
fn heard(socket: &UdpSocket) -> Option<SocketAddr> {
    socket.set_read_timeout(Some(NOTHING)).unwrap();
    match socket.recv_from(&mut [0; 8]) {
        Ok((_, from)) => Some(from),
        Err(error) => {
            assert!(matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut), "{error}");
            None
        }
    }
}

/// Whom bottles ask: at a public address, a private one, the host's own stub, over IPv6, and by an IPv6 socket.
fn resolvers() -> Vec<(String, UdpSocket)> {
    let at = |address: String| {
        // a new IPv6 address is usable a moment later
        support::eventually(|| UdpSocket::bind(&address).is_ok());
        let socket = UdpSocket::bind(&address).unwrap();
        (address, socket)
    };
    let mut resolvers: Vec<_> = [
        format!("{PUBLIC4}:53"),
        format!("{PRIVATE4}:53"),
        "127.0.0.53:53".into(),
        format!("[{PUBLIC6}]:53"),
    ]
    .map(at)
    .into();
    resolvers.push((format!("[::ffff:{PUBLIC4}]:53"), resolvers[0].1.try_clone().unwrap()));
    resolvers
}

/// An address of the family, for a socket that is to ask there.
fn any(asked: &str) -> &'static str {
    if asked.starts_with('[') { "[::]:0" } else { "0.0.0.0:0" }
}

fn answered(host: &Host, lane: &Lane) -> Loader {
    let loader = host.opened(lane.guard());
    // no cut is answered without a heart
    loader.beat();
    loader.cut_as(SLOT, Face::Answered);
    loader
}

#[test]
fn root_queries_go_to_the_lane_and_answers_come_from_whom_they_were_for() {
    in_own_network(|| {
        let host = Host::new("queries");
        let (lane, resolvers) = (Lane::new(), resolvers());
        let loader = answered(&host, &lane);
        let mut sender = Sender::start(Some(&host.cgroup));
        for (asked, resolver) in &resolvers {
            sender.order(&format!("bind {}", any(asked)));
            assert_eq!(sender.order(&format!("ask {asked}")), "ok", "{asked}");
            lane.answer(asked);
            assert_eq!(sender.order("answered"), *asked);

            assert_eq!(sender.order(&format!("towards {asked}")), "ok", "{asked}");
            assert_eq!(sender.order("far-end"), *asked);
            for _ in 0..2 {
                assert_eq!(sender.order("send"), "ok", "{asked}");
                lane.answer(asked);
                assert_eq!(sender.order("answered"), *asked);
            }
            assert_eq!(heard(resolver), None, "{asked} heard of it");
        }
        drop(loader);
    });
}

#[test]
fn root_nothing_passes_by_udp_but_queries_and_their_answers() {
    in_own_network(|| {
        let host = Host::new("no-query");
        let lane = Lane::new();
        let loader = host.opened(lane.guard());
        let (near, private) =
            (UdpSocket::bind("127.0.0.1:0").unwrap(), UdpSocket::bind((PRIVATE4, 54)).unwrap());
        let mut before = Sender::start(Some(&host.cgroup));
        before.order("bind 127.0.0.1:0");
        assert_eq!(before.order(&format!("towards {}", near.local_addr().unwrap())), "ok");
        let mut idle = Sender::start(Some(&host.cgroup));
        let inside = idle.order("bind 127.0.0.1:0");
        let lane_address = lane.address();
        for open in [true, false] {
            if !open {
                loader.beat();
                loader.cut_as(SLOT, Face::Answered);
            }
            let mut sender = Sender::start(Some(&host.cgroup));
            sender.order("bind 0.0.0.0:0");
            for refused in [format!("ask {lane_address}"), format!("towards {lane_address}")] {
                assert_eq!(sender.order(&refused), "PermissionDenied", "{refused}, open: {open}");
            }
            let outcome = if open { "ok" } else { "PermissionDenied" };
            for elsewhere in [near.local_addr().unwrap(), private.local_addr().unwrap()] {
                for order in ["ask", "towards"] {
                    assert_eq!(sender.order(&format!("{order} {elsewhere}")), outcome, "{elsewhere}");
                }
            }
            assert_eq!(before.order("send"), outcome);
            lane.hears_nothing();
            for (socket, sent) in [(&near, 2), (&private, 1)] {
                let got = std::iter::from_fn(|| heard(socket)).count();
                assert_eq!(got, if open { sent } else { 0 });
            }
        }
        // the lane itself reaches those alone that have asked it
        lane.ip4.send_to(b"y", &inside).unwrap();
        assert_eq!(idle.order("receive"), "WouldBlock");
        assert_eq!(idle.order(&format!("ask {PRIVATE4}:53")), "ok");
        lane.answer("asked at last");
        assert_eq!(idle.order("answered"), format!("{PRIVATE4}:53"));
        near.send_to(b"y", &inside).unwrap();
        assert_eq!(idle.order("receive"), "WouldBlock", "another than the lane");
    });
}

#[test]
fn root_after_the_cut_queries_go_to_the_resolver_and_the_lane_is_out_of_reach() {
    in_own_network(|| {
        let host = Host::new("restored");
        let (lane, resolvers) = (Lane::new(), resolvers());
        let loader = answered(&host, &lane);
        for (asked, resolver) in &resolvers {
            let [mut connected, mut free] = [0, 1].map(|_| Sender::start(Some(&host.cgroup)));
            for sender in [&mut connected, &mut free] {
                sender.order(&format!("bind {}", any(asked)));
            }
            assert_eq!(connected.order(&format!("towards {asked}")), "ok");
            assert_eq!(free.order(&format!("ask {asked}")), "ok");
            loader.open(SLOT);
            lane.answer("it was asked before");
            assert_eq!(free.order("answered"), *asked, "the answer was on its way");
            for _ in 0..3 {
                assert_eq!(connected.order("send"), "PermissionDenied", "{asked}");
            }
            lane.hears_nothing();
            // one that goes on is turned by its next connect, the other by its next query
            assert_eq!(connected.order(&format!("towards {asked}")), "ok");
            for (sender, order) in [(&mut connected, "send".to_owned()), (&mut free, format!("ask {asked}"))]
            {
                assert_eq!(sender.order(&order), "ok");
                resolver.send_to(b"y", heard(resolver).unwrap()).unwrap();
                assert_eq!(sender.order("answered"), *asked);
            }
            assert_eq!(connected.order("far-end"), *asked);
            lane.hears_nothing();

            loader.cut_as(SLOT, Face::Answered);
            // connected to the resolver it is refused, but for one that tells the hook where it sends
            let names_it = asked.starts_with("[::ffff:");
            let outcome = if names_it { "ok" } else { "PermissionDenied" };
            assert_eq!(connected.order("send"), outcome, "{asked} is far again");
            assert_eq!(heard(resolver), None);
            if names_it {
                lane.answer(asked);
            }
            lane.hears_nothing();
        }
    });
}

#[test]
fn root_a_silent_cut_and_a_lost_lease_hear_and_answer_no_query() {
    in_own_network(|| {
        let host = Host::new("no-answer");
        let lane = Lane::new();
        let loader = answered(&host, &lane);
        let asked = format!("{PRIVATE4}:53");
        let mut connected = Sender::start(Some(&host.cgroup));
        connected.order("bind 0.0.0.0:0");
        assert_eq!(connected.order(&format!("towards {asked}")), "ok");
        assert_eq!(connected.order("send"), "ok");
        let from = heard(&lane.ip4).unwrap();
        let without_lane = Guard { lane: None, lane_ip6: None, ..lane.guard() };
        type Closing<'a> = (&'a str, Box<dyn Fn() + 'a>);
        let closings: [Closing; 3] = [
            (
                "the lease",
                Box::new(|| {
                    loader.set_lease(SLOT, Some(Duration::from_millis(1)));
                    std::thread::sleep(Duration::from_millis(30));
                }),
            ),
            ("no lane", Box::new(|| support::host::turn_to(&loader, without_lane))),
            ("silence", Box::new(|| loader.cut(SLOT))),
        ];
        for (why, close) in closings {
            close();
            let mut sender = Sender::start(Some(&host.cgroup));
            sender.order("bind 0.0.0.0:0");
            for refused in [format!("ask {asked}"), format!("towards {asked}")] {
                assert_eq!(sender.order(&refused), "PermissionDenied", "{why}: {refused}");
            }
            assert_eq!(connected.order("send"), "PermissionDenied", "{why}");
            lane.ip4.send_to(b"y", from).unwrap();
            assert_eq!(connected.order("receive"), "WouldBlock", "{why}");
            lane.hears_nothing();
            support::host::turn_to(&loader, lane.guard());
            loader.set_lease(SLOT, None);
            loader.beat();
            loader.cut_as(SLOT, Face::Answered);
            assert_eq!(connected.order("send"), "ok", "{why} is over");
            lane.answer(why);
            assert_eq!(connected.order("answered"), asked);
        }
    });
}

/// Attaches a cgroup below the host's, open.
fn below(host: &Host, loader: &Loader, name: &str, guard: Guard) -> PathBuf {
    let path = host.cgroup.join(name);
    loader.attach(name, &Cgroup::create(&path).unwrap(), guard).unwrap();
    loader.open(guard.slot);
    path
}

#[test]
fn root_in_nested_bottles_whichever_is_cut_has_its_queries_answered() {
    for (outer_confined, inner_confined) in [(false, false), (true, false), (false, true)] {
        in_own_network(|| {
            let host = Host::new("query-nested");
            let lane = Lane::new();
            let resolver = UdpSocket::bind((PRIVATE4, 53)).unwrap();
            let asked = format!("{PRIVATE4}:53");
            let loader = host.opened(Guard { lockdown: outer_confined, ..lane.guard() });
            let inside = Guard { slot: 2, lockdown: inner_confined, ..lane.guard() };
            let path = below(&host, &loader, "inner", inside);
            let ports = AllowedPorts { dns: true, ..AllowedPorts::default() };
            let listed = Allowed { range: "10.0.0.0/8".parse().unwrap(), ports };
            for slot in [SLOT, 2] {
                loader.set_allowed(slot, std::slice::from_ref(&listed)).unwrap();
            }
            loader.beat();
            let mut socket = Sender::start(Some(&path));
            socket.order("bind 0.0.0.0:0");
            for cuts in [&[SLOT][..], &[2], &[2, SLOT], &[SLOT]] {
                for slot in cuts {
                    loader.cut_as(*slot, Face::Answered);
                }
                let what = format!("{cuts:?}, confined: {outer_confined}, {inner_confined}");
                assert_eq!(socket.order(&format!("ask {asked}")), "ok", "{what}");
                lane.answer(&what);
                assert_eq!(socket.order("answered"), asked, "{what}");
                let mut connected = Sender::start(Some(&path));
                connected.order("bind 0.0.0.0:0");
                assert_eq!(connected.order(&format!("towards {asked}")), "ok");
                assert_eq!(connected.order("send"), "ok", "{what}");
                lane.answer(&what);
                assert_eq!(connected.order("answered"), asked);
                assert_eq!(heard(&resolver), None, "{what}");

                cuts.iter().for_each(|slot| loader.open(*slot));
                assert_eq!(connected.order("send"), "PermissionDenied", "{what}");
                assert_eq!(socket.order(&format!("ask {asked}")), "ok");
                assert!(heard(&resolver).is_some(), "{what}");
                lane.hears_nothing();
            }
        });
    }
}

/// The lane's own sockets, guarded, in this network namespace.
fn guarded_lane(cgroup: &Path, at: &str) -> (Sender, SocketAddr) {
    let mut lane = Sender::start(Some(cgroup));
    let address = lane.order(&format!("bind {at}")).parse().unwrap();
    (lane, address)
}

#[test]
fn root_the_lane_answers_each_query_once_and_sends_to_nobody_else() {
    in_own_network(|| {
        let host = Host::new("lane-udp");
        let loader = host.load();
        let own = Guard { redirect: false, is_lane: true, ..guard(no_meter()) };
        let berth = below(&host, &loader, "lane", own);
        let (mut lane, address) = guarded_lane(&berth, "127.0.0.1:0");
        loader.refresh(Guard { lane: Some(address), ..own });
        let network = Network::new();
        let (mut twin, _) = network.inside(|| guarded_lane(&berth, &address.to_string()));
        let asking = Guard { slot: 2, lane: Some(address), ..guard(no_meter()) };
        let path = below(&host, &loader, "asking", asking);
        loader.set_place(here(), &place(&asking)).unwrap();
        let there = Place { listener: LISTENER + 1, ..place(&asking) };
        loader.set_place(network.inside(here), &there).unwrap();
        loader.beat();
        loader.cut_as(2, Face::Answered);

        let mut bottle = Sender::start(Some(&path));
        let asker = bottle.order("bind 127.0.0.1:0");
        let stub = UdpSocket::bind("127.0.0.53:53").unwrap();
        let neighbour = network.inside(|| UdpSocket::bind(asker.parse::<SocketAddr>().unwrap()).unwrap());
        for refused in [asker.clone(), "127.0.0.53:53".into(), format!("{PRIVATE4}:53")] {
            assert_eq!(lane.order(&format!("ask {refused}")), "PermissionDenied", "{refused}");
        }
        for _ in 0..2 {
            assert_eq!(bottle.order("ask 127.0.0.53:53"), "ok");
            assert_eq!(lane.order("answered"), asker);
            assert_eq!(twin.order(&format!("ask {asker}")), "PermissionDenied", "it asked elsewhere");
            assert_eq!(lane.order(&format!("ask {asker}")), "ok");
            assert_eq!(lane.order(&format!("ask {asker}")), "PermissionDenied", "once");
            assert_eq!(bottle.order("answered"), "127.0.0.53:53");
        }
        // as resolving programs ask for both kinds of address: at once, by one socket
        for order in ["ask 127.0.0.53:53"; 2] {
            assert_eq!(bottle.order(order), "ok");
        }
        let answers = ["ok", "ok", "PermissionDenied"];
        assert_eq!([(); 3].map(|()| lane.order(&format!("ask {asker}"))), answers, "one to each");
        assert_eq!([heard(&stub), heard(&neighbour)], [None; 2]);
        assert_eq!(lane.order(&format!("towards {asker}")), "PermissionDenied");
    });
}

/// The test's thread, and what it starts from now on, run on one processor: each keeps free places of a map at hand.
fn stay_on_one_processor() {
    let this = Pid::from_raw(0);
    let allowed = sched_getaffinity(this).unwrap();
    let first = (0..CpuSet::count()).find(|cpu| allowed.is_set(*cpu).unwrap()).unwrap();
    let mut one = CpuSet::new();
    one.set(first).unwrap();
    sched_setaffinity(this, &one).unwrap();
}

#[test]
fn root_a_query_by_who_asked_before_puts_no_other_asker_out() {
    in_own_network(|| {
        stay_on_one_processor();
        let host = Host::new("askers");
        let lane = Lane::new();
        let loader = answered(&host, &lane);
        let mut sender = Sender::start(Some(&host.cgroup));
        sender.order("bind 127.0.0.1:0");
        assert_eq!(sender.order("ask 127.0.0.53:53"), "ok");
        // beside that one, as many as there is room for
        let map = Map::LruHashMap(MapData::from_pin(host.pins().join("ASKERS")).unwrap());
        let mut askers: HashMap<_, [u32; 6], u64> = map.try_into().unwrap();
        for number in 1..ASKERS {
            askers.insert([number, 0, 0, 0, 0, 0], 1, 0).unwrap();
        }
        let others = || (1..ASKERS).filter(|number| askers.get(&[*number, 0, 0, 0, 0, 0], 0).is_ok()).count();
        let all = others();
        assert_eq!(u32::try_from(all), Ok(ASKERS - 1));
        for _ in 0..3 {
            assert_eq!(sender.order("ask 127.0.0.53:53"), "ok");
        }
        assert_eq!(others(), all);
        drop(loader);
    });
}

#[test]
fn root_nobody_speaks_as_the_lane_to_a_cut_bottle() {
    in_own_network(|| {
        let host = Host::new("forged");
        let lane = Lane::new();
        let loader = host.load();
        let [one, other] = [("cut", SLOT), ("forger", 2)]
            .map(|(name, slot)| below(&host, &loader, name, Guard { slot, ..lane.guard() }));
        loader.set_place(here(), &place(&lane.guard())).unwrap();
        loader.beat();
        loader.cut_as(SLOT, Face::Answered);
        let mut bottle = Sender::start(Some(&one));
        let asker: SocketAddr = bottle.order("bind 127.0.0.1:0").parse().unwrap();
        assert_eq!(bottle.order(&format!("ask {PRIVATE4}:53")), "ok");
        // one byte from the lane's address and port, or from another
        let forged = |source: u16| {
            let mut packet = vec![0x45, 0, 0, 29, 0, 0, 0, 0, 64, 17, 0, 0, 127, 0, 0, 1, 127, 0, 0, 1];
            for word in [source, asker.port(), 9, 0] {
                packet.extend(word.to_be_bytes());
            }
            packet.push(b'z');
            packet.iter().map(|byte| format!("{byte:02x}")).collect::<String>()
        };
        let mut forger = Sender::start(Some(&other));
        let outside = UdpSocket::bind("127.0.0.1:0").unwrap();
        let [as_lane, as_another] = [lane.address().port(), outside.local_addr().unwrap().port()].map(forged);
        assert_eq!(forger.order(&format!("raw 127.0.0.1 {as_lane}")), "PermissionDenied");
        assert_eq!(forger.order(&format!("raw 127.0.0.1 {as_another}")), "ok");
        assert_eq!(bottle.order("receive"), "WouldBlock");
        lane.answer("the lane itself");
        assert_eq!(bottle.order("receive"), "ok");
    });
}

#[test]
fn root_a_query_from_a_namespace_without_a_place_is_refused_and_told_of() {
    in_own_network(|| {
        let host = Host::new("query-nowhere");
        let lane = Lane::new();
        let loader = answered(&host, &lane);
        let mut events = loader.events().unwrap();
        let network = Network::new();
        let cookie = network.inside(here);
        let mut sender = network.inside(|| Sender::start(Some(&host.cgroup)));
        sender.order("bind 0.0.0.0:0");
        let ask = format!("ask {PRIVATE4}:53");
        assert_eq!(sender.order(&ask), "PermissionDenied");
        let event = events.next_event().unwrap();
        assert_eq!((event.kind, event.cookie, event.port), (EVENT_NAMESPACE, cookie, 53));
        let twin = network.inside(|| Lane::at(lane.address().port()));
        loader.set_place(cookie, &Place { listener: LISTENER + 1, ..place(&lane.guard()) }).unwrap();
        assert_eq!(sender.order(&ask), "ok");
        twin.answer("the one that is there");
        assert_eq!(sender.order("answered"), format!("{PRIVATE4}:53"));
        lane.hears_nothing();
    });
}
