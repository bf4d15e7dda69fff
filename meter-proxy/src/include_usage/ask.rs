//! A chat request that asks for its stream's usage, made of one that does not; every other byte stays.
use std::ops::Range;

use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use crate::usage::read::object;

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

/// `body` with `stream_options.include_usage`; `None` when it has it, when it asks for no stream, or when its options
/// are not what they should be: that is for the provider to say.
pub(super) fn asking(body: &[u8]) -> Option<Vec<u8>> {
    let request = object::<Request<'_>>(body)?;
    if request.stream?.get() != "true" {
        return None;
    }
    let Some(options) = request.stream_options else {
        let open = body.iter().position(|byte| *byte == b'{')?;
        return Some(replaced(body, open..open + 1, br#"{"stream_options":{"include_usage":true},"#));
    };
    if options.get() == "null" {
        return Some(replaced(body, place(body, options), br#"{"include_usage":true}"#));
    }
    match object::<Options<'_>>(options.get().as_bytes())?.include_usage {
        None => {
            let open = place(body, options).start;
            let is_empty = options.get()[1..].trim_ascii_start().starts_with('}');
            let asked: &[u8] =
                if is_empty { br#"{"include_usage":true"# } else { br#"{"include_usage":true,"# };
            Some(replaced(body, open..open + 1, asked))
        }
        Some(asked) if matches!(asked.get(), "false" | "null") => {
            Some(replaced(body, place(body, asked), b"true"))
        }
        Some(_) => None,
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
            assert_eq!(String::from_utf8(asking(body.as_bytes()).unwrap()).unwrap(), expected);
            assert_eq!(asking(expected.as_bytes()), None, "once is enough");
        }
    }

    #[test]
    fn what_does_not_ask_for_a_stream_stays() {
        for body in [
            "",
            "{}",
            "[true]",
            "not json",
            r#"{"stream":false}"#,
            r#"{"stream":null}"#,
            r#"{"stream":"true"}"#,
            r#"{"stream":true,"stream":true}"#,
            r#"{"stream":true,"stream_options":"x"}"#,
            r#"{"stream":true,"stream_options":[true]}"#,
            r#"{"stream":true,"stream_options":{"include_usage":"yes"}}"#,
        ] {
            assert_eq!(asking(body.as_bytes()), None, "{body}");
        }
    }
}
