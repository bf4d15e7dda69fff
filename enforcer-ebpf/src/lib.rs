//! The ABI between the kernel programs and the controller: what both sides read and write in maps.
//!
//! This file is the only thing that the two sides of the kernel share. Every struct is `repr(C)`, padded by
//! named fields and asserted in size, so that a field is added at the end of a reserved run and never moves.
//! Addresses are network byte order words as the kernel holds them (`user_ip4`), IPv4 as v4-mapped IPv6.
//! The lifetimes: entries of `BOTTLES`, `NAMESPACES`, `ALLOW`, `HEART` and `LAST_LISTENER` are written by the
//! controller alone; counters, flows, originals, askers and events by the kernel.
#![no_std]

pub mod address;

/// Version of this ABI: the maps' shapes and which hooks a bottle has. What another version has pinned is refused
/// at adoption. (2: the redirect's hooks and `ORIGINALS`. 3: places, lease, events, allow-list, homes. 4: the last
/// listener id. 5: DNS of answered cuts, by `ASKERS` and the hooks on what is received. 6: `ASKERS` counts.)
pub const ABI_VERSION: u32 = 6;

/// Entries of `BOTTLES`; slot 0 is never live, so a hook whose slot is not written yet drops.
pub const SLOTS: u32 = 4096;

/// Entries of `FLOWS`: live connections of all bottles to the meter.
pub const FLOWS: u32 = 65_536;

/// Live connections to the meter that one bottle may hold; more are refused.
pub const FLOWS_PER_BOTTLE: u32 = 2_048;

/// Entries of `NAMESPACES`: network namespaces in which a bottle's processes meet the meter.
pub const NAMESPACES: u32 = 8_192;

/// Entries of `ASKERS`: whence queries came that the lane has not answered yet.
pub const ASKERS: u32 = 16_384;

/// Answers that the lane may owe to one asker; to further queries it gives none.
pub const ANSWERS_OWED: i64 = 64;

/// Bytes of the ring `EVENTS`.
pub const EVENT_BYTES: u32 = 256 * 1024;

/// Entries of `ALLOW`: destinations of all bottles under lockdown.
pub const ALLOW: u32 = 65_536;

/// Ports that one entry of `ALLOW` can list.
pub const ALLOW_PORTS: usize = 16;

/// Third word of a v4-mapped IPv6 address (`::ffff:a.b.c.d`) in network byte order on a little-endian host.
pub const MAPPED: u32 = 0xffff_0000;

/// [`Bottle::flags`]: the slot is in use. Without it everything is dropped.
pub const FLAG_LIVE: u32 = 1;
/// [`Bottle::flags`]: only the meter, the allow-list and the bottle's own loopback are reachable.
pub const FLAG_LOCKDOWN: u32 = 1 << 1;
/// [`Bottle::flags`]: TCP :80 and :443 to the addresses of [`address::is_redirected`] are sent to the meter, and
/// what goes there in another way (UDP :443 too) is dropped.
pub const FLAG_REDIRECT: u32 = 1 << 2;

/// [`Bottle::flags`]: these are the refusal lane's own sockets. While open, they speak from [`Bottle::lane`] to loopback
/// and back, and nothing else.
pub const FLAG_LANE: u32 = 1 << 3;

/// [`Bottle::flags`]: a cut is a silent one, whatever its face: who rules over the bottle's network could use what is
/// let through to the lane for something else.
pub const FLAG_MUTE: u32 = 1 << 4;

/// [`Bottle::cut`]: packets pass.
pub const OPEN: u32 = 0;
/// [`Bottle::cut`]: every packet is dropped. Any other non-zero value means the same.
pub const CUT: u32 = 1;

/// [`Bottle::face`]: a cut drops and says nothing.
pub const FACE_SILENT: u32 = 0;
/// [`Bottle::face`]: a cut lets the refusal lane answer.
pub const FACE_ANSWERED: u32 = 1;

/// The listener id of the meter's socket in the host's network namespace.
pub const LISTENER_HOST: u32 = 1;

/// [`Event::kind`]: dropped or refused because the bottle is cut.
pub const EVENT_CUT: u32 = 1;
/// [`Event::kind`]: dropped or refused because the controller's heartbeat is older than the bottle's lease.
pub const EVENT_LEASE: u32 = 2;
/// [`Event::kind`]: dropped or refused by a rule, though the bottle is open.
pub const EVENT_RULE: u32 = 3;
/// [`Event::kind`]: refused because this network namespace has no [`Place`] yet. Not counted with the drops.
pub const EVENT_NAMESPACE: u32 = 4;

