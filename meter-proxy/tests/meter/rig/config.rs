//! Configurations that the played controller pushes, and addresses in them.
use std::net::SocketAddr;

use meter_proxy::protocol::{Config, Dialect, Provider};

/// A configuration with one Anthropic and one OpenAI provider, both served by `upstream`.
pub fn config(upstream: SocketAddr) -> Config {
    let provider = |name: &str, dialect, host: &str| Provider {
        name: name.into(),
        dialect,
        hosts: vec![host.into()],
        upstream: Some(format!("http://{upstream}")),
        include_usage: true,
    };
    Config {
        providers: vec![
            provider("claude", Dialect::Anthropic, "api.anthropic.com"),
            provider("codex", Dialect::Openai, "api.openai.com"),
        ],
        extra_roots_pem: String::new(),
        midstream: true,
        hold_ms: 60_000,
        settle_timeout_ms: 5_000,
        allow_private: Vec::new(),
        allow: Vec::new(),
    }
}

/// A configuration in which loopback addresses may be reached, and nothing is known of any.
pub fn loopback_is_open(upstream: SocketAddr) -> Config {
    let mut settings = config(upstream);
    settings.allow_private = vec!["127.0.0.0/8".into()];
    settings
}

/// A configuration in which `localhost` is metered at its own address, and other loopback addresses are not.
pub fn localhost_is_metered() -> Config {
    let mut settings = loopback_is_open(nowhere());
    settings.providers[0].hosts = vec!["localhost".into()];
    settings.providers[0].upstream = None;
    settings
}

/// An address of a test network, RFC 5737; nothing may ever be sent there.
pub fn far(port: u16) -> SocketAddr {
    SocketAddr::new("203.0.113.7".parse().unwrap(), port)
}

pub fn nowhere() -> SocketAddr {
    "127.0.0.1:9".parse().unwrap()
}
