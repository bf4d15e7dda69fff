//! What an answer has said and shown so far; every dialect fills it.
use std::borrow::Cow;

use serde_json::value::RawValue;

use super::read::{Raw, append_compact, count, model_name};
use crate::estimate;
use crate::protocol::MAX_RAW_BYTES;
use crate::tokens::Tokens;

/// Most alarms that are kept of one exchange.
const MAX_ALARMS: usize = 6;

/// The provider's latest figures, field by field as it names them; `None`: never stated.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Report {
    /// All input, or only what no cache was involved in: see `input_includes_cache`.
    pub(crate) input: Option<u64>,
    pub(crate) cache_write: Option<u64>,
    pub(crate) cache_read: Option<u64>,
    /// Output, reasoning included.
    pub(crate) output: Option<u64>,
    pub(crate) reasoning: Option<u64>,
    /// What is charged beside the top-level figures.
    pub(crate) beside: Option<Tokens>,
    pub(crate) input_includes_cache: bool,
}

impl Report {
    /// Whether any figure was stated.
    pub(crate) fn is_known(&self) -> bool {
        self.input.is_some()
            || self.output.is_some()
            || self.cache_read.is_some()
            || self.cache_write.is_some()
    }

    /// The figures in the classes of the ledger; what was never stated is zero.
    pub(crate) fn tokens(&self) -> Tokens {
        let cache_write = self.cache_write.unwrap_or_default();
        let cache_read = self.cache_read.unwrap_or_default();
        let included = if self.input_includes_cache { cache_write.saturating_add(cache_read) } else { 0 };
        let output = self.output.unwrap_or_default();
        Tokens {
            input: self.input.unwrap_or_default().saturating_sub(included),
            cache_write,
            cache_read,
            output,
            reasoning: self.reasoning.unwrap_or_default().min(output),
        }
        .saturating_add(&self.beside.unwrap_or_default())
    }
}

/// What an answer has said and shown so far.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) report: Report,
    /// The report covers the whole answer, should nothing follow.
    pub(crate) whole: bool,
    /// Bytes of decoded text that were seen.
    pub(crate) text_bytes: u64,
    /// The model that answers.
    pub(crate) model: Option<String>,
    /// Nothing may reach the client until the settlement is durable.
    pub(crate) hold: bool,
    /// The dialect's last event came, or the whole document.
    pub(crate) terminal: bool,
    /// The generation came to its end, though the stream may go on with figures.
    pub(crate) finished: bool,
    /// The provider broke off with an error.
    pub(crate) failed: bool,
    /// The provider's usage JSON: the first and the latest.
    first_raw: String,
    latest_raw: String,
    alarms: Vec<Cow<'static, str>>,
}

impl Tally {
    /// Figures so far: the provider's, topped up with the running count of output until the end is known.
    pub(crate) fn tokens(&self) -> Tokens {
        let mut tokens = self.report.tokens();
        if !(self.terminal && self.whole) {
            tokens.output = tokens.output.max(self.running_output());
        }
        tokens
    }

    /// The running count of output, tokens. Errs low.
    pub(crate) fn running_output(&self) -> u64 {
        estimate::running_output_tokens(self.text_bytes)
    }

    /// Counts text that was generated.
    pub(crate) fn count_text(&mut self, text: Raw<'_>) {
        let bytes = text.map_or(0, |text| estimate::text_bytes(text.get()));
        self.text_bytes = self.text_bytes.saturating_add(bytes);
    }

    /// Keeps the first name of the model that is stated.
    pub(crate) fn name_model(&mut self, name: Raw<'_>) {
        if self.model.is_none() {
            self.model = model_name(name);
        }
    }

    /// Reads a count; what is none is named in an alarm and otherwise as if it were missing.
    pub(crate) fn count(&mut self, name: &'static str, field: Raw<'_>) -> Option<u64> {
        let count = count(field?).ok();
        if count.is_none() {
            self.alarm(format!("{name} in the usage is not a count"));
        }
        count
    }

    /// Keeps the provider's usage JSON for the ledger, should it be short enough.
    pub(crate) fn keep_raw(&mut self, usage: &RawValue) {
        if self.first_raw.is_empty() {
            std::mem::swap(&mut self.first_raw, &mut self.latest_raw);
        }
        self.latest_raw.clear();
        // half of the bound each, less the brackets and the comma around both
        if usage.get().len() <= MAX_RAW_BYTES / 2 - 2 {
            append_compact(usage.get(), &mut self.latest_raw);
        }
    }

    /// The provider's usage JSON: the latest, or an array of the latest and the first when they differ.
    pub(crate) fn raw(&self) -> Option<String> {
        match (self.latest_raw.as_str(), self.first_raw.as_str()) {
            ("", "") => None,
            (latest, "") => Some(latest.to_owned()),
            ("", first) => Some(first.to_owned()),
            (latest, first) if latest == first => Some(latest.to_owned()),
            (latest, first) => Some(format!("[{latest},{first}]")),
        }
    }

    /// Notes what the operator should know of these figures; once each.
    pub(crate) fn alarm(&mut self, what: impl Into<Cow<'static, str>>) {
        let what = what.into();
        if self.alarms.len() < MAX_ALARMS && !self.alarms.contains(&what) {
            self.alarms.push(what);
        }
    }

    /// All alarms in one line.
    pub(crate) fn alarms(&self) -> Option<String> {
        if self.alarms.is_empty() { None } else { Some(self.alarms.join("; ")) }
    }
}

/// `newer` where it states something, else what stood before: figures are cumulative, never summed.
pub(crate) fn renew<T>(field: &mut Option<T>, newer: Option<T>) {
    if newer.is_some() {
        *field = newer;
    }
}
