//! A process of the benchmark in a cgroup, and memory that it shares with the benchmark.
use std::fs::OpenOptions;
use std::path::Path;

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork};

/// Ended when dropped.
pub struct Inside(Option<Pid>);

impl Inside {
    /// Starts one in a cgroup, or where the benchmark is.
    pub fn start(cgroup: Option<&Path>, action: impl FnOnce()) -> Self {
        let procs =
            cgroup.map(|path| OpenOptions::new().write(true).open(path.join("cgroup.procs")).unwrap());
        // SAFETY: this process has one other thread, which waits and holds no lock.
        match unsafe { fork() }.unwrap() {
            ForkResult::Parent { child } => Self(Some(child)),
            ForkResult::Child => {
                if let Some(procs) = procs {
                    nix::unistd::write(&procs, b"0").unwrap();
                }
                action();
                // SAFETY: ends the process at once.
                unsafe { libc::_exit(0) }
            }
        }
    }

    /// Waits until its action is done.
    pub fn finish(mut self) {
        let child = self.0.take().unwrap();
        assert_eq!(waitpid(child, None).unwrap(), WaitStatus::Exited(child, 0));
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        if let Some(child) = self.0 {
            kill(child, Signal::SIGKILL).unwrap();
            waitpid(child, None).unwrap();
        }
    }
}

/// Memory shared with a child: a `T` of atomic words.
pub fn shared<T>() -> &'static T {
    let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS;
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a fresh mapping, never unmapped, zeroed, and large enough; zero is a value of the atomic words.
    unsafe {
        let address = libc::mmap(std::ptr::null_mut(), size_of::<T>(), protection, flags, -1, 0);
        assert_ne!(address, libc::MAP_FAILED);
        &*address.cast::<T>()
    }
}
