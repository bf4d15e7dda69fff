//! Bottles: their cgroups, their network namespaces, their launch, the registry of attached ones.
pub mod awaited;
pub mod cgroup;
pub mod engine;
pub mod events;
pub mod home;
pub mod launch;
pub mod namespaces;
pub mod netns;
pub mod processes;
pub mod registry;
pub mod seccomp;
pub mod sockets;
