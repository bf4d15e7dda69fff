//! What a bottle may reach besides its providers: the mode, and the rules of the allow-list as they are written.
//!
//! Pure, and the same for the controller (which opens the kernel by them) and the meter (which judges by them what it
//! dials). Not here: addresses of names, and what is done with a rule.
use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::hosts::{Host, Range};

/// What a bottle may reach. Ordered: the greater one lets less through, and of nested bottles the greatest holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EgressMode {
    /// Everything; metered hosts through the meter.
    #[default]
    Open,
    /// What a rule names, and metered hosts.
    Allowlist,
    /// Metered hosts alone.
    Metered,
}

impl EgressMode {
    /// All of them, as they are written.
    pub const ALL: [Self; 3] = [Self::Open, Self::Allowlist, Self::Metered];

    /// The word used in settings and in JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Allowlist => "allowlist",
            Self::Metered => "metered",
        }
    }

    /// The mode of this word.
    #[must_use]
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|mode| mode.as_str() == word)
    }

    /// Whether a bottle of this mode may reach a host that is not metered.
    #[must_use]
    pub fn permits(self, rules: &[EgressRule], host: &Host, port: u16) -> bool {
        match self {
            Self::Open => true,
            Self::Allowlist => rules.iter().any(|rule| rule.permits(host, port)),
            Self::Metered => false,
        }
    }
}

/// One entry of the allow-list.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct EgressRule {
    /// Whom it lets through to.
    pub to: Target,
    /// At which port, TCP and UDP; `None`: at any.
    pub port: Option<u16>,
}

/// Whom a rule names.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Target {
    /// One host name, lower case, without a final dot.
    Name(String),
    /// A range of addresses.
    Range(Range),
}

/// Why a text is no rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RuleError {
    /// A pattern.
    #[error("a name with * has no addresses that could be looked up")]
    Wildcard,
    /// IPv6 without brackets: its last group could be a port.
    #[error("an IPv6 address without brackets could end in a port")]
    NoBrackets,
    /// IPv4 in IPv6 clothes.
    #[error("an IPv4 address is written as one")]
    Mapped,
    /// Neither a name, an address nor a range.
    #[error("not a host name, an address or a range of addresses")]
    Host,
    /// A range with bits beyond its prefix.
    #[error("the range has bits beyond its prefix")]
    HostBits,
    /// Not a port.
    #[error("the port is not one of 1 to 65535")]
    Port,
}

impl RuleError {
    /// How it is written instead.
    #[must_use]
    pub fn hint(self) -> &'static str {
        match self {
            Self::Wildcard => "list each name by itself: git.example.com:443",
            Self::NoBrackets => "write it as [fd00::1]:443",
            Self::Mapped => "write it as 10.1.2.3:443",
            Self::Host | Self::Port => {
                "rules are host:port, 10.0.0.0/8:port, [fd00::1]:port, or any of these without a port"
            }
            Self::HostBits => "a range starts where its prefix says: 10.0.0.0/8",
        }
    }
}

impl EgressRule {
    /// Whether this rule names `host` at `port`: a name by that name alone, an address by a range it lies in.
    #[must_use]
    pub fn permits(&self, host: &Host, port: u16) -> bool {
        let named = match (&self.to, host) {
            (Target::Name(name), Host::Name(asked)) => name == asked,
            (Target::Range(range), Host::Address(asked)) => range.contains(*asked),
            _ => false,
        };
        named && self.port.is_none_or(|only| only == port)
    }
}

impl FromStr for EgressRule {
    type Err = RuleError;

    /// Reads `host:port`, `CIDR:port`, `[v6]:port`, `[v6/bits]:port`, or any of these without a port.
    fn from_str(text: &str) -> Result<Self, RuleError> {
        let (host, port) = split(text)?;
        if host.contains('*') {
            return Err(RuleError::Wildcard);
        }
        let port = port.map(port_number).transpose()?;
        Ok(Self { to: host.parse()?, port })
    }
}

impl fmt::Display for EgressRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.to {
            Target::Name(name) => f.write_str(name)?,
            Target::Range(range) if range.base().is_ipv6() => write!(f, "[{range}]")?,
            Target::Range(range) => range.fmt(f)?,
        }
        self.port.map_or(Ok(()), |port| write!(f, ":{port}"))
    }
}

impl FromStr for Target {
    type Err = RuleError;

    /// Reads what stands before the port, brackets removed.
    fn from_str(text: &str) -> Result<Self, RuleError> {
        if text.contains('/') || text.parse::<Ipv4Addr>().is_ok() || text.parse::<Ipv6Addr>().is_ok() {
            return range(text).map(Self::Range);
        }
        match text.parse() {
            Ok(Host::Name(name)) => Ok(Self::Name(name)),
            _ => Err(RuleError::Host),
        }
    }
}

/// Parts a rule into host and port; brackets are taken off.
fn split(text: &str) -> Result<(&str, Option<&str>), RuleError> {
    if let Some(inner) = text.strip_prefix('[') {
        let (host, rest) = inner.split_once(']').ok_or(RuleError::Host)?;
        return match (host.contains(':'), rest.strip_prefix(':')) {
            (true, Some(port)) => Ok((host, Some(port))),
            (true, None) if rest.is_empty() => Ok((host, None)),
            _ => Err(RuleError::Host),
        };
    }
    // the port of a range comes after its prefix, so an IPv6 range needs no brackets
    let head = text.find('/').unwrap_or(0);
    match text[head..].split_once(':') {
        Some((_, port)) if port.contains(':') => Err(RuleError::NoBrackets),
        Some((host, port)) => Ok((&text[..head + host.len()], Some(port))),
        None => Ok((text, None)),
    }
}

