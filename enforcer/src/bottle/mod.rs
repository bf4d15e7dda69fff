//! Bottles: their cgroups, their launch, the registry of attached ones.
pub mod awaited;
pub mod cgroup;
pub mod engine;
pub mod home;
pub mod launch;
pub mod registry;
pub mod sockets;
