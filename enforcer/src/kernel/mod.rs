//! The kernel as the rest of the controller sees it: attach, flip, read.
//!
//! `loader` does it with eBPF; `fake` does it in memory for tests without root. Nothing outside this room
//! knows of maps, pins or programs.
mod allow;
mod events;
pub mod fake;
mod families;
mod hooks;
pub mod loader;
pub mod log;
mod maps;
pub mod pins;
pub mod probe;
mod programs;
mod refusal;
mod shapes;
pub mod sock_diag;
mod sys;
mod table;
pub mod throwaway;
mod words;

use std::net::{Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

pub use enforcer_ebpf::{Counters, Event, Flow, FlowKey};
use serde::{Deserialize, Serialize};

pub use self::allow::{Allowed, AllowedPorts};
pub use self::events::{Events, age};
pub use self::sys::{namespace_cookie, open_cgroup};
pub use self::table::address_of;

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
    /// How the map says cut; `None`: open.
    pub cut: Option<Face>,
    /// As [`Guard::mute`].
    pub mute: bool,
}

/// What a bottle's entry is to hold besides the verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Guard {
    /// Index in the kernel's table, from 1.
    pub slot: u32,
    /// Generation of the slot.
    pub generation: u32,
    /// The meter's listener in the host's network namespace; in others it is on loopback, at the same port. For
    /// the hooks that do not know the namespace; where connections are sent is their [`Place`]'s to say.
    pub meter: SocketAddr,
    /// Address of an IPv6 listener of the meter at the same port, where `meter` is IPv4.
    pub meter_ip6: Option<Ipv6Addr>,
    /// The refusal lane's listener, as `meter`.
    pub lane: Option<SocketAddr>,
    /// As `meter_ip6`.
    pub lane_ip6: Option<Ipv6Addr>,
    /// Whether TCP :80 and :443 to public addresses go to the meter, and what goes there beside it is dropped.
    pub redirect: bool,
    /// Whether nothing leaves but to the meter and to what the allow-list names.
    pub lockdown: bool,
    /// Whether these are the refusal lane's own sockets: while open, they speak from the lane's address and port to
    /// loopback, and nothing else.
    pub is_lane: bool,
    /// Whether every cut is a silent one, whatever its face.
    pub mute: bool,
}

impl Guard {
    /// A guard that redirects to an only listener, in mode `open`.
    #[must_use]
    pub fn new(slot: u32, generation: u32, meter: SocketAddr) -> Self {
        Self {
            slot,
            generation,
            meter,
            meter_ip6: None,
            lane: None,
            lane_ip6: None,
            redirect: true,
            lockdown: false,
            is_lane: false,
            mute: false,
        }
    }
}

/// Where the meter is in one network namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Id of the listening sockets there ([`Kernel::new_listener`]); never given to another namespace.
    pub listener: u32,
    /// The meter's listener.
    pub meter: SocketAddr,
    /// Address of an IPv6 listener of the meter at the same port, where `meter` is IPv4. Without one, sockets that
    /// take IPv6 only (`IPV6_V6ONLY`) cannot be redirected: their connections fail with ENETUNREACH.
    pub meter_ip6: Option<Ipv6Addr>,
    /// The refusal lane's listener; without one a cut refuses instead of answering.
    pub lane: Option<SocketAddr>,
    /// As `meter_ip6`.
    pub lane_ip6: Option<Ipv6Addr>,
}

impl Place {
    /// A place with an only listener.
    #[must_use]
    pub fn new(listener: u32, meter: SocketAddr) -> Self {
        Self { listener, meter, meter_ip6: None, lane: None, lane_ip6: None }
    }
}

/// What a cut bottle's programs see. Of two, the greater is the more closed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Face {
    /// The refusal lane, and nothing else.
    Answered,
    /// Nothing: every packet is dropped, every call refused.
    #[default]
    Silent,
}

