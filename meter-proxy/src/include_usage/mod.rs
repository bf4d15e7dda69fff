//! Chat streams tell their usage only to who asks for it: the meter asks where the client did not, and hides the
//! answer to that.
//!
//! `ask` rewrites the request, `hide` takes out of the answer what is there for it. Not here: what is charged (`usage`).
mod ask;
mod hide;

use bytes::Bytes;
use http::HeaderMap;
use http::header::{ACCEPT_ENCODING, AUTHORIZATION, CONTENT_ENCODING, CONTENT_LENGTH, HeaderValue};

use self::ask::Asking;
pub use self::hide::Hiding;
use crate::facts::decode_whole;

/// Headers that vouch for a body: with one of them it must leave as it is.
const VOUCHING: [&str; 5] =
    ["content-digest", "digest", "content-md5", "signature-input", "x-amz-content-sha256"];

const UNCLEAR: &str = "whether it asks for a stream without its usage cannot be told";
const VOUCHED_FOR: &str =
    "it asks for a stream without its usage, and a header vouches for it: set stream_options.include_usage";

/// Makes a request for a chat stream ask for its usage: its new body, and `headers` as they fit that. `None` when its
/// answer reports usage as it is.
///
/// An answer in a content coding could not be changed in its middle, so of these requests alone the answer is wanted in
/// none; a coded request leaves decoded.
///
/// # Errors
/// Why the answer may be a stream that reports no usage, in words.
pub fn ask(headers: &mut HeaderMap, body: &Bytes) -> Result<Option<Bytes>, &'static str> {
    let encoding = headers.get(CONTENT_ENCODING).map_or(Ok(""), HeaderValue::to_str).map_err(|_| UNCLEAR)?;
    let asking = match ask::asking(&decode_whole(body, encoding).ok_or(UNCLEAR)?) {
        Asking::AsItIs => return Ok(None),
        Asking::Unclear => return Err(UNCLEAR),
        Asking::Rewritten(_) if is_vouched_for(headers) => return Err(VOUCHED_FOR),
        Asking::Rewritten(asking) => Bytes::from(asking),
    };
    headers.remove(CONTENT_ENCODING);
    if headers.contains_key(CONTENT_LENGTH) {
        headers.insert(CONTENT_LENGTH, HeaderValue::from(asking.len()));
    }
    headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    Ok(Some(asking))
}

/// Whether something in the head holds only for the body as it is.
fn is_vouched_for(headers: &HeaderMap) -> bool {
    let signed = |value: &HeaderValue| value.as_bytes().starts_with(b"AWS4-");
    VOUCHING.iter().any(|name| headers.contains_key(*name)) || headers.get(AUTHORIZATION).is_some_and(signed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::tests::encode;

    const BODY: &[u8] = br#"{"stream":true}"#;
    const ASKING: &[u8] = br#"{"stream_options":{"include_usage":true},"stream":true}"#;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
    }

    #[test]
    fn the_head_fits_the_new_body() {
        for encoding in ["", "gzip", "zstd"] {
            let mut head = headers(&[("content-length", "15"), ("accept-encoding", "br"), ("x-mine", "1")]);
            if !encoding.is_empty() {
                head.insert(CONTENT_ENCODING, encoding.parse().unwrap());
            }
            let asking = ask(&mut head, &encode(encoding, BODY).into());
            assert_eq!(asking.unwrap().as_deref(), Some(ASKING), "{encoding}");
            let length = ASKING.len().to_string();
            let fits =
                [("content-length", length.as_str()), ("accept-encoding", "identity"), ("x-mine", "1")];
            assert_eq!(head, headers(&fits), "{encoding}");
        }
        let mut chunked = headers(&[]);
        ask(&mut chunked, &Bytes::from_static(BODY)).unwrap().unwrap();
        assert!(!chunked.contains_key(CONTENT_LENGTH));
    }

    #[test]
    fn what_cannot_be_changed_must_ask_by_itself() {
        for (pair, why) in [
            (("content-digest", "sha-256=:x:"), VOUCHED_FOR),
            (("authorization", "AWS4-HMAC-SHA256 Credential=x"), VOUCHED_FOR),
            (("content-encoding", "secret"), UNCLEAR),
            (("content-encoding", "gzip"), UNCLEAR),
        ] {
            let mut head = headers(&[pair]);
            assert_eq!(ask(&mut head, &Bytes::from_static(BODY)), Err(why), "{pair:?}");
            assert_eq!(head, headers(&[pair]));
        }
        let mut signed = headers(&[("signature-input", "x")]);
        for body in [ASKING, br#"{"stream":false}"#] {
            assert_eq!(ask(&mut signed, &Bytes::from_static(body)), Ok(None));
        }
    }
}
