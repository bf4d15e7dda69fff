//! Usage of OpenAI Responses.
//!
//! The figures come once, in `response.usage` of the terminal event: `response.completed`, `.incomplete` or
//! `.failed`; they may be null. `input_tokens` includes cached input, `output_tokens` includes reasoning.
use serde::Deserialize;
use serde_json::value::RawValue;

use super::read::{Raw, nested, object, word};
use super::report::Stated;
use super::tally::Tally;
use super::{Named, Reader, from_usage_on, kind_in};

/// OpenAI Responses.
pub(super) struct OpenaiResponses;

#[derive(Deserialize)]
struct Event<'a> {
    #[serde(borrow, rename = "type")]
    kind: Raw<'a>,
    #[serde(borrow)]
    delta: Raw<'a>,
    #[serde(borrow)]
    response: Raw<'a>,
}

#[derive(Deserialize)]
struct Response<'a> {
    #[serde(borrow)]
    model: Raw<'a>,
    #[serde(borrow)]
    usage: Raw<'a>,
}

#[derive(Deserialize)]
struct Usage<'a> {
    #[serde(borrow)]
    input_tokens: Raw<'a>,
    #[serde(borrow)]
    input_tokens_details: Raw<'a>,
    #[serde(borrow)]
    output_tokens: Raw<'a>,
    #[serde(borrow)]
    output_tokens_details: Raw<'a>,
}

#[derive(Default, Deserialize)]
struct InputDetails<'a> {
    #[serde(borrow)]
    cached_tokens: Raw<'a>,
    #[serde(borrow)]
    cache_write_tokens: Raw<'a>,
}

#[derive(Default, Deserialize)]
struct OutputDetails<'a> {
    #[serde(borrow)]
    reasoning_tokens: Raw<'a>,
}

impl Reader for OpenaiResponses {
    fn event(&self, event: Named<'_>, tally: &mut Tally) {
        let Some(event) = object::<Event<'_>>(event.data) else {
            return tally.alarm("an event of the stream cannot be read");
        };
        match word(event.kind) {
            kind if is_terminal(kind) => {
                self.response(event.response, tally);
                tally.whole = tally.report.is_known();
                tally.hold = true;
                tally.terminal = true;
            }
            "error" => tally.break_off(),
            // names the model early, for streams that break
            "response.created" if tally.model.is_none() => self.response(event.response, tally),
            "response.output_item.added" => tally.finished = false,
            // the last one, unless another begins
            "response.output_item.done" => tally.finished = true,
            kind if is_text_delta(kind) => tally.count_text(event.delta),
            _ => {}
        }
    }

    fn usage(&self, raw: &RawValue, tally: &mut Tally) {
        let Some(usage) = tally.usage_object::<Usage<'_>>(Some(raw)) else { return };
        let input = nested::<InputDetails<'_>>(usage.input_tokens_details).unwrap_or_default();
        let output = nested::<OutputDetails<'_>>(usage.output_tokens_details).unwrap_or_default();
        let stated = Stated {
            input: tally.count("input_tokens", usage.input_tokens),
            cache_read: tally.count("cached_tokens", input.cached_tokens),
            cache_write: tally.count("cache_write_tokens", input.cache_write_tokens),
            output: tally.count("output_tokens", usage.output_tokens),
            reasoning: tally.count("reasoning_tokens", output.reasoning_tokens),
            input_includes_cache: true,
            ..Stated::default()
        };
        tally.take(&stated);
    }

    /// Only the last events have figures, and they are long: they repeat the whole answer.
    fn oversized_event(&self, start: &[u8], end: &[u8], tally: &mut Tally) -> bool {
        let Some(kind) = kind_in(start).filter(|kind| is_terminal(kind)) else {
            return kind_in(start).is_some();
        };
        let opening = format!(r#"{{"type":"{kind}","response":{{"#);
        let rebuilt = from_usage_on(opening.as_bytes(), end, self.usage_key());
        let bare = || format!("{opening}}}}}").into_bytes();
        self.event(Named::unnamed(&rebuilt.unwrap_or_else(bare)), tally);
        tally.whole
    }
}

impl OpenaiResponses {
    fn response(&self, raw: Raw<'_>, tally: &mut Tally) {
        let Some(response) = nested::<Response<'_>>(raw) else { return };
        tally.name_model(response.model);
        if let Some(raw) = response.usage {
            self.usage(raw, tally);
        }
    }
}

/// Whether an event of this type is the last, with the figures.
fn is_terminal(kind: &str) -> bool {
    matches!(kind, "response.completed" | "response.incomplete" | "response.failed")
}

/// Deltas of text, tool input and reasoning; audio is base64 and no text.
fn is_text_delta(kind: &str) -> bool {
    kind.ends_with(".delta") && !kind.ends_with("audio.delta")
}
