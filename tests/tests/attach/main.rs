//! What can be attached and what is found there: containers and units by name, processes with sockets from before,
//! cgroups that the settings wait for.
//!
//! What is refused for its form alone is tested in `bad_input`.
#![allow(clippy::unwrap_used, reason = "a failed expectation should stop the test where it stands")]
mod awaited;
mod engines;
mod sockets;

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::Value;
use support::enforcer::Daemon;
use support::process;

const SOON: Duration = Duration::from_secs(10);

/// A process that does nothing; killed when dropped.
struct Idle(Child);

impl Idle {
    /// In the cgroup at this path.
    fn start_in(group: &Path) -> Self {
        let child = Command::new("sleep").arg("600").stdin(Stdio::null()).spawn().unwrap();
        let idle = Self(child);
        join(group, idle.0.id());
        idle
    }
}

impl Drop for Idle {
    fn drop(&mut self) {
        process::kill(&mut self.0);
    }
}

/// Moves a process into a cgroup.
fn join(group: &Path, pid: u32) {
    fs::write(group.join("cgroup.procs"), pid.to_string()).unwrap();
}

/// Rows of the audit about attaching a bottle, oldest first.
fn attachings(daemon: &Daemon, bottle: &str) -> Vec<Value> {
    let rows = daemon.json_lines(&["audit"]).into_iter();
    rows.filter(|row| row["bottle"] == bottle && row["action"] == "attach").collect()
}
