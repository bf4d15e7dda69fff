//! Host names, authorities and addresses as the meter judges them: parsed once, compared as one type.
//!
//! Not here: name resolution and connections (`dial`), and which provider a host belongs to (`settings`).
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Longest host name in bytes, RFC 1035.
const MAX_NAME_BYTES: usize = 253;
/// Longest label of a host name in bytes, RFC 1035.
const MAX_LABEL_BYTES: usize = 63;

/// The port of https.
pub const HTTPS: u16 = 443;

/// Why a host, an authority or a range is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HostError {
    /// Neither a host name nor an address.
    #[error("not a host name or address")]
    Host,
    /// No port, or none between 1 and 65535.
    #[error("not a port")]
    Port,
    /// Not `address/bits`.
    #[error("not a range of addresses")]
    Range,
}

/// A host: a name in lower case without a final dot, or an address.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Host {
    /// A name of letters, digits, `-` and `_`.
    Name(String),
    /// An address; a v4 address mapped into v6 is v4 here.
    Address(IpAddr),
}

impl FromStr for Host {
    type Err = HostError;

    /// Reads a host as it stands in an authority: v6 addresses in brackets.
    fn from_str(text: &str) -> Result<Self, HostError> {
        if let Some(inner) = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            let address: Ipv6Addr = inner.parse().map_err(|_| HostError::Host)?;
            return Ok(Self::Address(embedded_v4(address).map_or(IpAddr::V6(address), IpAddr::V4)));
        }
        if let Ok(address) = text.parse::<Ipv4Addr>() {
            return Ok(Self::Address(address.into()));
        }
        let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
        if is_name(&name) { Ok(Self::Name(name)) } else { Err(HostError::Host) }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Address(IpAddr::V4(address)) => address.fmt(f),
            Self::Address(IpAddr::V6(address)) => write!(f, "[{address}]"),
        }
    }
}

/// Whether `name` (lower case) is a host name. A last label of digits (or `0x…`) is refused: resolvers read
/// such names as addresses in forms that this module would not recognise.
fn is_name(name: &str) -> bool {
    let valid_label = |label: &str| {
        !label.is_empty()
            && label.len() <= MAX_LABEL_BYTES
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
    };
    let last = name.rsplit('.').next().unwrap_or_default();
    let numeric = last.bytes().all(|byte| byte.is_ascii_digit()) || last.starts_with("0x");
    name.len() <= MAX_NAME_BYTES && name.split('.').all(valid_label) && !numeric
}

/// A host and a port.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Authority {
    /// The host.
    pub host: Host,
    /// The port, never 0.
    pub port: u16,
}

impl Authority {
    /// A host's port for https.
    #[must_use]
    pub fn https(host: Host) -> Self {
        Self { host, port: HTTPS }
    }

    /// Reads `host[:port]`; without a port it is `default_port`, and without that an error.
    ///
    /// # Errors
    /// When either part is none; user information is refused.
    pub fn parse(text: &str, default_port: Option<u16>) -> Result<Self, HostError> {
        let after_host = if text.starts_with('[') { text.find(']').map(|at| at + 1) } else { text.find(':') };
        let (host, rest) = text.split_at(after_host.unwrap_or(text.len()));
        let port = match rest.strip_prefix(':') {
            Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => digits.parse().ok(),
            None if rest.is_empty() => default_port,
            _ => None,
        };
        let port = port.filter(|port| *port != 0).ok_or(HostError::Port)?;
        Ok(Self { host: host.parse()?, port })
    }
}

impl From<SocketAddr> for Authority {
    fn from(address: SocketAddr) -> Self {
        Self { host: Host::Address(address.ip()), port: address.port() }
    }
}

impl fmt::Display for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// A host name in which `*` stands for one label.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPattern(Vec<String>);

impl HostPattern {
    /// Reads a pattern.
    ///
    /// # Errors
    /// When it is no host name once each `*` is a label.
    pub fn parse(text: &str) -> Result<Self, HostError> {
        let lower = text.to_ascii_lowercase();
        let labels: Vec<String> = lower.split('.').map(str::to_owned).collect();
        let sample: Vec<&str> = labels.iter().map(|label| if label == "*" { "x" } else { label }).collect();
        if is_name(&sample.join(".")) { Ok(Self(labels)) } else { Err(HostError::Host) }
    }

