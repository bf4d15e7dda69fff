//! The kernel as the rest of the controller sees it: attach, flip, read.
//!
//! `loader` does it with eBPF; `fake` does it in memory for tests without root. Nothing outside this room
//! knows of maps, pins or programs.
pub mod fake;
pub mod loader;
pub mod pins;
pub mod probe;
pub mod sock_diag;
mod sys;
mod table;

use std::net::{Ipv6Addr, SocketAddr};
use std::path::PathBuf;

pub use enforcer_ebpf::{Counters, Flow};

use crate::bottle::cgroup::Cgroup;

/// What can go wrong between the controller and the kernel.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// The kernel or the host lacks something; the hint says what to do.
    #[error("{what}")]
    Unsupported {
        /// What was refused, with the kernel's own words.
        what: String,
        /// What the operator can do.
        hint: String,
    },
    /// What is pinned cannot be taken over.
    #[error("{path}: {what}")]
    Pins {
        /// The pin.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// This cgroup is guarded already.
    #[error("{0} is attached already")]
    AlreadyAttached(PathBuf),
    /// Any other refusal.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// The kernel's answer.
        source: std::io::Error,
    },
}

/// A guard found pinned at start, left by an earlier controller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pinned {
    /// The bottle's name (the pin directory's).
    pub name: String,
    /// Its slot.
    pub slot: u32,
    /// The slot's generation.
    pub generation: u32,
    /// Inode of the cgroup it was attached to; 0 when that cgroup is gone.
    pub cgroup_id: u64,
    /// Whether the map says cut.
    pub cut: bool,
}

/// What a bottle's entry is to hold besides the verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Guard {
    /// Index in the kernel's table, from 1.
    pub slot: u32,
    /// Generation of the slot.
    pub generation: u32,
    /// The meter's listener.
    pub meter: SocketAddr,
    /// Id of that listener.
    pub listener: u32,
    /// Address of an IPv6 listener of the meter at the same port, where `meter` is IPv4. Without one, sockets that
    /// take IPv6 only (`IPV6_V6ONLY`) cannot be redirected: their connections fail with ENETUNREACH.
    pub meter_ip6: Option<Ipv6Addr>,
    /// Whether TCP :80 and :443 to public addresses go to the meter, and what goes there beside it is dropped.
    pub redirect: bool,
}

impl Guard {
    /// A guard that redirects to an only listener.
    #[must_use]
    pub fn new(slot: u32, generation: u32, meter: SocketAddr, listener: u32) -> Self {
        Self { slot, generation, meter, listener, meter_ip6: None, redirect: true }
    }
}

/// The kernel plane. Shared by threads; every call is short and touches no disk.
pub trait Kernel: Send + Sync {
    /// Guards found pinned when this kernel plane was opened.
    fn adopted(&self) -> Vec<Pinned>;

    /// Attaches every hook to the cgroup and pins the links under `name`. Nothing passes until [`Kernel::open`]:
    /// the slot's entry is written first, not live. On an error nothing is left attached or pinned.
    ///
    /// # Errors
    /// See [`KernelError`].
    fn attach(&self, name: &str, cgroup: &Cgroup, guard: Guard) -> Result<(), KernelError>;

    /// Points an adopted guard's entry at the meter's current listener, with the redirect as the guard says, and
    /// leaves the verdict as it is.
    fn refresh(&self, guard: Guard);

    /// Takes the hooks away and clears the slot.
    ///
    /// # Errors
    /// When a pin cannot be removed; the slot's entry is dropped to "not live" first, so nothing opens by failure.
    fn detach(&self, name: &str, slot: u32) -> Result<(), KernelError>;

    /// Drops every packet of the slot from when this returns: one store.
    fn cut(&self, slot: u32);

    /// Lets the slot's packets pass again (and for the first time, after [`Kernel::attach`]).
    fn open(&self, slot: u32);

    /// Whether the map says that the slot's packets pass.
    fn is_open(&self, slot: u32) -> bool;

    /// Packets and bytes of the slot so far, summed over CPUs.
    ///
    /// # Errors
    /// When the map cannot be read.
    fn counters(&self, slot: u32) -> Result<Counters, KernelError>;

    /// Whose connection this is and where it was going, as the kernel remembered it when it was made; `None` when nobody's, or when
    /// the slot's generation or liveness has changed since.
    fn flow(&self, peer: SocketAddr, local: SocketAddr, listener: u32) -> Option<Flow>;
}
