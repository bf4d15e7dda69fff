//! The kernel's table of bottles (`BOTTLES`) as shared memory: single fields, read and written without a call.
//!
//! A whole-value update of the map would race the flip of a verdict, so there is none here.
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

use enforcer_ebpf::{
    self as abi, Bottle, CUT, Endpoint, FACE_ANSWERED, FACE_SILENT, FLAG_LANE, FLAG_LIVE, FLAG_LOCKDOWN,
    FLAG_MUTE, FLAG_REDIRECT, FlowKey, MAPPED, OPEN, SLOTS,
};

use super::sys::Mapping;
use super::{Face, Guard, Place};

/// Bytes of the mapping.
const LENGTH: usize = SLOTS as usize * size_of::<Bottle>();

/// The mapped table. Any thread may write; the kernel programs read.
#[derive(Debug)]
pub struct Table(Mapping);

impl Table {
    /// Maps the table.
    pub fn map(fd: BorrowedFd<'_>) -> io::Result<Self> {
        Mapping::of(fd, LENGTH).map(Self)
    }

    /// Writes what a slot is, closed and not live.
    pub fn prepare(&self, guard: &Guard, cgroup_id: u64) {
        self.retire(guard.slot);
        let bottle = self.entry(guard.slot);
        // SAFETY: see `word` and `entry`; the same for each field.
        unsafe {
            word(&raw mut (*bottle).generation).store(guard.generation, Ordering::SeqCst);
            AtomicU64::from_ptr(&raw mut (*bottle).cgroup_id).store(cgroup_id, Ordering::SeqCst);
        }
        self.set_meter(guard);
    }

    /// Points the slot at the meter and the lane, and turns on or off what else the guard says.
    pub fn set_meter(&self, guard: &Guard) {
        let bottle = self.entry(guard.slot);
        // SAFETY: see `word` and `entry`; the same for each field.
        unsafe {
            store_endpoint(&raw mut (*bottle).meter, endpoint(guard.meter, guard.meter_ip6));
            store_endpoint(&raw mut (*bottle).lane, optional_endpoint(guard.lane, guard.lane_ip6));
            let flags = word(&raw mut (*bottle).flags);
            let flags_of = [
                (FLAG_REDIRECT, guard.redirect),
                (FLAG_LOCKDOWN, guard.lockdown),
                (FLAG_LANE, guard.is_lane),
                (FLAG_MUTE, guard.mute),
            ];
            for (flag, on) in flags_of {
                if on {
                    flags.fetch_or(flag, Ordering::SeqCst);
                } else {
                    flags.fetch_and(!flag, Ordering::SeqCst);
                }
            }
        }
    }

    /// Sets how old the heartbeat may be, nanoseconds; 0: as old as it likes.
    pub fn set_lease(&self, slot: u32, lease_ns: u64) {
        // SAFETY: see `word` and `entry`.
        let lease = unsafe { AtomicU64::from_ptr(&raw mut (*self.entry(slot)).lease_ns) };
        lease.store(lease_ns, Ordering::SeqCst);
    }

    /// Takes the slot out of use: cut, not live, of no cgroup. The generation stays, so that it can only grow.
    pub fn retire(&self, slot: u32) {
        self.cut(slot, Face::Silent);
        let bottle = self.entry(slot);
        // SAFETY: see `word` and `entry`; the same for each field.
        unsafe {
            word(&raw mut (*bottle).flags).store(0, Ordering::SeqCst);
            AtomicU64::from_ptr(&raw mut (*bottle).lease_ns).store(0, Ordering::SeqCst);
            AtomicU64::from_ptr(&raw mut (*bottle).cgroup_id).store(0, Ordering::SeqCst);
        }
    }

