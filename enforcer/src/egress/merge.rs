//! Rules to entries of the kernel's allow-list: pure.
//!
//! The kernel finds the entry of the longest matching prefix alone, so each entry carries the ports of every prefix
//! that covers it. IPv4 addresses are looked up as v4-mapped IPv6 ones: the entry of all IPv4 addresses is always
//! there, empty if need be, so that no IPv6 prefix (`::/0`) speaks for them.
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use meter_proxy::hosts::Range;

use crate::kernel::{Allowed, AllowedPorts};

/// What is let through to somewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opening {
    /// Every port.
    AnyPort,
    /// DNS: port 53.
    Dns,
    /// This port, by TCP and UDP.
    Port(u16),
}

#[derive(Clone, Debug, Default)]
struct Ports {
    any: bool,
    dns: bool,
    listed: BTreeSet<u16>,
}

impl Ports {
    fn add(&mut self, opening: Opening) {
        match opening {
            Opening::AnyPort => self.any = true,
            Opening::Dns => self.dns = true,
            Opening::Port(port) => drop(self.listed.insert(port)),
        }
    }

    fn add_all(&mut self, covering: &Self) {
        self.any |= covering.any;
        self.dns |= covering.dns;
        self.listed.extend(&covering.listed);
    }
}

/// The entries that let through what these rules do, and nothing else. Ranges have no bits beyond their prefix.
pub fn merge(rules: impl IntoIterator<Item = (Range, Opening)>) -> Vec<Allowed> {
    // in this order a prefix comes before all that it covers
    let mut own: BTreeMap<(IpAddr, u8), (Range, Ports)> = BTreeMap::new();
    let all_ip4 = Range::all_of(Ipv4Addr::UNSPECIFIED.into());
    own.insert((all_ip4.base(), all_ip4.bits()), (all_ip4, Ports::default()));
    for (range, opening) in rules {
        let entry = own.entry((range.base(), range.bits())).or_insert((range, Ports::default()));
        entry.1.add(opening);
    }
    let mut around: Vec<(Range, Ports)> = Vec::new();
    let mut entries = Vec::new();
    for (range, mut ports) in own.into_values() {
        while around.last().is_some_and(|(outer, _)| !outer.contains(range.base())) {
            around.pop();
        }
        if let Some((_, covering)) = around.last() {
            ports.add_all(covering);
        }
        entries.push(entry(range, &ports));
        around.push((range, ports));
    }
    entries
}

