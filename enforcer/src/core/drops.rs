//! Drops that the kernel told of: an event for whoever listens, and now and then a row of the audit. Decides nothing.
//!
//! The kernel itself tells one drop a second and bottle; how many there were between two rows is in the row.
use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use enforcer_ebpf::{EVENT_CUT, EVENT_LEASE};

use super::durable::action;
use super::{Change, Core};
use crate::audit::ActionKind;
use crate::clock::{now_ms, rfc3339};
use crate::control::api::{DropCause, Dropped};
use crate::kernel::{self, Event};

/// In this time at most one row of the audit per bottle and cause tells of drops.
const ROWS_SPAN: Duration = Duration::from_secs(10);

/// What the audit was told of drops, by slot and cause. As many entries as there are slots, at most.
#[derive(Default)]
pub(super) struct Rows(HashMap<(u32, DropCause), Told>);

struct Told {
    generation: u32,
    at: Instant,
    /// Drops since then that no row tells of.
    untold: u64,
}

impl Rows {
    /// Counts what an event tells; says how many drops no row told of before it, when this one is to have a row.
    fn count(&mut self, event: &Event, cause: DropCause, now: Instant) -> Option<u64> {
        let told = self.0.get_mut(&(event.slot, cause)).filter(|told| told.generation == event.generation);
        let mut untold = u64::from(event.suppressed);
        if let Some(told) = told {
            untold += told.untold;
            if now.duration_since(told.at) < ROWS_SPAN {
                told.untold = untold + 1;
                return None;
            }
        }
        self.0.insert((event.slot, cause), Told { generation: event.generation, at: now, untold: 0 });
        Some(untold)
    }
}

impl Core {
    /// Something of a bottle was dropped or refused. One that has been detached since is nobody's any more.
    pub(super) fn dropped(&mut self, event: &Event) {
        let bottle = self.bottles.get(&event.slot).filter(|b| b.attachment.generation == event.generation);
        let Some(bottle) = bottle else { return };
        let (name, verdict) = (bottle.attachment.name.clone(), bottle.cause.clone());
        let dropped = described(event, name);
        if let Some(untold) = self.drops.count(event, dropped.cause, Instant::now()) {
            let (kind, verdict) = match dropped.cause {
                DropCause::Lease => (ActionKind::Lease, None),
                DropCause::Cut => (ActionKind::Refuse, verdict),
                DropCause::Rule => (ActionKind::Refuse, None),
            };
            let mut row = action(kind, Some(dropped.bottle.clone()), verdict, "controller");
            row.detail = Some(sentence(&dropped, untold));
            self.record(row);
        }
        self.publish(Change::Dropped(Box::new(dropped)));
    }
}

/// The event in the API's words.
fn described(event: &Event, bottle: String) -> Dropped {
    let age = kernel::age(event).as_millis();
    Dropped {
        at: rfc3339(now_ms().saturating_sub_unsigned(u64::try_from(age).unwrap_or(u64::MAX))),
        bottle,
        cause: match event.kind {
            EVENT_CUT => DropCause::Cut,
            EVENT_LEASE => DropCause::Lease,
            _ => DropCause::Rule,
        },
        protocol: protocol(event.protocol),
        address: address(event),
        port: u16::try_from(event.port).ok().filter(|port| *port != 0),
        pid: (event.pid != 0).then_some(event.pid),
        suppressed: event.suppressed,
    }
}

fn protocol(number: u32) -> String {
    match number {
        1 => "icmp".into(),
        6 => "tcp".into(),
        17 => "udp".into(),
        58 => "icmpv6".into(),
        132 => "sctp".into(),
        other => other.to_string(),
    }
}

fn address(event: &Event) -> IpAddr {
    let mut octets = [0; 16];
    for (chunk, word) in octets.chunks_exact_mut(4).zip(event.ip) {
        chunk.copy_from_slice(&word.to_ne_bytes());
    }
    Ipv6Addr::from(octets).to_canonical()
}

/// One line for the audit.
fn sentence(dropped: &Dropped, untold: u64) -> String {
    let why = match dropped.cause {
        DropCause::Cut => "the bottle is cut",
        DropCause::Lease => "the controller was silent for longer than the lease",
        DropCause::Rule => "the rules do not let it pass",
    };
    let far_end = match dropped.port {
        Some(port) => SocketAddr::new(dropped.address, port).to_string(),
        None => dropped.address.to_string(),
    };
    let what = match dropped.pid {
        Some(pid) => format!("{} of process {pid} to {far_end} refused", dropped.protocol),
        None => format!("a packet ({}) to or from {far_end} dropped", dropped.protocol),
    };
    match untold {
        0 => format!("{what}: {why}"),
        more => format!("{what}: {why} ({more} more drops before it)"),
    }
}

#[cfg(test)]
mod tests {
    use enforcer_ebpf::EVENT_RULE;

    use super::*;

    fn event(kind: u32, suppressed: u32) -> Event {
        Event { kind, slot: 3, generation: 9, suppressed, protocol: 17, ..Event::default() }
    }

    #[test]
    fn rows_come_once_in_a_span_with_all_that_none_told_of() {
        let (mut rows, start) = (Rows::default(), Instant::now());
        let at = |ms| start + Duration::from_millis(ms);
        assert_eq!(rows.count(&event(EVENT_CUT, 4), DropCause::Cut, start), Some(4));
        assert_eq!(rows.count(&event(EVENT_CUT, 10), DropCause::Cut, at(1_000)), None);
        assert_eq!(rows.count(&event(EVENT_LEASE, 0), DropCause::Lease, at(1_500)), Some(0), "another cause");
        assert_eq!(rows.count(&event(EVENT_CUT, 20), DropCause::Cut, at(9_999)), None);
        let untold = rows.count(&event(EVENT_CUT, 5), DropCause::Cut, at(10_000));
        assert_eq!(untold, Some(10 + 1 + 20 + 1 + 5));
        assert_eq!(rows.count(&event(EVENT_CUT, 0), DropCause::Cut, at(10_001)), None);
        let next = Event { generation: 10, ..event(EVENT_CUT, 2) };
        assert_eq!(rows.count(&next, DropCause::Cut, at(10_002)), Some(2), "another bottle in the slot");
    }

    #[test]
    fn a_drop_is_told_in_words_and_numbers() {
        let packet = Event { protocol: 6, port: 443, ..event(EVENT_RULE, 0) };
        let told = described(&packet, "b".into());
        assert_eq!((told.protocol.as_str(), told.port, told.pid), ("tcp", Some(443), None));
        assert_eq!(
            sentence(&told, 0),
            "a packet (tcp) to or from [::]:443 dropped: the rules do not let it pass"
        );
        let mapped = [0, 0, enforcer_ebpf::MAPPED, u32::from_ne_bytes([203, 0, 113, 7])];
        let call = Event { pid: 77, ip: mapped, ..event(EVENT_CUT, 3) };
        let told = described(&call, "b".into());
        assert_eq!((told.address.to_string().as_str(), told.port, told.suppressed), ("203.0.113.7", None, 3));
        assert_eq!(
            sentence(&told, 3),
            "udp of process 77 to 203.0.113.7 refused: the bottle is cut (3 more drops before it)"
        );
        assert_eq!(protocol(200), "200");
    }
}
