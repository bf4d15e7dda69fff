//! Guesses at token counts from bytes, for what a provider has not (yet) reported.
//!
//! Three guesses with three aims, beside the one of what is not shown (`exchange`): the running count of output errs
//! low, so that no agent is cut early by a guess; the charge for output whose figures never came errs high, so that
//! breaking off is never cheaper; the input estimate is what real text comes to. None is a tokenizer.
use memchr::{memchr, memchr2};

/// Bytes of ASCII output that count as one token while an answer runs. English prose comes to 3 to 4.7 bytes a token
/// by today's tokenizers, code to less, so this errs low on purpose.
const RUNNING_ASCII_BYTES: u64 = 5;
/// The same for what is not ASCII: Cyrillic and Indic scripts come to 5 to 7 bytes a token, Chinese to 3 to 4.
const RUNNING_OTHER_BYTES: u64 = 8;
/// Bytes of decoded UTF-8 output that are charged as one token when the answer ended without its figures: what the
/// densest of today's tokenizers make of prose. Errs high on purpose, so the charge for what was seen is at most
/// 5/3 of what its running count was (8/3 beyond ASCII).
const CHARGED_BYTES: u64 = 3;
/// Bytes of request text that count as one token of input.
pub const INPUT_BYTES_PER_TOKEN: u64 = 4;
/// Most tokens that an unread request is taken for: the common context window. Its bytes may be images.
pub const MAX_UNREAD_INPUT: u64 = 200_000;
/// Output reserved for an answer that is not streamed, when the request names no limit; tokens.
pub const DEFAULT_OUTPUT_ALLOWANCE: u64 = 1_024;
/// Most output reserved for an answer that is not streamed, tokens: limits are set generously and rarely met.
pub const MAX_OUTPUT_ALLOWANCE: u64 = 4_096;

/// Least that a picture, sound or document in a request counts, tokens: what OpenAI charges for a picture in low
/// detail, the cheapest of all.
pub const MIN_MEDIA_TOKENS: u64 = 85;

/// A base64 value shorter than this, in bytes, is counted as text.
const MIN_MEDIA_BYTES: usize = 64;

/// Output that was seen, in bytes of decoded UTF-8.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Text {
    ascii_bytes: u64,
    other_bytes: u64,
}

impl Text {
    /// Bytes of which nothing else is known, such as those of a body that cannot be decoded.
    #[must_use]
    pub fn of_length(bytes: u64) -> Self {
        Self { ascii_bytes: bytes, other_bytes: 0 }
    }

    /// What a JSON string stands for; nothing for any other JSON value. `json` is one valid JSON value.
    #[must_use]
    pub fn of_string(json: &str) -> Self {
        let Some(quoted) = json.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) else {
            return Self::default();
        };
        let mut text = Self::default();
        let mut rest = quoted;
        while let Some(at) = memchr(b'\\', rest.as_bytes()) {
            let (bytes, length) = escape_bytes(&rest.as_bytes()[at..]);
            text.count(&rest[..at]);
            if bytes == 1 {
                text.ascii_bytes += 1
            } else {
                text.other_bytes += bytes
            }
            rest = rest.get(at + length..).unwrap_or_default();
        }
        text.count(rest);
        text
    }

    /// What was generated as a JSON value of any type, such as the arguments of a call.
    #[must_use]
    pub fn of_value(json: &str) -> Self {
        let mut text = Self::default();
        text.count(json);
        text
    }

    /// Both.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            ascii_bytes: self.ascii_bytes.saturating_add(other.ascii_bytes),
            other_bytes: self.other_bytes.saturating_add(other.other_bytes),
        }
    }

    /// What there is of it beyond `earlier`.
    #[must_use]
    pub fn beyond(self, earlier: Self) -> Self {
        Self {
            ascii_bytes: self.ascii_bytes.saturating_sub(earlier.ascii_bytes),
            other_bytes: self.other_bytes.saturating_sub(earlier.other_bytes),
        }
    }

    /// Bytes of it.
    #[must_use]
    pub fn bytes(self) -> u64 {
        self.ascii_bytes.saturating_add(self.other_bytes)
    }

    /// Tokens of it while the answer runs. Errs low.
    #[must_use]
    pub fn running_tokens(self) -> u64 {
        self.ascii_bytes / RUNNING_ASCII_BYTES + self.other_bytes / RUNNING_OTHER_BYTES
    }

    /// Tokens to charge for it when its figures never came. Errs high.
    #[must_use]
    pub fn charged_tokens(self) -> u64 {
        self.bytes().div_ceil(CHARGED_BYTES)
    }

    fn count(&mut self, text: &str) {
        let other = text.bytes().filter(|byte| !byte.is_ascii()).count() as u64;
        self.other_bytes += other;
        self.ascii_bytes += text.len() as u64 - other;
    }
}

