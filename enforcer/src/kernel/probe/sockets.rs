//! Finding a socket by its cookie and cgroup, and aborting it: what a hard cut and an answered one stand on.
