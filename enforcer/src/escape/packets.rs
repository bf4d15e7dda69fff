//! Packets written by hand: the first of a TCP connection, and a ping. Checksums are left to the kernel or out.
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::Family;

const TCP: u8 = 6;
const HOPS: u8 = 64;
/// Where the packets say that they come from.
const SOURCE_PORT: u16 = 50_000;

/// A SYN with its network header.
#[must_use]
pub fn syn(to: SocketAddr) -> Vec<u8> {
    let mut segment = [0; 20];
    segment[..2].copy_from_slice(&SOURCE_PORT.to_be_bytes());
    segment[2..4].copy_from_slice(&to.port().to_be_bytes());
    // five words long, SYN
    (segment[12], segment[13]) = (5 << 4, 2);
    [header(to.ip(), 20), segment.to_vec()].concat()
}

fn header(to: IpAddr, payload: u8) -> Vec<u8> {
    match to {
        IpAddr::V4(to) => {
            let mut header = vec![0; 20];
            (header[0], header[3], header[8], header[9]) = (0x45, 20 + payload, HOPS, TCP);
            header[12..16].copy_from_slice(&Ipv4Addr::LOCALHOST.octets());
            header[16..].copy_from_slice(&to.octets());
            header
        }
        IpAddr::V6(to) => {
            let mut header = vec![0; 40];
            (header[0], header[5], header[6], header[7]) = (0x60, payload, TCP, HOPS);
            header[8..24].copy_from_slice(&Ipv6Addr::LOCALHOST.octets());
            header[24..].copy_from_slice(&to.octets());
            header
        }
    }
}

/// An echo request, without the network header.
#[must_use]
pub fn echo_request(family: Family) -> [u8; 8] {
    let kind = if family == Family::Ip4 { 8 } else { 128 };
    [kind, 0, 0, 0, 0, 0, 0, 1]
}