    /// Closes the slot, seen by every CPU when this returns. The face is there first, so that no packet sees the cut
    /// with the face of an earlier one.
    pub fn cut(&self, slot: u32, face: Face) {
        let bottle = self.entry(slot);
        let face = match face {
            Face::Silent => FACE_SILENT,
            Face::Answered => FACE_ANSWERED,
        };
        // SAFETY: see `word` and `entry`; the same for each field.
        unsafe {
            word(&raw mut (*bottle).face).store(face, Ordering::SeqCst);
            word(&raw mut (*bottle).cut).store(CUT, Ordering::SeqCst);
            fence(Ordering::SeqCst);
            word(&raw mut (*bottle).epoch).fetch_add(1, Ordering::SeqCst);
            if face == FACE_ANSWERED {
                // the lane answers what is in use, also one that has never been open
                word(&raw mut (*bottle).flags).fetch_or(FLAG_LIVE, Ordering::SeqCst);
            }
        }
    }

    /// Opens the slot, and puts it in use.
    pub fn open(&self, slot: u32) {
        let bottle = self.entry(slot);
        // SAFETY: see `word` and `entry`; the same for each field.
        unsafe {
            word(&raw mut (*bottle).cut).store(OPEN, Ordering::SeqCst);
            word(&raw mut (*bottle).flags).fetch_or(FLAG_LIVE, Ordering::SeqCst);
        }
    }

    /// Whether the slot's packets pass.
    pub fn is_open(&self, slot: u32) -> bool {
        // SAFETY: see `word` and `entry`.
        self.is_live(slot) && unsafe { word(&raw mut (*self.entry(slot)).cut) }.load(Ordering::SeqCst) == OPEN
    }

    /// How the slot is cut; `None`: its packets pass. One that is not in use is cut silently.
    pub fn face(&self, slot: u32) -> Option<Face> {
        // SAFETY: see `word` and `entry`.
        let face = unsafe { word(&raw mut (*self.entry(slot)).face) }.load(Ordering::SeqCst);
        match (self.is_open(slot), self.is_live(slot), face) {
            (true, ..) => None,
            (false, true, FACE_ANSWERED) => Some(Face::Answered),
            _ => Some(Face::Silent),
        }
    }

    /// Whether the slot is in use: it has been opened since it was prepared.
    pub fn is_live(&self, slot: u32) -> bool {
        // SAFETY: see `word` and `entry`.
        unsafe { word(&raw mut (*self.entry(slot)).flags) }.load(Ordering::SeqCst) & FLAG_LIVE != 0
    }

    /// Whether the slot's cuts are silent ones, whatever their face.
    pub fn is_mute(&self, slot: u32) -> bool {
        // SAFETY: see `word` and `entry`.
        unsafe { word(&raw mut (*self.entry(slot)).flags) }.load(Ordering::SeqCst) & FLAG_MUTE != 0
    }

    /// The slot's generation.
    pub fn generation(&self, slot: u32) -> u32 {
        // SAFETY: see `word` and `entry`.
        unsafe { word(&raw mut (*self.entry(slot)).generation) }.load(Ordering::SeqCst)
    }

    /// The slot's entry, inside the mapping.
    ///
    /// # Panics
    /// When there is no such slot: a cut that goes nowhere must not be taken for one.
    fn entry(&self, slot: u32) -> *mut Bottle {
        assert!((1..SLOTS).contains(&slot), "slot {slot} is not in 1..{SLOTS}");
        // SAFETY: the slot has just been found to be inside the mapping, which lasts as long as `self`.
        unsafe { self.0.base().cast::<Bottle>().as_ptr().add(slot as usize) }
    }
}

/// A field of the table as an atomic word.
///
/// # Safety
/// The field is inside a mapping that outlives the returned reference.
unsafe fn word<'a>(field: *mut u32) -> &'a AtomicU32 {
    // SAFETY: the caller's promise; the fields of `Bottle` are aligned, and nobody in this process accesses them
    // but through atomics.
    unsafe { AtomicU32::from_ptr(field) }
}

/// Stores an endpoint word by word.
///
/// # Safety
/// It is inside a mapping of the table.
unsafe fn store_endpoint(to: *mut Endpoint, from: Endpoint) {
    // SAFETY: the caller's promise; see `word`.
    unsafe {
        for (at, value) in from.ip6.into_iter().enumerate() {
            word(&raw mut (*to).ip6[at]).store(value, Ordering::SeqCst);
        }
        word(&raw mut (*to).ip4).store(from.ip4, Ordering::SeqCst);
        word(&raw mut (*to).port).store(from.port, Ordering::SeqCst);
    }
}

