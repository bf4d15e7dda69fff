//! Stopping and ending every process of a cgroup at once: what the policies `freeze` and `kill` stand on.
use std::fs;
use std::io::{self, ErrorKind};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill as send_signal};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;

use super::inside::fork_in;
use super::{Outcome, failure};
use crate::bottle::cgroup::Cgroup;

/// How long the kernel may take to stop or to let go.
const SOON: Duration = Duration::from_millis(500);

/// A process that sleeps in a cgroup; ended when dropped.
struct Sleeper(Pid);

impl Sleeper {
    fn start(cgroup: &Cgroup) -> io::Result<Self> {
        Ok(Self(fork_in(cgroup, || {
            loop {
                nix::unistd::pause();
            }
        })?))
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        // one that has been ended and waited for is nobody's any more
        if send_signal(self.0, Signal::SIGKILL).is_ok()
            && let Err(error) = waitpid(self.0, None)
        {
            tracing::debug!(%error, "the sleeping process was waited for already");
        }
    }
}

pub(super) fn freeze(cgroup: &Cgroup) -> Outcome {
    let _sleeper = Sleeper::start(cgroup)?;
    let tried = put(cgroup, "cgroup.freeze", "1").and_then(|()| wait_frozen(cgroup, true));
    put(cgroup, "cgroup.freeze", "0")?;
    tried?;
    wait_frozen(cgroup, false)?;
    Ok("cgroup.freeze stops a process, and lets it go on".to_owned())
}

pub(super) fn kill(cgroup: &Cgroup) -> Outcome {
    let sleeper = Sleeper::start(cgroup)?;
    put(cgroup, "cgroup.kill", "1")?;
    let status = waitpid(sleeper.0, None).map_err(io::Error::from)?;
    std::mem::forget(sleeper);
    match status {
        WaitStatus::Signaled(_, Signal::SIGKILL, _) => Ok("cgroup.kill ends a process".to_owned()),
        other => Err(failure(format!("cgroup.kill does not end a process: {other:?}"))),
    }
}

fn put(cgroup: &Cgroup, file: &str, value: &str) -> io::Result<()> {
    fs::write(cgroup.path().join(file), value)
        .map_err(|error| io::Error::new(error.kind(), format!("{file}: {error}")))
}

/// Waits until the kernel says that everything in it stands still, or goes.
fn wait_frozen(cgroup: &Cgroup, frozen: bool) -> io::Result<()> {
    let line = format!("frozen {}", u8::from(frozen));
    let end = Instant::now() + SOON;
    while !fs::read_to_string(cgroup.path().join("cgroup.events"))?.lines().any(|found| found == line) {
        if Instant::now() > end {
            return Err(io::Error::new(ErrorKind::TimedOut, format!("cgroup.events does not say `{line}`")));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}
