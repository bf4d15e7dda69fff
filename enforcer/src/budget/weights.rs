//! Weights: what a token of each class counts for. Sums are kept raw, class by class, and weighed when they are looked
//! at: so other weights need no other history, and the order of sums never matters.
use std::fmt;
use std::str::FromStr;

use meter_proxy::tokens::Tokens;

/// One token, as weights count.
const ONE: u32 = 1_000;
/// The greatest weight: a hundred times what the dearest class costs beside the cheapest anywhere.
const MAX_WEIGHT: u32 = 1_000;

/// What one token of a class counts for, in thousandths of a token; 0 to 1,000 tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Weight(u32);

impl Default for Weight {
    fn default() -> Self {
        Self(ONE)
    }
}

/// Why a text is no weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WeightError {
    /// Not a number.
    #[error("a weight is a number (0, 0.1 and 1.25 are)")]
    NotANumber,
    /// Below 0.
    #[error("a weight cannot be negative")]
    Negative,
    /// Finer than is counted.
    #[error("a weight has at most three decimals")]
    TooFine,
    /// Too great.
    #[error("a weight is at most {MAX_WEIGHT}")]
    TooGreat,
}

impl FromStr for Weight {
    type Err = WeightError;

    fn from_str(text: &str) -> Result<Self, WeightError> {
        if text.strip_prefix('-').is_some_and(|rest| rest.parse::<f64>().is_ok()) {
            return Err(WeightError::Negative);
        }
        let (whole, decimals) = text.split_once('.').unwrap_or((text, "0"));
        let digits = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
        if !digits(whole) || !digits(decimals) {
            return Err(WeightError::NotANumber);
        }
        let decimals = decimals.trim_end_matches('0');
        if decimals.len() > 3 {
            return Err(WeightError::TooFine);
        }
        let thousandths: u32 = format!("{decimals:0<3}").parse().map_err(|_| WeightError::NotANumber)?;
        let whole: u32 = whole.parse().map_err(|_| WeightError::TooGreat)?;
        let weight = whole.checked_mul(ONE).and_then(|whole| whole.checked_add(thousandths));
        weight.filter(|weight| *weight <= MAX_WEIGHT * ONE).map(Self).ok_or(WeightError::TooGreat)
    }
}

impl fmt::Display for Weight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = format!("{}.{:03}", self.0 / ONE, self.0 % ONE);
        f.write_str(text.trim_end_matches('0').trim_end_matches('.'))
    }
}

/// A weight for each class of token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Weights {
    /// Of uncached input.
    pub input: Weight,
    /// Of input written to the provider's cache.
    pub cache_write: Weight,
    /// Of input read from it.
    pub cache_read: Weight,
    /// Of output, reasoning included.
    pub output: Weight,
}

impl Weights {
    /// Whether no class counts for anything.
    #[must_use]
    pub fn are_all_zero(&self) -> bool {
        [self.input, self.cache_write, self.cache_read, self.output].iter().all(|weight| weight.0 == 0)
    }

    /// What these sums count for, whole tokens: a part of one counts once it is whole.
    #[must_use]
    pub fn weigh(&self, sums: &Classes) -> u128 {
        let by = |tokens: u128, weight: Weight| tokens.saturating_mul(u128::from(weight.0));
        let thousandths = by(sums.input, self.input)
            .saturating_add(by(sums.cache_write, self.cache_write))
            .saturating_add(by(sums.cache_read, self.cache_read))
            .saturating_add(by(sums.output, self.output));
        thousandths / u128::from(ONE)
    }

    /// What the figures of one exchange count for, tokens. Saturates.
    #[must_use]
    pub fn total(&self, tokens: &Tokens) -> u64 {
        clamp(self.weigh(&Classes::from(tokens)))
    }

    /// What a reservation counts for: nobody knows its classes yet, and most of it is input.
    #[must_use]
    pub fn reserved(&self, tokens: u128) -> u128 {
        self.weigh(&Classes { input: tokens, ..Classes::default() })
    }
}

