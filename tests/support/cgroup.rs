//! Control groups (v2) of a test: made under a unique name, entered before exec, emptied and removed when dropped.
//!
//! Only what this file made is ever killed or removed. Needs root.
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::clock::wait_until;

/// How long killed processes may take to leave.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(10);

/// A cgroup that lives as long as this value, with everything in it and below it.
#[derive(Debug)]
pub struct TestCgroup {
    path: PathBuf,
}

impl TestCgroup {
    /// A new one at the top of the v2 hierarchy; `tag` is part of its name. Panics when it cannot be made.
    #[must_use]
    pub fn new(tag: &str) -> Self {
        static MADE: AtomicUsize = AtomicUsize::new(0);
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        Self::make(mount_point().join(format!("enforcer-test-{tag}-{}-{number}", std::process::id())))
    }

    /// A new one inside this one.
    #[must_use]
    pub fn child(&self, name: &str) -> Self {
        Self::make(self.path.join(name))
    }

    /// A new one at this path, which is below the v2 mount; what it is in must be there.
    #[must_use]
    pub fn at(path: &Path) -> Self {
        Self::make(path.to_owned())
    }

    fn make(path: PathBuf) -> Self {
        fs::create_dir(&path)
            .unwrap_or_else(|error| panic!("cannot make cgroup {}: {error}", path.display()));
        Self { path }
    }

    /// Its directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Processes in it, without those below.
    #[must_use]
    pub fn pids(&self) -> Vec<u32> {
        pids(&self.path)
    }

    /// Starts `command` in it: the child joins before its exec, so every socket it makes belongs here.
    pub fn spawn(&self, command: &mut Command) -> Child {
        let what = format!("{command:?}");
        self.enter_before_exec(command).spawn().unwrap_or_else(|error| panic!("cannot start {what}: {error}"))
    }

    /// Makes `command` join this cgroup between fork and exec.
    pub fn enter_before_exec<'c>(&self, command: &'c mut Command) -> &'c mut Command {
        let procs = self.path.join("cgroup.procs");
        let procs = OpenOptions::new().write(true).open(&procs).expect("a test's cgroup can be joined");
        // SAFETY: between fork and exec only async-signal-safe calls are allowed; `join` makes one write(2) on a
        // descriptor opened before the fork, of bytes that are there already, and neither allocates nor locks.
        unsafe { command.pre_exec(move || join(&procs)) }
    }
}

/// Moves the calling process: `0` stands for it.
fn join(procs: &File) -> io::Result<()> {
    (&*procs).write_all(b"0")
}

impl Drop for TestCgroup {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.path) {
            let problem = format!("cannot remove cgroup {}: {error}", self.path.display());
            if std::thread::panicking() {
                eprintln!("{problem}");
            } else {
                panic!("{problem}");
            }
        }
    }
}

/// Kills everything in a cgroup and below it, and removes them bottom-up. One that is gone already is fine.
///
/// # Errors
/// Processes stay, or a directory cannot be removed.
pub fn remove(path: &Path) -> io::Result<()> {
    if !path.exists() {
        return Ok(());
    }
    // a nested one, an own value's or one that a process made, is removed here if its owner has not yet
    let groups = bottom_up(path);
    fs::write(path.join("cgroup.kill"), "1")?;
    let empty = wait_until(LEAVE_TIMEOUT, || groups.iter().all(|group| pids(group).is_empty()).then_some(()));
    empty.ok_or_else(|| io::Error::new(io::ErrorKind::TimedOut, "its processes do not end"))?;
    for group in groups {
        remove_empty(&group)?;
    }
    Ok(())
}

/// A group stays busy for a moment after its last process ended.
fn remove_empty(group: &Path) -> io::Result<()> {
    let removed = wait_until(LEAVE_TIMEOUT, || match fs::remove_dir(group) {
        Err(error) if error.kind() == io::ErrorKind::ResourceBusy => None,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Some(Ok(())),
        outcome => Some(outcome),
    });
    removed.unwrap_or_else(|| Err(io::ErrorKind::ResourceBusy.into()))
}

fn bottom_up(path: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    let children = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    let mut groups: Vec<_> = children.flat_map(|child| bottom_up(&child.path())).collect();
    groups.push(path.to_owned());
    groups
}

fn pids(path: &Path) -> Vec<u32> {
    let text = fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default();
    text.lines().filter_map(|line| line.parse().ok()).collect()
}

/// Where cgroup v2 is mounted for the calling thread, by its mountinfo. Panics where it is not.
#[must_use]
pub fn mount_point() -> PathBuf {
    let mounts = fs::read_to_string("/proc/thread-self/mountinfo").expect("procfs is mounted");
    let found = mounts.lines().find_map(|line| {
        let (mount, source) = line.split_once(" - ")?;
        let point = mount.split(' ').nth(4)?;
        (source.split(' ').next() == Some("cgroup2")).then(|| PathBuf::from(point))
    });
    found.expect("cgroup v2 is mounted")
}

/// Path of a process's v2 cgroup below the mount; `None` when the process is gone.
#[must_use]
pub fn of_process(pid: u32) -> Option<PathBuf> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    let path = text.lines().find_map(|line| line.strip_prefix("0::/"))?;
    Some(mount_point().join(path))
}
