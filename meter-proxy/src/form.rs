//! What beside its endpoint decides over the form of an answer: of a request that may cost it must be one that is read.
//!
//! Not here: the endpoints (`usage`), and the body of a chat request, which is made to ask for usage (`include_usage`).
use http::HeaderMap;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::request::Parts;
use memchr::memmem;

use crate::protocol::Dialect;
use crate::refuse::Reason;
use crate::usage::{Endpoint, hex};

/// Types of content whose answers are not read.
const UNREAD: [&[u8]; 2] = [b"grpc", b"protobuf"];

/// By which some servers take another method than that of the request.
const METHOD_OVERRIDES: [&str; 3] = ["x-http-method-override", "x-http-method", "x-method-override"];

/// Google's "system parameters" that stand for a method and headers other than those of the request.
const STANDING_FOR_THE_HEAD: [&str; 2] = ["httpMethod", "httpHeaders"];

/// Google's "system parameters" that change nothing of what an answer reports; written with a `$` before them or
/// without.
const HARMLESS: [&str; 9] = [
    "key",
    "access_token",
    "oauth_token",
    "prettyPrint",
    "quotaUser",
    "userProject",
    "uploadType",
    "upload_protocol",
    ".xgafv",
];

/// Forms of answers that are read: one document or a growing array, and server-sent events. The longer ones are what
/// Google's own clients ask for, as it is and encoded.
const FORMS: [&str; 4] = ["json", "sse", "json;enum-encoding=int", "json%3Benum-encoding%3Dint"];

/// Checks the form that a request to this endpoint asks for.
///
/// # Errors
/// When what it costs might not be read in the answer.
pub fn check(dialect: Dialect, endpoint: Endpoint, request: &Parts) -> Result<(), Reason> {
    let is_overridden = METHOD_OVERRIDES.iter().any(|name| request.headers.contains_key(*name));
    if is_overridden || dialect == Dialect::Gemini && may_stand_for_the_head(request.uri.query()) {
        return Err(Reason::Malformed("the method can be read in more than one way"));
    }
    let is_unread = |value: &HeaderValue| {
        let content_type = value.as_bytes().to_ascii_lowercase();
        UNREAD.iter().any(|form| memmem::find(&content_type, form).is_some())
    };
    let is_binary = request.headers.get_all(CONTENT_TYPE).iter().any(is_unread);
    if endpoint != Endpoint::Free && is_binary {
        return Err(Reason::Unmeterable("what a call by gRPC or protobuf costs cannot be read"));
    }
    let may_cost = matches!(endpoint, Endpoint::Billing(_));
    if dialect == Dialect::Gemini && may_cost && !asks_for_usage(request.uri.query(), &request.headers) {
        let why = "its parameters may leave the usage out of the answer";
        return Err(Reason::Unmeterable(why));
    }
    Ok(())
}

/// The parameters of a query: name and value, as they are written.
fn parameters(query: Option<&str>) -> impl Iterator<Item = (&str, &str)> {
    let pairs = query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty());
    pairs.map(|pair| pair.split_once('=').unwrap_or((pair, "")))
}

/// The name of a system parameter without the sign that may stand before it.
fn without_sign(name: &str) -> &str {
    name.strip_prefix('$').or(name.strip_prefix("%24")).unwrap_or(name)
}

/// Whether a parameter may change what Google takes for the method or the headers: it does, however its name is
/// encoded, or its name cannot be decoded.
fn may_stand_for_the_head(query: Option<&str>) -> bool {
    let stands =
        |name: &[u8]| STANDING_FOR_THE_HEAD.iter().any(|other| name.eq_ignore_ascii_case(other.as_bytes()));
    parameters(query)
        .map(|(name, _)| decoded(name))
        .any(|name| name.is_none_or(|name| stands(name.strip_prefix(b"$").unwrap_or(&name))))
}

/// A name as it is meant; `None` where its encoding is broken.
fn decoded(name: &str) -> Option<Vec<u8>> {
    let mut parts = name.split('%');
    let mut plain = parts.next().unwrap_or_default().as_bytes().to_vec();
    for part in parts {
        let (code, rest) = part.split_at_checked(2)?;
        plain.push(hex(code)?);
        plain.extend_from_slice(rest.as_bytes());
    }
    Some(plain)
}

/// Whether a request to Google asks for an answer in JSON, with its usage in it: not for a part of it, by what they
/// call a field mask.
fn asks_for_usage(query: Option<&str>, headers: &HeaderMap) -> bool {
    let is_harmless = |(name, value)| match without_sign(name) {
        "alt" => FORMS.contains(&value),
        name => HARMLESS.contains(&name),
    };
    !headers.contains_key("x-goog-fieldmask") && parameters(query).all(is_harmless)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parameter_that_stands_for_the_head_is_seen_however_it_is_written() {
        for query in [
            "httpMethod=POST",
            "a=b&$HTTPMETHOD=POST",
            "%24httpHeaders=x",
            "http%4dethod=POST",
            "%24%68ttpMethod=POST",
            "%zz=1",
            "a%=1",
            "%+4=1",
            "\u{20ac}%2\u{20ac}",
        ] {
            assert!(may_stand_for_the_head(Some(query)), "{query}");
        }
        for query in ["filter%5Bx%5D=1", "%24alt=sse", "a=%zz", "a=httpMethod", "httpMethods=x", "", "&"] {
            assert!(!may_stand_for_the_head(Some(query)), "{query}");
        }
        assert!(!may_stand_for_the_head(None));
    }

    #[test]
    fn only_what_is_known_to_leave_the_usage_in_may_be_asked_for() {
        let none = HeaderMap::new();
        for query in [
            None,
            Some(""),
            Some("alt=sse"),
            Some("%24alt=json%3Benum-encoding%3Dint&key=k"),
            Some("$alt=json;enum-encoding=int"),
            Some("key=k&$alt=json&prettyPrint=false&$.xgafv=2"),
        ] {
            assert!(asks_for_usage(query, &none), "{query:?}");
        }
        for query in [
            "fields=candidates",
            "$fields=candidates",
            "%24fields=candidates",
            "%66ields=candidates",
            "alt=json;fields=candidates",
            "alt=proto",
            "alt=sse&alt=media",
            "alt",
            "callback=f",
            "$httpHeaders=X-Goog-FieldMask:candidates",
        ] {
            assert!(!asks_for_usage(Some(query), &none), "{query}");
        }
        let masked =
            HeaderMap::from_iter([("x-goog-fieldmask".parse().unwrap(), "candidates".parse().unwrap())]);
        assert!(!asks_for_usage(None, &masked));
    }
}
