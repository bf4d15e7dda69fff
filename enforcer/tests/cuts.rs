//! What a cut bottle's programs and the controller see: the lease, the events, and the two faces.
//!
//! Needs root. Every test has network namespaces of its own; nothing leaves them. `ENFORCER_TEST_FULL=1` lets the lease
//! run out a hundred times.
#![allow(clippy::unwrap_used, reason = "a test's helper says what it expects by unwrapping")]
mod support;

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use enforcer::bottle::cgroup::Cgroup;
use enforcer::kernel::loader::Loader;
use enforcer::kernel::{Event, Events, Face, Guard, Kernel as _, Place};
use enforcer_ebpf::{EVENT_CUT, EVENT_LEASE, EVENT_RULE};
use nix::poll::{PollFd, PollFlags, poll};
use nix::time::{ClockId, clock_getres};
use support::host::{Host, LISTENER, SLOT, guard, here, no_meter, place, turn_to};
use support::meter::{Meter, accept, accept_within, canonical, original};
use support::network::{Network, PRIVATE4, PUBLIC4, PUBLIC6, in_own_network};
use support::rounds;
use support::sender::{ARRIVAL, Receiver, Sender};

const LEASE: Duration = Duration::from_millis(500);
/// How far off the end of a lease may be when this machine has other things to do: the clock may be late with its tick.
const TOLERANCE: Duration = Duration::from_millis(20);
/// Least time between two drop events.
const SECOND: Duration = Duration::from_secs(1);

/// How often the kernel's coarse clock goes on, by which a heartbeat's age is told.
fn tick() -> Duration {
    clock_getres(ClockId::CLOCK_MONOTONIC_COARSE).unwrap().into()
}

fn median(times: &mut [Duration]) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

#[test]
fn root_without_a_heartbeat_a_bottle_closes_by_itself_and_opens_with_the_next() {
    let host = Host::new("lease");
    let loader = host.attached(no_meter());
    let mut sender = Sender::start(Some(&host.cgroup));
    let receiver = Receiver::new("127.0.0.1");
    let order = format!("udp {}", receiver.0.local_addr().unwrap());
    loader.open(SLOT);
    loader.set_lease(SLOT, Some(LEASE));
    assert_eq!(sender.order(&order), "PermissionDenied", "no heart has ever beaten");
    let (mut latest, mut earliest) = (Vec::new(), Vec::new());
    for _ in 0..rounds(5, 100) {
        let before = Instant::now();
        loader.beat();
        let after = Instant::now();
        // how late a send began that passed, and how early one ended that did not
        let mut passed = Duration::ZERO;
        let refused = loop {
            let began = Instant::now();
            if sender.order(&order) != "ok" {
                break before.elapsed();
            }
            passed = began.duration_since(after);
        };
        assert!(passed <= LEASE + TOLERANCE, "a packet passed {passed:?} after the last beat");
        assert!(refused >= LEASE - TOLERANCE, "a packet was refused {refused:?} after the last beat");
        assert!(loader.is_open(SLOT), "the verdict is as it was");
        latest.push(passed);
        earliest.push(refused);
    }
    let [passed, refused] = [&mut latest, &mut earliest].map(|all| median(all));
    println!("a lease of {LEASE:?}: packets passed for {passed:?}, were refused after {refused:?} (medians)");
    assert!(passed <= LEASE + tick() && refused >= LEASE - tick(), "{passed:?}, {refused:?}: off by a tick");
    loader.set_lease(SLOT, None);
    assert_eq!(sender.order(&order), "ok", "without a lease no heart is needed");
    loader.set_lease(SLOT, Some(LEASE));
    loader.beat();
    drop(loader);
    assert_eq!(sender.order(&order), "ok");
    std::thread::sleep(LEASE + TOLERANCE);
    assert_eq!(sender.order(&order), "PermissionDenied", "its controller is gone");
    let loader = host.load();
    assert_eq!(sender.order(&order), "PermissionDenied", "a new one has to beat first");
    loader.beat();
    assert_eq!(sender.order(&order), "ok");
}

