//! How fast a whole daemon acts on a budget that is used up. What each policy adds to the cut has a room of its own here.
//!
//! Run by `cargo xtask bench budget`, as root, with the built programs and the mock provider. Prints figures and judges
//! none; needs no harness.
#![allow(clippy::unwrap_used, reason = "a benchmark that cannot go on has nothing to report")]
mod busy;
mod crossing;

use std::time::Duration;

fn main() {
    crossing::settlement_to_store();
}

/// Prints median and 99th percentile.
fn report(what: &str, mut rounds: Vec<Duration>) {
    rounds.sort_unstable();
    let at = |percent: usize| rounds[(rounds.len() - 1) * percent / 100];
    println!("{what}: median {:?}, p99 {:?}, n {}", at(50), at(99), rounds.len());
}
