//! What the benchmarks of the kernel plane stand on: pins and a cgroup of a run's own, a load, and how figures are taken.
//!
//! Each prints figures and judges none.
#![allow(dead_code, reason = "each benchmark uses a part of it")]
pub mod adopt;
pub mod figures;
pub mod inside;
#[path = "../../tests/support/network.rs"]
pub mod network;
pub mod sending;

use std::net::SocketAddr;
use std::path::PathBuf;

use enforcer::bottle::cgroup::{self, Cgroup};
use enforcer::kernel::Guard;
use enforcer::kernel::loader::{Loader, unpin_all};

/// The pins and the cgroup of a run, removed at its end.
pub struct Bench {
    /// Names the pins.
    pub instance: String,
    /// The cgroup's directory.
    pub cgroup: PathBuf,
}

impl Bench {
    /// A new one, named after this process.
    pub fn new() -> Self {
        let instance = format!("bench-{}", std::process::id());
        let cgroup = cgroup::mount().unwrap().join(format!("enforcer-{instance}"));
        drop(Cgroup::create(&cgroup).unwrap());
        Self { instance, cgroup }
    }

    /// A controller's kernel plane.
    pub fn open(&self) -> Loader {
        Loader::open(Some(&self.instance)).unwrap()
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        unpin_all(Some(&self.instance)).unwrap();
        Cgroup::open(&self.cgroup).unwrap().remove().unwrap();
    }
}

/// The guard of a slot, with a meter that nobody connects to.
pub fn guard(slot: u32) -> Guard {
    Guard::new(slot, 1, SocketAddr::from(([127, 0, 0, 1], 1)))
}
