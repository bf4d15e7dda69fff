//! Reads the single values of settings and of the command line: tokens, names, lengths of time, hosts,
//! addresses. Pure; knows no file and no place in one.
use std::net::IpAddr;
use std::str::FromStr;
use std::time::Duration;

/// Longest name, bytes.
const MAX_NAME_BYTES: usize = 64;
/// Names that mean something else where a bottle's or an agent's name may stand.
const TAKEN_NAMES: [&str; 2] = ["host", "global"];
/// Most tokens a budget may hold: what the ledger's integers hold.
const MAX_TOKENS: u64 = i64::MAX.unsigned_abs();
/// Longest `hold`.
const MAX_SPAN: Duration = Duration::from_secs(1000 * 24 * 3600);

/// Why a text is no number of tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokensError {
    /// Not a number at all.
    #[error("not a number of tokens (5000000, 500k and 2M are)")]
    NotANumber,
    /// Below nothing.
    #[error("a budget cannot be negative")]
    Negative,
    /// A part of a token.
    #[error("tokens are whole (1500k instead of 1.5M)")]
    Fraction,
    /// More than can be counted.
    #[error("more tokens than can be counted (at most {MAX_TOKENS})")]
    TooMany,
}

/// Reads a number of tokens: `5000000`, `5_000_000`, `500k`, `2M`.
///
/// # Errors
/// When it is anything else, or more than a signed 64-bit integer holds.
pub fn parse_tokens(text: &str) -> Result<u64, TokensError> {
    let (digits, unit) = match text.as_bytes().last() {
        Some(b'k' | b'K') => (&text[..text.len() - 1], 1_000),
        Some(b'm' | b'M') => (&text[..text.len() - 1], 1_000_000),
        _ => (text, 1),
    };
    let number = digits.replace('_', "");
    let is_number =
        !digits.starts_with('_') && !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit());
    if !is_number {
        return Err(match digits.parse::<f64>() {
            Ok(value) if value < 0.0 => TokensError::Negative,
            Ok(value) if value.is_finite() => TokensError::Fraction,
            _ => TokensError::NotANumber,
        });
    }
    let tokens = number.parse::<u64>().ok().and_then(|count| count.checked_mul(unit));
    let tokens = tokens.ok_or(TokensError::TooMany)?;
    check_tokens(tokens).map(|()| tokens)
}

/// Whether a number of tokens is one that the ledger can hold.
///
/// # Errors
/// When it is more.
pub fn check_tokens(tokens: u64) -> Result<(), TokensError> {
    if tokens <= MAX_TOKENS { Ok(()) } else { Err(TokensError::TooMany) }
}

/// Why a text is no name for a bottle or an agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Empty or too long.
    #[error("a name has 1 to {MAX_NAME_BYTES} characters, this one has {0}")]
    Length(usize),
    /// A character that is not allowed.
    #[error("a name is made of letters, digits, '.', '_' and '-', and does not start with '.' or '-'")]
    Character,
    /// `host` or `global`.
    #[error("the names host and global are taken")]
    Taken,
}

/// Whether a bottle, an agent or a provider may be called so. It may become a file's name.
///
/// # Errors
/// When it may not.
pub fn check_name(name: &str) -> Result<(), NameError> {
    if name.is_empty() || name.len() > MAX_NAME_BYTES {
        return Err(NameError::Length(name.chars().count()));
    }
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    if !name.bytes().all(allowed) || name.starts_with(['.', '-']) {
        return Err(NameError::Character);
    }
    if TAKEN_NAMES.contains(&name) {
        return Err(NameError::Taken);
    }
    Ok(())
}

/// A length of time as it is written: `500ms`, `60s`, `5m`, `2h`, `400d`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span(pub(super) Duration);

/// Why a text is no length of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum SpanError {
    #[error("not a length of time (500ms, 60s, 5m, 2h and 1d are)")]
    NotASpan,
    #[error("longer than 1000 days")]
    TooLong,
}

impl FromStr for Span {
    type Err = SpanError;