/// Tokens of a JSON request: its strings and keys; base64 media (`data` values and `data:` URLs) count
/// [`MIN_MEDIA_TOKENS`] each. Takes anything; what is no JSON is guessed at just the same.
#[must_use]
pub fn input_tokens(body: &[u8]) -> u64 {
    let (mut text_bytes, mut media_tokens) = (0, 0);
    let mut rest = body;
    let mut media_key = false;
    while let Some(open) = memchr(b'"', rest) {
        let (string, after) = split_string(&rest[open + 1..]);
        if is_data_url(string) || media_key && is_base64(string) {
            media_tokens += MIN_MEDIA_TOKENS;
        } else {
            text_bytes += string.len() as u64;
        }
        media_key = string == b"data" && after.trim_ascii_start().starts_with(b":");
        rest = after;
    }
    text_bytes.div_ceil(INPUT_BYTES_PER_TOKEN) + media_tokens
}

/// Tokens of a request of which only the length is known.
#[must_use]
pub fn unread_input_tokens(content_length: u64) -> u64 {
    content_length.div_ceil(INPUT_BYTES_PER_TOKEN).min(MAX_UNREAD_INPUT)
}

/// Bytes of UTF-8 that the escape at the start of `text` stands for, and the escape's own length. Each half of
/// a surrogate pair counts as half of the four bytes.
fn escape_bytes(text: &[u8]) -> (u64, usize) {
    if text.get(1) != Some(&b'u') {
        return (1, 2);
    }
    let code = text
        .get(2..6)
        .and_then(|digits| std::str::from_utf8(digits).ok())
        .and_then(|digits| u16::from_str_radix(digits, 16).ok())
        .unwrap_or_default();
    let bytes = match code {
        0..0x80 => 1,
        0x80..0x800 | 0xd800..0xe000 => 2,
        _ => 3,
    };
    (bytes, 6)
}

/// Splits behind a string's closing quote: its content, still escaped, and what follows.
fn split_string(text: &[u8]) -> (&[u8], &[u8]) {
    let mut at = 0;
    while let Some(found) = memchr2(b'"', b'\\', &text[at..]) {
        let end = at + found;
        if text[end] == b'"' {
            return (&text[..end], &text[end + 1..]);
        }
        at = (end + 2).min(text.len());
    }
    (text, b"")
}

/// Whether a string is `data:type/subtype[;…];base64,` and base64 (RFC 2397). Slashes may be escaped.
fn is_data_url(string: &[u8]) -> bool {
    let Some(url) = string.strip_prefix(b"data:") else { return false };
    let Some(comma) = memchr(b',', url) else { return false };
    let (head, data) = (&url[..comma], &url[comma + 1..]);
    head.contains(&b'/') && head.ends_with(b";base64") && is_base64(data)
}