fn entry(range: Range, ports: &Ports) -> Allowed {
    // the settings refuse more different ports than an entry holds; one too many would be closed
    let listed = ports.listed.iter().copied();
    Allowed { range, ports: AllowedPorts { any: ports.any, dns: ports.dns, listed: listed.collect() } }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;

    use proptest::prelude::*;

    use super::*;

    /// Looks up as the kernel does: the longest prefix of the v4-mapped address, and its ports.
    fn lets_through(entries: &[Allowed], to: IpAddr, port: u16) -> bool {
        let (to, _) = mapped(to, 128);
        let longest = entries
            .iter()
            .map(|entry| (mapped(entry.range.base(), entry.range.bits()), entry))
            .filter(|((base, bits), _)| (base ^ to).checked_shr(128 - u32::from(*bits)).unwrap_or(0) == 0)
            .max_by_key(|((_, bits), _)| *bits);
        longest.is_some_and(|(_, Allowed { ports, .. })| {
            ports.any || (ports.dns && port == 53) || ports.listed.contains(&port)
        })
    }

    fn mapped(ip: IpAddr, bits: u8) -> (u128, u8) {
        match ip {
            IpAddr::V4(ip) => (ip.to_ipv6_mapped().to_bits(), 96 + bits.min(32)),
            IpAddr::V6(ip) => (ip.to_bits(), bits),
        }
    }

    /// Looks at every rule by itself.
    fn naive(rules: &[(Range, Opening)], to: IpAddr, port: u16) -> bool {
        rules.iter().any(|(range, opening)| {
            range.contains(to)
                && match opening {
                    Opening::AnyPort => true,
                    Opening::Dns => port == 53,
                    Opening::Port(only) => *only == port,
                }
        })
    }

    fn range(text: &str) -> Range {
        text.parse().unwrap()
    }

    #[test]
    fn a_narrow_rule_does_not_hide_the_wide_one_around_it() {
        let rules = [
            (range("192.0.2.0/24"), Opening::Port(80)),
            (range("192.0.2.7/32"), Opening::Port(443)),
            (range("192.0.0.0/16"), Opening::Port(22)),
            (range("192.0.2.7/32"), Opening::Dns),
        ];
        let entries = merge(rules);
        let seven = entries.iter().find(|entry| entry.range == range("192.0.2.7/32")).unwrap();
        assert_eq!(seven.ports.listed.iter().copied().collect::<Vec<_>>(), [22, 80, 443]);
        assert!(seven.ports.dns && !seven.ports.any);
        assert_eq!(entries.len(), 4, "and the one of all IPv4 addresses");
    }

    #[test]
    fn an_ipv6_range_never_speaks_for_ipv4() {
        let entries = merge([(range("::/0"), Opening::AnyPort)]);
        assert!(lets_through(&entries, "fd00::1".parse().unwrap(), 1));
        assert!(!lets_through(&entries, "10.0.0.1".parse().unwrap(), 1));
        assert!(!lets_through(&merge([]), "10.0.0.1".parse().unwrap(), 1));
    }

    /// Addresses and prefixes in a corner, so that they cover each other.
    fn arb_range() -> impl Strategy<Value = Range> {
        let ip4 = (0u32..=32, any::<u32>())
            .prop_map(|(bits, ip)| (IpAddr::V4(Ipv4Addr::from_bits(0xc000_0200 | (ip & 0x0f))), bits));
        let ip6 = (0u32..=128, any::<u128>()).prop_map(|(bits, ip)| {
            (IpAddr::V6(Ipv6Addr::from_bits((ip & 0x0f) | (0xffff_c000_0200 * (ip >> 127)))), bits)
        });
        prop_oneof![ip4, ip6].prop_map(|(ip, bits)| {
            let masked = match ip {
                IpAddr::V4(ip) => {
                    Ipv4Addr::from_bits(ip.to_bits() & u32::MAX.checked_shl(32 - bits).unwrap_or(0)).into()
                }
                IpAddr::V6(ip) => IpAddr::V6(Ipv6Addr::from_bits(
                    ip.to_bits() & u128::MAX.checked_shl(128 - bits).unwrap_or(0),
                )),
            };
            format!("{masked}/{bits}").parse().unwrap()
        })
    }

    fn arb_opening() -> impl Strategy<Value = Opening> {
        prop_oneof![
            1 => Just(Opening::AnyPort),
            1 => Just(Opening::Dns),
            4 => (50u16..56).prop_map(Opening::Port),
        ]
    }

    proptest! {
        #[test]
        fn the_entries_let_through_what_the_rules_do(
            rules in prop::collection::vec((arb_range(), arb_opening()), 0..12),
            low in 0u8..16,
            six in any::<bool>(),
            port in 50u16..57,
        ) {
            let to = if six {
                IpAddr::V6(Ipv6Addr::from_bits(low.into()))
            } else {
                IpAddr::V4(Ipv4Addr::from_bits(0xc000_0200 | u32::from(low)))
            };
            let rules: Vec<_> = rules.into_iter().filter(|(range, _)| {
                // rules are never v4-mapped: they are refused as they are read
                range.base().to_canonical() == range.base()
            }).collect();
            prop_assert_eq!(lets_through(&merge(rules.clone()), to, port), naive(&rules, to, port));
        }
    }
}