    fn from_str(text: &str) -> Result<Self, SpanError> {
        let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let (number, unit) = text.split_at(digits);
        let unit_ms = match unit {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return Err(SpanError::NotASpan),
        };
        if number.is_empty() {
            return Err(SpanError::NotASpan);
        }
        let length_ms = number.parse::<u64>().ok().and_then(|count| count.checked_mul(unit_ms));
        let length = length_ms.map(Duration::from_millis).filter(|&length| length <= MAX_SPAN);
        length.map(Self).ok_or(SpanError::TooLong)
    }
}

/// Whether a text is a DNS name as the meter writes hosts: lower case, no final dot, and not an address.
#[must_use]
pub fn is_dns_name(host: &str) -> bool {
    let label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
    };
    let numeric = |label: &str| label.bytes().all(|b| b.is_ascii_digit());
    host.len() <= 253 && host.split('.').all(label) && !host.rsplit('.').next().is_some_and(numeric)
}

/// Whether a metered host may be written so: an address, or a DNS name in which `*` may stand for one label,
/// beside at least two that are written out.
pub(super) fn check_host(host: &str) -> Result<(), String> {
    let written_out = host.split('.').filter(|&label| label != "*").count();
    let sample: Vec<&str> = host.split('.').map(|label| if label == "*" { "any" } else { label }).collect();
    let is_name = is_dns_name(&sample.join(".")) && (!host.contains('*') || written_out >= 2);
    if is_name || host.parse::<IpAddr>().is_ok() {
        return Ok(());
    }
    Err(format!("{host:?} is not a host name in lower case (api.example.com, *.example.com)"))
}

/// Whether one name could match both patterns.
pub(super) fn hosts_overlap(a: &str, b: &str) -> bool {
    let same = |(a, b): (&str, &str)| a == b || a == "*" || b == "*";
    a.split('.').count() == b.split('.').count() && a.split('.').zip(b.split('.')).all(same)
}

/// Whether a provider's upstream may be written so.
pub(super) fn check_upstream(url: &str) -> Result<(), String> {
    let no = |why: &str| Err(format!("{url:?} is no upstream: {why}"));
    let Ok(uri) = url.parse::<http::Uri>() else { return no("not a URL") };
    if !matches!(uri.scheme_str(), Some("http" | "https")) {
        return no("it starts with neither http:// nor https://");
    }
    let authority = uri.authority().map(http::uri::Authority::as_str).unwrap_or_default();
    if authority.contains('@') {
        return no("it holds a user name");
    }
    if uri.host().is_none_or(str::is_empty) {
        return no("it names no host");
    }
    let port = authority.rsplit_once(':').map(|(_, port)| port).filter(|port| !port.ends_with(']'));
    if port.is_some_and(|port| !matches!(port.parse::<u16>(), Ok(1..))) {
        return no("its port is not one of 1 to 65535");
    }
    if uri.query().is_some() || url.contains('#') {
        return no("it has a query or a fragment");
    }
    Ok(())
}

/// Whether a range of addresses is written right, and starts where its prefix says.
pub(super) fn check_cidr(range: &str) -> Result<(), String> {
    let no = || format!("{range:?} is no range of addresses (10.0.0.0/8, fd00::/8)");
    let (address, prefix) = range.split_once('/').ok_or_else(no)?;
    let address: IpAddr = address.parse().map_err(|_| no())?;
    let prefix_bits: u32 = prefix.parse().map_err(|_| no())?;
    let (bits, width) = match address {
        IpAddr::V4(v4) => (u128::from(v4.to_bits()), 32),
        IpAddr::V6(v6) => (v6.to_bits(), 128),
    };
    if prefix_bits > width || prefix.len() > 3 || prefix.starts_with('+') {
        return Err(no());
    }
    let host_bits = width - prefix_bits;
    let host_mask = if host_bits == 128 { u128::MAX } else { (1 << host_bits) - 1 };
    if bits & host_mask != 0 {
        return Err(format!("{range:?} has bits beyond its prefix of {prefix_bits}"));
    }
    Ok(())
}
