//! What the kernel plane costs: loading, attaching and adopting here; a connection, a packet, a stream, and knowing whose
//! a connection is in a file each.
//!
//! Run by `cargo xtask bench kernel`, as root, in a network namespace of its own. Prints figures and judges none of
//! them; needs no harness. The flip of a verdict is the benchmark `cut`'s.
#![allow(clippy::unwrap_used, reason = "a benchmark that cannot go on has nothing to report")]
mod connects;
mod daemon;
mod identity;
mod many;
mod packets;
#[path = "../support/mod.rs"]
mod support;
mod throughput;

use std::net::TcpListener;
use std::os::fd::AsFd as _;

use enforcer::kernel::loader::{Loader, unpin_all};
use enforcer::kernel::{Kernel as _, Place, namespace_cookie};
use support::figures::{nanoseconds, report};
use support::{Bench, adopt, network};

const LOADS: usize = 50;

fn main() {
    if std::env::args().any(|argument| argument == identity::METER_ARGUMENT) {
        return identity::ask();
    }
    network::in_own_network(|| {
        let bench = Bench::new();
        load(&bench);
        adopt::adopt(&bench);
        connects::connect(&bench);
        connects::look_up(&bench);
        packets::packets(&bench);
        throughput::throughput(&bench);
        identity::identity(&bench);
        many::many(&bench);
    });
}

fn load(bench: &Bench) {
    let rounds = (0..LOADS).map(|_| {
        unpin_all(Some(&bench.instance)).unwrap();
        nanoseconds(|| drop(bench.open()))
    });
    report("load and pin the programs", rounds.collect());
}

/// Makes a listener the meter of this network namespace.
fn point_here(loader: &Loader, meter: &TcpListener) {
    let place = Place::new(1, meter.local_addr().unwrap());
    loader.set_place(namespace_cookie(meter.as_fd()).unwrap(), &place).unwrap();
}
