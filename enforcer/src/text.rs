//! Words and numbers for people: foreign text made harmless, counts made short.
//!
//! Used by every command that prints and by the dashboard. Not here: layout, colour, JSON (which stays exact), and
//! which characters are hostile: the meter's room of the same name says it for both.
use meter_proxy::text::printable_within;

/// Replaces what could steer a terminal or lie about the order of text by `U+FFFD`; all of the rest stays.
#[must_use]
pub fn scrub(text: &str) -> String {
    printable_within(text, usize::MAX)
}

/// A count in at most three digits and a unit: `999`, `12.3k`, `1.25M`. Cut off, never rounded up, so that a
/// budget does not look used up before it is.
#[must_use]
pub fn short(count: u64) -> String {
    const UNITS: [&str; 6] = ["k", "M", "G", "T", "P", "E"];
    if count < 1000 {
        return count.to_string();
    }
    // thousandths of the unit: whole part below 1000, three decimals
    let mut milli = count;
    let mut unit = 0;
    while milli >= 1_000_000 {
        milli /= 1000;
        unit += 1;
    }
    let (whole, decimals) = (milli / 1000, format!("{:03}", milli % 1000));
    let kept = match whole {
        0..10 => &decimals[..2],
        10..100 => &decimals[..1],
        _ => "",
    };
    let kept = kept.trim_end_matches('0');
    let point = if kept.is_empty() { "" } else { "." };
    format!("{whole}{point}{kept}{}", UNITS[unit])
}

/// A count in full, in groups of three: `1,250,000`.
#[must_use]
pub fn grouped(count: u64) -> String {
    let digits = count.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use meter_proxy::text::is_hostile;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn hostile_characters_are_replaced_and_others_kept() {
        for (given, shown) in [
            ("reviewer-1", "reviewer-1"),
            ("größe 模型 🙂", "größe 模型 🙂"),
            ("a\x1b]52;c;ZXZpbA==\x07b", "a\u{fffd}]52;c;ZXZpbA==\u{fffd}b"),
            ("a\nb\tc\r", "a\u{fffd}b\u{fffd}c\u{fffd}"),
            ("\u{7f}\u{9b}31m", "\u{fffd}\u{fffd}31m"),
            ("user\u{202e}gpj.exe\u{2066}\u{2069}\u{200f}", "user\u{fffd}gpj.exe\u{fffd}\u{fffd}\u{fffd}"),
            ("a\u{2028}b\u{feff}", "a\u{fffd}b\u{fffd}"),
        ] {
            assert_eq!(scrub(given), shown);
        }
    }

    #[test]
    fn counts_are_short() {
        for (count, shown) in [
            (0, "0"),
            (999, "999"),
            (1000, "1k"),
            (1050, "1.05k"),
            (12_345, "12.3k"),
            (999_999, "999k"),
            (1_000_000, "1M"),
            (1_250_000, "1.25M"),
            (5_000_000_000, "5G"),
            (u64::MAX, "18.4E"),
        ] {
            assert_eq!(short(count), shown);
        }
    }

    #[test]
    fn counts_are_grouped() {
        for (count, shown) in
            [(0, "0"), (999, "999"), (1000, "1,000"), (123_456, "123,456"), (1_250_000, "1,250,000")]
        {
            assert_eq!(grouped(count), shown);
        }
    }

    proptest! {
        #[test]
        fn scrubbed_text_steers_nothing(text in any::<String>()) {
            prop_assert!(!scrub(&text).chars().any(is_hostile));
            prop_assert_eq!(scrub(&text).chars().count(), text.chars().count());
        }

        #[test]
        fn short_counts_stay_short(count in any::<u64>()) {
            prop_assert!(short(count).len() <= 5);
        }
    }
}
