//! Lenient reading of a provider's JSON: one strange field never costs the others.
use std::borrow::Cow;
use std::fmt;

use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use crate::text::is_hostile;

/// A field of any type, unread; `None` when missing or null.
pub(crate) type Raw<'a> = Option<&'a RawValue>;

/// Most tokens that one exchange can have used; more is a provider's mistake. Sums of such figures over any
/// window stay far inside 63 bits.
pub(crate) const MAX_COUNT: u64 = 1_000_000_000_000;

/// Longest name of a model, in characters.
const MAX_MODEL_CHARS: usize = 128;

/// What a field holds that should be a count and is none.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct NoCount;

/// Reads one JSON object; `None` when `json` is anything else, or more.
pub(crate) fn object<'a, T: Deserialize<'a>>(json: &'a [u8]) -> Option<T> {
    // serde would take an array for a struct, field by field
    if json.trim_ascii_start().first() != Some(&b'{') {
        return None;
    }
    serde_json::from_slice(json).ok()
}

/// Whether a key of the object is one of `keys` to servers that take no notice of case, Go's, and none to others.
pub(crate) fn has_key_in_another_case(json: &[u8], keys: &'static [&'static str]) -> bool {
    let mut reader = serde_json::Deserializer::from_slice(json);
    reader.deserialize_map(Odd(keys)).unwrap_or(false)
}

/// Looks for such keys.
struct Odd(&'static [&'static str]);

impl<'de> Visitor<'de> for Odd {
    type Value = bool;

    fn expecting(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<bool, A::Error> {
        let mut is_odd = false;
        while let Some((key, IgnoredAny)) = map.next_entry::<Cow<'de, str>, _>()? {
            is_odd |= !self.0.contains(&&*key) && self.0.contains(&&*folded(&key));
        }
        Ok(is_odd)
    }
}

/// A key as such servers compare it: two letters beyond ASCII stand for some in it.
fn folded(key: &str) -> String {
    let lower = |c: char| match c {
        '\u{17f}' => 's',
        '\u{212a}' => 'k',
        c => c.to_ascii_lowercase(),
    };
    key.chars().map(lower).collect()
}

/// Reads an object inside another; `None` when it is missing, null or anything else.
pub(crate) fn nested<'a, T: Deserialize<'a>>(field: Raw<'a>) -> Option<T> {
    object(field?.get().as_bytes())
}

/// Reads the objects of a list, each by itself; what is none is left out.
pub(crate) fn list<'a, T: Deserialize<'a>>(field: Raw<'a>) -> impl Iterator<Item = T> {
    let values: Vec<&RawValue> =
        field.and_then(|list| serde_json::from_str(list.get()).ok()).unwrap_or_default();
    values.into_iter().filter_map(|value| nested(Some(value)))
}

/// The text of a field that is a string without escapes; empty otherwise.
pub(crate) fn word<'a>(field: Raw<'a>) -> &'a str {
    field.and_then(|field| field.get().strip_prefix('"')?.strip_suffix('"')).unwrap_or_default()
}

/// Reads a count of tokens: a whole number, not negative, not beyond [`MAX_COUNT`].
pub(crate) fn count(field: &RawValue) -> Result<u64, NoCount> {
    let count = field.get().parse().map_err(|_| NoCount)?;
    if count <= MAX_COUNT { Ok(count) } else { Err(NoCount) }
}

/// A model's name as it may be shown: bounded, without hostile characters.
pub(crate) fn model_name(field: Raw<'_>) -> Option<String> {
    let name: String = serde_json::from_str(field?.get()).ok()?;
    Some(name.chars().filter(|c| !is_hostile(*c)).take(MAX_MODEL_CHARS).collect())
}

/// Appends JSON without the spaces between its tokens. `json` is one valid JSON value.
pub(crate) fn append_compact(json: &str, out: &mut String) {
    let mut in_string = false;
    let mut escaped = false;
    for c in json.chars() {
        if in_string {
            in_string = escaped || c != '"';
            escaped = !escaped && c == '\\';
        } else if c.is_ascii_whitespace() {
            continue;
        } else {
            in_string = c == '"';
        }
        out.push(c);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(json: &str) -> &RawValue {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn only_whole_numbers_in_range_are_counts() {
        for (json, expected) in [("0", 0), ("12", 12), ("1000000000000", MAX_COUNT)] {
            assert_eq!(count(raw(json)), Ok(expected));
        }
        for json in [
            "-1",
            "-0",
            "1.5",
            "1.0",
            "1e3",
            "\"12\"",
            "true",
            "[1]",
            "{}",
            "1000000000001",
            "18446744073709551615",
            "18446744073709551616",
            "1e999",
        ] {
            assert_eq!(count(raw(json)), Err(NoCount), "{json}");
        }
    }

    #[test]
    fn keys_in_another_case_are_seen() {
        let odd = |json: &str| has_key_in_another_case(json.as_bytes(), &["stream", "background"]);
        for json in [
            r#"{"Stream":true}"#,
            r#"{"stream":true,"x":{},"STREAM":false}"#,
            r#"{"\u0053tream":1}"#,
            "{\"\u{17f}tream\":1}",
            r#"{"bac\u212aground":1}"#,
        ] {
            assert!(odd(json), "{json}");
        }
        for json in
            ["", "[]", "{}", r#"{"stream":1,"streams":2}"#, r#"{"x":{"Stream":1}}"#, r#"{"x":"Stream"}"#]
        {
            assert!(!odd(json), "{json}");
        }
    }

    #[test]
    fn names_are_safe_to_show() {
        assert_eq!(model_name(Some(raw(r#""m\u001b]52;\u202ex\u009b""#))).as_deref(), Some("m]52;x"));
        assert_eq!(
            model_name(Some(raw(&format!("\"{}\"", "m".repeat(500))))).unwrap().len(),
            MAX_MODEL_CHARS
        );
        assert_eq!(model_name(Some(raw("5"))), None);
    }

    #[test]
    fn compact_json_keeps_what_strings_hold() {
        let mut out = String::new();
        append_compact("{ \"a b\" :\n[ 1 , \"c \\\" d\\\\\" , \" \" ] }", &mut out);
        assert_eq!(out, r#"{"a b":[1,"c \" d\\"," "]}"#);
    }
}