/// Whether a value is base64 and nothing else, and long enough to be media; spaces tell text.
fn is_base64(string: &[u8]) -> bool {
    let is_digit = |byte: &u8| byte.is_ascii_alphanumeric() || b"+/=-_\\".contains(byte);
    string.len() >= MIN_MEDIA_BYTES && string.iter().all(is_digit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_that_of_the_decoded_string() {
        let parts = |json: &str| {
            let text = Text::of_string(json);
            (text.ascii_bytes, text.other_bytes)
        };
        for (text, ascii) in [("", 0), ("plain", 5), ("tab\tquote\"back\\", 15), ("é€𝄞", 0), ("a\u{0}b€", 3)]
        {
            let json = serde_json::to_string(text).unwrap();
            assert_eq!(parts(&json), (ascii, text.len() as u64 - ascii), "{json}");
        }
        assert_eq!(parts(r#""\u00e9\u20ac\ud834\udd1e\u0041""#), (1, "é€𝄞".len() as u64));
        assert_eq!(parts(r#""\ud834""#), (0, 2), "half a pair is no error");
        for other in ["null", "5", "[]", "{\"a\":\"bcd\"}"] {
            assert_eq!(Text::of_string(other), Text::default(), "{other}");
        }
        assert_eq!(Text::of_value(r#"{"a":"é"}"#), Text { ascii_bytes: 8, other_bytes: 2 });
    }

    #[test]
    fn a_charge_is_more_than_the_running_count_and_not_twice_it() {
        let prose = Text::of_value(&"The quick brown fox. ".repeat(500));
        assert_eq!((prose.running_tokens(), prose.charged_tokens()), (2_100, 3_500));
        let other = Text::of_value(&"лиса".repeat(300));
        assert_eq!((other.running_tokens(), other.charged_tokens()), (300, 800));
    }

    #[test]
    fn media_is_no_text() {
        let picture = "iVBORw0KGgo".repeat(1_000);
        let text = r#"{"role":"user","content":"twelve bytes"}"#;
        let table = [
            format!(r#"{{"type":"base64","data":"{picture}"}}"#),
            format!(r#"{{"type":"base64","data" : "{picture}"}}"#),
            format!(r#"{{"url":"data:image/png;base64,{picture}"}}"#),
        ];
        let bare = input_tokens(text.as_bytes());
        for media in table {
            let tokens = input_tokens(format!("[{text},{media}]").as_bytes());
            let floor = bare + MIN_MEDIA_TOKENS;
            assert!(tokens > floor && tokens < floor + 10, "{tokens} tokens for {}", &media[..40]);
        }
        let prose = "words of a file ".repeat(1_000);
        assert!(input_tokens(format!(r#"{{"data":"{prose}"}}"#).as_bytes()) >= 4_000, "text in data counts");
        for (key, text) in [
            ("text", format!("data: {prose}")),
            ("text", format!("data:text/plain,{prose}")),
            ("text", format!("data:;base64,{picture}")),
            ("text", format!("data:image/png;base64,{picture}{prose}")),
            ("data", format!("{picture}{prose}")),
        ] {
            let tokens = input_tokens(format!(r#"{{"{key}":"{text}"}}"#).as_bytes());
            assert!(tokens >= text.len() as u64 / 4, "{tokens} for {}", &text[..40]);
        }
        assert!(input_tokens(format!(r#"{{"note":"{picture}"}}"#).as_bytes()) > 2_000, "only data is media");
    }

    #[test]
    fn input_is_a_quarter_of_the_text() {
        assert_eq!(input_tokens(br#""12345678""#), 2);
        assert_eq!(input_tokens(br#""123\"5678""#), 3, "escapes do not end a string");
        assert_eq!(input_tokens(b"\"never closed\\"), 4);
        assert_eq!(input_tokens(b""), 0);
    }

    #[test]
    fn an_unread_request_is_bounded() {
        assert_eq!(unread_input_tokens(4_001), 1_001);
        assert_eq!(unread_input_tokens(u64::MAX), MAX_UNREAD_INPUT);
    }
}
