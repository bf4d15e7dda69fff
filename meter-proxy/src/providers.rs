//! Metered providers, parsed: by name, by host, by the address asked for.
//!
//! Not here: the rest of the configuration (`settings`), and whether a name is right (`hosts`).
use std::collections::HashSet;
use std::sync::Arc;

use crate::hosts::{Authority, Host, HostError, HostPattern};
use crate::protocol::{Dialect, Provider};

/// Why a pushed configuration cannot be applied. The meter then ends: it never serves with half of one.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// A host pattern or a range of addresses is none.
    #[error("configuration: {what}: {source}")]
    Host {
        /// The text.
        what: String,
        /// What it is not.
        source: HostError,
    },
    /// An upstream is no `http(s)://host[:port][/path]`.
    #[error("configuration: {0} is no upstream address")]
    Upstream(String),
    /// The extra roots are no certificates.
    #[error("configuration: extra roots: {0}")]
    Roots(String),
}

/// Where a provider's requests go when the settings name an upstream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Base {
    /// Whether TLS is spoken.
    pub tls: bool,
    /// Whom to dial.
    pub authority: Authority,
    /// Put before each path; no final slash.
    pub path: String,
}

/// One metered provider.
#[derive(Debug)]
pub struct Metered {
    /// Key of its budget.
    pub name: String,
    /// How it reports usage.
    pub dialect: Dialect,
    /// Whether its chat streams are asked for usage.
    pub include_usage: bool,
    /// Names that are metered.
    pub hosts: Vec<HostPattern>,
    /// Serves every way in, when it is given.
    pub upstream: Option<Base>,
    /// Where the gateway goes without it: the first host, when that is one host.
    pub first_host: Option<Host>,
}

/// The providers of a configuration, in its order.
#[derive(Debug, Default)]
pub struct Providers(Vec<Arc<Metered>>);

impl Providers {
    /// Parses them.
    ///
    /// # Errors
    /// When any part of one cannot be read.
    pub fn parse(providers: Vec<Provider>) -> Result<Self, SettingsError> {
        Ok(Self(providers.into_iter().map(metered).collect::<Result<_, _>>()?))
    }

    /// The provider whose name the gateway's path begins with.
    #[must_use]
    pub fn named(&self, name: &str) -> Option<&Arc<Metered>> {
        self.0.iter().find(|provider| provider.name == name)
    }

    /// The provider that `host` belongs to: by its hosts, or by the name of the upstream in its settings.
    #[must_use]
    pub fn at(&self, host: &Host) -> Option<&Arc<Metered>> {
        let names = |base: &Base| matches!(host, Host::Name(_)) && base.authority.host == *host;
        self.0.iter().find(|provider| {
            provider.hosts.iter().any(|pattern| pattern.matches(host))
                || provider.upstream.as_ref().is_some_and(names)
        })
    }

    /// The provider that `authority` belongs to: as [`Self::at`], or as the upstream itself. An address
    /// alone may serve much else at other ports.
    #[must_use]
    pub fn of(&self, authority: &Authority) -> Option<&Arc<Metered>> {
        let is_upstream = |provider: &&Arc<Metered>| {
            provider.upstream.as_ref().is_some_and(|base| base.authority == *authority)
        };
        self.at(&authority.host).or_else(|| self.0.iter().find(is_upstream))
    }

    /// The metered names that are known beforehand: all but patterns, and those of upstreams.
    #[must_use]
    pub fn names(&self) -> HashSet<Authority> {
        self.0.iter().flat_map(|provider| provider.names().chain(provider.upstream_name())).collect()
    }

    /// Those of them that are dialled: in place of the names of a provider with an upstream, that upstream's.
    pub fn dialled_names(&self) -> impl Iterator<Item = Host> {
        let own = |provider: &&Arc<Metered>| provider.upstream.is_none();
        let own = self.0.iter().filter(own).flat_map(|provider| provider.names());
        let upstreams = self.0.iter().filter_map(|provider| provider.upstream_name());
        own.chain(upstreams).map(|authority| authority.host)
    }
}

impl Metered {
    /// Its hosts that are one name each.
    fn names(&self) -> impl Iterator<Item = Authority> {
        self.hosts.iter().filter_map(HostPattern::only_name).map(Authority::https)
    }

    /// Its upstream, when that is named.
    fn upstream_name(&self) -> Option<Authority> {
        let authority = self.upstream.as_ref().map(|base| &base.authority);
        authority.filter(|authority| matches!(authority.host, Host::Name(_))).cloned()
    }
}

/// Parses one provider.
fn metered(provider: Provider) -> Result<Arc<Metered>, SettingsError> {
    let hosts = provider.hosts.iter().map(|host| checked(host, HostPattern::parse(host)));
    Ok(Arc::new(Metered {
        hosts: hosts.collect::<Result<_, _>>()?,
        first_host: provider.hosts.first().and_then(|host| host.parse().ok()),
        upstream: provider.upstream.as_deref().map(base).transpose()?,
        name: provider.name,
        dialect: provider.dialect,
        include_usage: provider.include_usage,
    }))
}

/// Parses an upstream address; a query or a fragment is refused.
fn base(text: &str) -> Result<Base, SettingsError> {
    let wrong = || SettingsError::Upstream(text.to_owned());
    let (tls, rest) = match text.split_once("://").ok_or_else(wrong)? {
        ("http", rest) => (false, rest),
        ("https", rest) => (true, rest),
        _ => return Err(wrong()),
    };
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    if path.contains(['?', '#']) {
        return Err(wrong());
    }
    let authority = Authority::parse(authority, Some(if tls { 443 } else { 80 })).map_err(|_| wrong())?;
    Ok(Base { tls, authority, path: path.trim_end_matches('/').to_owned() })
}

/// Says which text was wrong.
pub fn checked<T>(what: &str, parsed: Result<T, HostError>) -> Result<T, SettingsError> {
    parsed.map_err(|source| SettingsError::Host { what: what.to_owned(), source })
}
