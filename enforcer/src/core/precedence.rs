//! The thread that decides runs before what it decides over: on a busy host its store would otherwise wait for a
//! processor that a bottle is using.
//!
//! A nice level and no real-time class: that is refused on some kernels outside the root cgroup, and a fault of ours could
//! then stop the host. Where the `cpu` controller shares processors out by cgroup, it counts among the threads of the
//! controller's own cgroup alone.

/// The most favoured there is.
const NICE: i32 = -20;

/// Raises the calling thread. Where that is not allowed it goes on as it was.
pub(super) fn take() {
    // Linux: no process means the calling thread
    if let Err(error) = rustix::process::setpriority_process(None, NICE) {
        tracing::warn!(%error, "the thread that decides runs no sooner than others");
    }
}