#[test]
fn root_a_lease_closes_connections_both_ways() {
    let host = Host::new("leases");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let loader = host.attached(no_meter());
    loader.open(SLOT);
    let mut sender = Sender::start(Some(&host.cgroup));
    sender.order(&format!("connect {}", listener.local_addr().unwrap())).parse::<SocketAddr>().unwrap();
    let (mut stream, _) = listener.accept().unwrap();
    loader.set_lease(SLOT, Some(Duration::from_millis(1)));
    std::thread::sleep(TOLERANCE);
    assert_eq!(sender.order("write"), "ok", "it is queued");
    stream.write_all(b"x").unwrap();
    stream.set_read_timeout(Some(ARRIVAL)).unwrap();
    assert!(stream.read(&mut [0]).is_err());
    assert_eq!(sender.order("read"), "WouldBlock");
    loader.set_lease(SLOT, None);
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream.read_exact(&mut [0]).unwrap();
}

/// Whether there is something to be read.
fn is_readable(events: &Events) -> bool {
    let mut waiting = [PollFd::new(events.as_fd(), PollFlags::POLLIN)];
    poll(&mut waiting, 0u8).unwrap() == 1
}

/// All events there are.
fn drain(events: &mut Events) -> Vec<Event> {
    std::iter::from_fn(|| events.next_event()).collect()
}

#[test]
fn root_the_first_drop_is_told_at_once_and_then_one_a_second_with_what_was_not() {
    let host = Host::new("events");
    let loader = host.attached(no_meter());
    let mut events = loader.events().unwrap();
    assert!(loader.events().is_err(), "there is one reader");
    let mut sender = Sender::start(Some(&host.cgroup));
    let pid = sender.pid();
    let receiver = Receiver::new("127.0.0.1");
    let to = receiver.0.local_addr().unwrap();
    let mut send = |count: usize| {
        for _ in 0..count {
            assert_eq!(sender.order(&format!("udp {to}")), "PermissionDenied");
        }
    };
    loader.open(SLOT);
    loader.cut(SLOT);
    assert!(!is_readable(&events));
    let start = Instant::now();
    send(1);
    assert!(is_readable(&events), "the first one is told at once");
    send(24);
    assert!(start.elapsed() < SECOND, "this machine is too slow for this test");
    let told = drain(&mut events);
    assert_eq!(told.len(), 1);
    let Event { kind, slot, generation, ip, port, protocol, suppressed, .. } = told[0];
    assert_eq!((kind, slot, generation, suppressed), (EVENT_CUT, SLOT, 7, 0));
    assert_eq!((ip[3].to_ne_bytes(), port, protocol), ([127, 0, 0, 1], u32::from(to.port()), 17));
    assert_eq!((told[0].pid, told[0].cookie), (pid, here()), "the caller's");

    std::thread::sleep(SECOND);
    send(5);
    let told = drain(&mut events);
    assert_eq!(told.iter().map(|event| event.suppressed).collect::<Vec<_>>(), [24]);
    // another cut begins anew, whenever it comes
    loader.open(SLOT);
    loader.cut(SLOT);
    send(2);
    let told = drain(&mut events);
    assert_eq!(told.iter().map(|event| event.suppressed).collect::<Vec<_>>(), [4]);
}

#[test]
fn root_events_say_why_and_of_packets_that_arrive_too() {
    in_own_network(|| {
        let host = Host::new("why");
        let loader = host.opened(guard(no_meter()));
        let mut events = loader.events().unwrap();
        let mut sender = Sender::start(Some(&host.cgroup));
        let inside = sender.order("bind 127.0.0.1:0");
        let outside = UdpSocket::bind("127.0.0.1:0").unwrap();
        let mut kinds = |what: &str| {
            let told = drain(&mut events);
            assert_eq!(told.len(), 1, "{what}");
            told[0]
        };
        assert_eq!(sender.order(&format!("udp {PUBLIC4}:443")), "PermissionDenied");
        let told = kinds("a rule");
        assert_eq!((told.kind, told.port, told.cookie), (EVENT_RULE, 443, here()));

        loader.cut(SLOT);
        outside.send_to(b"x", &inside).unwrap();
        let told = kinds("a packet that arrives");
        assert_eq!((told.kind, told.pid, told.cookie), (EVENT_CUT, 0, 0));
        assert_eq!(told.port, u32::from(outside.local_addr().unwrap().port()), "the far end's");

        loader.open(SLOT);
        loader.set_lease(SLOT, Some(LEASE));
        std::thread::sleep(SECOND);
        assert_eq!(sender.order(&format!("udp {PRIVATE4}:53")), "PermissionDenied");
        assert_eq!(kinds("the lease").kind, EVENT_LEASE);
    });
}

