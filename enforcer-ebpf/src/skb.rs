//! Packets of a bottle: passes or drops them by the bottle's verdict, and counts.
//!
//! Rewriting connect() is not enough: address translation inside the bottle's network, raw sockets and sockets
//! from before pass it by. So what leaves is looked at too, where the redirect is on.
use aya_ebpf::bindings::bpf_sock;
use aya_ebpf::helpers::generated::bpf_sk_fullsock;
use aya_ebpf::programs::SkBuffContext;
use enforcer_ebpf::address::{
    is_endpoint, is_endpoint_anywhere, is_endpoint_ip_anywhere, is_loopback, is_redirected,
};
use enforcer_ebpf::{Bottle, FLAG_LOCKDOWN, FLAG_REDIRECT, MAPPED};

use crate::events::{self, Subject};
use crate::sock_addr::{TCP, UDP};
use crate::state::{self, State};
use crate::{BOTTLES, COUNTERS, egress, endpoint, goes_around, lane, read, slot};

const ETH_P_IP: u16 = 0x0800;
const ETH_P_IPV6: u16 = 0x86dd;

const PASS: i32 = 1;
const DROP: i32 = 0;

/// Which way a packet goes, seen from the bottle.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    Out,
    In,
}

/// What becomes of a packet that leaves.
#[inline(always)]
pub fn egress(packet: &SkBuffContext) -> i32 {
    judge(packet, Direction::Out)
}

/// What becomes of a packet that arrives.
#[inline(always)]
pub fn ingress(packet: &SkBuffContext) -> i32 {
    judge(packet, Direction::In)
}

/// Passes or drops a packet, and counts it. A slot without an entry drops: slot 0 has one that is never live, so an
/// attach point whose slot is not written yet drops as well.
#[inline(always)]
fn judge(packet: &SkBuffContext, direction: Direction) -> i32 {
    let slot = slot();
    let (Some(bottle), Some(counters)) = (BOTTLES.get(slot), COUNTERS.get_ptr_mut(slot)) else {
        return DROP;
    };
    let state = state::of(bottle);
    let pass = match state {
        _ if slot == 0 => false,
        State::Open => direction == Direction::In || is_let_out(packet, bottle, slot),
        State::Answered => is_of_lane(packet, direction, bottle),
        State::Lane => is_lanes_own(packet, direction, bottle),
        State::Cut | State::Leaseless => false,
    };
    let bytes = u64::from(packet.len());
    // SAFETY: the pointer is this CPU's own entry and lives as long as the map. A softirq that interrupts this run
    // may count here too: then a packet is missing in the sum, which decides nothing.
    let counters = unsafe { &mut *counters };
    if pass {
        counters.passed_packets += 1;
        counters.passed_bytes += bytes;
        return PASS;
    }
    counters.dropped_packets += 1;
    counters.dropped_bytes += bytes;
    tell(packet, slot, bottle, state, direction);
    DROP
}

/// Tells of a drop. Apart, so that packets that pass do not pay for it.
#[inline(never)]
fn tell(packet: &SkBuffContext, slot: u32, bottle: &Bottle, state: State, direction: Direction) {
    events::dropped(slot, bottle, state.drop_kind(), || subject(packet, direction));
}

/// Whether a packet of an open bottle may leave. One that cannot be read may not, where anything is to be judged.
#[inline(always)]
fn is_let_out(packet: &SkBuffContext, bottle: &Bottle, slot: u32) -> bool {
    let flags = read(&bottle.flags);
    if flags & (FLAG_REDIRECT | FLAG_LOCKDOWN) == 0 {
        return true;
    }
    let Some(header) = Header::read(packet) else { return false };
    (flags & FLAG_REDIRECT == 0 || is_not_around_meter(packet, &header, bottle))
        && (flags & FLAG_LOCKDOWN == 0 || egress::may_leave(packet, &header, bottle, slot))
}

