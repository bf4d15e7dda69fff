//! Packets written by hand, as a raw socket sends them: from a loopback address, checksums left to the kernel or out.
use std::net::{Ipv4Addr, Ipv6Addr};

/// Protocol numbers.
pub const ICMP: u8 = 1;
/// As above.
pub const TCP: u8 = 6;
/// As above.
pub const UDP: u8 = 17;
/// As above: an extension header of IPv6, for the destination.
pub const OPTIONS: u8 = 60;
/// As above.
pub const ICMP6: u8 = 58;
/// As above.
pub const SCTP: u8 = 132;
/// As above.
pub const UDP_LITE: u8 = 136;

/// A packet with this word of flags and fragment offset. The kernel fills in length and checksum.
pub fn ip4(to: Ipv4Addr, protocol: u8, fragment: u16, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0; 20];
    packet[0] = 0x45;
    packet[6..8].copy_from_slice(&fragment.to_be_bytes());
    (packet[8], packet[9]) = (64, protocol);
    packet[12..16].copy_from_slice(&Ipv4Addr::LOCALHOST.octets());
    packet[16..20].copy_from_slice(&to.octets());
    packet.extend(payload);
    packet
}

/// As [`ip4`], with four bytes of options (no operation) before the payload.
pub fn ip4_with_options(to: Ipv4Addr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = ip4(to, protocol, 0, &[1; 4]);
    packet[0] = 0x46;
    packet.extend(payload);
    packet
}

/// A packet with a payload of this kind.
pub fn ip6(to: Ipv6Addr, next_header: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0; 40];
    packet[0] = 0x60;
    packet[4..6].copy_from_slice(&u16::try_from(payload.len()).unwrap().to_be_bytes());
    (packet[6], packet[7]) = (next_header, 64);
    packet[8..24].copy_from_slice(&Ipv6Addr::LOCALHOST.octets());
    packet[24..40].copy_from_slice(&to.octets());
    packet.extend(payload);
    packet
}

/// [`OPTIONS`] (padding) before what is of this protocol.
pub fn behind_options(protocol: u8, rest: &[u8]) -> Vec<u8> {
    let mut payload = vec![protocol, 0, 1, 4, 0, 0, 0, 0];
    payload.extend(rest);
    payload
}

/// The first bytes of a TCP segment: a SYN to this port.
pub fn syn(port: u16) -> Vec<u8> {
    let mut segment = vec![0; 20];
    segment[..2].copy_from_slice(&50_000u16.to_be_bytes());
    segment[2..4].copy_from_slice(&port.to_be_bytes());
    (segment[12], segment[13]) = (5 << 4, 2);
    segment
}

/// A datagram's header, of UDP and of what looks alike.
pub fn to_port(port: u16) -> Vec<u8> {
    [&9u16.to_be_bytes()[..], &port.to_be_bytes(), &8u16.to_be_bytes(), &[0, 0]].concat()
}

/// As a sender's orders take it.
pub fn hex(packet: &[u8]) -> String {
    packet.iter().map(|byte| format!("{byte:02x}")).collect()
}