/// [`AllowPorts::flags`]: every port, whatever is listed.
pub const ALLOW_ANY_PORT: u32 = 1;
/// [`AllowPorts::flags`]: port 53, by TCP and UDP: the address is a resolver's.
pub const ALLOW_DNS: u32 = 1 << 1;

/// Where a redirected connection goes: the meter or the refusal lane.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Endpoint {
    /// IPv6 form, all zero when there is no IPv6 listener.
    pub ip6: [u32; 4],
    /// IPv4 form, zero when there is none.
    pub ip4: u32,
    /// Port in network byte order, in the low 16 bits (as `user_port`).
    pub port: u32,
}

/// One bottle: an entry of `BOTTLES`, indexed by slot. Written field by field, never whole while live: a write
/// of the whole value would race the flip of `cut`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bottle {
    /// [`OPEN`] or [`CUT`]; the flip is one aligned store.
    pub cut: u32,
    /// [`FACE_SILENT`] or [`FACE_ANSWERED`]; only read while cut.
    pub face: u32,
    /// `FLAG_*`.
    pub flags: u32,
    /// Grows each time the slot is given to another bottle; a remembered connection of an older one is void.
    pub generation: u32,
    /// Inode of the cgroup directory that the slot is attached to.
    pub cgroup_id: u64,
    /// The bottle drops when the controller's heartbeat is older than this (nanoseconds); 0 = no lease.
    pub lease_ns: u64,
    /// The meter's listener in the host's namespace; in others it is on loopback, at the same port. Only for the
    /// hooks that do not know the namespace: where a connection is sent is its [`Place`]'s to say.
    pub meter: Endpoint,
    /// The refusal lane's listener, as `meter`.
    pub lane: Endpoint,
    /// Grows at each cut, arming the first drop event after it.
    pub epoch: u32,
    /// Zero; room for later fields.
    pub reserved: [u32; 9],
}

/// Where the meter is in one network namespace: an entry of `NAMESPACES`, by the namespace's cookie.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// Id of the meter's listening sockets there ([`LISTENER_HOST`] in the host's): never given to another namespace,
    /// by a later controller neither.
    pub listener: u32,
    /// Zero.
    pub pad: u32,
    /// The meter's listener.
    pub meter: Endpoint,
    /// The refusal lane's listener; unset when there is none.
    pub lane: Endpoint,
}

/// A destination: the data of a key of `ALLOW`, behind the prefix length (32 bits of slot, then the address's).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct AllowKey {
    /// The bottle's slot.
    pub slot: u32,
    /// Address, IPv4 as v4-mapped.
    pub ip: [u32; 4],
}

/// What is reachable at a destination: a value of `ALLOW`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AllowPorts {
    /// `ALLOW_*`.
    pub flags: u32,
    /// How many of `ports` are set, from the first.
    pub count: u32,
    /// Ports of TCP and UDP, host byte order.
    pub ports: [u16; ALLOW_PORTS],
}

/// Something that a hook tells the controller: an entry of the ring `EVENTS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Event {
    /// `EVENT_*`.
    pub kind: u32,
    /// The bottle's slot.
    pub slot: u32,
    /// The slot's generation then.
    pub generation: u32,
    /// The calling process as the host counts it; 0 where a packet was judged, which is nobody's call.
    pub pid: u32,
    /// When, CLOCK_MONOTONIC_COARSE nanoseconds.
    pub at_ns: u64,
    /// Cookie of the network namespace; 0 where a packet was judged.
    pub cookie: u64,
    /// The far end's address.
    pub ip: [u32; 4],
    /// The far end's port, host byte order; 0 when there is none to be read.
    pub port: u32,
    /// IPPROTO_*.
    pub protocol: u32,
    /// Drops since the event before this one that made none.
    pub suppressed: u32,
    /// Zero.
    pub pad: u32,
}

