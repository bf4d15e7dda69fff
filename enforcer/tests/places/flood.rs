//! A bottle that opens as many connections as it can, beside one that works.
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use enforcer::kernel::Kernel as _;
use enforcer_ebpf::FLOWS_PER_BOTTLE;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::support::eventually;
use super::support::host::{Host, LISTENER, here, place};
use super::support::meter::Meter;
use super::support::network::{PUBLIC4, in_own_network};
use super::support::sender::Sender;
use super::{bottle, flow_counts};

#[test]
fn root_a_flood_of_connections_leaves_its_neighbour_working() {
    in_own_network(|| {
        let host = Host::new("flooding");
        let meter = Meter::new();
        let loader = host.load();
        loader.set_place(here(), &place(&meter.guard())).unwrap();
        let flood = bottle(&host, &loader, "flood", 1, &meter);
        let neighbour = bottle(&host, &loader, "neighbour", 2, &meter);
        let local = meter.ip4.local_addr().unwrap();
        raise_descriptors();
        // a listener's queue is all bottles', so it must not be what is full
        rustix::net::listen(&meter.ip4, 4_096).unwrap();
        let [flooded, drained, done] = [const { AtomicBool::new(false) }; 3];
        std::thread::scope(|scope| {
            let _end = Raised(&done);
            scope.spawn(|| take_all(&meter.ip4, &drained, &done));
            let flooding = scope.spawn(|| {
                let mut sender = Sender::start(Some(&flood));
                let made = sender.order(&format!("flood {} {PUBLIC4}:443", FLOWS_PER_BOTTLE + 500));
                flooded.store(true, Ordering::SeqCst);
                (sender, made)
            });
            let mut working = Sender::start(Some(&neighbour));
            let mut slowest = Duration::ZERO;
            let mut rounds = 0;
            while rounds < 20 || !flooded.load(Ordering::SeqCst) {
                let start = Instant::now();
                let peer: SocketAddr = working.order(&format!("connect {PUBLIC4}:443")).parse().unwrap();
                slowest = slowest.max(start.elapsed());
                assert_eq!(loader.flow(peer, local, LISTENER).unwrap().slot, 2);
                rounds += 1;
            }
            let (mut sender, made) = flooding.join().unwrap();
            assert_eq!(made, FLOWS_PER_BOTTLE.to_string(), "the rest is refused");
            assert!(slowest < Duration::from_secs(1), "{slowest:?}");
            assert_eq!(sender.order("drain"), "ok");
            drained.store(true, Ordering::SeqCst);
            let counts = flow_counts(&host);
            eventually(|| counts.get(&1, 0).unwrap() == 0);
            sender.order(&format!("connect {PUBLIC4}:443")).parse::<SocketAddr>().unwrap();
        });
    });
}

/// As many descriptors as this process may have: both ends of a connection are its own or its child's.
fn raise_descriptors() {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, most, most).unwrap();
}

/// A flag that is raised at the end, also after a panic.
struct Raised<'a>(&'a AtomicBool);

impl Drop for Raised<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Accepts whatever comes, and keeps it until what is there has been drained.
fn take_all(listener: &TcpListener, drained: &AtomicBool, done: &AtomicBool) {
    let mut held: Vec<TcpStream> = Vec::new();
    while !done.load(Ordering::SeqCst) {
        match listener.accept() {
            Ok((stream, _)) => held.push(stream),
            Err(_) => std::thread::sleep(Duration::from_millis(1)),
        }
        if drained.load(Ordering::SeqCst) {
            held.clear();
        }
    }
}
