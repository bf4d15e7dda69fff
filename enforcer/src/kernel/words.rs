//! Maps of single words as shared memory (`HEART`, `FLOW_COUNTS`, `LAST_LISTENER`): read and written without a call, and
//! atomically towards the hooks.
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::AtomicU64;

use nix::time::{ClockId, clock_gettime};

use super::sys::Mapping;

/// A mapped array of words.
#[derive(Debug)]
pub struct Words {
    mapping: Mapping,
    count: usize,
}

impl Words {
    /// Maps a map of so many words.
    pub fn map(fd: BorrowedFd<'_>, count: u32) -> io::Result<Self> {
        let count = usize::try_from(count).map_err(io::Error::other)?;
        Ok(Self { mapping: Mapping::of(fd, count * size_of::<u64>())?, count })
    }

    /// One of them; `None` when there is no such one.
    pub fn get(&self, at: u32) -> Option<&AtomicU64> {
        let at = usize::try_from(at).ok().filter(|at| *at < self.count)?;
        // SAFETY: inside the mapping, which lasts as long as `self`, and aligned; it is only accessed by atomics.
        Some(unsafe { AtomicU64::from_ptr(self.mapping.base().cast::<u64>().as_ptr().add(at)) })
    }
}

/// The time by which hooks judge a heartbeat: CLOCK_MONOTONIC_COARSE, nanoseconds. It stands still in suspend, as
/// the controller does. 0, and no lease holds, where there is no such clock.
pub fn coarse_now() -> u64 {
    let Ok(now) = clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE) else { return 0 };
    let seconds = u64::try_from(now.tv_sec()).unwrap_or(0);
    seconds * 1_000_000_000 + u64::try_from(now.tv_nsec()).unwrap_or(0)
}