/// A meter and a lane, and a guard that knows both of both.
struct Faces {
    meter: Meter,
    lane: Meter,
}

impl Faces {
    fn new() -> Self {
        Self { meter: Meter::new(), lane: Meter::new() }
    }

    fn guard(&self) -> Guard {
        let lane = self.lane.guard_with_ip6();
        Guard { lane: Some(lane.meter), lane_ip6: lane.meter_ip6, ..self.meter.guard_with_ip6() }
    }
}

/// Both ends hear each other.
fn talk(sender: &mut Sender, stream: &mut TcpStream) {
    assert_eq!(sender.order("write"), "ok");
    stream.read_exact(&mut [0]).unwrap();
    stream.write_all(b"x").unwrap();
    assert_eq!(sender.order("read"), "ok");
}

#[test]
fn root_an_answered_cut_reaches_the_lane() {
    in_own_network(|| {
        let host = Host::new("answered");
        let faces = Faces::new();
        let loader = host.opened(faces.guard());
        // no cut is answered without a heart
        loader.beat();
        loader.cut_as(SLOT, Face::Answered);
        assert!(!loader.is_open(SLOT));
        let mut sender = Sender::start(Some(&host.cgroup));
        let [lane4, lane6] = [&faces.lane.ip4, &faces.lane.ip6];
        let meter4 = faces.meter.ip4.local_addr().unwrap().to_string();
        let meter6 = faces.meter.ip6.local_addr().unwrap().to_string();
        let asked = [
            (format!("{PUBLIC4}:443"), lane4),
            (format!("{PUBLIC4}:80"), lane4),
            (format!("[::ffff:{PUBLIC4}]:443"), lane4),
            (format!("[{PUBLIC6}]:443"), lane6),
            (meter4, lane4),
            (meter6, lane6),
        ];
        for (asked, lane) in &asked {
            sender.order(&format!("connect {asked}")).parse::<SocketAddr>().unwrap();
            let (mut stream, flow) = accept(&loader, lane);
            let flow = flow.unwrap();
            assert_eq!((flow.slot, original(&flow)), (SLOT, canonical(asked)));
            assert_eq!(sender.order("peer"), *asked, "the program sees what it asked for");
            talk(&mut sender, &mut stream);
        }
        assert!(accept_within(&faces.meter.ip4, Duration::from_millis(20)).is_none());
        loader.open(SLOT);
        sender.order(&format!("connect {}", asked[0].0)).parse::<SocketAddr>().unwrap();
        assert_eq!(original(&accept(&loader, &faces.meter.ip4).1.unwrap()), canonical(&asked[0].0));
    });
}

