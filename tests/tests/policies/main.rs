//! What a verdict does beyond dropping packets: processes frozen, snapshotted, ended, killed, and hooks called; by an
//! operator, by a budget, and by a controller that takes over from one that died.
#![allow(clippy::unwrap_used, reason = "a failed expectation should stop the test where it stands")]
mod bombs;
mod containers;
mod hooks;
mod restarts;
mod snapshots;
mod streams;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::Value;
use support::cgroup::TestCgroup;
use support::clock::wait_until;
use support::process;
use support::stage::Stage;
use tempfile::TempDir;

const SOON: Duration = Duration::from_secs(10);
/// How long it is watched that nothing moves.
const WATCHED: Duration = Duration::from_millis(300);

/// A process in a bottle that writes a line into a file every 10 ms; killed when dropped.
struct Ticking {
    child: Child,
    file: PathBuf,
    _dir: TempDir,
}

impl Ticking {
    fn start(cgroup: &TestCgroup) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("ticks");
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "while :; do echo tick; sleep 0.01; done"]).stdin(Stdio::null());
        command.stdout(fs::File::create(&file).unwrap());
        let child = cgroup.spawn(&mut command);
        let ticking = Self { child, file, _dir: dir };
        ticking.assert_ticks();
        ticking
    }

    fn ticks(&self) -> u64 {
        fs::metadata(&self.file).unwrap().len()
    }

    fn assert_ticks(&self) {
        let before = self.ticks();
        assert!(wait_until(SOON, || (self.ticks() > before).then_some(())).is_some(), "it does not go on");
    }

    fn assert_still(&self) {
        let before = self.ticks();
        std::thread::sleep(WATCHED);
        assert_eq!(self.ticks(), before, "it goes on");
    }

    fn ended(&mut self) -> bool {
        process::exit_within(&mut self.child, SOON).is_some()
    }
}

impl Drop for Ticking {
    fn drop(&mut self) {
        process::kill(&mut self.child);
    }
}

/// A shell script that root alone can change.
struct Script(TempDir);

impl Script {
    fn new(text: &str) -> Self {
        let script = Self(tempfile::tempdir().unwrap());
        script.becomes(text);
        script
    }

    fn becomes(&self, text: &str) {
        // written aside, so that it is not busy while it is run
        let new = self.0.path().join("new");
        fs::write(&new, format!("#!/bin/sh\n{text}\n")).unwrap();
        fs::set_permissions(&new, fs::Permissions::from_mode(0o755)).unwrap();
        fs::rename(new, self.path()).unwrap();
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("script")
    }

    /// A file beside it.
    fn beside(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}

/// The `count`-th row of this kind that names a bottle, once it is there.
fn row(stage: &Stage, bottle: &str, action: &str, count: usize) -> Value {
    let found = wait_until(SOON, || stage.audit(bottle, action).into_iter().nth(count - 1));
    found.unwrap_or_else(|| panic!("no {count} rows of {action}: {:#?}", stage.audit(bottle, action)))
}

fn detail(row: &Value) -> &str {
    row["detail"].as_str().unwrap_or_default()
}

/// Whether the cgroup's own file says so.
fn events(cgroup: &Path, line: &str) -> bool {
    fs::read_to_string(cgroup.join("cgroup.events")).unwrap().lines().any(|said| said == line)
}
