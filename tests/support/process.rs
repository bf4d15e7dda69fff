//! Child processes with a bound on their time, and the workspace's built programs.
use std::io::Read;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::clock::wait_until;

/// What a finished program said.
#[derive(Debug)]
pub struct Output {
    /// Exit code; `None` when a signal ended it.
    pub code: Option<i32>,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

/// Runs a command to its end. Panics when it takes longer than `timeout` (it is killed first).
pub fn run(command: &mut Command, timeout: Duration) -> Output {
    let what = format!("{command:?}");
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    finish(child.unwrap_or_else(|error| panic!("cannot start {what}: {error}")), &what, timeout)
}

/// Waits for a child whose outputs are pipes (or elsewhere). Panics when it takes longer than `timeout`.
pub fn finish(mut child: Child, what: &str, timeout: Duration) -> Output {
    let stdout = child.stdout.take().map(read_aside);
    let stderr = child.stderr.take().map(read_aside);
    let Some(code) = exit_within(&mut child, timeout) else {
        panic!("{what} did not end within {timeout:?}");
    };
    let text = |reader: Option<JoinHandle<String>>| reader.map_or_else(String::new, |r| r.join().unwrap());
    Output { code, stdout: text(stdout), stderr: text(stderr) }
}

/// Waits for a child; after `timeout` kills and reaps it and gives `None`. Inside: the exit code, if no signal.
pub fn exit_within(child: &mut Child, timeout: Duration) -> Option<Option<i32>> {
    let status = wait_until(timeout, || child.try_wait().expect("a child can be waited for"));
    if status.is_none() {
        kill(child);
    }
    status.map(|status| status.code())
}

/// Kills and reaps a child; one that is gone already is fine.
pub fn kill(child: &mut Child) {
    child.kill().expect("SIGKILL can be sent to an own child");
    child.wait().expect("a killed child can be reaped");
}

fn read_aside(mut pipe: impl Read + Send + 'static) -> JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        pipe.read_to_end(&mut bytes).expect("a pipe can be read");
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// Path of a program of this workspace, built in the same profile as the running test.
///
/// Panics with the command that builds it when it is missing.
#[must_use]
pub fn built(name: &str) -> PathBuf {
    let mut dir = std::env::current_exe().expect("the running test has a path");
    dir.pop();
    if dir.ends_with("deps") || dir.ends_with("examples") {
        dir.pop();
    }
    let path = dir.join(name);
    assert!(
        path.is_file(),
        "{} is not built: run `cargo build --workspace`, or `cargo xtask test`",
        path.display()
    );
    path
}