#[test]
fn root_an_answered_cut_passes_nothing_but_the_lane() {
    in_own_network(|| {
        let host = Host::new("nothing-else");
        let faces = Faces::new();
        let loader = host.opened(faces.guard());
        let far = TcpListener::bind((PRIVATE4, 8080)).unwrap();
        let mut before = Sender::start(Some(&host.cgroup));
        before.order(&format!("connect {PRIVATE4}:8080")).parse::<SocketAddr>().unwrap();
        let (mut elsewhere, _) = accept_within(&far, ARRIVAL).unwrap();
        let mut metered = Sender::start(Some(&host.cgroup));
        metered.order(&format!("connect {PUBLIC4}:443")).parse::<SocketAddr>().unwrap();
        let (mut exchange, _) = accept_within(&faces.meter.ip4, ARRIVAL).unwrap();
        let mut sender = Sender::start(Some(&host.cgroup));
        let inside = sender.order("bind 127.0.0.1:0");
        let server: SocketAddr = Sender::order(&mut before, "listen 127.0.0.1:0").parse().unwrap();

        loader.beat();
        loader.cut_as(SLOT, Face::Answered);
        for refused in [
            format!("connect {PRIVATE4}:8080"),
            format!("connect {PRIVATE4}:443"),
            format!("connect {PUBLIC4}:8443"),
            format!("connect [{PUBLIC6}]:22"),
            "connect 127.0.0.1:22".to_owned(),
            format!("connect {PRIVATE4}:{}", faces.lane.port()),
            format!("udp {PUBLIC4}:443"),
            format!("udp 127.0.0.1:{}", faces.lane.port()),
            "udp [::1]:54".to_owned(),
        ] {
            assert_eq!(sender.order(&refused), "PermissionDenied", "{refused}");
        }
        for (sender, stream) in [(&mut before, &mut elsewhere), (&mut metered, &mut exchange)] {
            assert_eq!(sender.order("write"), "ok", "it is queued");
            assert!(stream.read(&mut [0]).is_err(), "a byte left");
            stream.write_all(b"x").unwrap();
            assert_eq!(sender.order("read"), "WouldBlock", "a byte arrived");
        }
        UdpSocket::bind("127.0.0.1:0").unwrap().send_to(b"x", &inside).unwrap();
        assert_eq!(sender.order("receive"), "WouldBlock");
        assert!(TcpStream::connect_timeout(&server, ARRIVAL).is_err(), "the bottle was reached");
    });
}

#[test]
fn root_without_a_lane_or_a_lease_an_answered_cut_is_a_silent_one() {
    in_own_network(|| {
        let host = Host::new("no-lane");
        let faces = Faces::new();
        let loader = host.opened(faces.meter.guard_with_ip6());
        loader.beat();
        loader.cut_as(SLOT, Face::Answered);
        let mut sender = Sender::start(Some(&host.cgroup));
        let asked = [
            format!("{PUBLIC4}:443"),
            format!("[{PUBLIC6}]:443"),
            format!("127.0.0.1:{}", faces.meter.port()),
        ];
        let refused = |sender: &mut Sender, why: &str| {
            for asked in &asked {
                assert_eq!(sender.order(&format!("connect {asked}")), "PermissionDenied", "{why}: {asked}");
            }
        };
        refused(&mut sender, "there is no lane");
        turn_to(&loader, Guard { mute: true, ..faces.guard() });
        refused(&mut sender, "it is mute");
        turn_to(&loader, faces.guard());
        sender.order(&format!("connect {}", asked[0])).parse::<SocketAddr>().unwrap();
        let (mut stream, _) = accept(&loader, &faces.lane.ip4);
        talk(&mut sender, &mut stream);

        let mut other = Sender::start(Some(&host.cgroup));
        for closing in [true, false] {
            if closing {
                loader.set_lease(SLOT, Some(Duration::from_millis(1)));
                std::thread::sleep(TOLERANCE);
            } else {
                loader.set_lease(SLOT, None);
                loader.cut(SLOT);
            }
            refused(
                &mut other,
                if closing { "the lease outranks the lane" } else { "the cut is silent now" },
            );
            assert_eq!(sender.order("write"), "ok", "it is queued");
            assert!(stream.read(&mut [0]).is_err(), "the lane still hears it");
            loader.set_lease(SLOT, None);
            loader.beat();
            loader.cut_as(SLOT, Face::Answered);
            stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            stream.read_exact(&mut [0]).unwrap();
            stream.set_read_timeout(Some(ARRIVAL)).unwrap();
        }
    });
}

#[test]
fn root_the_lane_is_met_in_the_bottle_s_own_namespace() {
    in_own_network(|| {
        let host = Host::new("lane-inside");
        let faces = Faces::new();
        let guard = faces.guard();
        let loader = host.opened(guard);
        let network = Network::new();
        let lane = network.inside(|| Meter::at(faces.lane.port()));
        let there = Place { listener: LISTENER + 1, ..place(&guard) };
        loader.set_place(network.inside(here), &there).unwrap();
        loader.beat();
        loader.cut_as(SLOT, Face::Answered);
        let mut sender = network.inside(|| Sender::start(Some(&host.cgroup)));
        for (asked, lane) in [(format!("{PUBLIC4}:443"), &lane.ip4), (format!("[{PUBLIC6}]:443"), &lane.ip6)]
        {
            sender.order(&format!("connect {asked}")).parse::<SocketAddr>().unwrap();
            let (mut stream, peer) = accept_within(lane, ARRIVAL).unwrap();
            let flow = loader.flow(peer, stream.local_addr().unwrap(), LISTENER + 1).unwrap();
            assert_eq!((flow.slot, original(&flow)), (SLOT, canonical(&asked)));
            talk(&mut sender, &mut stream);
        }
    });
}