/// A place as the programs read it.
pub fn place(place: &Place) -> abi::Place {
    abi::Place {
        listener: place.listener,
        pad: 0,
        meter: endpoint(place.meter, place.meter_ip6),
        lane: optional_endpoint(place.lane, place.lane_ip6),
    }
}

fn optional_endpoint(address: Option<SocketAddr>, beside: Option<Ipv6Addr>) -> Endpoint {
    address.map(|address| endpoint(address, beside)).unwrap_or_default()
}

/// A listener's address as the programs compare it. IPv4 stands in `ip4` alone: they find v4-mapped destinations
/// by that form too. An address that is not definite (`0.0.0.0`, `::`) matches nothing. `beside`: an IPv6 listener
/// at the same port.
pub fn endpoint(address: SocketAddr, beside: Option<Ipv6Addr>) -> Endpoint {
    let (ip4, ip6) = match address.ip().to_canonical() {
        IpAddr::V4(ip) => (u32::from_ne_bytes(ip.octets()), beside.map_or([0; 4], words)),
        IpAddr::V6(ip) => (0, words(ip)),
    };
    Endpoint { ip6, ip4, port: u32::from(address.port().to_be()) }
}

/// An address as the keys of `FLOWS` hold it: IPv6 words in network byte order, IPv4 as v4-mapped.
pub fn address_words(ip: IpAddr) -> [u32; 4] {
    match ip.to_canonical() {
        IpAddr::V4(ip) => mapped(ip),
        IpAddr::V6(ip) => words(ip),
    }
}

/// A connection as the key of its entry in `FLOWS`.
pub fn flow_key(peer: SocketAddr, local: SocketAddr, listener: u32) -> FlowKey {
    FlowKey {
        source_ip: address_words(peer.ip()),
        destination_ip: address_words(local.ip()),
        source_port: peer.port().into(),
        destination_port: local.port().into(),
        listener,
        pad: 0,
    }
}

/// An address of a key of `FLOWS`; IPv4 as itself.
pub fn address_of(words: &[u32; 4]) -> IpAddr {
    let mut octets = [0; 16];
    for (word, bytes) in words.iter().zip(octets.chunks_exact_mut(4)) {
        bytes.copy_from_slice(&word.to_ne_bytes());
    }
    IpAddr::V6(Ipv6Addr::from(octets)).to_canonical()
}

fn mapped(ip: Ipv4Addr) -> [u32; 4] {
    [0, 0, MAPPED, u32::from_ne_bytes(ip.octets())]
}

fn words(ip: Ipv6Addr) -> [u32; 4] {
    let mut words = [0; 4];
    for (word, bytes) in words.iter_mut().zip(ip.octets().chunks_exact(4)) {
        *word = u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ipv4_listener_has_no_ipv6_form() {
        let there = endpoint("127.0.0.1:7080".parse().unwrap(), None);
        assert_eq!(there.ip4.to_ne_bytes(), [127, 0, 0, 1]);
        assert_eq!(there.ip6, [0; 4]);
        assert_eq!(there.port, u32::from(7080u16.to_be()));
        assert_eq!(there, endpoint("[::ffff:127.0.0.1]:7080".parse().unwrap(), None));
        let both = endpoint("127.0.0.1:7080".parse().unwrap(), Some(Ipv6Addr::LOCALHOST));
        assert_eq!((both.ip4, both.ip6), (there.ip4, words(Ipv6Addr::LOCALHOST)));
    }

    #[test]
    fn addresses_are_canonical_words() {
        let v4 = address_words("127.0.0.1".parse().unwrap());
        assert_eq!(v4, address_words("::ffff:127.0.0.1".parse().unwrap()));
        assert_eq!(v4[2], MAPPED);
        for ip in ["127.0.0.1", "2001:db8::7"] {
            let ip: IpAddr = ip.parse().unwrap();
            assert_eq!(address_of(&address_words(ip)), ip);
        }
        assert_eq!(address_words("::1".parse().unwrap()), [0, 0, 0, u32::from_ne_bytes([0, 0, 0, 1])]);
    }
}
