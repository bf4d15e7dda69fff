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
use crate::framing::{ALPN_HTTP1, ALPN_HTTP2};
use crate::hosts::{AddressPolicy, Authority, Host};
use crate::protocol::Config;
use crate::providers::{Metered, Providers, SettingsError, checked};

/// The configuration in force.
pub struct Settings {
    providers: Providers,
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
        let allow_private = config.allow_private.iter().map(|range| checked(range, range.parse()));
        let applied = Self {
            tls: Arc::new(upstream_tls(&config.extra_roots_pem)?),
            addresses: AddressPolicy {
                allow_private: allow_private.collect::<Result<_, _>>()?,
                own: own.to_vec(),
            },
            midstream: config.midstream,
            hold: Duration::from_millis(config.hold_ms),
            settle_timeout: Duration::from_millis(config.settle_timeout_ms),
            providers: Providers::parse(config.providers)?,
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
        self.metered_addresses.expect(self.providers.dialled_names());
        self
    }

    /// As [`Providers::named`].
    #[must_use]
    pub fn provider_named(&self, name: &str) -> Option<&Arc<Metered>> {
        self.providers.named(name)
    }

    /// As [`Providers::at`].
    #[must_use]
    pub fn provider_at(&self, host: &Host) -> Option<&Arc<Metered>> {
        self.providers.at(host)
    }

    /// As [`Providers::of`].
    #[must_use]
    pub fn provider_of(&self, authority: &Authority) -> Option<&Arc<Metered>> {
        self.providers.of(authority)
    }

    /// As [`Providers::names`].
    #[must_use]
    pub fn metered_names(&self) -> HashSet<Authority> {
        self.providers.names()
    }
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
    tls.alpn_protocols = vec![ALPN_HTTP2.to_vec(), ALPN_HTTP1.to_vec()];
    Ok(tls)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{Dialect, Provider};

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
        let names: Vec<String> = settings.providers.dialled_names().map(|name| name.to_string()).collect();
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
