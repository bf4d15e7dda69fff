//! A network namespace with nothing but `lo`, as a container has one: held by a process, entered by others.
//!
//! It goes with the processes and sockets in it; the holder is killed when its value is dropped. Needs root.
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sched::{CloneFlags, setns};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

use crate::cgroup::TestCgroup;
use crate::process;

const SOON: Duration = Duration::from_secs(10);

/// A process that sleeps in a network namespace of its own.
pub struct Holder(Child);

impl Holder {
    /// One in the cgroup, whose `lo` is up.
    #[must_use]
    pub fn start(cgroup: &TestCgroup) -> Self {
        Self::after("ip link set lo up", |command| {
            cgroup.enter_before_exec(command);
        })
    }

    /// One in no bottle.
    #[must_use]
    pub fn outside() -> Self {
        Self::after("ip link set lo up", |_| {})
    }

    /// One that has run these words of a shell first.
    #[must_use]
    pub fn after(setting_up: &str, prepare: impl FnOnce(&mut Command)) -> Self {
        let script = format!("{setting_up} && echo ready && exec sleep 1000");
        let mut command = Command::new("unshare");
        command.args(["--net", "sh", "-c", &script]).stdin(Stdio::null()).stdout(Stdio::piped());
        prepare(&mut command);
        let mut child = command.spawn().expect("unshare can be started");
        let mut line = String::new();
        let said = BufReader::new(child.stdout.take().expect("its output is piped")).read_line(&mut line);
        assert!(
            said.is_ok() && line == "ready\n",
            "a network namespace can be set up by {setting_up}: {line}"
        );
        Self(child)
    }

    /// Process id of the holder.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Makes `command` enter the namespace between fork and exec.
    pub fn enter_before_exec<'c>(&self, command: &'c mut Command) -> &'c mut Command {
        let namespace = File::open(format!("/proc/{}/ns/net", self.pid())).expect("the holder is there");
        // SAFETY: between fork and exec only async-signal-safe calls are allowed: setns(2) on a descriptor opened
        // before the fork is the only one, and its error is a plain number.
        unsafe { command.pre_exec(move || Ok(setns(&namespace, CloneFlags::CLONE_NEWNET)?)) }
    }

    /// Runs a command in it that must succeed.
    pub fn run(&self, words: &[&str]) {
        let mut command = Command::new(words[0]);
        let output = process::run(self.enter_before_exec(command.args(&words[1..])), SOON);
        assert_eq!(output.code, Some(0), "{words:?}: {}", output.stderr);
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        process::kill(&mut self.0);
    }
}

/// The sockets that a process has open, each by its number; one that two processes share has the same in both.
#[must_use]
pub fn sockets_of(pid: u32) -> BTreeSet<PathBuf> {
    let links = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let targets = links.filter_map(|link| fs::read_link(link.path()).ok());
    targets.filter(|target| target.to_string_lossy().starts_with("socket:")).collect()
}

/// A copy of the only socket that a process has, as one that it passed on.
#[must_use]
pub fn copy_socket(pid: u32) -> OwnedFd {
    let is_socket =
        |fd: &PathBuf| fs::read_link(fd).is_ok_and(|to| to.to_string_lossy().starts_with("socket:"));
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).expect("a process of this test runs");
    let socket = entries.flatten().map(|entry| entry.path()).find(is_socket).expect("it has a socket");
    let number = socket.file_name().and_then(|name| name.to_str()?.parse().ok()).expect("a number");
    let id = i32::try_from(pid).ok().and_then(Pid::from_raw).expect("an id");
    let process = pidfd_open(id, PidfdFlags::empty()).expect("it runs still");
    pidfd_getfd(&process, number, PidfdGetfdFlags::empty()).expect("root may take a copy")
}
