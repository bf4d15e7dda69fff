//! The configuration that the controller pushed, parsed and ready to be asked.
//!
//! Not here: the settings file (the controller reads it), and any default of it.
use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, pem::PemObject};

use crate::addresses::MeteredAddresses;
use crate::egress::EgressRule;
use crate::hosts::{AddressPolicy, Authority, Host, HostError, HostPattern};
use crate::protocol::{Config, Dialect, Provider};

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
    /// Names that are metered.
    pub hosts: Vec<HostPattern>,
    /// Serves every way in, when it is given.
    pub upstream: Option<Base>,
    /// Where the gateway goes without it: the first host, when that is one host.
    pub first_host: Option<Host>,
}

/// The configuration in force.
pub struct Settings {
    providers: Vec<Arc<Metered>>,
    /// TLS towards upstreams.
    pub tls: Arc<ClientConfig>,
    /// Whether running counts are sent.
    pub midstream: bool,
    /// How long a silently cut exchange is kept.
    pub hold: Duration,
    /// Longest wait for a durable settlement.
    pub settle_timeout: Duration,
    /// What names chosen by clients may lead to.
    pub addresses: AddressPolicy,
    /// What bottles in mode `allowlist` may reach beside their providers.
    pub allow: Vec<EgressRule>,
    /// Where metered hosts were found.
    pub metered_addresses: Arc<MeteredAddresses>,
}

impl Settings {
    /// Parses what was pushed; `own` are the meter's listening addresses.
    ///
    /// # Errors
    /// When any part of it cannot be read; nothing is applied then.
    pub fn apply(config: Config, own: &[SocketAddr]) -> Result<Self, SettingsError> {
        let allow_private = config.allow_private.iter().map(|range| named(range, range.parse()));
        let applied = Self {
            tls: Arc::new(upstream_tls(&config.extra_roots_pem)?),
            addresses: AddressPolicy {
                allow_private: allow_private.collect::<Result<_, _>>()?,
                own: own.to_vec(),
            },
            midstream: config.midstream,
            hold: Duration::from_millis(config.hold_ms),
            settle_timeout: Duration::from_millis(config.settle_timeout_ms),
            providers: config.providers.into_iter().map(metered).collect::<Result<_, _>>()?,
            allow: config.allow,
            metered_addresses: Arc::default(),
        };
        Ok(applied.expecting())
    }

    /// Takes over what was found out under the configuration before.
    #[must_use]
    pub fn succeeding(self, before: &Self) -> Self {
        Self { metered_addresses: Arc::clone(&before.metered_addresses), ..self }.expecting()
    }

    /// Says which names have to be found, before the first connection is served under this configuration. Only
    /// those that are dialled: where an upstream stands for a name, the name itself need not exist.
    fn expecting(self) -> Self {
        self.metered_addresses.expect(self.dialled_names());
        self
    }

    /// The provider whose name the gateway's path begins with.
    #[must_use]
    pub fn provider_named(&self, name: &str) -> Option<&Arc<Metered>> {
        self.providers.iter().find(|provider| provider.name == name)
    }

    /// The provider that `host` belongs to: by its hosts, or by the name of the upstream in its settings.
    #[must_use]
    pub fn provider_at(&self, host: &Host) -> Option<&Arc<Metered>> {
        let names = |base: &Base| matches!(host, Host::Name(_)) && base.authority.host == *host;
        self.providers.iter().find(|provider| {
            provider.hosts.iter().any(|pattern| pattern.matches(host))
                || provider.upstream.as_ref().is_some_and(names)
        })
    }

    /// The provider that `authority` belongs to: as [`Self::provider_at`], or as the upstream itself. An address
    /// alone may serve much else at other ports.
    #[must_use]
    pub fn provider_of(&self, authority: &Authority) -> Option<&Arc<Metered>> {
        let is_upstream = |provider: &&Arc<Metered>| {
            provider.upstream.as_ref().is_some_and(|base| base.authority == *authority)
        };
        self.provider_at(&authority.host).or_else(|| self.providers.iter().find(is_upstream))
    }

    /// The metered names that are known beforehand: all but patterns, and those of upstreams.
    #[must_use]
    pub fn metered_names(&self) -> HashSet<Authority> {
        self.providers.iter().flat_map(|provider| provider.names().chain(provider.upstream_name())).collect()
    }

