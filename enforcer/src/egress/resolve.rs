//! Asks DNS for the addresses of names, with how long they are good: both families, not cached here.
//!
//! Which servers: those of the settings, else the host's. Not here: what becomes of the answers.
use std::net::IpAddr;
use std::time::{Duration, Instant};

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{LookupIpStrategy, NameServerConfig, ResolverConfig, ResolverOpts};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::system_conf::parse_resolv_conf;

/// The host's servers.
const RESOLV_CONF: &str = "/etc/resolv.conf";
/// Longest wait for one server's answer, and how often it is asked again.
const TIMEOUT: Duration = Duration::from_secs(2);
const ATTEMPTS: usize = 1;

/// Addresses, and how long they are good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// In the order of the answer.
    pub addresses: Vec<IpAddr>,
    /// The shortest time to live of all records.
    pub ttl: Duration,
}

/// The servers that are asked now, and a way to ask them.
pub struct Resolver {
    servers: Vec<IpAddr>,
    /// What the host's file said, where it was asked; `None`: it could not be read, or the servers are set.
    host_file: Option<Vec<u8>>,
    resolver: Option<TokioResolver>,
}

impl Resolver {
    /// Asks these servers, or without any the host's.
    pub fn new(servers: &[IpAddr]) -> Self {
        if servers.is_empty() {
            return Self::of_host();
        }
        let named = servers.iter().map(|ip| NameServerConfig::udp_and_tcp(*ip)).collect();
        Self {
            servers: servers.to_vec(),
            host_file: None,
            resolver: build(ResolverConfig::from_name_servers(named), ResolverOpts::default()),
        }
    }

    /// Asks the host's servers, as they are now.
    fn of_host() -> Self {
        let host_file = std::fs::read(RESOLV_CONF).ok();
        let parsed = match &host_file {
            Some(text) => parse_resolv_conf(text).map_err(|error| error.to_string()),
            None => Err("it cannot be read".to_owned()),
        };
        match parsed {
            Ok((config, options)) => {
                let mut servers: Vec<IpAddr> = config.name_servers().iter().map(|server| server.ip).collect();
                servers.dedup();
                Self { resolver: build(config, options), servers, host_file }
            }
            Err(error) => {
                tracing::warn!(error, "the host's DNS servers are not known from {RESOLV_CONF}");
                Self { servers: Vec::new(), resolver: None, host_file }
            }
        }
    }

    /// The servers, whose port 53 confined bottles may ask.
    pub fn servers(&self) -> &[IpAddr] {
        &self.servers
    }

    /// Whether the host's file still says what it said.
    pub fn is_current(&self) -> bool {
        std::fs::read(RESOLV_CONF).ok() == self.host_file
    }

    /// Looks a name up.
    ///
    /// # Errors
    /// Why it has no addresses, in words.
    pub async fn look_up(&self, name: &str) -> Result<Found, String> {
        let resolver = self.resolver.as_ref().ok_or("no DNS server is known")?;
        let answer = resolver.lookup_ip(name).await.map_err(|error| error.to_string())?;
        let ttl = answer.valid_until().saturating_duration_since(Instant::now());
        let addresses: Vec<IpAddr> = answer.iter().map(|ip| ip.to_canonical()).collect();
        if addresses.is_empty() {
            Err("it has no addresses".to_owned())
        } else {
            Ok(Found { addresses, ttl })
        }
    }
}

fn build(config: ResolverConfig, options: ResolverOpts) -> Option<TokioResolver> {
    let mut builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
    let options = {
        let mut options = options;
        options.ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
        options.cache_size = 0;
        options.timeout = TIMEOUT;
        options.attempts = ATTEMPTS;
        options
    };
    *builder.options_mut() = options;
    builder.build().inspect_err(|error| tracing::warn!(%error, "names cannot be resolved")).ok()
}