#[test]
fn root_in_nested_bottles_the_lane_explains_the_one_that_is_cut() {
    in_own_network(|| {
        let host = Host::new("lane-nested");
        let faces = Faces::new();
        let loader = host.opened(faces.guard());
        let path = host.cgroup.join("inner");
        let cgroup = Cgroup::create(&path).unwrap();
        loader.attach("inner", &cgroup, Guard { slot: 2, ..faces.guard() }).unwrap();
        loader.open(2);
        let mut sender = Sender::start(Some(&path));
        let asked = format!("{PUBLIC4}:443");
        let mut explained = |loader: &Loader| {
            sender.order(&format!("connect {asked}")).parse::<SocketAddr>().unwrap();
            let (mut stream, flow) = accept(loader, &faces.lane.ip4);
            let flow = flow.unwrap();
            assert_eq!((original(&flow), sender.order("peer")), (canonical(&asked), asked.clone()));
            talk(&mut sender, &mut stream);
            flow.slot
        };
        loader.beat();
        loader.cut_as(SLOT, Face::Answered);
        assert_eq!(explained(&loader), SLOT, "the outer one is cut");
        loader.cut_as(2, Face::Answered);
        assert_eq!(explained(&loader), 2, "both are");
        loader.open(SLOT);
        assert_eq!(explained(&loader), 2, "the inner one is");
        loader.cut(SLOT);
        assert_eq!(
            sender.order(&format!("connect {asked}")),
            "PermissionDenied",
            "silence outranks the lane"
        );
    });
}

#[test]
fn root_the_lane_s_own_sockets_answer_on_loopback_and_reach_nobody() {
    in_own_network(|| {
        let host = Host::new("lane-own");
        let guard = Guard { redirect: false, is_lane: true, ..guard(no_meter()) };
        let loader = host.opened(guard);
        let mut lane = Sender::start(Some(&host.cgroup));
        let own: SocketAddr = lane.order("listen 127.0.0.1:0").parse().unwrap();
        assert!(TcpStream::connect_timeout(&own, ARRIVAL).is_err(), "it has no address yet");
        loader.refresh(Guard { lane: Some(own), ..guard });
        TcpStream::connect_timeout(&own, Duration::from_secs(10)).unwrap();

        let mut hostile = Sender::start(Some(&host.cgroup));
        let elsewhere: SocketAddr = hostile.order("listen 127.0.0.1:0").parse().unwrap();
        assert!(TcpStream::connect_timeout(&elsewhere, ARRIVAL).is_err(), "another socket of its answers");
        let far = TcpListener::bind((PRIVATE4, 8080)).unwrap();
        let near = TcpListener::bind("127.0.0.1:0").unwrap();
        let receiver = Receiver::new("127.0.0.1");
        for refused in [
            format!("connect {PRIVATE4}:8080"),
            format!("connect {}", near.local_addr().unwrap()),
            format!("connect {PUBLIC4}:443"),
            format!("connect {own}"),
            format!("udp {}", receiver.0.local_addr().unwrap()),
            format!("udp {PUBLIC4}:53"),
        ] {
            assert_eq!(hostile.order(&refused), "PermissionDenied", "{refused}");
        }
        for listener in [&far, &near] {
            assert!(accept_within(listener, Duration::from_millis(20)).is_none());
        }
        // who is elsewhere cannot be answered, though the lane would listen there too
        loader.refresh(Guard { lane: Some(SocketAddr::new(PRIVATE4.into(), own.port())), ..guard });
        assert!(TcpStream::connect_timeout(&own, ARRIVAL).is_err());
    });
}