impl Face {
    /// The word used in settings and in JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Answered => "answered",
            Self::Silent => "silent",
        }
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

    /// Points a guard's entry at the meter's current listener, with what else the guard says, and leaves the verdict as
    /// it is.
    fn refresh(&self, guard: Guard);

    /// Takes the hooks away and clears the slot. Sockets that have outlived the guard's cgroup are free of the slot and
    /// cut for as long as there are any.
    ///
    /// # Errors
    /// When a pin cannot be removed; the slot's entry is dropped to "not live" first, so nothing opens by failure.
    fn detach(&self, name: &str, slot: u32) -> Result<(), KernelError>;

    /// Drops every packet of the slot from when this returns, and answers nothing.
    fn cut(&self, slot: u32) {
        self.cut_as(slot, Face::Silent);
    }

    /// Drops every packet of the slot from when this returns, but those to and from the refusal lane where the face
    /// is [`Face::Answered`]; that puts an attached slot in use. A cut bottle's face changes at once.
    fn cut_as(&self, slot: u32, face: Face);

    /// Lets the slot's packets pass again (and for the first time, after [`Kernel::attach`]).
    fn open(&self, slot: u32);

    /// Whether the map says that the slot's packets pass.
    fn is_open(&self, slot: u32) -> bool;

    /// Closes the slot by itself whenever [`Kernel::beat`] has not been called for this long; `None`: never.
    fn set_lease(&self, slot: u32, lease: Option<Duration>);

    /// Renews every lease: one store.
    fn beat(&self);

    /// How long ago the last [`Kernel::beat`] was, of an earlier controller too; `None`: there never was one.
    fn silence(&self) -> Option<Duration>;

    /// An id for listening sockets that none had before, of an earlier controller neither: what a socket was told
    /// then is never true of another namespace now. `None` when all have been given.
    fn new_listener(&self) -> Option<u32>;

    /// Says where the meter is in a network namespace (see [`namespace_cookie`]). Until then what would be sent to
    /// it from there is refused. Nothing outlives the controller: a new one finds no places.
    ///
    /// # Errors
    /// When there is no room, or the meter's address is not a definite one.
    fn set_place(&self, cookie: u64, place: &Place) -> Result<(), KernelError>;

    /// Takes a place away; one that is not there is no error.
    ///
    /// # Errors
    /// When the map cannot be written.
    fn remove_place(&self, cookie: u64) -> Result<(), KernelError>;

    /// What the hooks tell from now on.
    ///
    /// # Errors
    /// When they have been taken already, or cannot be read.
    fn events(&self) -> Result<Events, KernelError>;

    /// Makes this what the slot may reach under lockdown besides the meter and its own loopback; nothing for an empty
    /// list. What goes is taken away before anything is added.
    ///
    /// # Errors
    /// When there is no room, or the list cannot be written: then the slot reaches no more than both lists say.
    fn set_allowed(&self, slot: u32, allowed: &[Allowed]) -> Result<(), KernelError>;

    /// Whether bottles under lockdown are refused sockets of every family whose packets the hooks do not see; found
    /// out by making one.
    fn refuses_packet_sockets(&self) -> bool;

    /// Packets and bytes of the slot so far, summed over CPUs.
    ///
    /// # Errors
    /// When the map cannot be read.
    fn counters(&self, slot: u32) -> Result<Counters, KernelError>;

    /// Whose connection this is and where it was going, as the kernel remembered it when it was made; `None` when
    /// nobody's, or when the slot's generation or liveness has changed since.
    fn flow(&self, peer: SocketAddr, local: SocketAddr, listener: u32) -> Option<Flow>;

    /// The cgroup in which the TCP socket at `peer` was made that is connected to `local`, where both are in the host's
    /// network namespace, which the calling thread must be in. `None` when there is none, when it is closed, or when
    /// its cgroup cannot be told or is gone. Takes two dozen microseconds: for what is rare.
    fn made_in(&self, peer: SocketAddr, local: SocketAddr) -> Option<PathBuf>;

    /// The connections of the slot to the meter and to the lane that are remembered now. Cheap where there are none.
    ///
    /// # Errors
    /// When the map cannot be read.
    fn flows_of(&self, slot: u32) -> Result<Vec<(FlowKey, Flow)>, KernelError>;
}
