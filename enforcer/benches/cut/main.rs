//! How fast a cut is: the store into the map, the same effect by a spawned `nft`, and taking over what is pinned.
//!
//! Run by `cargo xtask bench cut`, as root, in network and mount namespaces of its own. Prints figures and the
//! commands compared with, and judges none; needs no harness. What needs a whole daemon is measured by the benchmark
//! `daemon` of the end-to-end tests.
#![allow(clippy::unwrap_used, reason = "a benchmark that cannot go on has nothing to report")]
#[path = "../kernel/figures.rs"]
#[allow(dead_code, reason = "the other benchmark uses the rest of it")]
mod figures;
#[path = "../kernel/inside.rs"]
#[allow(dead_code, reason = "the other benchmark uses the rest of it")]
mod inside;
#[allow(dead_code, reason = "the tests use the rest of it")]
#[path = "../../tests/support/network.rs"]
mod network;

mod flip;
mod nft;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use enforcer::bottle::cgroup::{self, Cgroup};
use enforcer::kernel::loader::{Loader, unpin_all};
use enforcer::kernel::{Guard, Kernel as _};

use figures::{nanoseconds, report};

const BOTTLES: u32 = 1_000;
/// Times that so many bottles are taken over.
const ADOPTIONS: usize = 50;
const FLIPS: usize = 3_000;
const SPAWNS: usize = 300;

fn main() {
    network::in_own_network(|| {
        let bench = Bench::new();
        let store = flip::by_store(&bench, FLIPS);
        let spawned = nft::by_spawning(&bench, SPAWNS);
        println!("a spawned nft takes {:.0} times as long (medians)", spawned / store);
        bench.adopt();
    });
}

/// The pins and the cgroup of this run, removed at its end.
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

    /// A new controller's kernel plane: its programs loaded, and put in place of the earlier ones in every bottle.
    fn adopt(&self) {
        let none = (0..ADOPTIONS).map(|_| nanoseconds(|| drop(self.open())));
        report("adopt no bottle", none.collect());
        let loader = self.open();
        for slot in 1..=BOTTLES {
            let cgroup = Cgroup::create(&self.cgroup.join(slot.to_string())).unwrap();
            loader.attach(&slot.to_string(), &cgroup, guard(slot)).unwrap();
        }
        drop(loader);
        let adopting = (0..ADOPTIONS).map(|_| {
            let took = nanoseconds(|| assert_eq!(self.open().adopted().len(), 1_000));
            // what the last one held is freed by the kernel meanwhile, as between two starts
            std::thread::sleep(Duration::from_millis(100));
            took
        });
        report(&format!("adopt {BOTTLES} bottles"), adopting.collect());
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