/// When a slot told of its drops last: an entry of `EVENT_STATES`, indexed by slot.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EventState {
    /// Of the last drop event: the low 16 bits of [`Bottle::epoch`], and below them when it was, in 2^16
    /// nanoseconds of CLOCK_MONOTONIC_COARSE.
    pub told: u64,
    /// Drops since then that made none.
    pub suppressed: u64,
    /// When the last [`EVENT_NAMESPACE`] was, CLOCK_MONOTONIC_COARSE nanoseconds.
    pub namespace_ns: u64,
    /// Zero.
    pub pad: u64,
}

/// Packets and bytes of one bottle, both directions: an entry of the per-CPU `COUNTERS`, indexed by slot.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Packets let through.
    pub passed_packets: u64,
    /// Bytes let through, from the network header on.
    pub passed_bytes: u64,
    /// Packets dropped, and calls refused before they made one (which count no bytes).
    pub dropped_packets: u64,
    /// Bytes dropped, from the network header on.
    pub dropped_bytes: u64,
}

/// A connection to the meter as both ends see it: a key of `FLOWS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlowKey {
    /// Address of the bottle's end.
    pub source_ip: [u32; 4],
    /// Address of the meter's end.
    pub destination_ip: [u32; 4],
    /// Port of the bottle's end, host byte order.
    pub source_port: u32,
    /// Port of the meter's end, host byte order.
    pub destination_port: u32,
    /// The listening socket: one loopback address and port can exist in many network namespaces.
    pub listener: u32,
    /// Zero.
    pub pad: u32,
}

/// Whose connection it is and where it was going: a value of `FLOWS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flow {
    /// Address the program asked for; the meter's own when it connected there by itself.
    pub original_ip: [u32; 4],
    /// Port the program asked for, host byte order.
    pub original_port: u32,
    /// The bottle's slot.
    pub slot: u32,
    /// The slot's generation when the connection was made.
    pub generation: u32,
    /// Zero.
    pub pad: u32,
    /// Inode of the cgroup the hook is attached to.
    pub cgroup_id: u64,
    /// Cookie of the bottle's socket.
    pub cookie: u64,
}

/// What connect(), or a query that was sent, made of a socket that goes to the meter or the lane: a value of
/// `ORIGINALS`, kept by the kernel as long as the socket.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Original {
    /// Address the program asked for.
    pub ip: [u32; 4],
    /// Port the program asked for, host byte order; 0: the socket goes where it asked.
    pub port: u32,
    /// Slot of the bottle whose connection it is: the innermost one.
    pub slot: u32,
    /// The slot's generation then.
    pub generation: u32,
    /// [`Place::listener`] of the socket's namespace; 0: it goes elsewhere, and is nobody's.
    pub listener: u32,
}

/// Whence queries came to the lane, which may answer each once: a key of `ASKERS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Asker {
    /// Address of the bottle's end, IPv4 as v4-mapped.
    pub ip: [u32; 4],
    /// Its port, host byte order.
    pub port: u32,
    /// [`Place::listener`] of the network namespace.
    pub listener: u32,
}

const _: () = assert!(core::mem::size_of::<Endpoint>() == 24);
const _: () = assert!(core::mem::size_of::<Bottle>() == 120);
const _: () = assert!(core::mem::size_of::<Place>() == 56);
const _: () = assert!(core::mem::size_of::<AllowKey>() == 20);
const _: () = assert!(core::mem::size_of::<AllowPorts>() == 40);
const _: () = assert!(core::mem::size_of::<Event>() == 64);
const _: () = assert!(core::mem::size_of::<EventState>() == 32);
const _: () = assert!(core::mem::size_of::<Counters>() == 32);
const _: () = assert!(core::mem::size_of::<FlowKey>() == 48);
const _: () = assert!(core::mem::size_of::<Flow>() == 48);
const _: () = assert!(core::mem::size_of::<Original>() == 32);
const _: () = assert!(core::mem::size_of::<Asker>() == 24);

#[cfg(feature = "user")]
mod user {
    use super::{AllowKey, AllowPorts, Bottle, Counters, EventState, Flow, FlowKey, Place};

    // SAFETY: `repr(C)`, every byte belongs to a named field (the sizes are asserted above) and any bit
    // pattern is a valid value: only unsigned integers.
    unsafe impl aya::Pod for Bottle {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Counters {}
    // SAFETY: as above.
    unsafe impl aya::Pod for FlowKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Flow {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Place {}
    // SAFETY: as above.
    unsafe impl aya::Pod for AllowKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for AllowPorts {}
    // SAFETY: as above.
    unsafe impl aya::Pod for EventState {}
}