    /// The pattern's one name; none when it has a `*`.
    #[must_use]
    pub fn only_name(&self) -> Option<Host> {
        self.0.join(".").parse().ok()
    }

    /// Whether `host` is one of the pattern's names.
    #[must_use]
    pub fn matches(&self, host: &Host) -> bool {
        let Host::Name(name) = host else { return false };
        let mut labels = name.split('.');
        self.0.iter().all(|wanted| labels.next().is_some_and(|label| wanted == "*" || wanted == label))
            && labels.next().is_none()
    }
}

/// A range of addresses, `address/bits`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Range {
    base: IpAddr,
    bits: u8,
}

impl FromStr for Range {
    type Err = HostError;

    /// Reads `address/bits`, or one address alone.
    fn from_str(text: &str) -> Result<Self, HostError> {
        let (address, bits) =
            text.split_once('/').map_or((text, None), |(address, bits)| (address, Some(bits)));
        let base: IpAddr = address.parse().map_err(|_| HostError::Range)?;
        let most = if base.is_ipv4() { 32 } else { 128 };
        let plain = bits.is_none_or(|bits| bits.bytes().all(|byte| byte.is_ascii_digit()));
        let bits = bits.map_or(Ok(most), str::parse).map_err(|_| HostError::Range)?;
        if plain && bits <= most { Ok(Self { base, bits }) } else { Err(HostError::Range) }
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.base, self.bits)
    }
}

impl From<IpAddr> for Range {
    /// The range of this one address.
    fn from(base: IpAddr) -> Self {
        Self { base, bits: if base.is_ipv4() { 32 } else { 128 } }
    }
}

impl Range {
    /// Its first address, when it has no bits beyond its prefix.
    #[must_use]
    pub fn base(&self) -> IpAddr {
        self.base
    }

    /// Every address of the family that this one is of.
    #[must_use]
    pub fn all_of(family: IpAddr) -> Self {
        match family {
            IpAddr::V4(_) => Self { base: Ipv4Addr::UNSPECIFIED.into(), bits: 0 },
            IpAddr::V6(_) => Self { base: Ipv6Addr::UNSPECIFIED.into(), bits: 0 },
        }
    }

    /// Length of its prefix.
    #[must_use]
    pub fn bits(&self) -> u8 {
        self.bits
    }

    /// Whether the address has bits beyond the prefix: then it is perhaps not the range that was meant.
    #[must_use]
    pub fn has_bits_beyond(&self) -> bool {
        let bits = u32::from(self.bits);
        match self.base {
            IpAddr::V4(base) => base.to_bits().checked_shl(bits).unwrap_or(0) != 0,
            IpAddr::V6(base) => base.to_bits().checked_shl(bits).unwrap_or(0) != 0,
        }
    }

    /// Whether `address` lies in the range; families are not mixed.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        let bits = u32::from(self.bits);
        match (self.base, address) {
            (IpAddr::V4(base), IpAddr::V4(address)) => {
                let mask = u32::MAX.checked_shl(32 - bits).unwrap_or(0);
                base.to_bits() & mask == address.to_bits() & mask
            }
            (IpAddr::V6(base), IpAddr::V6(address)) => {
                let mask = u128::MAX.checked_shl(128 - bits).unwrap_or(0);
                base.to_bits() & mask == address.to_bits() & mask
            }
            _ => false,
        }
    }
}

/// Which addresses names chosen by clients may lead to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AddressPolicy {
    /// Ranges that are allowed although they are not public.
    pub allow_private: Vec<Range>,
    /// The meter's own listening addresses; never dialled.
    pub own: Vec<SocketAddr>,
}

