//! Whose clients read the answer to a request that came without TLS.
//!
//! It is refused whatever it asks for, so nothing is judged here: the first thing that names a provider decides, as
//! in the meter's ways in. Not here: requests inside TLS, which are for the host that the TLS asked for.
use http::header::HOST;
use http::request::Parts;

use crate::hosts::Authority;
use crate::protocol::Dialect;
use crate::providers::Providers;

/// The dialect of the provider that a request names: in its absolute form, its Host, or the first segment of its path
/// (the gateway's).
#[must_use]
pub fn of_request(providers: &Providers, request: &Parts) -> Option<Dialect> {
    let at = |text: &str| providers.of(&Authority::parse(text, Some(80)).ok()?);
    let absolute = request.uri.authority().and_then(|named| at(named.as_str()));
    let host = || request.headers.get(HOST).and_then(|host| at(host.to_str().ok()?));
    let gateway = || providers.named(request.uri.path().split('/').nth(1)?);
    absolute.or_else(host).or_else(gateway).map(|provider| provider.dialect)
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;
    use crate::protocol::Provider;

    #[test]
    fn each_way_in_names_a_provider_or_none() {
        let provider = |name: &str, dialect, host: &str, upstream: Option<&str>| Provider {
            name: name.into(),
            dialect,
            hosts: vec![host.into()],
            upstream: upstream.map(str::to_owned),
            include_usage: true,
        };
        let providers = Providers::parse(vec![
            provider("claude", Dialect::Anthropic, "api.anthropic.com", None),
            provider("codex", Dialect::Openai, "*.openai.com", Some("http://10.0.0.1:8080/base")),
        ])
        .unwrap();
        for (uri, host, dialect) in [
            ("/claude/v1/messages?beta=true", "127.0.0.1:7080", Some(Dialect::Anthropic)),
            ("/codex", "localhost:7080", Some(Dialect::Openai)),
            ("/other/v1", "127.0.0.1:7080", None),
            ("/", "127.0.0.1:7080", None),
            ("http://127.0.0.1:7080/codex/v1/responses", "127.0.0.1:7080", Some(Dialect::Openai)),
            ("http://api.anthropic.com/v1/messages", "api.anthropic.com", Some(Dialect::Anthropic)),
            ("http://10.0.0.1:8080/x", "10.0.0.1:8080", Some(Dialect::Openai)),
            ("http://example.com/x", "example.com", None),
            ("/v1/messages", "API.anthropic.com", Some(Dialect::Anthropic)),
            ("/v1/responses", "api.openai.com:80", Some(Dialect::Openai)),
            ("/v1/messages", "example.com", None),
            ("/v1/messages", "no host", None),
            ("*", "api.anthropic.com", Some(Dialect::Anthropic)),
        ] {
            let request = Request::options(uri).header(HOST, host).body(()).unwrap();
            assert_eq!(of_request(&providers, &request.into_parts().0), dialect, "{uri} at {host}");
        }
    }
}
