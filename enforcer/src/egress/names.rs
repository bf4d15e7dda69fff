//! Where the names of rules were found, and until when that counts: pure, told the time.
//!
//! An address counts for a while after its name has moved on, because connections to it live.
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// A name is not asked for more often than this, whatever its time to live says.
pub const SHORTEST: Duration = Duration::from_secs(5);
/// Nor more seldom than this.
pub const LONGEST: Duration = Duration::from_secs(3_600);
/// A name that could not be found is asked for again after this, twice as long each time, up to [`LONGEST_RETRY`].
const RETRY: Duration = SHORTEST;
const LONGEST_RETRY: Duration = Duration::from_secs(60);
/// An address counts this long after it was last found.
pub const GRACE: Duration = Duration::from_secs(600);
/// Most addresses of one name; the one found longest ago goes first.
pub const MAX_ADDRESSES: usize = 32;

/// What is known of one name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Known {
    seen: BTreeMap<IpAddr, Instant>,
    due: Option<Instant>,
    failures: u32,
    /// Why there is no address, when it was asked for last and none was found.
    pub trouble: Option<String>,
}

impl Known {
    /// When it is to be asked for (again); never asked yet: now.
    pub fn due(&self, now: Instant) -> Instant {
        self.due.unwrap_or(now)
    }

    /// Whether it was asked for, with whatever outcome.
    pub fn was_asked(&self) -> bool {
        self.due.is_some()
    }

    /// Addresses that count now, in order.
    pub fn addresses(&self, now: Instant) -> impl Iterator<Item = IpAddr> {
        self.seen
            .iter()
            .filter(move |(_, seen)| now.saturating_duration_since(**seen) < GRACE)
            .map(|(ip, _)| *ip)
    }

    /// It was found at these addresses, which are good for `ttl`.
    pub fn found(&mut self, addresses: &[IpAddr], ttl: Duration, now: Instant) {
        self.seen.extend(addresses.iter().take(MAX_ADDRESSES).map(|ip| (*ip, now)));
        self.seen.retain(|_, seen| now.saturating_duration_since(*seen) < GRACE);
        while self.seen.len() > MAX_ADDRESSES {
            let oldest = self.seen.iter().min_by_key(|(_, seen)| **seen).map(|(ip, _)| *ip);
            oldest.and_then(|ip| self.seen.remove(&ip));
        }
        (self.failures, self.trouble) = (0, None);
        self.due = Some(now + ttl.clamp(SHORTEST, LONGEST));
    }

    /// It could not be found.
    pub fn failed(&mut self, why: String, now: Instant) {
        let wait = RETRY.saturating_mul(1 << self.failures.min(8)).min(LONGEST_RETRY);
        self.failures = self.failures.saturating_add(1);
        self.trouble = Some(why);
        self.due = Some(now + wait);
    }
}

/// Whether a name may open this address. Loopback, link-local (where metadata services are) and what is nobody's host
/// are opened by address alone: whoever answers for a name must not choose them.
pub fn may_open(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(ip) => {
            !(ip.is_loopback()
                || ip.is_link_local()
                || ip.is_multicast()
                || ip.is_broadcast()
                || ip.octets()[0] == 0)
        }
        IpAddr::V6(ip) => {
            !(ip.is_loopback() || ip.is_unspecified() || ip.is_multicast() || ip.is_unicast_link_local())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(last: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, last])
    }

    fn at(now: Instant, known: &Known) -> Vec<IpAddr> {
        known.addresses(now).collect()
    }

    #[test]
    fn a_name_is_asked_for_when_its_time_is_over_within_bounds() {
        let now = Instant::now();
        let mut known = Known::default();
        assert_eq!((known.due(now), known.was_asked()), (now, false));
        for (ttl, wait) in [(0, 5), (4, 5), (30, 30), (86_400, 3_600)] {
            known.found(&[ip(1)], Duration::from_secs(ttl), now);
            assert_eq!(known.due(now), now + Duration::from_secs(wait), "{ttl}");
        }
        let mut waits = Vec::new();
        for _ in 0..6 {
            known.failed("no such name".into(), now);
            waits.push(known.due(now).duration_since(now).as_secs());
        }
        assert_eq!(waits, [5, 10, 20, 40, 60, 60]);
        assert_eq!(at(now, &known), [ip(1)], "a failure takes nothing away");
        known.found(&[ip(1)], SHORTEST, now);
        assert_eq!(known.trouble, None);
    }

    #[test]
    fn an_address_counts_for_a_while_after_it_was_last_found() {
        let start = Instant::now();
        let mut known = Known::default();
        known.found(&[ip(1)], SHORTEST, start);
        let later = start + Duration::from_secs(60);
        known.found(&[ip(2)], SHORTEST, later);
        assert_eq!(at(later, &known), [ip(1), ip(2)]);
        assert_eq!(at(start + GRACE, &known), [ip(2)]);
        known.found(&[ip(3)], SHORTEST, start + GRACE);
        assert_eq!(at(later, &known), [ip(2), ip(3)], "what is over is forgotten");
        assert!(at(start + 3 * GRACE, &known).is_empty());
    }

    #[test]
    fn addresses_are_bounded_and_the_oldest_go_first() {
        let start = Instant::now();
        let mut known = Known::default();
        let many: Vec<IpAddr> = (0..64).map(ip).collect();
        known.found(&many, SHORTEST, start);
        assert_eq!(at(start, &known).len(), MAX_ADDRESSES);
        let next = start + SHORTEST;
        known.found(&[ip(200)], SHORTEST, next);
        let kept = at(next, &known);
        assert!(kept.len() == MAX_ADDRESSES && kept.contains(&ip(200)), "{kept:?}");
    }

    #[test]
    fn a_name_opens_no_loopback_and_no_metadata_service() {
        for closed in [
            "127.0.0.1",
            "0.0.0.0",
            "0.1.2.3",
            "169.254.169.254",
            "224.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "fe80::1",
            "ff02::1",
            "::ffff:127.0.0.1",
        ] {
            assert!(!may_open(closed.parse().unwrap()), "{closed}");
        }
        for open in ["10.0.0.1", "192.168.0.1", "1.1.1.1", "fd00::1", "2606:4700::1111"] {
            assert!(may_open(open.parse().unwrap()), "{open}");
        }
    }
}
