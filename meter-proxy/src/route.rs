//! Where a request is meant to go: the ways in, judged by one parsed host type.
//!
//! Not here: connections (`dial`), tunnels (`intercept`), and whether the request may go there (`gate`).
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};

use http::header::HOST;
use http::request::Parts;
use http::uri::Scheme;
use http::{Uri, Version};

use crate::dial::Chosen;
use crate::hosts::{Authority, HTTPS, Host};
use crate::protocol::Dialect;
use crate::providers::Metered;
use crate::refuse::{Reason, Refused};
use crate::settings::Settings;

/// How a connection came to the meter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entrance {
    /// At a listening socket: gateway, or forward proxy.
    Listener {
        /// The meter's end of the connection.
        local: SocketAddr,
    },
    /// Inside an intercepted tunnel.
    Tunnel {
        /// What the CONNECT named.
        authority: Authority,
        /// Whether the TLS handshake named it too, or named nothing.
        name_agrees: bool,
    },
    /// Redirected by the kernel, without TLS.
    Redirected {
        /// Where the client meant to connect.
        original: SocketAddr,
        /// The first host that was asked for and is not metered; there may be no second.
        other_host: OnceLock<Host>,
    },
}

impl Entrance {
    /// A connection to `original` on which nothing was asked for yet.
    #[must_use]
    pub fn redirected(original: SocketAddr) -> Self {
        Self::Redirected { original, other_host: OnceLock::new() }
    }
}

/// Where a request goes.
#[derive(Debug)]
pub struct Destination {
    /// Who is paid for it; none for hosts that are not metered.
    pub provider: Option<Arc<Metered>>,
    /// Whether TLS is spoken.
    pub tls: bool,
    /// Whom to dial.
    pub authority: Authority,
    /// What the Host header says when it is not that: a redirected request is dialled by address.
    pub named: Option<Authority>,
    /// Who chose that.
    pub chosen: Chosen,
    /// Path without the query and without what the gateway put before it.
    pub endpoint: String,
    /// Path and query to ask upstream for.
    pub target: String,
}

impl Destination {
    /// Whose clients read a refusal.
    #[must_use]
    pub fn dialect(&self) -> Option<Dialect> {
        self.provider.as_ref().map(|provider| provider.dialect)
    }

    /// The address of the request.
    ///
    /// # Errors
    /// When the target is no path.
    pub fn uri(&self) -> Result<Uri, http::Error> {
        Uri::builder()
            .scheme(if self.tls { Scheme::HTTPS } else { Scheme::HTTP })
            .authority(shown(&self.authority, self.tls))
            .path_and_query(self.target.as_str())
            .build()
    }

    /// The value of the Host header, when it is not the address of the request.
    #[must_use]
    pub fn host_header(&self) -> Option<String> {
        self.named.as_ref().map(|named| shown(named, self.tls))
    }
}

/// An authority as requests name it: no port where it is the scheme's own.
fn shown(authority: &Authority, tls: bool) -> String {
    let own = if tls { HTTPS } else { 80 };
    if authority.port == own { authority.host.to_string() } else { authority.to_string() }
}

/// Finds where a request goes.
///
/// # Errors
/// When it names no host, several, or no provider.
pub fn find(settings: &Settings, entrance: &Entrance, request: &Parts) -> Result<Destination, Refused> {
    match entrance {
        Entrance::Tunnel { authority, name_agrees } => in_tunnel(settings, authority, *name_agrees, request),
        Entrance::Redirected { original, other_host } => redirected(settings, *original, other_host, request),
        Entrance::Listener { local } => match request.uri.authority() {
            Some(named) => {
                let authority = absolute(request, named.as_str())?;
                if names_meter(settings, &authority, *local) {
                    gateway(settings, request)
                } else {
                    by_authority(settings, authority, false, request)
                }
            }
            None => {
                host_header(request, None)?;
                gateway(settings, request)
            }
        },
    }
}

