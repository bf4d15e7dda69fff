//! Mutexes that are locked also after a holder panicked.
//!
//! Every critical section of the meter leaves its data whole at each step; that is the condition for this.
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks, whatever became of the last holder.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