impl AddressPolicy {
    /// Whether `target` may be dialled for a name that a client chose.
    #[must_use]
    pub fn allows(&self, target: SocketAddr) -> bool {
        let address = canonical(target.ip());
        let listed = |address| self.allow_private.iter().any(|range| range.contains(address));
        !self.is_own(target) && (is_public(address) || listed(address) || listed(target.ip()))
    }

    /// Whether `target` is the meter itself; a listener on all addresses is met on any that is not public.
    #[must_use]
    pub fn is_own(&self, target: SocketAddr) -> bool {
        let address = canonical(target.ip());
        self.own.iter().any(|own| {
            let met = own.ip() == address || (own.ip().is_unspecified() && !is_public(address));
            own.port() == target.port() && (met || address.is_unspecified())
        })
    }
}

/// The address that a packet to `address` reaches in the end: v4 addresses inside v6 ones are taken out.
#[must_use]
pub fn canonical(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V6(v6) => embedded_v4(v6).map_or(address, IpAddr::V4),
        IpAddr::V4(_) => address,
    }
}

/// The v4 address inside a mapped (`::ffff:0:0/96`), NAT64 (`64:ff9b::/96`) or 6to4 (`2002::/16`) address.
fn embedded_v4(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let segments = address.segments();
    let join = |high: u16, low: u16| Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low));
    match segments {
        [0, 0, 0, 0, 0, 0xffff, high, low]
        | [0x64, 0xff9b, 0, 0, 0, 0, high, low]
        | [0x2002, high, low, ..] => Some(join(high, low)),
        _ => None,
    }
}

/// Ranges that are not public: RFC 6890 and its registry, and the metadata service of Azure.
const NOT_PUBLIC_V4: [(Ipv4Addr, u8); 15] = [
    (Ipv4Addr::new(0, 0, 0, 0), 8),
    (Ipv4Addr::new(10, 0, 0, 0), 8),
    (Ipv4Addr::new(100, 64, 0, 0), 10),
    (Ipv4Addr::new(127, 0, 0, 0), 8),
    (Ipv4Addr::new(168, 63, 129, 16), 32),
    (Ipv4Addr::new(169, 254, 0, 0), 16),
    (Ipv4Addr::new(172, 16, 0, 0), 12),
    (Ipv4Addr::new(192, 0, 0, 0), 24),
    (Ipv4Addr::new(192, 0, 2, 0), 24),
    (Ipv4Addr::new(192, 168, 0, 0), 16),
    (Ipv4Addr::new(198, 18, 0, 0), 15),
    (Ipv4Addr::new(198, 51, 100, 0), 24),
    (Ipv4Addr::new(203, 0, 113, 0), 24),
    (Ipv4Addr::new(224, 0, 0, 0), 4),
    (Ipv4Addr::new(240, 0, 0, 0), 4),
];

/// The one block of v6 that is routed publicly, RFC 4291.
const PUBLIC_V6: (Ipv6Addr, u8) = (Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 0), 3);

/// Parts of it that are not: Teredo and the protocol assignments around it, and documentation.
const NOT_PUBLIC_V6: [(Ipv6Addr, u8); 3] = [
    (Ipv6Addr::new(0x2001, 0, 0, 0, 0, 0, 0, 0), 23),
    (Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0), 32),
    (Ipv6Addr::new(0x3fff, 0, 0, 0, 0, 0, 0, 0), 20),
];

