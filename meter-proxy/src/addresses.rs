//! Addresses that metered hosts were found at: whoever asks for one by another name, or by none, is not let
//! through.
//!
//! Known from the meter's own name resolution alone; what clients say teaches nothing. A client whose resolver
//! gives another address of the same host is not seen here. Not here: who may dial what (`dial`).
use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use lru::LruCache;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::dial::{self, Lookups};
use crate::hosts::{Host, canonical};
use crate::lock::lock;
use crate::settings::Settings;

/// Most addresses that are remembered; the one found longest ago goes first.
const MAX_ADDRESSES: NonZeroUsize = NonZeroUsize::new(4_096).expect("not zero");
/// Metered names are resolved this often: a usual lifetime of such records.
const REFRESH: Duration = Duration::from_secs(60);
/// An address counts this long after it was last found: it may still serve when names have moved on.
const MAX_AGE: Duration = Duration::from_secs(24 * 3_600);
/// Longest wait for the first resolution of all names.
const FIRST_ROUND: Duration = Duration::from_secs(2);

/// The addresses that are known. Outlives the configuration: each entry counts while its host is metered.
pub struct MeteredAddresses {
    found: Mutex<LruCache<IpAddr, Found>>,
    resolved_once: watch::Sender<bool>,
}

struct Found {
    host: Host,
    at: Instant,
}

impl Default for MeteredAddresses {
    fn default() -> Self {
        Self { found: Mutex::new(LruCache::new(MAX_ADDRESSES)), resolved_once: watch::Sender::new(false) }
    }
}

impl MeteredAddresses {
    /// Remembers where a metered `host` was found.
    pub fn learn(&self, host: &Host, addresses: &[SocketAddr]) {
        let mut found = lock(&self.found);
        for address in addresses {
            found.put(canonical(address.ip()), Found { host: host.clone(), at: Instant::now() });
        }
    }

    /// The metered host that was found at `address`, as far as it is known and `is_metered` still says so.
    pub fn host_at(&self, address: IpAddr, is_metered: impl Fn(&Host) -> bool) -> Option<Host> {
        let found = lock(&self.found);
        let known = found.peek(&canonical(address))?;
        (known.at.elapsed() < MAX_AGE && is_metered(&known.host)).then(|| known.host.clone())
    }

    /// Waits until every name was resolved once, or could not be, but not for long.
    pub async fn resolved_once(&self) {
        let mut resolved = self.resolved_once.subscribe();
        if tokio::time::timeout(FIRST_ROUND, resolved.wait_for(|resolved| *resolved)).await.is_err() {
            tracing::warn!("the addresses of metered hosts are not all known yet");
        }
    }
}

/// Resolves the metered names now, at each change of the settings, and every [`REFRESH`], for as long as there
/// are settings.
pub async fn keep_fresh(mut settings: watch::Receiver<Arc<Settings>>) {
    let mut unresolved = HashSet::new();
    let lookups = Lookups::default();
    loop {
        let now = Arc::clone(&settings.borrow_and_update());
        resolve_all(&now, &lookups, &mut unresolved).await;
        now.metered_addresses.resolved_once.send_replace(true);
        tokio::select! {
            () = tokio::time::sleep(REFRESH) => {}
            changed = settings.changed() => if changed.is_err() { return },
        }
    }
}

/// Resolves all names at once. What cannot be resolved is logged once, until it can be.
async fn resolve_all(settings: &Arc<Settings>, lookups: &Lookups, unresolved: &mut HashSet<Host>) {
    let mut rounds = JoinSet::new();
    for authority in settings.dialled_names() {
        let (settings, lookups) = (Arc::clone(settings), lookups.clone());
        rounds.spawn(async move {
            let found = dial::resolve(&authority, &settings, &lookups).await;
            (authority.host, found)
        });
    }
    while let Some(ended) = rounds.join_next().await {
        match ended {
            Ok((host, Ok(_))) => {
                unresolved.remove(&host);
            }
            Ok((host, Err(error))) => {
                if unresolved.insert(host) {
                    tracing::warn!(%error, "the addresses of a metered host are not known");
                }
            }
            Err(error) => tracing::warn!(%error, "the addresses of a metered host are not known"),
        }
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
}
