//! Child processes with a bound on their time, and the workspace's built programs.
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill as kill_pid};
use nix::unistd::Pid;

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

/// Runs a command to its end. Panics when it cannot be started or takes longer than `timeout`.
pub fn run(command: &mut Command, timeout: Duration) -> Output {
    try_run(command, timeout).unwrap_or_else(|problem| panic!("{problem}"))
}

/// Runs a command to its end; killed after `timeout`.
///
/// # Errors
/// Words for what went wrong: it cannot be started, or takes too long.
pub fn try_run(command: &mut Command, timeout: Duration) -> Result<Output, String> {
    let what = format!("{command:?}");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().map_err(|error| format!("cannot start {what}: {error}"))?;
    try_finish(child, timeout).ok_or_else(|| format!("{what} did not end within {timeout:?}"))
}

/// Waits for a child whose output is piped, and gives what it said. Panics when it takes longer than `timeout`.
#[must_use]
pub fn finish(child: Child, timeout: Duration) -> Output {
    let pid = child.id();
    try_finish(child, timeout).unwrap_or_else(|| panic!("process {pid} did not end within {timeout:?}"))
}

fn try_finish(mut child: Child, timeout: Duration) -> Option<Output> {
    let stdout = child.stdout.take().map(read_aside);
    let stderr = child.stderr.take().map(read_aside);
    let code = exit_within(&mut child, timeout)?;
    let text = |reader: Option<JoinHandle<String>>| reader.map_or_else(String::new, |r| r.join().unwrap());
    Some(Output { code, stdout: text(stdout), stderr: text(stderr) })
}

/// Waits for a child; after `timeout` kills and reaps it and gives `None`. Inside: the exit code, if no signal.
pub fn exit_within(child: &mut Child, timeout: Duration) -> Option<Option<i32>> {
    let status = wait_until(timeout, || child.try_wait().expect("a child can be waited for"));
    if status.is_none() {
        kill(child);
    }
    status.map(|status| status.code())
}

/// Asks a child to end (SIGTERM) and reaps it; `false`: it did not within `timeout`, and was killed.
pub fn stop(child: &mut Child, timeout: Duration) -> bool {
    let pid = Pid::from_raw(i32::try_from(child.id()).expect("a process id"));
    kill_pid(pid, Signal::SIGTERM).expect("an own child can be signalled");
    exit_within(child, timeout).is_some()
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

/// Copies a program, with its mode. A process of its own writes it: one that is open for writing here might still be so
/// in a process that another test starts at this moment, and could not be run.
pub fn copy_program(from: &Path, to: &Path) {
    let copied = run(Command::new("cp").args([from, to]), Duration::from_secs(30));
    assert_eq!(copied.code, Some(0), "{copied:?}");
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

/// A process that is not a child, known by its id and the time of its start, so that a re-used id is not taken for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    pid: i32,
    started: String,
}

impl Seen {
    /// The process that has this id now; `None` when none has, or only a zombie.
    #[must_use]
    pub fn now(pid: u32) -> Option<Self> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // after the name, which may hold anything and ends at the last parenthesis: state, …, start time (field 22)
        let fields: Vec<_> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        let alive = !matches!(fields.first(), Some(&("Z" | "X")));
        let started = (*fields.get(19)?).to_owned();
        alive.then_some(Self { pid: i32::try_from(pid).ok()?, started })
    }

    /// Its id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid.cast_unsigned()
    }

    /// Whether it still runs.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        u32::try_from(self.pid).ok().and_then(Self::now).as_ref() == Some(self)
    }

    /// SIGKILL, if it still runs.
    pub fn kill(&self) {
        if self.is_alive() {
            match kill_pid(Pid::from_raw(self.pid), Signal::SIGKILL) {
                // it may have ended in between
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(error) => panic!("process {} cannot be killed: {error}", self.pid),
            }
        }
    }
}

/// A process that stands still (SIGSTOP) for as long as this lives.
pub struct Stopped(Pid);

impl Stopped {
    /// Stops one.
    #[must_use]
    pub fn now(pid: u32) -> Self {
        let pid = Pid::from_raw(i32::try_from(pid).expect("a process id"));
        kill_pid(pid, Signal::SIGSTOP).expect("it runs");
        Self(pid)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        // a test may have killed it meanwhile
        let continued = kill_pid(self.0, Signal::SIGCONT);
        assert!(matches!(continued, Ok(()) | Err(Errno::ESRCH)), "{continued:?}");
    }
}
