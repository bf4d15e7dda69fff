//! Lenient reading of a provider's JSON: one strange field never costs the others.
use serde::Deserialize;
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
