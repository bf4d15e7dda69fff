//! Which addresses are the meter's business, and whether an address is an endpoint: pure, the same on both sides.
//!
//! The set of redirected addresses is written down here and nowhere else. Ports and protocols are the hooks'.
use crate::{Endpoint, MAPPED};

/// Whether TCP :80 and :443 to this address (network order words, IPv4 as v4-mapped) go to the meter.
///
/// Every address does that is not known to be local: the meter dials from the host's network, so what is private
/// to the bottle's side, or to the host's, must not be reached through it. Documentation and benchmark ranges
/// (203.0.113.0/24, 198.18.0.0/15, 2001:db8::/32), NAT64 and 6to4 do: nobody's services live there, but a local
/// translator may let them stand for public hosts. (Local addresses listed as metered would be looked up beside
/// this, by the hooks.)
#[inline(always)]
#[must_use]
pub fn is_redirected(ip: &[u32; 4]) -> bool {
    let [a, b, c, d] = *ip;
    if a == 0 && b == 0 && c == MAPPED {
        return !is_local4(u32::from_be(d));
    }
    let is_unspecified_or_loopback = a == 0 && b == 0 && c == 0 && u32::from_be(d) <= 1;
    !is_unspecified_or_loopback && !is_local6(u32::from_be(a))
}

/// Whether a call to this address stays on loopback: 127/8 (v4-mapped too), `::1`, and the unspecified addresses,
/// which connect() takes for them.
#[inline(always)]
#[must_use]
pub fn is_loopback(ip: &[u32; 4]) -> bool {
    let [a, b, c, d] = *ip;
    if a == 0 && b == 0 && c == MAPPED {
        return is_in(u32::from_be(d), 0x7f00_0000, 8) || d == 0;
    }
    a == 0 && b == 0 && c == 0 && u32::from_be(d) <= 1
}

/// IPv4 in host byte order.
#[inline(always)]
fn is_local4(ip: u32) -> bool {
    is_in(ip, 0x0000_0000, 8) // this network
        || is_in(ip, 0x0a00_0000, 8) // 10/8: private
        || is_in(ip, 0x6440_0000, 10) // 100.64/10: shared by a carrier's customers
        || is_in(ip, 0x7f00_0000, 8) // 127/8: loopback
        || is_in(ip, 0xa9fe_0000, 16) // 169.254/16: link-local, metadata services
        || is_in(ip, 0xac10_0000, 12) // 172.16/12: private
        || is_in(ip, 0xc000_0000, 24) // 192.0.0/24: protocol assignments
        || is_in(ip, 0xc0a8_0000, 16) // 192.168/16: private
        || is_in(ip, 0xe000_0000, 3) // multicast, reserved, broadcast
}

/// The first word of an IPv6 address in host byte order.
#[inline(always)]
fn is_local6(word: u32) -> bool {
    is_in(word, 0xfc00_0000, 7) // fc00::/7: unique local
        || is_in(word, 0xfe80_0000, 9) // fe80::/10, fec0::/10: link-local, site-local
        || is_in(word, 0xff00_0000, 8) // ff00::/8: multicast
}

#[inline(always)]
fn is_in(word: u32, network: u32, bits: u32) -> bool {
    (word ^ network) >> (32 - bits) == 0
}

/// Whether an address (as above) and port (host byte order) are this endpoint, in its IPv4 form (v4-mapped too) or
/// its IPv6 form. One that is not set matches nothing.
#[inline(always)]
#[must_use]
pub fn is_endpoint(ip: &[u32; 4], port: u32, endpoint: &Endpoint) -> bool {
    let [high, low, ..] = endpoint.port.to_le_bytes();
    port == u32::from(u16::from_be_bytes([high, low])) && is_endpoint_ip(ip, endpoint)
}

/// As [`is_endpoint`], for hooks that do not know the network namespace: the endpoint is that in the host's; in
/// others it is on loopback, at the same port.
#[inline(always)]
#[must_use]
pub fn is_endpoint_anywhere(ip: &[u32; 4], port: u32, endpoint: &Endpoint) -> bool {
    let [high, low, ..] = endpoint.port.to_le_bytes();
    port == u32::from(u16::from_be_bytes([high, low])) && is_endpoint_ip_anywhere(ip, endpoint)
}

/// As [`is_endpoint_ip`], in any network namespace.
#[inline(always)]
#[must_use]
pub fn is_endpoint_ip_anywhere(ip: &[u32; 4], endpoint: &Endpoint) -> bool {
    const LOCALHOST4: u32 = 0x7f00_0001;
    let [a, b, c, d] = *ip;
    let last = u32::from_be(d);
    let loopback = a == 0 && b == 0 && (c == MAPPED && last == LOCALHOST4 || c == 0 && last == 1);
    endpoint.port != 0 && loopback || is_endpoint_ip(ip, endpoint)
}

/// Whether an address is this endpoint's, at any port.
#[inline(always)]
#[must_use]
pub fn is_endpoint_ip(ip: &[u32; 4], endpoint: &Endpoint) -> bool {
    let [a, b, c, d] = *ip;
    let mapped = endpoint.ip4 != 0 && a == 0 && b == 0 && c == MAPPED && d == endpoint.ip4;
    let [e, f, g, h] = endpoint.ip6;
    mapped || (has_ip6(endpoint) && a == e && b == f && c == g && d == h)
}

