//! Addresses that metered hosts were found at: whoever asks for one by another name, or by none, is not let
//! through.
//!
//! Known from the meter's own name resolution alone; what clients say teaches nothing. A client whose resolver
//! gives another address of the same host is not seen here. While a name was never found, what is missing is
//! told, so that others can close what they cannot decide. Not here: who may dial what (`dial`, `tunnel`).
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use lru::LruCache;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::dial::{self, DialError, Lookups};
use crate::hosts::{Authority, Host, canonical};
use crate::lock::lock;
use crate::settings::Settings;

/// Most addresses that are remembered; the one found longest ago goes first.
const MAX_ADDRESSES: NonZeroUsize = NonZeroUsize::new(4_096).expect("not zero");
/// Metered names are resolved this often: a usual lifetime of such records.
const REFRESH: Duration = Duration::from_secs(60);
/// First and longest pause after a name could not be resolved.
const BACK_OFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// An address counts this long after its host was found elsewhere: it may still serve when names have moved on.
const MAX_AGE: Duration = Duration::from_secs(24 * 3_600);
/// Longest wait for the first resolution of all names.
const FIRST_ROUND: Duration = Duration::from_secs(2);

/// The addresses that are known. Outlives the configuration: each entry counts while its host is metered.
pub struct MeteredAddresses {
    found: Mutex<LruCache<IpAddr, Found>>,
    names: watch::Sender<HashMap<Host, Name>>,
}

struct Found {
    host: Host,
    at: Instant,
}

/// How far the resolution of a name has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Name {
    /// Under way for the first time.
    Asked,
    /// It failed each time.
    Unknown,
    /// It succeeded once or more.
    Known,
}

impl Default for MeteredAddresses {
    fn default() -> Self {
        let found = Mutex::new(LruCache::new(MAX_ADDRESSES));
        Self { found, names: watch::Sender::default() }
    }
}

impl MeteredAddresses {
    /// From now on these names, and no others, have to be found. What is known of them stays known.
    pub fn expect(&self, hosts: impl IntoIterator<Item = Host>) {
        self.names.send_modify(|names| {
            let before = std::mem::take(names);
            let state = |host: &Host| before.get(host).copied().unwrap_or(Name::Asked);
            names.extend(hosts.into_iter().map(|host| (host.clone(), state(&host))));
        });
    }

    /// Remembers where a metered `host` was found.
    pub fn learn(&self, host: &Host, addresses: &[SocketAddr]) {
        let mut found = lock(&self.found);
        for address in addresses {
            found.put(canonical(address.ip()), Found { host: host.clone(), at: Instant::now() });
        }
        drop(found);
        self.become_known(host, Name::Known);
    }

    /// A metered `host` could not be found. It may be where it was, so its addresses do not grow older. Says whether
    /// it has to be found.
    fn miss(&self, host: &Host) -> bool {
        for (_, found) in lock(&self.found).iter_mut().filter(|(_, found)| found.host == *host) {
            found.at = Instant::now();
        }
        self.become_known(host, Name::Unknown);
        self.names.borrow().contains_key(host)
    }

    /// Changes what is known of a name; one that was found once stays known.
    fn become_known(&self, host: &Host, now: Name) {
        self.names.send_if_modified(|names| match names.get_mut(host) {
            Some(name) if *name != now && *name != Name::Known => {
                *name = now;
                true
            }
            _ => false,
        });
    }

    /// The metered host that was found at `address`, as far as it is known and `is_metered` still says so.
    pub fn host_at(&self, address: IpAddr, is_metered: impl Fn(&Host) -> bool) -> Option<Host> {
        let found = lock(&self.found);
        let known = found.peek(&canonical(address))?;
        (known.at.elapsed() < MAX_AGE && is_metered(&known.host)).then(|| known.host.clone())
    }

    /// Waits until every name was resolved once, or could not be, but not for long: [`Self::missing`] says the
    /// rest.
    pub async fn resolved_once(&self) {
        let mut names = self.names.subscribe();
        let resolved = names.wait_for(|names| names.values().all(|name| *name != Name::Asked));
        if tokio::time::timeout(FIRST_ROUND, resolved).await.is_err() {
            tracing::debug!("the addresses of metered hosts are not all known yet");
        }
    }

    /// A metered host that was never found: it may be at any address.
    #[must_use]
    pub fn missing(&self) -> Option<Host> {
        let names = self.names.borrow();
        let missing = names.iter().filter(|(_, name)| **name != Name::Known).map(|(host, _)| host);
        missing.min_by_key(|host| host.to_string()).cloned()
    }
}

/// Resolves the metered names now, at each change of the settings, and again and again, for as long as there are
/// settings.
pub async fn keep_fresh(mut settings: watch::Receiver<Arc<Settings>>) {
    let lookups = Lookups::default();
    loop {
        let now = Arc::clone(&settings.borrow_and_update());
        let mut kept = JoinSet::new();
        for authority in now.metered_names() {
            kept.spawn(keep_found(authority, Arc::clone(&now), lookups.clone()));
        }
        if settings.changed().await.is_err() {
            return;
        }
    }
}

