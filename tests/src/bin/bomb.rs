//! A fork bomb that cannot take the host with it: it runs as a user of its own with a bound on that user's processes,
//! forks for ever, and half of its processes end at once, so that there are always new ones.
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{SigHandler, Signal, signal};
use nix::unistd::{ForkResult, Uid, fork, setuid};

/// A user that nobody is.
const BOMBER: u32 = 60_123;
/// Most processes at a time.
const MAX_PROCESSES: u64 = 300;
/// Between two forks of one process: the bomb is to fork without end, not to heat the host.
const PAUSE: Duration = Duration::from_millis(2);

fn main() -> nix::Result<()> {
    setrlimit(Resource::RLIMIT_NPROC, MAX_PROCESSES, MAX_PROCESSES)?;
    // SAFETY: no handler is installed: children that end are reaped by the kernel.
    unsafe { signal(Signal::SIGCHLD, SigHandler::SigIgn) }?;
    setuid(Uid::from_raw(BOMBER))?;
    let mut forks = 0_u32;
    loop {
        // SAFETY: this program has one thread.
        match unsafe { fork() } {
            Ok(ForkResult::Child) => forks = 0,
            Ok(ForkResult::Parent { .. }) => forks += 1,
            Err(Errno::EAGAIN) => {
                if forks % 2 == 1 {
                    return Ok(());
                }
            }
            Err(error) => return Err(error),
        }
        std::thread::sleep(PAUSE);
    }
}