/// Whether the endpoint has an IPv6 form.
#[inline(always)]
#[must_use]
pub fn has_ip6(endpoint: &Endpoint) -> bool {
    let [a, b, c, d] = endpoint.ip6;
    a | b | c | d != 0
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::net::{IpAddr, Ipv4Addr};

    use super::*;

    fn words(ip: &str) -> [u32; 4] {
        let octets = match ip.parse().unwrap() {
            IpAddr::V4(ip) => Ipv4Addr::to_ipv6_mapped(&ip).octets(),
            IpAddr::V6(ip) => ip.octets(),
        };
        let word =
            |at: usize| u32::from_ne_bytes([octets[at], octets[at + 1], octets[at + 2], octets[at + 3]]);
        [word(0), word(4), word(8), word(12)]
    }

    #[test]
    fn local_addresses_are_left_alone_to_their_last_one() {
        for ip in [
            "0.0.0.0",
            "0.255.255.255",
            "10.0.0.0",
            "10.255.255.255",
            "100.64.0.0",
            "100.127.255.255",
            "127.0.0.1",
            "127.255.255.255",
            "169.254.0.0",
            "169.254.169.254",
            "169.254.255.255",
            "172.16.0.0",
            "172.31.255.255",
            "192.0.0.0",
            "192.0.0.255",
            "192.168.0.0",
            "192.168.255.255",
            "224.0.0.1",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "fc00::",
            "fdff:ffff::1",
            "fe80::1",
            "febf::1",
            "fec0::1",
            "feff::1",
            "ff02::1",
            "::ffff:10.1.2.3",
        ] {
            assert!(!is_redirected(&words(ip)), "{ip}");
        }
    }

    #[test]
    fn public_addresses_are_redirected_up_to_the_borders() {
        for ip in [
            "1.0.0.0",
            "9.255.255.255",
            "11.0.0.0",
            "100.63.255.255",
            "100.128.0.0",
            "126.255.255.255",
            "128.0.0.0",
            "169.253.255.255",
            "169.255.0.0",
            "172.15.255.255",
            "172.32.0.0",
            "191.255.255.255",
            "192.0.1.0",
            "192.0.2.1",
            "192.167.255.255",
            "192.169.0.0",
            "198.18.0.1",
            "203.0.113.7",
            "223.255.255.255",
            "::2",
            "64:ff9b::808:808",
            "2001:db8::7",
            "2002:808:808::1",
            "2606:4700::1111",
            "fbff::1",
            "fe00::1",
            "fe7f::1",
            "::ffff:8.8.8.8",
        ] {
            assert!(is_redirected(&words(ip)), "{ip}");
        }
    }

    #[test]
    fn elsewhere_an_endpoint_is_on_loopback_at_its_port() {
        let port = u32::from(7080u16.to_be());
        let [.., ip4] = words("10.0.0.1");
        let host = Endpoint { ip6: [0; 4], ip4, port };
        for ip in ["10.0.0.1", "127.0.0.1", "::ffff:127.0.0.1", "::1"] {
            assert!(is_endpoint_anywhere(&words(ip), 7080, &host), "{ip}");
            assert!(!is_endpoint_anywhere(&words(ip), 7081, &host), "{ip}");
            assert!(!is_endpoint_anywhere(&words(ip), 0, &Endpoint::default()), "{ip}");
        }
        for ip in ["10.0.0.2", "127.0.0.2", "::2", "::", "0.0.0.0"] {
            assert!(!is_endpoint_anywhere(&words(ip), 7080, &host), "{ip}");
        }
    }

    #[test]
    fn loopback_is_known_in_all_its_forms() {
        for ip in ["127.0.0.1", "127.255.255.255", "0.0.0.0", "::1", "::", "::ffff:127.0.0.53"] {
            assert!(is_loopback(&words(ip)), "{ip}");
        }
        for ip in
            ["126.255.255.255", "128.0.0.0", "0.0.0.1", "10.0.0.1", "::2", "::7f00:1", "fe80::1", "1::1"]
        {
            assert!(!is_loopback(&words(ip)), "{ip}");
        }
    }

    #[test]
    fn an_endpoint_is_known_by_either_form_and_an_unset_one_by_none() {
        let port = u32::from(7080u16.to_be());
        let [.., ip4] = words("127.0.0.1");
        let both = Endpoint { ip6: words("::1"), ip4, port };
        assert!(is_endpoint(&words("127.0.0.1"), 7080, &both) && is_endpoint(&words("::1"), 7080, &both));
        assert!(
            !is_endpoint(&words("127.0.0.1"), 7081, &both) && !is_endpoint(&words("127.0.0.2"), 7080, &both)
        );
        let none = Endpoint { port, ..Endpoint::default() };
        for ip in ["::", "0.0.0.0", "::1"] {
            assert!(!is_endpoint(&words(ip), 7080, &none), "{ip}");
        }
    }
}
