//! The controller's heartbeat (`HEART`) as shared memory: written without a call. Who beats, and when, is not its
//! business.
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::time::{ClockId, clock_gettime};

use super::sys::Mapping;

/// The mapped heartbeat.
#[derive(Debug)]
pub struct Heart(Mapping);

impl Heart {
    /// Maps it.
    pub fn map(fd: BorrowedFd<'_>) -> io::Result<Self> {
        Mapping::of(fd, size_of::<u64>()).map(Self)
    }

    /// Stores the time: CLOCK_MONOTONIC_COARSE, as the hooks read it. It stands still in suspend, as they do.
    pub fn beat(&self) {
        // without a clock there is no heartbeat, and leases end
        let Ok(now) = clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE) else { return };
        let seconds = u64::try_from(now.tv_sec()).unwrap_or(0);
        let nanoseconds = u64::try_from(now.tv_nsec()).unwrap_or(0);
        // SAFETY: the mapping holds an aligned word, lasts as long as `self` and is only accessed by atomics.
        let word = unsafe { AtomicU64::from_ptr(self.0.base().cast().as_ptr()) };
        word.store(seconds * 1_000_000_000 + nanoseconds, Ordering::SeqCst);
    }
}