/// Resolves one name every [`REFRESH`], and after a failure sooner.
async fn keep_found(authority: Authority, settings: Arc<Settings>, lookups: Lookups) {
    let mut pause = BACK_OFF.0;
    loop {
        match dial::resolve(&authority, &settings, &lookups).await {
            Ok(_) => {
                pause = BACK_OFF.0;
                tokio::time::sleep(REFRESH).await;
            }
            Err(error) => {
                let has_to_be_found = settings.metered_addresses.miss(&authority.host);
                tell(&error, has_to_be_found && pause == BACK_OFF.0);
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(BACK_OFF.1);
            }
        }
    }
}

/// Logs why the addresses of a host are not known, once loudly if that closes something.
fn tell(error: &DialError, is_news: bool) {
    if is_news {
        tracing::warn!(%error, "the addresses of a metered host are not known");
    } else {
        tracing::debug!(%error, "the addresses of a metered host are not known");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(name: &str) -> Host {
        name.parse().unwrap()
    }

    #[test]
    fn an_address_is_known_in_all_its_forms_while_its_host_is_metered() {
        let known = MeteredAddresses::default();
        known.learn(&host("api.test"), &["203.0.113.7:443".parse().unwrap()]);
        for form in ["203.0.113.7", "::ffff:203.0.113.7", "64:ff9b::cb00:7107"] {
            assert_eq!(known.host_at(form.parse().unwrap(), |_| true), Some(host("api.test")), "{form}");
        }
        assert_eq!(known.host_at("203.0.113.8".parse().unwrap(), |_| true), None);
        assert_eq!(known.host_at("203.0.113.7".parse().unwrap(), |_| false), None);
    }

    #[test]
    fn an_address_is_forgotten_a_day_after_it_was_last_found() {
        let known = MeteredAddresses::default();
        let address: SocketAddr = "203.0.113.7:443".parse().unwrap();
        let a_day_ago = Instant::now().checked_sub(MAX_AGE).unwrap();
        lock(&known.found).put(address.ip(), Found { host: host("api.test"), at: a_day_ago });
        assert!(known.host_at(address.ip(), |_| true).is_none());
        known.learn(&host("api.test"), &[address]);
        assert!(known.host_at(address.ip(), |_| true).is_some());
    }

    #[test]
    fn addresses_are_bounded() {
        let known = MeteredAddresses::default();
        for number in 0..=u32::try_from(MAX_ADDRESSES.get()).unwrap() {
            known.learn(&host("api.test"), &[SocketAddr::new(std::net::Ipv4Addr::from(number).into(), 443)]);
        }
        assert_eq!(lock(&known.found).len(), MAX_ADDRESSES.get());
        assert!(known.host_at("0.0.0.0".parse().unwrap(), |_| true).is_none());
    }

    #[test]
    fn an_address_does_not_grow_older_while_its_host_cannot_be_found() {
        let known = MeteredAddresses::default();
        let address = "203.0.113.7".parse().unwrap();
        let long_ago = Instant::now().checked_sub(MAX_AGE - Duration::from_secs(1)).unwrap();
        lock(&known.found).put(address, Found { host: host("api.test"), at: long_ago });
        assert!(!known.miss(&host("api.test")), "nobody expects it");
        assert!(lock(&known.found).peek(&address).unwrap().at > long_ago);
    }

    #[test]
    fn a_name_is_missing_until_it_was_found_once() {
        let known = MeteredAddresses::default();
        assert_eq!(known.missing(), None, "nothing is expected");
        known.expect([host("a.test"), host("b.test")]);
        assert_eq!(known.missing(), Some(host("a.test")));
        known.learn(&host("a.test"), &["203.0.113.7:443".parse().unwrap()]);
        known.miss(&host("a.test"));
        assert!(known.miss(&host("b.test")));
        assert_eq!(known.missing(), Some(host("b.test")));
        known.expect([host("a.test"), host("c.test")]);
        assert_eq!(known.missing(), Some(host("c.test")), "what was known stays known");
        known.learn(&host("c.test"), &[]);
        assert_eq!(known.missing(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_resolution_is_waited_for_and_not_for_long() {
        let known = Arc::new(MeteredAddresses::default());
        known.expect([host("a.test"), host("b.test")]);
        let since = Instant::now();
        known.resolved_once().await;
        assert_eq!(since.elapsed(), FIRST_ROUND);

        let waiting = tokio::spawn({
            let known = Arc::clone(&known);
            async move { known.resolved_once().await }
        });
        tokio::time::sleep(Duration::from_millis(10)).await;
        known.miss(&host("a.test"));
        assert!(!waiting.is_finished());
        known.learn(&host("b.test"), &[]);
        waiting.await.unwrap();
        assert_eq!(since.elapsed(), FIRST_ROUND + Duration::from_millis(10), "a failure is an answer too");
    }
}
