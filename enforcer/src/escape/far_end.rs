//! The far end of the self-test: hears every packet that arrives on `lo`, whatever socket sent it, and counts.
//!
//! It is a packet socket, so it needs no listener for each protocol and no cooperation of the sender. What a count
//! means is the judge's to say.
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd as _, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, LinkAddr, SockFlag, SockProtocol, SockType, recvfrom, socket};

/// The longest packet that `lo` carries, bytes.
const LONGEST: usize = 65_536;
const ETH_P_IP: u16 = 0x0800;
const ETH_P_IPV6: u16 = 0x86dd;
const TCP: u8 = 6;

/// What was heard since the last time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Heard {
    /// Packets between the meter's listener and its clients.
    pub at_meter: u64,
    /// All other packets.
    pub elsewhere: u64,
    /// Bytes of those, from the network header on.
    pub bytes: u64,
}

impl std::ops::Add for Heard {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            at_meter: self.at_meter + other.at_meter,
            elsewhere: self.elsewhere + other.elsewhere,
            bytes: self.bytes + other.bytes,
        }
    }
}

/// Ears in one network namespace.
#[derive(Debug)]
pub struct FarEnd(OwnedFd);

impl FarEnd {
    /// Begins to listen in the calling thread's network namespace.
    ///
    /// # Errors
    /// When the kernel gives no packet socket.
    pub fn here() -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        Ok(Self(socket(AddressFamily::Packet, SockType::Datagram, flags, SockProtocol::EthAll)?))
    }

    /// What has arrived since the last call.
    ///
    /// # Errors
    /// When it cannot be told.
    pub fn heard(&self, meter_port: u16) -> io::Result<Heard> {
        let mut heard = Heard::default();
        let mut packet = vec![0; LONGEST];
        loop {
            let (length, from) = match recvfrom::<LinkAddr>(self.0.as_raw_fd(), &mut packet) {
                Err(Errno::EAGAIN) => return Ok(heard),
                received => received?,
            };
            let from = from.ok_or(Errno::EBADMSG)?;
            // each packet on `lo` is heard when it leaves and when it arrives
            if from.pkttype() == libc::PACKET_OUTGOING {
                continue;
            }
            if is_meters(u16::from_be(from.protocol()), &packet[..length], meter_port) {
                heard.at_meter += 1;
            } else {
                heard.elsewhere += 1;
                heard.bytes += u64::try_from(length).unwrap_or(u64::MAX);
            }
        }
    }
}

/// Whether a packet goes to the meter's listener on loopback, or comes from there.
fn is_meters(protocol: u16, packet: &[u8], port: u16) -> bool {
    ends(protocol, packet).is_some_and(|ends| {
        ends.iter().any(|end| end.ip().to_canonical().is_loopback() && end.port() == port)
    })
}

/// Source and destination of a TCP packet without options or extension headers.
fn ends(protocol: u16, packet: &[u8]) -> Option<[SocketAddr; 2]> {
    let (ips, transport): ([IpAddr; 2], _) = match protocol {
        ETH_P_IP if packet.first() == Some(&0x45) && packet.get(9) == Some(&TCP) => {
            let ip = |at| Some(Ipv4Addr::from(array::<4>(packet, at)?).into());
            ([ip(12)?, ip(16)?], 20)
        }
        ETH_P_IPV6 if packet.get(6) == Some(&TCP) => {
            let ip = |at| Some(Ipv6Addr::from(array::<16>(packet, at)?).into());
            ([ip(8)?, ip(24)?], 40)
        }
        _ => return None,
    };
    let port = |at| Some(u16::from_be_bytes(array(packet, at)?));
    Some([(ips[0], port(transport)?).into(), (ips[1], port(transport + 2)?).into()])
}

fn array<const N: usize>(packet: &[u8], at: usize) -> Option<[u8; N]> {
    packet.get(at..at + N)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::escape::packets;

    #[test]
    fn what_goes_to_the_meter_is_told_from_all_else() {
        let to = |ip: IpAddr, port| packets::syn(SocketAddr::new(ip, port));
        let (v4, v6) = (IpAddr::from(Ipv4Addr::LOCALHOST), IpAddr::from(Ipv6Addr::LOCALHOST));
        assert!(is_meters(ETH_P_IP, &to(v4, 7080), 7080));
        assert!(is_meters(ETH_P_IPV6, &to(v6, 7080), 7080));
        assert!(!is_meters(ETH_P_IP, &to(v4, 7081), 7080), "another port");
        assert!(!is_meters(ETH_P_IP, &to(super::super::network::PUBLIC4.into(), 7080), 7080), "elsewhere");
        assert!(!is_meters(ETH_P_IPV6, &to(v4, 7080), 7080), "sent as what it is not");
        assert!(!is_meters(ETH_P_IP, &to(v4, 7080)[..21], 7080), "cut short");
        assert!(!is_meters(0x0806, &[], 7080), "no internet packet at all");
        let mut udp = to(v4, 7080);
        udp[9] = 17;
        assert!(!is_meters(ETH_P_IP, &udp, 7080), "another protocol");
    }
}
