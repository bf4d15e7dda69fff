//! Usage of Anthropic Messages.
//!
//! `input_tokens` excludes both cache classes. `cache_creation` breaks the cache writes down by how long they are
//! kept, and `server_tool_use` counts requests: neither is added. The figures of `message_delta` are cumulative and
//! may restate input. `iterations` of type `compaction` are billed beside the top-level figures.
use serde::Deserialize;
use serde_json::value::RawValue;

use super::read::{Raw, list, nested, object, word};
use super::report::Stated;
use super::tally::Tally;
use super::{Named, Reader};
use crate::tokens::Tokens;

/// Anthropic Messages.
pub(super) struct AnthropicMessages;

#[derive(Deserialize)]
struct Event<'a> {
    #[serde(borrow, rename = "type")]
    kind: Raw<'a>,
    #[serde(borrow)]
    message: Raw<'a>,
    #[serde(borrow)]
    delta: Raw<'a>,
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
    cache_creation: Raw<'a>,
    #[serde(borrow)]
    cache_read_input_tokens: Raw<'a>,
    #[serde(borrow)]
    output_tokens: Raw<'a>,
    #[serde(borrow)]
    iterations: Raw<'a>,
}

#[derive(Deserialize)]
struct CacheCreation<'a> {
    #[serde(borrow)]
    ephemeral_5m_input_tokens: Raw<'a>,
    #[serde(borrow)]
    ephemeral_1h_input_tokens: Raw<'a>,
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

impl Reader for AnthropicMessages {
    fn event(&self, event: Named<'_>, tally: &mut Tally) {
        let Some(event) = object::<Event<'_>>(event.data) else {
            return tally.alarm("an event of the stream cannot be read");
        };
        match word(event.kind) {
            "content_block_start" => tally.finished = false,
            "content_block_delta" => count_delta(event.delta, tally),
            // the last one, unless another begins
            "content_block_stop" => tally.finished = true,
            "message_start" => {
                if let Some(message) = nested::<Message<'_>>(event.message) {
                    tally.name_model(message.model);
                    read_usage(message.usage, tally);
                }
            }
            "message_delta" => message_delta(&event, tally),
            "message_stop" => {
                tally.hold = true;
                tally.terminal = true;
            }
            "error" => tally.break_off(),
            _ => {}
        }
    }

    fn usage(&self, raw: &RawValue, tally: &mut Tally) {
        read_usage(Some(raw), tally);
    }
}

/// Reads a usage object; whether it stated output.
fn read_usage(raw: Raw<'_>, tally: &mut Tally) -> bool {
    let Some(usage) = tally.usage_object::<Usage<'_>>(raw) else { return false };
    let kept = nested::<CacheCreation<'_>>(usage.cache_creation);
    let (five_minutes, hour) =
        kept.map_or((None, None), |kept| (kept.ephemeral_5m_input_tokens, kept.ephemeral_1h_input_tokens));
    let stated = Stated {
        input: tally.count("input_tokens", usage.input_tokens),
        cache_write: tally.count("cache_creation_input_tokens", usage.cache_creation_input_tokens),
        cache_write_5m: tally.count("ephemeral_5m_input_tokens", five_minutes),
        cache_write_1h: tally.count("ephemeral_1h_input_tokens", hour),
        cache_read: tally.count("cache_read_input_tokens", usage.cache_read_input_tokens),
        output: tally.count("output_tokens", usage.output_tokens),
        beside: usage.iterations.map(|iterations| compactions(iterations, tally)),
        ..Stated::default()
    };
    tally.take(&stated);
    stated.output.is_some()
}

fn count_delta(delta: Raw<'_>, tally: &mut Tally) {
    if let Some(delta) = nested::<Delta<'_>>(delta) {
        tally.count_text(delta.text);
        tally.count_text(delta.partial_json);
        tally.count_text(delta.thinking);
    }
}

fn message_delta(event: &Event<'_>, tally: &mut Tally) {
    tally.whole |= read_usage(event.usage, tally);
    if nested::<Delta<'_>>(event.delta).is_some_and(|delta| delta.stop_reason.is_some()) {
        tally.finished = true;
        tally.hold = true;
    }
}

/// The sum of all compactions: the only iterations that the top level leaves out.
fn compactions(raw: &RawValue, tally: &mut Tally) -> Tokens {
    let mut sum = Tokens::default();
    for iteration in list::<Iteration<'_>>(Some(raw)).filter(|iteration| word(iteration.kind) == "compaction")
    {
        let mut count = |field| tally.count("a compaction", field).unwrap_or_default();
        sum = sum.saturating_add(&Tokens {
            input: count(iteration.input_tokens),
            cache_write: count(iteration.cache_creation_input_tokens),
            cache_read: count(iteration.cache_read_input_tokens),
            output: count(iteration.output_tokens),
            ..Tokens::default()
        });
    }
    sum
}