fn port_number(digits: &str) -> Result<u16, RuleError> {
    let plain = digits.bytes().all(|byte| byte.is_ascii_digit());
    digits.parse().ok().filter(|port| plain && *port != 0).ok_or(RuleError::Port)
}

fn range(text: &str) -> Result<Range, RuleError> {
    let range: Range = text.parse().map_err(|_| RuleError::Host)?;
    if range.base().to_canonical() != range.base() {
        return Err(RuleError::Mapped);
    }
    if range.has_bits_beyond() { Err(RuleError::HostBits) } else { Ok(range) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(text: &str) -> EgressRule {
        text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    #[test]
    fn rules_are_read_and_shown_in_one_form() {
        for (written, shown) in [
            ("github.com:443", "github.com:443"),
            ("GitHub.com.", "github.com"),
            ("_srv.example.com:5269", "_srv.example.com:5269"),
            ("10.0.0.0/8:5432", "10.0.0.0/8:5432"),
            ("10.0.0.0/8", "10.0.0.0/8"),
            ("192.0.2.7:22", "192.0.2.7/32:22"),
            ("192.0.2.7", "192.0.2.7/32"),
            ("0.0.0.0/0:123", "0.0.0.0/0:123"),
            ("[fd00::1]:443", "[fd00::1/128]:443"),
            ("[fd00::1]", "[fd00::1/128]"),
            ("[fd00::/8]:53", "[fd00::/8]:53"),
            ("fd00::/8", "[fd00::/8]"),
            ("fd00::/8:53", "[fd00::/8]:53"),
            ("::/0", "[::/0]"),
        ] {
            assert_eq!(rule(written).to_string(), shown, "{written}");
            assert_eq!(rule(shown), rule(written), "{written}");
        }
    }

    #[test]
    fn what_is_no_rule_says_why() {
        for (text, error) in [
            ("*.example.com:443", RuleError::Wildcard),
            ("*", RuleError::Wildcard),
            ("*:443", RuleError::Wildcard),
            ("::1", RuleError::NoBrackets),
            ("fd00::1:443", RuleError::NoBrackets),
            ("a:1:2", RuleError::NoBrackets),
            ("[::ffff:10.0.0.1]:1", RuleError::Mapped),
            ("", RuleError::Host),
            (":443", RuleError::Host),
            ("a b:1", RuleError::Host),
            ("a/b:1", RuleError::Host),
            ("10.0.0.0/33", RuleError::Host),
            ("10.0.0.0/", RuleError::Host),
            ("10.0.0.0/+8", RuleError::Host),
            ("10.0.0/8", RuleError::Host),
            ("127.1:80", RuleError::Host),
            ("[10.0.0.1]:1", RuleError::Host),
            ("[fd00::1", RuleError::Host),
            ("[fd00::1]443", RuleError::Host),
            ("[fd00::]/8:443", RuleError::Host),
            ("10.0.0.1/8", RuleError::HostBits),
            ("[fd00::1/8]", RuleError::HostBits),
            ("github.com:0", RuleError::Port),
            ("github.com:65536", RuleError::Port),
            ("github.com:+1", RuleError::Port),
            ("github.com:", RuleError::Port),
            ("10.0.0.0/8:https", RuleError::Port),
        ] {
            assert_eq!(text.parse::<EgressRule>(), Err(error), "{text:?}");
            assert!(!error.hint().is_empty());
        }
    }

    #[test]
    fn a_rule_names_a_name_by_name_and_an_address_by_its_range() {
        for (written, host, port, permitted) in [
            ("github.com:443", "GitHub.com", 443, true),
            ("github.com:443", "github.com", 80, false),
            ("github.com", "github.com", 22, true),
            ("github.com:443", "api.github.com", 443, false),
            ("10.0.0.0/8:5432", "10.1.2.3", 5432, true),
            ("10.0.0.0/8:5432", "11.1.2.3", 5432, false),
            ("10.0.0.0/8", "[::ffff:10.1.2.3]", 9, true),
            ("[fd00::/8]:53", "[fd12::1]", 53, true),
            ("[fd00::/8]:53", "[fe80::1]", 53, false),
            ("0.0.0.0/0", "github.com", 443, false),
            ("0.0.0.0/0", "[fd00::1]", 443, false),
        ] {
            let host: Host = host.parse().unwrap();
            assert_eq!(rule(written).permits(&host, port), permitted, "{written} {host}:{port}");
        }
    }

    #[test]
    fn the_modes_go_from_open_to_closed() {
        let rules = [rule("github.com:443")];
        let (listed, other): (Host, Host) = ("github.com".parse().unwrap(), "evil.com".parse().unwrap());
        assert!(EgressMode::Open.permits(&[], &other, 25));
        assert!(EgressMode::Allowlist.permits(&rules, &listed, 443));
        assert!(!EgressMode::Allowlist.permits(&rules, &other, 443));
        assert!(!EgressMode::Metered.permits(&rules, &listed, 443));
        assert!(EgressMode::Open < EgressMode::Allowlist && EgressMode::Allowlist < EgressMode::Metered);
        for mode in EgressMode::ALL {
            assert_eq!(EgressMode::from_word(mode.as_str()), Some(mode));
        }
        assert_eq!(EgressMode::from_word("closed"), None);
    }
}