/// Whether a canonical address is reachable on the public network.
fn is_public(address: IpAddr) -> bool {
    let within = |base: IpAddr, bits: u8| Range { base, bits }.contains(address);
    match address {
        IpAddr::V4(_) => !NOT_PUBLIC_V4.iter().any(|(base, bits)| within((*base).into(), *bits)),
        IpAddr::V6(_) => {
            within(PUBLIC_V6.0.into(), PUBLIC_V6.1)
                && !NOT_PUBLIC_V6.iter().any(|(base, bits)| within((*base).into(), *bits))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(text: &str) -> Host {
        text.parse().unwrap()
    }

    #[test]
    fn hosts_have_one_form() {
        assert_eq!(host("API.Anthropic.com."), host("api.anthropic.com"));
        assert_eq!(host("[::ffff:127.0.0.1]"), host("127.0.0.1"));
        assert_eq!(host("[::1]").to_string(), "[::1]");
        for bad in
            ["", ".", "a..b", "a b", "1.2.3", "127.1", "2130706433", "0x7f.0x1", "a.0x7f000001", "::1", "[x]"]
        {
            assert!(bad.parse::<Host>().is_err(), "{bad}");
        }
        assert!("x".repeat(64).parse::<Host>().is_err());
        assert!(vec!["abcdefgh"; 30].join(".").parse::<Host>().is_err());
    }

    #[test]
    fn authorities_need_a_host_and_a_port() {
        let authority = Authority::parse("Example.com:8443", None).unwrap();
        assert_eq!(authority.to_string(), "example.com:8443");
        assert_eq!(Authority::parse("[::1]", Some(443)).unwrap().to_string(), "[::1]:443");
        for bad in
            ["example.com", "a:0", "a:65536", "a:+1", "a:", "u@a:1", "a:1:2", "[::1]x:1", ":443", "a/b:1"]
        {
            assert!(Authority::parse(bad, None).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_star_is_one_label() {
        let pattern = HostPattern::parse("bedrock-runtime.*.amazonaws.com").unwrap();
        assert!(pattern.matches(&host("bedrock-runtime.eu-west-1.AMAZONAWS.com")));
        for other in ["bedrock-runtime.amazonaws.com", "bedrock-runtime.a.b.amazonaws.com", "x.amazonaws.com"]
        {
            assert!(!pattern.matches(&host(other)), "{other}");
        }
        assert!(!HostPattern::parse("*").unwrap().matches(&host("127.0.0.1")));
        assert!(HostPattern::parse("a.*b.com").is_err());
        assert_eq!(pattern.only_name(), None);
        assert_eq!(HostPattern::parse("A.com").unwrap().only_name(), Some(host("a.com")));
    }

    #[test]
    fn what_is_not_public_is_not_dialled() {
        let policy = AddressPolicy::default();
        for private in [
            "127.0.0.1",
            "0.0.0.0",
            "10.1.2.3",
            "100.100.100.200",
            "169.254.169.254",
            "172.31.0.1",
            "192.168.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "168.63.129.16",
            "::1",
            "::",
            "::ffff:10.0.0.1",
            "64:ff9b::7f00:1",
            "64:ff9b:1::1",
            "2002:7f00:1::",
            "fe80::1",
            "fd00:ec2::254",
            "ff02::1",
            "2001::1",
            "::127.0.0.1",
        ] {
            assert!(!policy.allows(SocketAddr::new(private.parse().unwrap(), 443)), "{private}");
        }
        for public in ["1.1.1.1", "160.79.104.10", "2606:4700::1111", "64:ff9b::101:101"] {
            assert!(policy.allows(SocketAddr::new(public.parse().unwrap(), 443)), "{public}");
        }
    }

    #[test]
    fn a_private_range_can_be_allowed_but_never_the_meter_itself() {
        let own: SocketAddr = "127.0.0.1:7080".parse().unwrap();
        let policy = AddressPolicy { allow_private: vec!["127.0.0.0/8".parse().unwrap()], own: vec![own] };
        assert!(policy.allows("127.0.0.1:80".parse().unwrap()));
        assert!(policy.allows("[::ffff:127.0.0.1]:80".parse().unwrap()));
        assert!(!policy.allows("10.0.0.1:80".parse().unwrap()));
        for itself in ["127.0.0.1:7080", "[::ffff:127.0.0.1]:7080", "0.0.0.0:7080"] {
            assert!(!policy.allows(itself.parse().unwrap()), "{itself}");
        }
    }

    #[test]
    fn ranges_are_checked() {
        assert!("10.0.0.0/33".parse::<Range>().is_err());
        assert!("x/8".parse::<Range>().is_err());
        assert!("0.0.0.0/0".parse::<Range>().unwrap().contains("9.9.9.9".parse().unwrap()));
        assert!("10.1.2.3".parse::<Range>().unwrap().contains("10.1.2.3".parse().unwrap()));
    }
}
