//! A chat request that asks for its stream's usage, made of one that does not; every other byte stays.
use std::ops::Range;

use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use crate::usage::read::{has_key_in_another_case, object};

#[derive(Deserialize)]
struct Request<'a> {
    #[serde(borrow, default, deserialize_with = "stated")]
    stream: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "stated")]
    stream_options: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Options<'a> {
    #[serde(borrow, default, deserialize_with = "stated")]
    include_usage: Option<&'a RawValue>,
}

/// A field that is there, though it be null.
pub(super) fn stated<'de, D: Deserializer<'de>>(field: D) -> Result<Option<&'de RawValue>, D::Error> {
    Deserialize::deserialize(field).map(Some)
}

/// What becomes of a request.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Asking {
    /// It leaves as it is: its answer is no stream, or a stream with its usage.
    AsItIs,
    /// This leaves in its place.
    Rewritten(Vec<u8>),
    /// Whether it asks for a stream, and for its usage, is not to be told: servers differ over it.
    Unclear,
}

/// Makes `body` ask for `stream_options.include_usage` where it asks for a stream alone.
pub(super) fn asking(body: &[u8]) -> Asking {
    let Some(request) = object::<Request<'_>>(body) else { return Asking::Unclear };
    match request.stream.map(RawValue::get) {
        None | Some("false" | "null") => Asking::AsItIs,
        Some("true") => asking_too(body, request.stream_options),
        Some(_) => Asking::Unclear,
    }
}

/// The same for a request for a stream with these options.
fn asking_too(body: &[u8], options: Option<&RawValue>) -> Asking {
    let rewritten = |at, by| Asking::Rewritten(replaced(body, at, by));
    let Some(options) = options else {
        let open = body.len() - body.trim_ascii_start().len();
        return rewritten(open..open + 1, br#"{"stream_options":{"include_usage":true},"#);
    };
    if options.get() == "null" {
        return rewritten(place(body, options), br#"{"include_usage":true}"#);
    }
    let Some(read) = object::<Options<'_>>(options.get().as_bytes()) else { return Asking::Unclear };
    if has_key_in_another_case(options.get().as_bytes(), &["include_usage"]) {
        return Asking::Unclear;
    }
    match read.include_usage.map(|asked| (asked, asked.get())) {
        None => {
            let open = place(body, options).start;
            let is_empty = options.get()[1..].trim_ascii_start().starts_with('}');
            let asked: &[u8] =
                if is_empty { br#"{"include_usage":true"# } else { br#"{"include_usage":true,"# };
            rewritten(open..open + 1, asked)
        }
        Some((asked, "false" | "null")) => rewritten(place(body, asked), b"true"),
        Some((_, "true")) => Asking::AsItIs,
        Some(_) => Asking::Unclear,
    }
}

/// Where a value that was read from `body` stands in it.
pub(super) fn place(body: &[u8], value: &RawValue) -> Range<usize> {
    let start = value.get().as_ptr().addr() - body.as_ptr().addr();
    start..start + value.get().len()
}

fn replaced(body: &[u8], at: Range<usize>, by: &[u8]) -> Vec<u8> {
    [&body[..at.start], by, &body[at.end..]].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_asks_is_added() {
        let table = [
            (
                r#" {"model":"m", "stream" : true}"#,
                r#" {"stream_options":{"include_usage":true},"model":"m", "stream" : true}"#,
            ),
            (
                r#"{"stream":true,"stream_options":null}"#,
                r#"{"stream":true,"stream_options":{"include_usage":true}}"#,
            ),
            (
                r#"{"stream_options":{ },"stream":true}"#,
                r#"{"stream_options":{"include_usage":true },"stream":true}"#,
            ),
            (
                r#"{"stream":true,"stream_options":{"include_obfuscation":false}}"#,
                r#"{"stream":true,"stream_options":{"include_usage":true,"include_obfuscation":false}}"#,
            ),
            (
                r#"{"stream":true,"stream_options":{"a":{"include_usage":1},"include_usage": false }}"#,
                r#"{"stream":true,"stream_options":{"a":{"include_usage":1},"include_usage": true }}"#,
            ),
            (
                r#"{"stream":true,"str\u0065am_options":{"include_usage":null}}"#,
                r#"{"stream":true,"str\u0065am_options":{"include_usage":true}}"#,
            ),
        ];
        for (body, expected) in table {
            assert_eq!(asking(body.as_bytes()), Asking::Rewritten(expected.into()), "{body}");
            assert_eq!(asking(expected.as_bytes()), Asking::AsItIs, "once is enough");
        }
    }

    #[test]
    fn what_does_not_ask_for_a_stream_stays() {
        for body in ["{}", r#"{"stream":false}"#, r#"{"stream":null}"#, r#"{"stream_options":"x"}"#] {
            assert_eq!(asking(body.as_bytes()), Asking::AsItIs, "{body}");
        }
    }

    #[test]
    fn what_servers_may_read_otherwise_is_unclear() {
        for body in [
            "[true]",
            "not json",
            "\u{feff}{\"stream\":true}",
            r#"{"x":NaN,"stream":true}"#,
            r#"{"stream":"true"}"#,
            r#"{"stream":1}"#,
            r#"{"stream":false,"stream":true}"#,
            r#"{"stream":true,"stream_options":"x"}"#,
            r#"{"stream":true,"stream_options":[true]}"#,
            r#"{"stream":true,"stream_options":{"include_usage":"yes"}}"#,
            r#"{"stream":true,"stream_options":{"include_usage":0}}"#,
            r#"{"stream":true,"stream_options":{"include_usage":true,"include_usage":false}}"#,
            r#"{"stream":true,"stream_options":{"include_usage":true,"Include_Usage":false}}"#,
        ] {
            assert_eq!(asking(body.as_bytes()), Asking::Unclear, "{body}");
        }
    }
}
