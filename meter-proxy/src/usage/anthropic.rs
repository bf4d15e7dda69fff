//! Usage of Anthropic Messages.
//!
//! `input_tokens` excludes both cache classes. `cache_creation` breaks the cache writes down and
//! `server_tool_use` counts requests: neither is added. The figures of `message_delta` are cumulative and may
//! restate input. `iterations` of type `compaction` are billed beside the top-level figures.
use serde::Deserialize;
use serde_json::value::RawValue;

use super::read::{Raw, nested, object};
use super::tally::{Tally, renew};
use crate::tokens::Tokens;

#[derive(Deserialize)]
struct Event<'a> {
    #[serde(borrow, rename = "type")]
    kind: Raw<'a>,
    #[serde(borrow)]
    message: Option<Message<'a>>,
    #[serde(borrow)]
    delta: Option<Delta<'a>>,
    #[serde(borrow)]
    usage: Raw<'a>,
}

#[derive(Deserialize)]
struct Message<'a> {
    #[serde(borrow)]
    model: Raw<'a>,
    #[serde(borrow)]
    usage: Raw<'a>,
}

/// The fields of all deltas that are text, and the end of the message. Signatures and citations are no text.
#[derive(Deserialize)]
struct Delta<'a> {
    #[serde(borrow)]
    text: Raw<'a>,
    #[serde(borrow)]
    partial_json: Raw<'a>,
    #[serde(borrow)]
    thinking: Raw<'a>,
    #[serde(borrow)]
    stop_reason: Raw<'a>,
}

#[derive(Deserialize)]
struct Usage<'a> {
    #[serde(borrow)]
    input_tokens: Raw<'a>,
    #[serde(borrow)]
    cache_creation_input_tokens: Raw<'a>,
    #[serde(borrow)]
    cache_read_input_tokens: Raw<'a>,
    #[serde(borrow)]
    output_tokens: Raw<'a>,
    #[serde(borrow)]
    iterations: Raw<'a>,
}

#[derive(Deserialize)]
struct Iteration<'a> {
    #[serde(borrow, rename = "type")]
    kind: Raw<'a>,
    #[serde(borrow)]
    input_tokens: Raw<'a>,
    #[serde(borrow)]
    cache_creation_input_tokens: Raw<'a>,
    #[serde(borrow)]
    cache_read_input_tokens: Raw<'a>,
    #[serde(borrow)]
    output_tokens: Raw<'a>,
}

/// Reads one event of a stream.
pub(super) fn event(data: &[u8], tally: &mut Tally) {
    let Some(event) = object::<Event<'_>>(data) else {
        tally.alarm("an event of the stream cannot be read");
        return;
    };
    match event.kind.map_or("", RawValue::get) {
        r#""content_block_delta""# => count_delta(event.delta, tally),
        r#""message_start""# => {
            if let Some(message) = event.message {
                tally.name_model(message.model);
                read_usage(message.usage, tally);
            }
        }
        r#""message_delta""# => message_delta(&event, tally),
        r#""message_stop""# => {
            tally.hold = true;
            tally.terminal = true;
        }
        r#""error""# => {
            tally.alarm("the provider broke off with an error event");
            tally.failed = true;
            tally.hold = true;
            tally.terminal = true;
        }
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
    let cache_write = tally.count("cache_creation_input_tokens", usage.cache_creation_input_tokens);
    let cache_read = tally.count("cache_read_input_tokens", usage.cache_read_input_tokens);
    let output = tally.count("output_tokens", usage.output_tokens);
    let beside = usage.iterations.and_then(|iterations| compactions(iterations, tally));
    renew(&mut tally.report.input, input);
    renew(&mut tally.report.cache_write, cache_write);
    renew(&mut tally.report.cache_read, cache_read);
    renew(&mut tally.report.output, output);
    renew(&mut tally.report.beside, beside);
}

fn count_delta(delta: Option<Delta<'_>>, tally: &mut Tally) {
    if let Some(delta) = delta {
        tally.count_text(delta.text);
        tally.count_text(delta.partial_json);
        tally.count_text(delta.thinking);
    }
}

fn message_delta(event: &Event<'_>, tally: &mut Tally) {
    let stated_before = std::mem::take(&mut tally.report.output);
    read_usage(event.usage, tally);
    tally.whole |= tally.report.output.is_some();
    tally.report.output = tally.report.output.or(stated_before);
    if event.delta.as_ref().is_some_and(|delta| delta.stop_reason.is_some()) {
        tally.finished = true;
        tally.hold = true;
    }
}

fn read_usage(raw: Raw<'_>, tally: &mut Tally) {
    if let Some(raw) = raw {
        usage(raw, tally);
    }
}

/// The sum of all compactions: the only iterations that the top level leaves out.
fn compactions(raw: &RawValue, tally: &mut Tally) -> Option<Tokens> {
    let Ok(iterations) = serde_json::from_str::<Vec<Iteration<'_>>>(raw.get()) else {
        tally.alarm("iterations in the usage cannot be read");
        return None;
    };
    let mut sum = Tokens::default();
    for iteration in iterations {
        if iteration.kind.map_or("", RawValue::get) != r#""compaction""# {
            continue;
        }
        sum = sum.saturating_add(&Tokens {
            input: tally.count("iterations.input_tokens", iteration.input_tokens).unwrap_or_default(),
            cache_write: tally
                .count("iterations.cache_creation_input_tokens", iteration.cache_creation_input_tokens)
                .unwrap_or_default(),
            cache_read: tally
                .count("iterations.cache_read_input_tokens", iteration.cache_read_input_tokens)
                .unwrap_or_default(),
            output: tally.count("iterations.output_tokens", iteration.output_tokens).unwrap_or_default(),
            reasoning: 0,
        });
    }
    Some(sum)
}