    /// Those of them that are dialled: in place of the names of a provider with an upstream, that upstream's.
    fn dialled_names(&self) -> impl Iterator<Item = Host> {
        let own = |provider: &&Arc<Metered>| provider.upstream.is_none();
        let own = self.providers.iter().filter(own).flat_map(|provider| provider.names());
        let upstreams = self.providers.iter().filter_map(|provider| provider.upstream_name());
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
    let hosts = provider.hosts.iter().map(|host| named(host, HostPattern::parse(host)));
    Ok(Arc::new(Metered {
        hosts: hosts.collect::<Result<_, _>>()?,
        first_host: provider.hosts.first().and_then(|host| host.parse().ok()),
        upstream: provider.upstream.as_deref().map(base).transpose()?,
        name: provider.name,
        dialect: provider.dialect,
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

/// TLS 1.2 and 1.3 with the system's roots and the extra ones, HTTP/1.1 only.
fn upstream_tls(extra_roots_pem: &str) -> Result<ClientConfig, SettingsError> {
    let mut roots = RootCertStore::empty();
    let native = rustls_native_certs::load_native_certs();
    for error in &native.errors {
        tracing::warn!(%error, "a system root certificate cannot be read");
    }
    roots.add_parsable_certificates(native.certs);
    for certificate in CertificateDer::pem_slice_iter(extra_roots_pem.as_bytes()) {
        let certificate = certificate.map_err(|error| SettingsError::Roots(error.to_string()))?;
        roots.add(certificate).map_err(|error| SettingsError::Roots(error.to_string()))?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut tls = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| SettingsError::Roots(error.to_string()))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    tls.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(tls)
}

/// Says which text was wrong.
fn named<T>(what: &str, parsed: Result<T, HostError>) -> Result<T, SettingsError> {
    parsed.map_err(|source| SettingsError::Host { what: what.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> Config {
        Config {
            providers: vec![Provider {
                name: "claude".into(),
                dialect: Dialect::Anthropic,
                hosts: vec!["api.anthropic.com".into()],
                upstream: Some("https://api.anthropic.com/base/".into()),
            }],
            extra_roots_pem: String::new(),
            midstream: true,
            hold_ms: 1,
            settle_timeout_ms: 1,
            allow_private: vec!["10.0.0.0/8".into()],
            allow: Vec::new(),
        }
    }

    #[test]
    fn a_provider_is_found_by_name_and_by_host() {
        let settings = Settings::apply(config(), &[]).unwrap();
        let upstream = settings.provider_named("claude").unwrap().upstream.clone().unwrap();
        assert_eq!(
            (upstream.authority.to_string().as_str(), upstream.path.as_str()),
            ("api.anthropic.com:443", "/base")
        );
        assert!(settings.provider_at(&"API.anthropic.com".parse().unwrap()).is_some());
        assert!(settings.provider_at(&"anthropic.com".parse().unwrap()).is_none());
    }

    #[test]
    fn the_host_of_an_upstream_is_metered_too() {
        let mut config = config();
        config.providers[0].upstream = Some("https://gateway.test:8443/claude".into());
        let settings = Settings::apply(config, &[]).unwrap();
        for host in ["gateway.test", "api.anthropic.com"] {
            assert_eq!(settings.provider_at(&host.parse().unwrap()).unwrap().name, "claude");
        }
        let mut config = self::config();
        config.providers[0].upstream = Some("http://10.0.0.1:8080".into());
        let settings = Settings::apply(config, &[]).unwrap();
        let provider = |authority| settings.provider_of(&Authority::parse(authority, None).unwrap());
        assert!(provider("10.0.0.1:8080").is_some() && provider("api.anthropic.com:80").is_some());
        assert!(provider("10.0.0.1:8081").is_none());
    }

    #[test]
    fn names_are_known_beforehand_and_those_that_are_dialled_are_waited_for() {
        let mut config = config();
        let provider = |name: &str, hosts: &[&str], upstream: Option<&str>| Provider {
            name: name.into(),
            dialect: Dialect::Openai,
            hosts: hosts.iter().map(|host| (*host).to_owned()).collect(),
            upstream: upstream.map(str::to_owned),
        };
        config.providers.push(provider("open", &["a.test", "*.b.test"], None));
        config.providers.push(provider("elsewhere", &["c.test"], Some("http://gateway.test:8080")));
        let settings = Settings::apply(config, &[]).unwrap();
        let mut names: Vec<String> = settings.metered_names().iter().map(ToString::to_string).collect();
        names.sort_unstable();
        assert_eq!(names, ["a.test:443", "api.anthropic.com:443", "c.test:443", "gateway.test:8080"]);
        let names: Vec<String> = settings.dialled_names().map(|name| name.to_string()).collect();
        assert_eq!(names, ["a.test", "api.anthropic.com", "gateway.test"]);
        assert_eq!(settings.metered_addresses.missing().unwrap().to_string(), "a.test");
    }

    #[test]
    fn what_cannot_be_read_is_refused() {
        let refused = |change: fn(&mut Config)| {
            let mut config = config();
            change(&mut config);
            Settings::apply(config, &[]).is_err()
        };
        assert!(refused(|config| config.allow_private = vec!["10/8".into()]));
        assert!(refused(|config| config.providers[0].hosts = vec!["a b".into()]));
        assert!(refused(|config| config.providers[0].upstream = Some("ftp://a".into())));
        assert!(refused(|config| config.providers[0].upstream = Some("http://a/?q".into())));
        assert!(refused(|config| {
            config.extra_roots_pem = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n".into();
        }));
    }
}
