//! Budgets and weights as the settings file writes them. What they mean is `check`'s.
use std::fmt;

use serde::Deserialize;
use serde::de::{self, Deserializer, Visitor};

use super::Window;
use super::values::{TokensError, parse_tokens};
use crate::budget::weights::Weight;

/// A number of tokens, or `{ tokens: …, window: … }`.
#[derive(Clone, Copy, Debug)]
pub(super) struct BudgetEntry {
    pub(super) tokens: TokenCount,
    /// The file's without it.
    pub(super) window: Option<Window>,
}

pub(super) const BUDGET_KEYS: &[&str] = &["tokens", "window"];

/// `weights:`; a class that is absent weighs 1.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, expecting = "a mapping of weights")]
pub(super) struct WeightsEntry {
    pub(super) input: WeightEntry,
    pub(super) cache_write: WeightEntry,
    pub(super) cache_read: WeightEntry,
    pub(super) output: WeightEntry,
}

/// What a token of one class counts for.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct WeightEntry(pub(super) Weight);

/// `5000000`, `5_000_000`, `500k`, `2M`.
#[derive(Clone, Copy, Debug)]
pub(super) struct TokenCount(pub(super) u64);

impl<'de> Deserialize<'de> for TokenCount {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TokenVisitor)
    }
}

struct TokenVisitor;

impl Visitor<'_> for TokenVisitor {
    type Value = TokenCount;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a whole number of tokens, such as 5000000, 500k or 2M")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<TokenCount, E> {
        parse_tokens(text).map(TokenCount).map_err(E::custom)
    }

    fn visit_u64<E: de::Error>(self, tokens: u64) -> Result<TokenCount, E> {
        self.visit_str(&tokens.to_string())
    }

    fn visit_i64<E: de::Error>(self, tokens: i64) -> Result<TokenCount, E> {
        self.visit_str(&tokens.to_string())
    }

    fn visit_u128<E: de::Error>(self, tokens: u128) -> Result<TokenCount, E> {
        self.visit_str(&tokens.to_string())
    }

    fn visit_i128<E: de::Error>(self, tokens: i128) -> Result<TokenCount, E> {
        self.visit_str(&tokens.to_string())
    }

    fn visit_f64<E: de::Error>(self, tokens: f64) -> Result<TokenCount, E> {
        // a whole number beyond 128 bits reaches here too
        let error =
            if tokens.fract() == 0.0 && tokens > 0.0 { TokensError::TooMany } else { TokensError::Fraction };
        Err(E::custom(error))
    }
}

impl<'de> Deserialize<'de> for BudgetEntry {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(BudgetVisitor)
    }
}

struct BudgetVisitor;

impl<'de> Visitor<'de> for BudgetVisitor {
    type Value = BudgetEntry;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "a whole number of tokens, such as 5000000, 500k or 2M, or { tokens: 500k, window: daily }",
        )
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<BudgetEntry, E> {
        TokenVisitor.visit_str(text).map(BudgetEntry::of)
    }

    fn visit_u64<E: de::Error>(self, tokens: u64) -> Result<BudgetEntry, E> {
        TokenVisitor.visit_u64(tokens).map(BudgetEntry::of)
    }

    fn visit_i64<E: de::Error>(self, tokens: i64) -> Result<BudgetEntry, E> {
        TokenVisitor.visit_i64(tokens).map(BudgetEntry::of)
    }

    fn visit_u128<E: de::Error>(self, tokens: u128) -> Result<BudgetEntry, E> {
        TokenVisitor.visit_u128(tokens).map(BudgetEntry::of)
    }

    fn visit_i128<E: de::Error>(self, tokens: i128) -> Result<BudgetEntry, E> {
        TokenVisitor.visit_i128(tokens).map(BudgetEntry::of)
    }

    fn visit_f64<E: de::Error>(self, tokens: f64) -> Result<BudgetEntry, E> {
        TokenVisitor.visit_f64(tokens).map(BudgetEntry::of)
    }

    fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<BudgetEntry, A::Error> {
        let written = WrittenOut::deserialize(de::value::MapAccessDeserializer::new(map))?;
        Ok(BudgetEntry { tokens: written.tokens, window: written.window })
    }
}

impl BudgetEntry {
    fn of(tokens: TokenCount) -> Self {
        Self { tokens, window: None }
    }
}

/// A budget with a window of its own.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenOut {
    tokens: TokenCount,
    #[serde(default)]
    window: Option<Window>,
}

impl<'de> Deserialize<'de> for WeightEntry {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(WeightVisitor)
    }
}

/// Reads a weight by its decimals: whatever the number's type, its shortest text is what was meant.
struct WeightVisitor;

impl Visitor<'_> for WeightVisitor {
    type Value = WeightEntry;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a weight from 0 to 1000, such as 1 or 0.1")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<WeightEntry, E> {
        text.parse().map(WeightEntry).map_err(E::custom)
    }

    fn visit_u64<E: de::Error>(self, weight: u64) -> Result<WeightEntry, E> {
        self.visit_str(&weight.to_string())
    }

    fn visit_i64<E: de::Error>(self, weight: i64) -> Result<WeightEntry, E> {
        self.visit_str(&weight.to_string())
    }

    fn visit_f64<E: de::Error>(self, weight: f64) -> Result<WeightEntry, E> {
        self.visit_str(&weight.to_string())
    }
}