/// A request inside a tunnel goes where the tunnel goes, and must say so.
fn in_tunnel(
    settings: &Settings,
    authority: &Authority,
    name_agrees: bool,
    request: &Parts,
) -> Result<Destination, Refused> {
    let provider = settings.provider_of(authority);
    let dialect = provider.map(|provider| provider.dialect);
    let shaped = |reason| Refused { reason, dialect };
    let host = host_header(request, Some(443)).map_err(|refused| shaped(refused.reason))?;
    let asked = request.uri.authority().map(|named| Authority::parse(named.as_str(), Some(443)));
    let asked_agrees = asked.is_none_or(|asked| asked.as_ref() == Ok(authority));
    if provider.is_none() || !name_agrees || host != *authority || !asked_agrees {
        return Err(shaped(Reason::Misdirected));
    }
    by_authority(settings, authority.clone(), true, request)
}

/// A redirected request without TLS: for a metered host it goes to that host, by TLS; for another to where it was
/// going, and one connection has only one such host.
fn redirected(
    settings: &Settings,
    original: SocketAddr,
    other_host: &OnceLock<Host>,
    request: &Parts,
) -> Result<Destination, Refused> {
    let named = match request.uri.authority() {
        Some(asked) => absolute(request, asked.as_str())?,
        None => host_header(request, Some(original.port()))?,
    };
    if settings.provider_at(&named.host).is_some() {
        return by_authority(settings, Authority::https(named.host), true, request);
    }
    if *other_host.get_or_init(|| named.host.clone()) != named.host {
        return Err(Refused::plain(Reason::Misdirected));
    }
    let plain = by_authority(settings, original.into(), false, request)?;
    Ok(Destination { named: Some(named), ..plain })
}

/// The authority of an absolute request, which its Host header must repeat.
fn absolute(request: &Parts, named: &str) -> Result<Authority, Refused> {
    if request.uri.scheme() != Some(&Scheme::HTTP) {
        return Err(malformed("only http:// can be asked for in absolute form; use CONNECT for https"));
    }
    let authority = Authority::parse(named, Some(80)).map_err(|_| malformed("the request names no host"))?;
    if host_header(request, Some(80))? == authority {
        Ok(authority)
    } else {
        Err(Refused::plain(Reason::Misdirected))
    }
}

/// Whether `authority` is the meter itself, as the client of this connection may call it.
fn names_meter(settings: &Settings, authority: &Authority, local: SocketAddr) -> bool {
    match &authority.host {
        Host::Name(name) => name == "localhost" && authority.port == local.port(),
        Host::Address(address) => {
            let named = SocketAddr::new(*address, authority.port);
            named == local || settings.addresses.is_own(named)
        }
    }
}

/// A request for a host: to its provider's upstream when there is one, else to the host.
fn by_authority(
    settings: &Settings,
    authority: Authority,
    tls: bool,
    request: &Parts,
) -> Result<Destination, Refused> {
    let provider = settings.provider_of(&authority).cloned();
    let rest = request.uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
    let Some(base) = provider.as_ref().and_then(|provider| provider.upstream.clone()) else {
        let endpoint = request.uri.path().to_owned();
        return Ok(Destination {
            provider,
            tls,
            authority,
            named: None,
            chosen: Chosen::ByClient,
            endpoint,
            target: rest,
        });
    };
    Ok(Destination {
        provider,
        tls: base.tls,
        authority: base.authority,
        named: None,
        chosen: Chosen::BySettings,
        endpoint: request.uri.path().to_owned(),
        target: format!("{}{rest}", base.path),
    })
}

/// `/PROVIDER/rest`: to the provider's upstream, or to its first host by TLS.
fn gateway(settings: &Settings, request: &Parts) -> Result<Destination, Refused> {
    let path = request.uri.path().strip_prefix('/').ok_or_else(|| malformed("the request names no path"))?;
    let (name, rest) = path.split_at(path.find('/').unwrap_or(path.len()));
    let provider = settings
        .provider_named(name)
        .ok_or_else(|| Refused::plain(Reason::NoProvider(name.chars().take(64).collect())))?;
    let rest = if rest.is_empty() { "/" } else { rest };
    let query = request.uri.query().map_or_else(String::new, |query| format!("?{query}"));
    let (tls, authority, base, chosen) = match (&provider.upstream, &provider.first_host) {
        (Some(base), _) => (base.tls, base.authority.clone(), base.path.as_str(), Chosen::BySettings),
        (None, Some(host)) => (true, Authority::https(host.clone()), "", Chosen::ByClient),
        (None, None) => {
            let reason =
                Reason::Malformed("this provider has no single host; name an upstream in the settings");
            return Err(Refused::shaped(reason, provider.dialect));
        }
    };
    Ok(Destination {
        provider: Some(Arc::clone(provider)),
        tls,
        authority,
        named: None,
        chosen,
        endpoint: rest.to_owned(),
        target: format!("{base}{rest}{query}"),
    })
}

