//! What an answer has said and shown so far; every dialect fills it.
use std::borrow::Cow;

use serde::Deserialize;

use super::read::{Raw, append_compact, count, model_name, nested};
use super::report::{Report, Stated};
use crate::estimate::Text;
use crate::protocol::MAX_RAW_BYTES;
use crate::tokens::Tokens;

/// Most alarms that are kept of one exchange.
const MAX_ALARMS: usize = 6;

/// What an answer has said and shown so far.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) report: Report,
    /// The report covers the whole answer, should nothing follow.
    pub(crate) whole: bool,
    /// Output that was seen.
    pub(crate) text: Text,
    /// How much of it there was when the report last stated more output.
    pub(crate) covered: Text,
    /// The model that answers.
    pub(crate) model: Option<String>,
    /// Nothing may reach the client until the settlement is durable, or until what follows shows that the figures
    /// were not yet the last.
    pub(crate) hold: bool,
    /// The dialect's last event came, or the whole document.
    pub(crate) terminal: bool,
    /// The generation came to its end, as far as can be told; the stream may go on with figures.
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

    /// Takes one more statement of the provider's.
    pub(crate) fn take(&mut self, stated: &Stated) {
        let before = self.report.tokens().output;
        self.report.take(stated);
        if self.report.tokens().output > before {
            self.covered = self.text;
        }
    }

    /// The running count of output, tokens. Errs low.
    pub(crate) fn running_output(&self) -> u64 {
        self.text.running_tokens()
    }

    /// Counts text that was generated.
    pub(crate) fn count_text(&mut self, text: Raw<'_>) {
        self.text = self.text.plus(text.map(|text| Text::of_string(text.get())).unwrap_or_default());
    }

    /// Counts JSON that was generated as it is.
    pub(crate) fn count_value(&mut self, value: Raw<'_>) {
        self.text = self.text.plus(value.map(|value| Text::of_value(value.get())).unwrap_or_default());
    }

    /// The provider broke off: nothing follows.
    pub(crate) fn break_off(&mut self) {
        self.alarm("the provider broke off with an error event");
        self.failed = true;
        self.hold = true;
        self.terminal = true;
    }

    /// Keeps the first name of the model that is stated.
    pub(crate) fn name_model(&mut self, name: Raw<'_>) {
        if self.model.is_none() {
            self.model = model_name(name);
        }
    }

    /// Reads a usage object and keeps its JSON; what is none is an alarm.
    pub(crate) fn usage_object<'a, T: Deserialize<'a>>(&mut self, raw: Raw<'a>) -> Option<T> {
        self.keep_raw(raw?.get());
        let usage = nested(raw);
        if usage.is_none() {
            self.alarm("the usage is not an object");
        }
        usage
    }

    /// Reads a count; what is none is named in an alarm and otherwise as if it were missing.
    pub(crate) fn count(&mut self, name: &'static str, field: Raw<'_>) -> Option<u64> {
        let count = count(field?).ok();
        if count.is_none() {
            self.alarm(format!("{name} in the usage is not a count"));
        }
        count
    }

    /// Keeps a provider's usage, one JSON value, for the ledger, should it be short enough.
    pub(crate) fn keep_raw(&mut self, usage: &str) {
        if self.first_raw.is_empty() {
            std::mem::swap(&mut self.first_raw, &mut self.latest_raw);
        }
        self.latest_raw.clear();
        // half of the bound each, less the brackets and the comma around both
        if usage.len() <= MAX_RAW_BYTES / 2 - 2 {
            append_compact(usage, &mut self.latest_raw);
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
