//! What the kernel plane costs: loading, attaching and adopting here; a connection, a packet and a cut, a stream, and
//! knowing whose a connection is in a file each.
//!
//! Run by `cargo xtask bench kernel`, as root, in a network namespace of its own. Prints figures and judges none of
//! them; needs no harness.
#![allow(clippy::unwrap_used, reason = "a benchmark that cannot go on has nothing to report")]
#[allow(dead_code, reason = "the tests use the rest of it")]
#[path = "../../tests/support/network.rs"]
mod network;

mod connects;
mod daemon;
mod figures;
mod identity;
mod inside;
mod many;
mod packets;
mod throughput;

use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::time::Instant;

use enforcer::bottle::cgroup::{self, Cgroup};
use enforcer::kernel::loader::{Loader, unpin_all};
use enforcer::kernel::{Guard, Kernel as _, Place, namespace_cookie};

use figures::{nanoseconds, report};

const LOADS: usize = 50;
const BOTTLES: u32 = 1_000;
/// Times that so many bottles are adopted.
const ADOPTIONS: usize = 20;

fn main() {
    if std::env::args().any(|argument| argument == identity::METER_ARGUMENT) {
        return identity::ask();
    }
    network::in_own_network(|| {
        let bench = Bench::new();
        bench.load();
        bench.attach();
        connects::connect(&bench);
        connects::look_up(&bench);
        packets::packet_and_flip(&bench);
        throughput::throughput(&bench);
        identity::identity(&bench);
        many::many(&bench);
    });
}

/// The pins and cgroups of this run, removed at its end.
struct Bench {
    instance: String,
    cgroup: PathBuf,
}

impl Bench {
    fn new() -> Self {
        let instance = format!("bench-{}", std::process::id());
        let cgroup = cgroup::mount().unwrap().join(format!("enforcer-{instance}"));
        drop(Cgroup::create(&cgroup).unwrap());
        Self { instance, cgroup }
    }

    fn open(&self) -> Loader {
        Loader::open(Some(&self.instance)).unwrap()
    }

    fn load(&self) {
        let rounds = (0..LOADS).map(|_| {
            unpin_all(Some(&self.instance)).unwrap();
            nanoseconds(|| drop(self.open()))
        });
        report("load and pin the programs", rounds.collect());
    }

    fn attach(&self) {
        let loader = self.open();
        let cgroups: Vec<Cgroup> =
            (1..=BOTTLES).map(|n| Cgroup::create(&self.cgroup.join(n.to_string())).unwrap()).collect();
        let start = Instant::now();
        let rounds = (1..=BOTTLES).zip(&cgroups).map(|(slot, cgroup)| {
            nanoseconds(|| loader.attach(&slot.to_string(), cgroup, guard(slot)).unwrap())
        });
        report("attach a bottle", rounds.collect());
        println!("attach {BOTTLES} bottles: {:?} in all", start.elapsed());
        drop(loader);
        let adopting = (0..ADOPTIONS).map(|_| nanoseconds(|| drop(self.open())));
        report(&format!("adopt {BOTTLES} bottles"), adopting.collect());
        let loader = self.open();
        let rounds =
            (1..=BOTTLES).map(|slot| nanoseconds(|| loader.detach(&slot.to_string(), slot).unwrap()));
        report("detach a bottle", rounds.collect());
        drop(loader);
        let adopting = (0..ADOPTIONS).map(|_| nanoseconds(|| drop(self.open())));
        report("adopt no bottle", adopting.collect());
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        unpin_all(Some(&self.instance)).unwrap();
        Cgroup::open(&self.cgroup).unwrap().remove().unwrap();
    }
}

fn guard(slot: u32) -> Guard {
    Guard::new(slot, 1, SocketAddr::from(([127, 0, 0, 1], 1)))
}

/// Makes a listener the meter of this network namespace.
fn point_here(loader: &Loader, meter: &TcpListener) {
    let place = Place::new(1, meter.local_addr().unwrap());
    loader.set_place(namespace_cookie(meter.as_fd()).unwrap(), &place).unwrap();
}
