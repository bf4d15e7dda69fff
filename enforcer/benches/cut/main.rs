//! How fast a cut is: the store into the map, the same effect by a spawned `nft`, and taking over what is pinned.
//!
//! Run by `cargo xtask bench cut`, as root, in network and mount namespaces of its own. Prints figures and the
//! commands compared with, and judges none; needs no harness. What needs a whole daemon is measured by the benchmark
//! `daemon` of the end-to-end tests.
#![allow(clippy::unwrap_used, reason = "a benchmark that cannot go on has nothing to report")]
mod nft;
#[path = "../support/mod.rs"]
mod support;

use enforcer::bottle::cgroup::Cgroup;
use enforcer::kernel::Kernel as _;
use support::sending::Sending;
use support::{Bench, adopt, guard, network};

const FLIPS: usize = 3_000;
const SPAWNS: usize = 300;

fn main() {
    network::in_own_network(|| {
        let bench = Bench::new();
        let store = by_store(&bench);
        let spawned = nft::by_spawning(&bench, SPAWNS);
        println!("a spawned nft takes {:.0} times as long (medians)", spawned / store);
        adopt::adopt(&bench);
    });
}

/// The map's store; the median, nanoseconds.
fn by_store(bench: &Bench) -> f64 {
    let loader = bench.open();
    loader.attach("b", &Cgroup::open(&bench.cgroup).unwrap(), guard(1)).unwrap();
    loader.open(1);
    let sending = Sending::start(&bench.cgroup);
    let median = sending.measure("cut by a store", FLIPS, || loader.open(1), || loader.cut(1));
    drop(sending);
    loader.detach("b", 1).unwrap();
    median
}
