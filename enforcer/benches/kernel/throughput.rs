//! TCP over `lo` from a bottle with every hook at work, beside the same without any program, in turns.
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use enforcer::bottle::cgroup::Cgroup;
use enforcer::kernel::Kernel as _;

use crate::point_here;
use crate::support::figures::median;
use crate::support::inside::Inside;
use crate::support::{Bench, guard};

/// Pairs of streams, one with and one without programs.
const PAIRS: usize = 40;
/// How long each stream flows.
const FLOWS_FOR: Duration = Duration::from_millis(250);
/// What is written and read at once, bytes.
const CHUNK: usize = 256 * 1024;

/// A stream from a guarded cgroup and one from a cgroup beside it take turns; which one begins changes.
pub fn throughput(bench: &Bench) {
    let loader = bench.open();
    let [guarded, plain] = ["guarded", "plain"].map(|name| bench.cgroup.join(name));
    let cgroup = Cgroup::create(&guarded).unwrap();
    drop(Cgroup::create(&plain).unwrap());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    point_here(&loader, &TcpListener::bind("127.0.0.1:0").unwrap());
    loader.attach("t", &cgroup, guard(1)).unwrap();
    loader.set_lease(1, Some(Duration::from_secs(3600)));
    loader.beat();
    loader.open(1);
    let (mut with, mut without) = (Vec::new(), Vec::new());
    for pair in 0..PAIRS {
        if pair % 2 == 0 {
            with.push(gigabits_a_second(&guarded, &listener));
        }
        without.push(gigabits_a_second(&plain, &listener));
        if pair % 2 == 1 {
            with.push(gigabits_a_second(&guarded, &listener));
        }
    }
    let ratio = median(with.iter().zip(&without).map(|(with, without)| 100.0 * with / without).collect());
    println!(
        "TCP over lo: median {:.1} Gbit/s in a bottle, {:.1} without programs; {ratio:.1} % in the median of n {PAIRS} pairs",
        median(with),
        median(without)
    );
    loader.detach("t", 1).unwrap();
}

/// What arrives of one stream from a process in the cgroup.
fn gigabits_a_second(cgroup: &Path, listener: &TcpListener) -> f64 {
    let to = listener.local_addr().unwrap();
    let sender = Inside::start(Some(cgroup), || {
        let mut stream = TcpStream::connect(to).unwrap();
        let (chunk, end) = (vec![0; CHUNK], Instant::now() + FLOWS_FOR);
        while Instant::now() < end {
            stream.write_all(&chunk).unwrap();
        }
    });
    let (mut stream, _) = listener.accept().unwrap();
    let (mut chunk, start, mut bits) = (vec![0; CHUNK], Instant::now(), 0.0);
    loop {
        let read = stream.read(&mut chunk).unwrap();
        if read == 0 {
            break;
        }
        bits += f64::from(u32::try_from(read).unwrap()) * 8.0;
    }
    let took = start.elapsed();
    sender.finish();
    bits / took.as_secs_f64() / 1e9
}
