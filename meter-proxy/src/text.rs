//! Foreign text made harmless: for messages, headers, the ledger, the log and the controller's terminals.
//!
//! The one place that says which characters are hostile. Not here: what is said.

/// Most characters of a message.
const MAX_MESSAGE_CHARS: usize = 1_024;

/// Whether a character could steer a terminal or lie about the order of text: C0, C1, DEL, bidirectional
/// controls, line and paragraph separators, characters without width.
#[must_use]
pub fn is_hostile(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{061c}' | '\u{200b}' | '\u{200e}' | '\u{200f}'   // zero-width space, direction marks
            | '\u{2028}'..='\u{202e}'                           // separators, embeddings and overrides
            | '\u{2060}'..='\u{206f}'                           // isolates and other invisible formatting
            | '\u{feff}'
            | '\u{e0000}'..='\u{e007f}') // tags
}

/// The text with what is hostile replaced by `U+FFFD`, cut at the length of a message.
#[must_use]
pub fn printable(text: &str) -> String {
    printable_within(text, MAX_MESSAGE_CHARS)
}

/// The text with what is hostile replaced by `U+FFFD`, at most `most_chars` of it.
#[must_use]
pub fn printable_within(text: &str, most_chars: usize) -> String {
    let harmless = |c| if is_hostile(c) { char::REPLACEMENT_CHARACTER } else { c };
    text.chars().take(most_chars).map(harmless).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_characters_are_replaced_and_others_kept() {
        for (given, shown) in [
            ("größe 模型 🙂", "größe 模型 🙂"),
            ("a\x1b]52;c\x07\n\u{7f}\u{9b}", "a\u{fffd}]52;c\u{fffd}\u{fffd}\u{fffd}\u{fffd}"),
            ("\u{202e}gpj\u{2066}\u{200b}\u{2028}\u{feff}", "\u{fffd}gpj\u{fffd}\u{fffd}\u{fffd}\u{fffd}"),
            ("\u{061c}\u{206a}\u{e0041}", "\u{fffd}\u{fffd}\u{fffd}"),
        ] {
            assert_eq!(printable(given), shown);
        }
        assert_eq!(printable(&"x".repeat(5_000)).len(), MAX_MESSAGE_CHARS);
        assert_eq!(printable_within("\n\n\n", 2), "\u{fffd}\u{fffd}");
    }
}
