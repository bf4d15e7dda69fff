//! How the figures are taken and printed: medians and the far end, never a single run.
use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};

/// Monotonic nanoseconds, the same in every process.
pub fn now() -> u64 {
    let time = Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC).unwrap());
    u64::try_from(time.as_nanos()).unwrap()
}

/// How long an action takes.
pub fn nanoseconds(action: impl FnOnce()) -> u64 {
    let start = Instant::now();
    action();
    u64::try_from(start.elapsed().as_nanos()).unwrap()
}

/// Prints median and 99th percentile.
pub fn report(what: &str, mut rounds: Vec<u64>) {
    rounds.sort_unstable();
    let at = |percent: usize| Duration::from_nanos(rounds[(rounds.len() - 1) * percent / 100]);
    println!("{what}: median {:?}, p99 {:?}, n {}", at(50), at(99), rounds.len());
}

/// The middle of some measurements.
pub fn median(mut rounds: Vec<f64>) -> f64 {
    rounds.sort_unstable_by(f64::total_cmp);
    rounds[(rounds.len() - 1) / 2]
}
