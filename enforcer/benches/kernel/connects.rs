//! What a connection costs: without a guard, in a bottle, redirected; and looking up whose it is.
use std::io::Read as _;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use enforcer::bottle::cgroup::Cgroup;
use enforcer::kernel::{Guard, Kernel as _};
use rustix::net::{AddressFamily, SocketType, sockopt};

use crate::point_here;
use crate::support::figures::{nanoseconds, report};
use crate::support::inside::{Inside, shared};
use crate::support::{Bench, guard, network};

/// Connections of one kind in a row; the kinds take turns, so that they see the same machine.
const CONNECTS: usize = 500;
const TURNS: usize = 20;
const LOOKUPS: usize = 10_000;

/// From the call to its return, over `lo`, so without any network's own time.
pub fn connect(bench: &Bench) {
    let loader = bench.open();
    let cgroup = Cgroup::open(&bench.cgroup).unwrap();
    let far = TcpListener::bind((network::PUBLIC4, 443)).unwrap();
    let meter = TcpListener::bind("127.0.0.1:0").unwrap();
    let on = Guard { meter: meter.local_addr().unwrap(), ..guard(1) };
    let off = Guard { redirect: false, ..on };
    point_here(&loader, &meter);
    loader.attach("c", &cgroup, on).unwrap();
    loader.open(1);
    let inside = Some(bench.cgroup.as_path());
    let to = far.local_addr().unwrap();
    let kinds = [
        ("connect, outside every bottle", None, off, &far),
        ("connect, in a bottle without the redirect", inside, off, &far),
        ("connect, redirected", inside, on, &meter),
    ];
    let mut rounds = [const { Vec::new() }; 3];
    for _ in 0..TURNS {
        for ((_, cgroup, guard, listener), rounds) in kinds.iter().zip(&mut rounds) {
            loader.refresh(*guard);
            rounds.extend(connects(*cgroup, to, listener));
        }
    }
    for ((what, ..), rounds) in kinds.iter().zip(rounds) {
        report(what, rounds);
    }
    loader.detach("c", 1).unwrap();
}

/// The kernel plane's part of identity: looking up a connection that lives.
pub fn look_up(bench: &Bench) {
    let loader = bench.open();
    let cgroup = Cgroup::open(&bench.cgroup).unwrap();
    let meter = TcpListener::bind("127.0.0.1:0").unwrap();
    let local = meter.local_addr().unwrap();
    point_here(&loader, &meter);
    loader.attach("i", &cgroup, Guard { meter: local, ..guard(1) }).unwrap();
    loader.open(1);
    let client = Inside::start(Some(&bench.cgroup), || {
        let mut stream = TcpStream::connect((network::PUBLIC4, 443)).unwrap();
        // stays until it is ended
        stream.read_exact(&mut [0]).unwrap();
    });
    let (_stream, peer) = meter.accept().unwrap();
    let rounds = (0..LOOKUPS).map(|_| nanoseconds(|| assert!(loader.flow(peer, local, 1).is_some())));
    report("look up whose a connection is", rounds.collect());
    drop(client);
    loader.detach("i", 1).unwrap();
}

/// How long each of some connections took, nanoseconds, made by a process in the cgroup to whoever listens there.
fn connects(cgroup: Option<&Path>, to: SocketAddr, listener: &TcpListener) -> Vec<u64> {
    let times = shared::<[AtomicU64; CONNECTS]>();
    let child = Inside::start(cgroup, || {
        for time in times {
            let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
            // closed by a reset: no port waits for late packets
            sockopt::set_socket_linger(&socket, Some(Duration::ZERO)).unwrap();
            time.store(nanoseconds(|| rustix::net::connect(&socket, &to).unwrap()), Ordering::SeqCst);
            drop(listener.accept().unwrap());
        }
    });
    child.finish();
    times.iter().map(|time| time.load(Ordering::SeqCst)).collect()
}
