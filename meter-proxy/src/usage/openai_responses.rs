//! Usage of OpenAI Responses.
//!
//! The figures come once, in `response.usage` of the terminal event: `response.completed`, `.incomplete` or
//! `.failed`; they may be null. `input_tokens` includes cached input, `output_tokens` includes reasoning.
use serde::Deserialize;
use serde_json::value::RawValue;

use super::read::{Raw, nested, object};
use super::tally::{Tally, renew};

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

#[derive(Deserialize)]
struct InputDetails<'a> {
    #[serde(borrow)]
    cached_tokens: Raw<'a>,
    #[serde(borrow)]
    cache_write_tokens: Raw<'a>,
}

#[derive(Deserialize)]
struct OutputDetails<'a> {
    #[serde(borrow)]
    reasoning_tokens: Raw<'a>,
}

/// Whether an event of this type is the last, with the figures.
pub(super) fn is_terminal(kind: &str) -> bool {
    matches!(kind, "response.completed" | "response.incomplete" | "response.failed")
}

/// Reads one event of a stream.
pub(super) fn event(data: &[u8], tally: &mut Tally) {
    let Some(event) = object::<Event<'_>>(data) else {
        tally.alarm("an event of the stream cannot be read");
        return;
    };
    match event.kind.map_or("", |kind| kind.get().trim_matches('"')) {
        kind if is_terminal(kind) => {
            read_response(event.response, tally);
            tally.whole = tally.report.is_known();
            tally.hold = true;
            tally.terminal = true;
        }
        "error" => {
            tally.alarm("the provider broke off with an error event");
            tally.failed = true;
            tally.hold = true;
            tally.terminal = true;
        }
        // names the model early, for streams that break
        "response.created" if tally.model.is_none() => read_response(event.response, tally),
        kind if is_text_delta(kind) => tally.count_text(event.delta),
        _ => {}
    }
}

/// Reads a usage object.
pub(super) fn usage(raw: &RawValue, tally: &mut Tally) {
    tally.keep_raw(raw);
    let Some(usage) = nested::<Usage<'_>>(Some(raw)) else {
        tally.alarm("the usage is not an object");
        return;
    };
    let input = tally.count("input_tokens", usage.input_tokens);
    let output = tally.count("output_tokens", usage.output_tokens);
    tally.report.input_includes_cache = true;
    renew(&mut tally.report.input, input);
    renew(&mut tally.report.output, output);
    if let Some(details) = nested::<InputDetails<'_>>(usage.input_tokens_details) {
        let cached = tally.count("cached_tokens", details.cached_tokens);
        let written = tally.count("cache_write_tokens", details.cache_write_tokens);
        renew(&mut tally.report.cache_read, cached);
        renew(&mut tally.report.cache_write, written);
    }
    if let Some(details) = nested::<OutputDetails<'_>>(usage.output_tokens_details) {
        let reasoning = tally.count("reasoning_tokens", details.reasoning_tokens);
        renew(&mut tally.report.reasoning, reasoning);
    }
}

/// Deltas of text, tool input and reasoning; audio is base64 and no text.
fn is_text_delta(kind: &str) -> bool {
    kind.ends_with(".delta") && !kind.ends_with("audio.delta")
}

fn read_response(raw: Raw<'_>, tally: &mut Tally) {
    let Some(response) = nested::<Response<'_>>(raw) else { return };
    tally.name_model(response.model);
    if let Some(raw) = response.usage {
        usage(raw, tally);
    }
}
