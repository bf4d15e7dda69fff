//! Stopping and ending every process of a cgroup at once: what the policies `freeze` and `kill` stand on.
use std::fs;
use std::io;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill as send_signal};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use super::inside::fork_in;
use super::{Failure, Outcome, failure};
use crate::bottle::cgroup::Cgroup;

/// How long the kernel may take to stop or to let go.
const SOON: Duration = Duration::from_millis(500);

/// A process that sleeps in a cgroup; ended when dropped.
struct Sleeper(Pid);

impl Sleeper {
    /// Returns when it is in there.
    fn start(cgroup: &Cgroup) -> Result<Self, Failure> {
        let sleeper = Self(fork_in(cgroup, || {
            loop {
                nix::unistd::pause();
            }
        })?);
        let pid = u32::try_from(sleeper.0.as_raw()).map_err(io::Error::other)?;
        wait_until("a process does not come into a cgroup", || Ok(cgroup.pids()?.contains(&pid)))?;
        Ok(sleeper)
    }

    /// How it ended, if it did.
    fn end(&self) -> Result<Option<WaitStatus>, Failure> {
        match waitpid(self.0, Some(WaitPidFlag::WNOHANG)).map_err(io::Error::from)? {
            WaitStatus::StillAlive => Ok(None),
            status => Ok(Some(status)),
        }
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        // the id is nobody else's while it has not been waited for; afterwards there is no child to be ended
        if let Ok(None) = self.end()
            && let Err(error) = send_signal(self.0, Signal::SIGKILL).and_then(|()| waitpid(self.0, None))
        {
            tracing::warn!(%error, "a process of the trial stays");
        }
    }
}

pub(super) fn freeze(cgroup: &Cgroup) -> Outcome {
    let _sleeper = Sleeper::start(cgroup)?;
    let stopped = put(cgroup, "cgroup.freeze", "1").and_then(|()| wait_frozen(cgroup, true));
    put(cgroup, "cgroup.freeze", "0")?;
    stopped?;
    wait_frozen(cgroup, false)?;
    Ok("cgroup.freeze stops a process, and lets it go on".to_owned())
}

pub(super) fn kill(cgroup: &Cgroup) -> Outcome {
    let sleeper = Sleeper::start(cgroup)?;
    put(cgroup, "cgroup.kill", "1")?;
    let mut ended = None;
    wait_until("cgroup.kill does not end a process", || {
        ended = sleeper.end()?;
        Ok(ended.is_some())
    })?;
    match ended {
        Some(WaitStatus::Signaled(_, Signal::SIGKILL, _)) => Ok("cgroup.kill ends a process".to_owned()),
        other => Err(failure(format!("a process in a killed cgroup ends otherwise: {other:?}"))),
    }
}

fn put(cgroup: &Cgroup, file: &str, value: &str) -> Result<(), Failure> {
    fs::write(cgroup.path().join(file), value).map_err(|error| failure(format!("{file}: {error}")))
}

/// Waits until the kernel says that everything in it stands still, or goes.
fn wait_frozen(cgroup: &Cgroup, frozen: bool) -> Result<(), Failure> {
    let (line, events) = (format!("frozen {}", u8::from(frozen)), cgroup.path().join("cgroup.events"));
    wait_until(&format!("cgroup.events does not come to say `{line}`"), || {
        Ok(fs::read_to_string(&events)?.lines().any(|found| found == line))
    })
}

fn wait_until(otherwise: &str, mut is_so: impl FnMut() -> Result<bool, Failure>) -> Result<(), Failure> {
    let end = Instant::now() + SOON;
    while !is_so()? {
        if Instant::now() > end {
            return Err(failure(otherwise));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}
