//! Token figures of one exchange, in the classes every dialect is normalised to.
//!
//! Shared by the meter and the controller; no I/O, no provider's names.
use serde::{Deserialize, Serialize};

/// Tokens by class. All counts are tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tokens {
    /// Input that was neither written to nor read from a cache.
    pub input: u64,
    /// Input written to the provider's cache.
    pub cache_write: u64,
    /// Input read from the provider's cache.
    pub cache_read: u64,
    /// Output, reasoning included.
    pub output: u64,
    /// The part of `output` that was reasoning.
    pub reasoning: u64,
    /// The part of `cache_write` that is kept for five minutes; nothing where the provider does not tell.
    pub cache_write_5m: u64,
    /// The part of `cache_write` that is kept for an hour; nothing where the provider does not tell.
    pub cache_write_1h: u64,
    /// The part of `input` that the provider's own tools made.
    pub tool_prompt: u64,
}

impl Tokens {
    /// Everything that is charged: `input + cache_write + cache_read + output` (reasoning is inside output).
    /// Saturates.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.all_input().saturating_add(self.output)
    }

    /// Input of every class: uncached, written to and read from a cache. Saturates.
    #[must_use]
    pub fn all_input(&self) -> u64 {
        self.input.saturating_add(self.cache_write).saturating_add(self.cache_read)
    }

    /// Class by class sum. Saturates.
    #[must_use]
    pub fn saturating_add(&self, other: &Self) -> Self {
        Self {
            input: self.input.saturating_add(other.input),
            cache_write: self.cache_write.saturating_add(other.cache_write),
            cache_read: self.cache_read.saturating_add(other.cache_read),
            output: self.output.saturating_add(other.output),
            reasoning: self.reasoning.saturating_add(other.reasoning),
            cache_write_5m: self.cache_write_5m.saturating_add(other.cache_write_5m),
            cache_write_1h: self.cache_write_1h.saturating_add(other.cache_write_1h),
            tool_prompt: self.tool_prompt.saturating_add(other.tool_prompt),
        }
    }

    /// The same with no class beyond `most`; parts stay parts.
    #[must_use]
    pub fn at_most(&self, most: u64) -> Self {
        Self {
            input: self.input.min(most),
            cache_write: self.cache_write.min(most),
            cache_read: self.cache_read.min(most),
            output: self.output.min(most),
            reasoning: self.reasoning.min(most),
            cache_write_5m: self.cache_write_5m.min(most),
            cache_write_1h: self.cache_write_1h.min(most),
            tool_prompt: self.tool_prompt.min(most),
        }
    }
}

/// Where the figures of an exchange come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Provenance {
    /// The provider's own final figures.
    Reported,
    /// The provider's figures so far, and a local count of what came after: the exchange broke.
    Partial,
    /// Counted locally, on the safe side.
    Estimated,
}

impl Provenance {
    /// The word used in the ledger and in JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Reported => "reported",
            Self::Partial => "partial",
            Self::Estimated => "estimated",
        }
    }
}

/// How an exchange ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ending {
    /// The answer came to its end.
    Completed,
    /// The provider answered with an error status.
    UpstreamError,
    /// The connection to the provider broke before the answer's end.
    UpstreamBroke,
    /// The agent hung up before the answer's end.
    ClientGone,
    /// The meter closed the connection to the provider because the bottle was cut.
    Cut,
    /// The request never reached the provider.
    Unsent,
    /// The meter or the controller died under the exchange; settled at the next start.
    Orphaned,
}

impl Ending {
    /// The word used in the ledger and in JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Completed => "completed",
            Self::UpstreamError => "upstream_error",
            Self::UpstreamBroke => "upstream_broke",
            Self::ClientGone => "client_gone",
            Self::Cut => "cut",
            Self::Unsent => "unsent",
            Self::Orphaned => "orphaned",
        }
    }
}