/// Whether a packet neither goes around the meter nor speaks as the meter or the lane.
#[inline(always)]
fn is_not_around_meter(packet: &SkBuffContext, header: &Header, bottle: &Bottle) -> bool {
    let redirected = is_redirected(&header.destination);
    if header.hides_ports {
        return !redirected;
    }
    let (meter, lane) = (endpoint(&bottle.meter), endpoint(&bottle.lane));
    let is_udp = header.protocol == UDP;
    // by UDP there is only the lane, and who is open has no business with it
    let from_ours = if is_udp {
        is_endpoint_ip_anywhere(&header.source, &lane)
    } else {
        header.protocol == TCP && is_endpoint_ip_anywhere(&header.source, &meter)
    };
    let to_lane = is_udp && is_endpoint_ip_anywhere(&header.destination, &lane);
    if !(redirected || from_ours || to_lane) || !header.has_ports() {
        return true;
    }
    let Some((source, destination)) = header.ports(packet) else { return false };
    let speaks_as_ours = from_ours
        && (is_endpoint_anywhere(&header.source, source, &lane)
            || (!is_udp && is_endpoint_anywhere(&header.source, source, &meter)));
    let asks_unbidden = to_lane
        && is_endpoint_anywhere(&header.destination, destination, &lane)
        && lane::guest(packet).is_none();
    !speaks_as_ours
        && !asks_unbidden
        && !goes_around(bottle, &header.destination, destination, header.protocol)
}

/// Whether a packet of a bottle that is cut and answered is one between it and the lane. (Of UDP, see `lane`.)
#[inline(always)]
fn is_of_lane(packet: &SkBuffContext, direction: Direction, bottle: &Bottle) -> bool {
    let Some(header) = Header::read(packet) else { return false };
    if header.hides_ports || !header.has_ports() {
        return false;
    }
    let Some((source, destination)) = header.ports(packet) else { return false };
    let out = direction == Direction::Out;
    let far_port = if out { destination } else { source };
    if !lane::is_far_end(&header.far_ip(direction), far_port, bottle) {
        return false;
    }
    if header.protocol == TCP {
        return true;
    }
    // what cannot be noted could not be answered
    lane::guest(packet).is_some_and(|guest| !out || lane::note_asker(header.source, source, guest))
}

/// Whether a packet of the lane's sockets is one between its own address and port and somebody on loopback.
#[inline(always)]
fn is_lanes_own(packet: &SkBuffContext, direction: Direction, bottle: &Bottle) -> bool {
    let Some(header) = Header::read(packet) else { return false };
    if header.hides_ports || !header.has_ports() || !is_loopback(&header.far_ip(direction)) {
        return false;
    }
    let own = header.near_port(packet, direction);
    own.is_some_and(|port| is_endpoint(&header.near_ip(direction), port, &endpoint(&bottle.lane)))
}

/// The socket that a packet leaves or reaches, where there is one that has more than a state.
#[inline(always)]
pub fn socket_of(packet: &SkBuffContext) -> Option<*mut bpf_sock> {
    // SAFETY: the kernel's context of this program; the helper takes a socket that is not null.
    let full = unsafe {
        let sk = (*packet.skb.skb).__bindgen_anon_2.sk;
        if sk.is_null() {
            return None;
        }
        bpf_sk_fullsock(sk)
    };
    (!full.is_null()).then_some(full)
}

/// What an event says of a packet, as far as it can be read.
#[inline(always)]
fn subject(packet: &SkBuffContext, direction: Direction) -> Subject {
    let mut subject = Subject { pid: 0, cookie: 0, ip: [0; 4], port: 0, protocol: 0 };
    if let Some(header) = Header::read(packet) {
        subject.ip = header.far_ip(direction);
        subject.protocol = header.protocol;
        if !header.hides_ports && header.has_ports() {
            subject.port = header.far_port(packet, direction).unwrap_or(0);
        }
    }
    subject
}

