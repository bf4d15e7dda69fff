//! What the tests of the kernel plane stand on: a pin root and a cgroup, a process inside it, a network of its own.
//!
//! Everything made here is removed when its value is dropped, also after a panic.
#![allow(dead_code, reason = "each test program uses a part of it")]
pub mod host;
pub mod meter;
pub mod network;
pub mod packets;
pub mod sender;
pub mod streams;

use std::time::{Duration, Instant};

/// Rounds of a test: as many as fit a usual run, all of them (`ENFORCER_TEST_FULL=1`), or a tenth of the usual, where an
/// emulated processor needs ten times as long for each (`ENFORCER_TEST_EMULATED=1`).
pub fn rounds(usual: u32, full: u32) -> u32 {
    let is_set = |name| std::env::var_os(name).is_some();
    match () {
        () if is_set("ENFORCER_TEST_FULL") => full,
        () if is_set("ENFORCER_TEST_EMULATED") => usual.div_ceil(10),
        () => usual,
    }
}

/// Waits up to 5 s for a condition.
pub fn eventually(mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(5);
    while !condition() {
        assert!(Instant::now() < end, "not within 5 s");
        std::thread::sleep(Duration::from_millis(5));
    }
}
