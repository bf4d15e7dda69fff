//! Finding and checking cgroup v2 directories.

/// A cgroup v2 directory.
#[derive(Debug)]
pub struct Cgroup;