/// The network header of a packet, as far as the rules look at it.
pub struct Header {
    source: [u32; 4],
    pub destination: [u32; 4],
    pub protocol: u32,
    /// Bytes up to the transport header.
    length: usize,
    /// The ports are elsewhere: behind an extension header, or in another fragment. The kernel fragments after
    /// this hook, so a fragment here was forged by its sender.
    pub hides_ports: bool,
}

impl Header {
    #[inline(always)]
    pub fn read(packet: &SkBuffContext) -> Option<Self> {
        // by what the packet is sent as: a raw socket can write any version into its header
        // SAFETY: the kernel's context of this program.
        match u16::from_be(read(unsafe { &(*packet.skb.skb).protocol }) as u16) {
            ETH_P_IP => Self::read4(packet),
            ETH_P_IPV6 => Self::read6(packet),
            _ => None,
        }
    }

    /// Whether the transport header begins with ports.
    #[inline(always)]
    pub fn has_ports(&self) -> bool {
        self.protocol == TCP || self.protocol == UDP
    }

    /// Source and destination port, host byte order.
    #[inline(always)]
    pub fn ports(&self, packet: &SkBuffContext) -> Option<(u32, u32)> {
        let [source, destination] = packet.load::<[u16; 2]>(self.length).ok()?;
        Some((u32::from(u16::from_be(source)), u32::from(u16::from_be(destination))))
    }

    /// The far end's address.
    #[inline(always)]
    fn far_ip(&self, direction: Direction) -> [u32; 4] {
        if direction == Direction::Out { self.destination } else { self.source }
    }

    /// The bottle's own address.
    #[inline(always)]
    fn near_ip(&self, direction: Direction) -> [u32; 4] {
        if direction == Direction::Out { self.source } else { self.destination }
    }

    /// The bottle's own port, host byte order.
    #[inline(always)]
    fn near_port(&self, packet: &SkBuffContext, direction: Direction) -> Option<u32> {
        let (source, destination) = self.ports(packet)?;
        Some(if direction == Direction::Out { source } else { destination })
    }

    /// The far end's port, host byte order.
    #[inline(always)]
    fn far_port(&self, packet: &SkBuffContext, direction: Direction) -> Option<u32> {
        let (source, destination) = self.ports(packet)?;
        Some(if direction == Direction::Out { destination } else { source })
    }

    #[inline(always)]
    fn read4(packet: &SkBuffContext) -> Option<Self> {
        const MORE_FRAGMENTS_OR_OFFSET: u16 = 0x3fff;
        let words: [u32; 5] = packet.load(0).ok()?;
        let [start, ..] = words[0].to_le_bytes();
        let [.., high, low] = words[1].to_le_bytes();
        let [_, protocol, ..] = words[2].to_le_bytes();
        Some(Self {
            source: [0, 0, MAPPED, words[3]],
            destination: [0, 0, MAPPED, words[4]],
            protocol: u32::from(protocol),
            length: usize::from(start & 0x0f) * 4,
            hides_ports: u16::from_be_bytes([high, low]) & MORE_FRAGMENTS_OR_OFFSET != 0,
        })
    }

    #[inline(always)]
    fn read6(packet: &SkBuffContext) -> Option<Self> {
        let words: [u32; 10] = packet.load(0).ok()?;
        let [_, _, protocol, _] = words[1].to_le_bytes();
        Some(Self {
            source: [words[2], words[3], words[4], words[5]],
            destination: [words[6], words[7], words[8], words[9]],
            protocol: u32::from(protocol),
            length: 40,
            hides_ports: is_extension(protocol),
        })
    }
}

/// Hop-by-hop, routing, fragment, authentication, destination options, mobility, HIP, shim6.
#[inline(always)]
fn is_extension(next_header: u8) -> bool {
    matches!(next_header, 0 | 43 | 44 | 51 | 60 | 135 | 139 | 140)
}
