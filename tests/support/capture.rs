//! Listens to a wire: every IP packet that arrives in a network namespace, whether anything there wants it or not.
//!
//! What the kernel says of its own accord (neighbour discovery, multicast membership) is left out.
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::sys::socket::{
    AddressFamily, LinkAddr, SockFlag, SockProtocol, SockType, recvfrom, setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;

use crate::network::Namespace;

/// How often it is looked whether to stop.
const TICK: TimeVal = TimeVal::new(0, 20_000);
/// Long enough for a packet over a local wire to be noted, on a busy machine.
const ARRIVAL: Duration = Duration::from_millis(300);
/// `PACKET_HOST` of packet(7): it came in, for this host.
const FOR_THIS_HOST: u8 = 0;
const ETH_P_IP: u16 = 0x0800;
const ETH_P_IPV6: u16 = 0x86dd;

/// IP protocol numbers, by IANA.
pub const ICMP: u8 = 1;
/// As above.
pub const TCP: u8 = 6;
/// As above.
pub const UDP: u8 = 17;
/// As above.
pub const ICMP6: u8 = 58;
/// As above.
pub const SCTP: u8 = 132;
/// As above.
pub const UDP_LITE: u8 = 136;

/// A packet, as far as the tests tell packets apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// IP protocol: of IPv6 the first header's.
    pub protocol: u8,
    /// Where it was going.
    pub destination: IpAddr,
    /// The second two bytes of the payload: of TCP, UDP, UDP-Lite and SCTP the destination port.
    pub port: u16,
    /// Bytes from the network header on.
    pub bytes: usize,
    /// Whether it asks for a TCP connection: SYN without ACK.
    pub opens: bool,
}

/// A wire that is listened to; stops when dropped.
pub struct Capture {
    packets: Arc<Mutex<Vec<Packet>>>,
    stop: Arc<AtomicBool>,
}

impl Capture {
    /// Of everything that comes into this namespace.
    #[must_use]
    pub fn of(namespace: &Namespace) -> Self {
        let socket = namespace.enter(|| {
            let all = SockProtocol::EthAll;
            socket(AddressFamily::Packet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, all)
                .expect("root may listen to a wire")
        });
        setsockopt(&socket, sockopt::ReceiveTimeout, &TICK).expect("a socket takes a timeout");
        let capture = Self { packets: Arc::default(), stop: Arc::default() };
        let (packets, stop) = (Arc::clone(&capture.packets), Arc::clone(&capture.stop));
        std::thread::spawn(move || note_all(&socket, &packets, &stop));
        capture
    }

    /// What has come so far.
    #[must_use]
    pub fn packets(&self) -> Vec<Packet> {
        self.packets.lock().unwrap().clone()
    }

    /// What has come once everything that was sent before has had its time to.
    #[must_use]
    pub fn settled(&self) -> Vec<Packet> {
        std::thread::sleep(ARRIVAL);
        self.packets()
    }

    /// Forgets what has come so far.
    pub fn clear(&self) {
        self.packets.lock().unwrap().clear();
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn note_all(socket: &OwnedFd, packets: &Mutex<Vec<Packet>>, stop: &AtomicBool) {
    let mut buffer = vec![0; 65_536];
    while !stop.load(Ordering::Relaxed) {
        // an error is the timeout: nothing came
        let Ok((bytes, Some(from))) = recvfrom::<LinkAddr>(socket.as_raw_fd(), &mut buffer) else { continue };
        let packet = match u16::from_be(from.protocol()) {
            _ if from.pkttype() != FOR_THIS_HOST => None,
            ETH_P_IP => read4(&buffer[..bytes]),
            ETH_P_IPV6 => read6(&buffer[..bytes]),
            _ => None,
        };
        packets.lock().unwrap().extend(packet);
    }
}

fn read4(bytes: &[u8]) -> Option<Packet> {
    let destination: [u8; 4] = bytes.get(16..20)?.try_into().ok()?;
    let header = usize::from(bytes[0] & 0x0f) * 4;
    Some(Packet {
        protocol: bytes[9],
        destination: Ipv4Addr::from(destination).into(),
        port: port(bytes, header),
        bytes: bytes.len(),
        opens: bytes[9] == TCP && opens(bytes, header),
    })
}

fn read6(bytes: &[u8]) -> Option<Packet> {
    const HEADER: usize = 40;
    let destination: [u8; 16] = bytes.get(24..HEADER)?.try_into().ok()?;
    let packet = Packet {
        protocol: bytes[6],
        destination: Ipv6Addr::from(destination).into(),
        port: port(bytes, HEADER),
        bytes: bytes.len(),
        opens: bytes[6] == TCP && opens(bytes, HEADER),
    };
    // types of ICMPv6 from 130 on are the kernel's own: membership and neighbours
    let own = packet.protocol == ICMP6 && bytes.get(HEADER).is_some_and(|kind| *kind >= 130);
    let membership = packet.destination.is_multicast();
    (!own && !membership).then_some(packet)
}

fn port(bytes: &[u8], header: usize) -> u16 {
    bytes.get(header + 2..header + 4).map_or(0, |port| u16::from_be_bytes([port[0], port[1]]))
}

/// RFC 9293, 3.1: the flags are the fourteenth byte, ACK its fifth bit and SYN its second.
fn opens(bytes: &[u8], header: usize) -> bool {
    bytes.get(header + 13).is_some_and(|flags| flags & 0b1_0010 == 0b0_0010)
}
