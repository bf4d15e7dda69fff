//! Bottles: their cgroups, their launch, the registry of attached ones.
pub mod cgroup;
pub mod home;
pub mod launch;
pub mod registry;
pub mod seccomp;