/// Sums of tokens by class, raw; wide enough never to overflow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Classes {
    input: u128,
    cache_write: u128,
    cache_read: u128,
    output: u128,
}

impl From<&Tokens> for Classes {
    fn from(tokens: &Tokens) -> Self {
        Self {
            input: tokens.input.into(),
            cache_write: tokens.cache_write.into(),
            cache_read: tokens.cache_read.into(),
            output: tokens.output.into(),
        }
    }
}

impl Classes {
    /// Both together.
    #[must_use]
    pub fn plus(&self, other: &Self) -> Self {
        Self {
            input: self.input + other.input,
            cache_write: self.cache_write + other.cache_write,
            cache_read: self.cache_read + other.cache_read,
            output: self.output + other.output,
        }
    }

    /// Tokens of all classes, unweighed.
    #[must_use]
    pub(super) fn raw(&self) -> u128 {
        self.input + self.cache_write + self.cache_read + self.output
    }

    /// What is left without the other, which is a part of this.
    #[must_use]
    pub(super) fn minus(&self, part: &Self) -> Self {
        Self {
            input: self.input - part.input,
            cache_write: self.cache_write - part.cache_write,
            cache_read: self.cache_read - part.cache_read,
            output: self.output - part.output,
        }
    }
}

/// A sum as documents hold it.
pub(super) fn clamp(tokens: u128) -> u64 {
    u64::try_from(tokens).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_thousandths() {
        for (text, shown) in
            [("0", "0"), ("1", "1"), ("1.0", "1"), ("0.1", "0.1"), ("1.250", "1.25"), ("1000", "1000")]
        {
            assert_eq!(text.parse::<Weight>().unwrap().to_string(), shown);
        }
        for (text, error) in [
            ("", WeightError::NotANumber),
            ("x", WeightError::NotANumber),
            ("NaN", WeightError::NotANumber),
            ("inf", WeightError::NotANumber),
            ("1e3", WeightError::NotANumber),
            (".5", WeightError::NotANumber),
            ("-1", WeightError::Negative),
            ("-0.5", WeightError::Negative),
            ("0.0001", WeightError::TooFine),
            ("1000.001", WeightError::TooGreat),
            ("99999999999999999999", WeightError::TooGreat),
        ] {
            assert_eq!(text.parse::<Weight>(), Err(error), "{text}");
        }
    }

    /// input, cache write, cache read, output at 1, 1.25, 0.1 and 5 -> tokens
    #[test]
    fn figures_are_weighed_as_they_are_summed() {
        let weight = |text: &str| text.parse::<Weight>().unwrap();
        let weights = Weights {
            input: weight("1"),
            cache_write: weight("1.25"),
            cache_read: weight("0.1"),
            output: weight("5"),
        };
        for (input, cache_write, cache_read, output, total) in [
            (100, 0, 0, 0, 100),
            (0, 4, 0, 0, 5),
            (0, 0, 9, 0, 0),
            (0, 0, 10, 0, 1),
            (0, 0, 0, 3, 15),
            (100, 4, 19, 3, 121),
            (u64::MAX, u64::MAX, u64::MAX, u64::MAX, u64::MAX),
        ] {
            let tokens = Tokens { input, cache_write, cache_read, output, reasoning: 0 };
            assert_eq!(weights.total(&tokens), total, "{tokens:?}");
        }
        // ten exchanges of one cheap token are one token, not none
        let one = Classes::from(&Tokens { cache_read: 1, ..Tokens::default() });
        let ten = (0..10).fold(Classes::default(), |sum, _| sum.plus(&one));
        assert_eq!(weights.weigh(&ten), 1);
        assert_eq!(
            Weights::default().total(&Tokens {
                input: 1,
                cache_write: 2,
                cache_read: 3,
                output: 4,
                reasoning: 4
            }),
            10
        );
    }
}
