//! What the end-to-end tests and the demo stand on: a mock provider, an agent, senders and sinks, cgroups, a daemon.
//!
//! Nothing here is shared with the product's own code: a mistake there must not hide in its test.
#![allow(
    clippy::unwrap_used,
    reason = "test support: a failed expectation should stop the test where it stands"
)]

pub mod agent;
pub mod books;
pub mod capture;
pub mod cgroup;
pub mod clock;
pub mod container;
pub mod control;
pub mod dns;
pub mod encoding;
pub mod enforcer;
pub mod inmate;
pub mod mounts;
pub mod namespace;
pub mod network;
pub mod process;
pub mod provider;
pub mod sink;
pub mod sse;
pub mod stage;
pub mod streams;
pub mod tls;

/// Rounds of a test: as many as fit a usual run, or all of them (`ENFORCER_TEST_FULL=1`).
#[must_use]
pub fn rounds(usual: usize, full: usize) -> usize {
    if std::env::var_os("ENFORCER_TEST_FULL").is_some() { full } else { usual }
}

/// Stops the test with a clear word when it does not run as root.
pub fn require_root() {
    assert!(
        nix::unistd::Uid::effective().is_root(),
        "this test needs root: run it through `cargo xtask test`"
    );
}