/// The one host that a request names: in its Host header or, in HTTP/2, in `:authority` where it has none (RFC
/// 9113, 8.3.1). Without `default_port` its value is only checked for being there once.
fn host_header(request: &Parts, default_port: Option<u16>) -> Result<Authority, Refused> {
    let mut values = request.headers.get_all(HOST).iter();
    let text = match (values.next(), values.next(), request.uri.authority()) {
        (Some(value), None, _) => value.to_str().map_err(|_| malformed("the Host header is no host"))?,
        (None, None, Some(named)) if request.version == Version::HTTP_2 => named.as_str(),
        _ => return Err(malformed("a request needs exactly one Host header")),
    };
    Authority::parse(text, default_port.or(Some(80))).map_err(|_| malformed("the Host header is no host"))
}

fn malformed(what: &'static str) -> Refused {
    Refused::plain(Reason::Malformed(what))
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;
    use crate::protocol::{Config, Provider};

    const LOCAL: &str = "127.0.0.1:7080";

    fn settings() -> Settings {
        let provider = |name: &str, hosts: &[&str], upstream: Option<&str>| Provider {
            name: name.into(),
            dialect: Dialect::Anthropic,
            hosts: hosts.iter().map(|host| (*host).to_owned()).collect(),
            upstream: upstream.map(str::to_owned),
        };
        let config = Config {
            providers: vec![
                provider("claude", &["api.anthropic.com"], None),
                provider("mine", &["mine.test"], Some("http://127.0.0.1:9/base")),
                provider("star", &["*.star.test"], None),
            ],
            extra_roots_pem: String::new(),
            midstream: true,
            hold_ms: 1,
            settle_timeout_ms: 1,
            allow_private: Vec::new(),
            allow: Vec::new(),
        };
        Settings::apply(config, &[LOCAL.parse().unwrap()]).unwrap()
    }

    fn ask(entrance: &Entrance, uri: &str, hosts: &[&str]) -> Result<Destination, Reason> {
        let mut request = Request::get(uri);
        for host in hosts {
            request = request.header(HOST, *host);
        }
        let (parts, ()) = request.body(()).unwrap().into_parts();
        find(&settings(), entrance, &parts).map_err(|refused| refused.reason)
    }

    fn listener() -> Entrance {
        Entrance::Listener { local: LOCAL.parse().unwrap() }
    }

    fn tunnel(name_agrees: bool) -> Entrance {
        Entrance::Tunnel { authority: Authority::parse("api.anthropic.com:443", None).unwrap(), name_agrees }
    }

    fn redirected() -> Entrance {
        Entrance::redirected("203.0.113.7:80".parse().unwrap())
    }

    fn host(destination: &Destination) -> String {
        let asked = || destination.uri().unwrap().authority().unwrap().to_string();
        destination.host_header().unwrap_or_else(asked)
    }

    fn uri(destination: Result<Destination, Reason>) -> String {
        destination.unwrap().uri().unwrap().to_string()
    }

    #[test]
    fn the_gateway_goes_by_the_first_segment() {
        let found = ask(&listener(), "/claude/v1/messages?beta=true", &[LOCAL]).unwrap();
        assert_eq!(found.endpoint, "/v1/messages");
        assert_eq!(host(&found), "api.anthropic.com");
        assert_eq!(found.uri().unwrap().to_string(), "https://api.anthropic.com/v1/messages?beta=true");
        assert_eq!(uri(ask(&listener(), "/mine/x", &["a"])), "http://127.0.0.1:9/base/x");
        assert_eq!(uri(ask(&listener(), "/mine", &["a"])), "http://127.0.0.1:9/base/");
        assert!(matches!(ask(&listener(), "/other/x", &["a"]), Err(Reason::NoProvider(_))));
        assert!(matches!(ask(&listener(), "/star/x", &["a"]), Err(Reason::Malformed(_))));
    }

    #[test]
    fn a_request_has_one_host() {
        for hosts in [&[][..], &["a", "a"], &["a b"], &[""]] {
            assert!(matches!(ask(&listener(), "/claude/x", hosts), Err(Reason::Malformed(_))), "{hosts:?}");
        }
    }

    #[test]
    fn absolute_requests_go_to_the_gateway_a_provider_or_a_host() {
        for own in ["127.0.0.1:7080", "localhost:7080"] {
            assert_eq!(
                uri(ask(&listener(), &format!("http://{own}/mine/x"), &[own])),
                "http://127.0.0.1:9/base/x"
            );
        }
        let plain = ask(&listener(), "http://example.com/x?y", &["example.com"]).unwrap();
        assert!(plain.provider.is_none());
        assert_eq!(plain.chosen, Chosen::ByClient);
        let metered = ask(&listener(), "http://mine.test/x", &["MINE.test"]).unwrap();
        assert_eq!(metered.provider.as_ref().unwrap().name, "mine");
        assert_eq!(metered.uri().unwrap().to_string(), "http://127.0.0.1:9/base/x");
        assert_eq!(ask(&listener(), "http://a.test/x", &["b.test"]).unwrap_err(), Reason::Misdirected);
        assert!(matches!(ask(&listener(), "https://a.test/x", &["a.test"]), Err(Reason::Malformed(_))));
    }

    #[test]
    fn a_redirected_request_goes_where_it_was_going_or_to_its_provider() {
        let entrance = redirected();
        let plain = ask(&entrance, "/x?y", &["Example.com:80"]).unwrap();
        assert_eq!(host(&plain), "example.com");
        assert_eq!(plain.chosen, Chosen::ByClient);
        assert!(plain.provider.is_none());
        assert_eq!(uri(Ok(plain)), "http://203.0.113.7/x?y");
        assert_eq!(uri(ask(&entrance, "http://example.com/z", &["example.com"])), "http://203.0.113.7/z");
        let metered = ask(&entrance, "/v1/messages", &["api.anthropic.com"]).unwrap();
        assert_eq!((metered.provider.as_ref().unwrap().name.as_str(), metered.tls), ("claude", true));
        assert_eq!(host(&metered), "api.anthropic.com");
        assert_eq!(uri(Ok(metered)), "https://api.anthropic.com/v1/messages");
        assert_eq!(uri(ask(&entrance, "/x", &["mine.test"])), "http://127.0.0.1:9/base/x");
        assert_eq!(ask(&entrance, "/x", &["other.com"]).unwrap_err(), Reason::Misdirected);
        assert_eq!(ask(&entrance, "http://a.test/", &["b.test"]).unwrap_err(), Reason::Misdirected);
        assert!(matches!(ask(&entrance, "/claude/x", &[]), Err(Reason::Malformed(_))));
    }

    #[test]
    fn in_a_tunnel_every_name_agrees() {
        let found = ask(&tunnel(true), "/v1/messages", &["api.anthropic.com"]).unwrap();
        assert_eq!((found.tls, found.chosen), (true, Chosen::ByClient));
        assert!(ask(&tunnel(true), "/x", &["API.anthropic.com.:443"]).is_ok());
        for (entrance, uri, host) in [
            (tunnel(false), "/x", "api.anthropic.com"),
            (tunnel(true), "/x", "example.com"),
            (tunnel(true), "/x", "api.anthropic.com:444"),
            (tunnel(true), "https://example.com/x", "api.anthropic.com"),
        ] {
            assert_eq!(ask(&entrance, uri, &[host]).unwrap_err(), Reason::Misdirected, "{uri} {host}");
        }
    }
}
