//! The allow-list (`ALLOW`): what each confined bottle may reach, written as whole lists of one slot.
//!
//! A mirror tells what is there, so that a change writes only what differs. What the entries of a slot should be is
//! the egress room's to say.
use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;

use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{MapData, MapError};
use enforcer_ebpf::{ALLOW_ANY_PORT, ALLOW_DNS, ALLOW_PORTS, AllowKey, AllowPorts};
use meter_proxy::hosts::Range;

use super::KernelError;
use super::refusal::{is_not_found, refused};
use super::table::address_words;

/// Bits of the slot and of the IPv4 prefix (`::ffff:0:0/96`) before those of an address.
const SLOT_BITS: u32 = 32;
const MAPPED_BITS: u32 = 96;

/// A destination of a confined bottle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Allowed {
    /// Where.
    pub range: Range,
    /// At which ports.
    pub ports: AllowedPorts,
}

/// Ports of a destination, TCP and UDP.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AllowedPorts {
    /// Every one.
    pub any: bool,
    /// Port 53.
    pub dns: bool,
    /// These; of more than [`ALLOW_PORTS`] the greatest are left out.
    pub listed: BTreeSet<u16>,
}

/// A key as it can be compared: prefix length and data.
type Place = (u32, AllowKey);

/// The map and what is in it.
pub struct AllowList {
    map: LpmTrie<MapData, AllowKey, AllowPorts>,
    mirror: HashMap<u32, HashMap<Place, AllowPorts>>,
}

impl AllowList {
    /// Takes the map over, with what an earlier controller left in it.
    pub fn open(map: LpmTrie<MapData, AllowKey, AllowPorts>) -> Result<Self, KernelError> {
        let mut mirror: HashMap<u32, HashMap<Place, AllowPorts>> = HashMap::new();
        for entry in map.iter() {
            let (key, ports) = entry.map_err(|error| refused("cannot read the allow-list", &error))?;
            mirror.entry(key.data().slot).or_default().insert((key.prefix_len(), key.data()), ports);
        }
        Ok(Self { map, mirror })
    }

    /// Makes these the entries of a slot. What goes is taken away before anything is added.
    pub fn set(&mut self, slot: u32, allowed: &[Allowed]) -> Result<(), KernelError> {
        self.write(slot, allowed).map_err(|error| refused("cannot write the allow-list", &error))
    }

    fn write(&mut self, slot: u32, allowed: &[Allowed]) -> Result<(), MapError> {
        let wanted: HashMap<Place, AllowPorts> =
            allowed.iter().map(|one| (place(slot, &one.range), ports(&one.ports))).collect();
        let there = self.mirror.entry(slot).or_default();
        let gone: Vec<Place> = there.keys().filter(|place| !wanted.contains_key(place)).copied().collect();
        for place in gone {
            match self.map.remove(&key(&place)) {
                Err(error) if is_not_found(&error) => {}
                result => result?,
            }
            there.remove(&place);
        }
        for (place, ports) in wanted {
            if there.get(&place) != Some(&ports) {
                self.map.insert(&key(&place), ports, 0)?;
                there.insert(place, ports);
            }
        }
        if there.is_empty() {
            self.mirror.remove(&slot);
        }
        Ok(())
    }
}

fn key(&(prefix_len, data): &Place) -> Key<AllowKey> {
    Key::new(prefix_len, data)
}

fn place(slot: u32, range: &Range) -> Place {
    let before = match range.base() {
        IpAddr::V4(_) => SLOT_BITS + MAPPED_BITS,
        IpAddr::V6(_) => SLOT_BITS,
    };
    (before + u32::from(range.bits()), AllowKey { slot, ip: address_words(range.base()) })
}

fn ports(allowed: &AllowedPorts) -> AllowPorts {
    let mut ports = AllowPorts::default();
    for (flag, set) in [(ALLOW_ANY_PORT, allowed.any), (ALLOW_DNS, allowed.dns)] {
        ports.flags |= if set { flag } else { 0 };
    }
    for (to, port) in ports.ports.iter_mut().zip(&allowed.listed).take(ALLOW_PORTS) {
        *to = *port;
        ports.count += 1;
    }
    ports
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_a_prefix_behind_its_slot() {
        let (bits, key) = place(7, &"10.0.0.0/8".parse().unwrap());
        assert_eq!((bits, key.slot, key.ip), (32 + 96 + 8, 7, address_words("10.0.0.0".parse().unwrap())));
        let (bits, key) = place(7, &"fd00::/8".parse().unwrap());
        assert_eq!((bits, key.ip), (32 + 8, address_words("fd00::".parse().unwrap())));
    }

    #[test]
    fn ports_are_counted_and_one_too_many_is_closed() {
        let allowed = AllowedPorts { any: false, dns: true, listed: (1..=20).collect() };
        let written = ports(&allowed);
        assert_eq!((written.flags, written.count), (ALLOW_DNS, 16));
        assert_eq!(written.ports[15], 16);
        assert_eq!(ports(&AllowedPorts { any: true, ..AllowedPorts::default() }).flags, ALLOW_ANY_PORT);
    }
}
