//! Ways around the meter, tried for real with the built daemon: what the sender is told, and what comes out far away.
//!
//! Each test has network namespaces of its own, where whatever passes arrives and is counted. Every way is also taken
//! from outside of the bottle, so that a way that leads nowhere is not taken for one that is closed.
#![allow(clippy::unwrap_used, reason = "a failed expectation should stop the test where it stands")]
mod away;
mod clients;
mod containers;
mod floods;
mod hosts;
mod nat;
mod nested;
mod ports;
mod protocols;
mod rings;
mod sockets;
mod strangers;

use std::time::Duration;

/// How long something that must happen may take.
const SOON: Duration = Duration::from_secs(10);
/// How long it is watched that nothing happens.
const QUIET: Duration = Duration::from_millis(400);
