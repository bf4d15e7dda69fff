//! Usage of OpenAI Chat Completions, of the older Completions and of Embeddings.
//!
//! `prompt_tokens` includes what caches gave and took, `completion_tokens` includes reasoning. In a stream the
//! figures come in a last chunk without choices when the client asked for them; compatible servers repeat
//! cumulative figures on many chunks. `data: [DONE]` ends a stream.
use serde::Deserialize;
use serde_json::value::RawValue;

use super::read::{Raw, nested, object};
use super::tally::{Tally, renew};
use crate::estimate;

#[derive(Deserialize)]
struct Chunk<'a> {
    #[serde(borrow)]
    model: Raw<'a>,
    #[serde(borrow)]
    choices: Option<Vec<Choice<'a>>>,
    #[serde(borrow)]
    usage: Raw<'a>,
    #[serde(borrow)]
    error: Raw<'a>,
}

#[derive(Deserialize)]
struct Choice<'a> {
    #[serde(borrow)]
    delta: Option<Delta<'a>>,
    #[serde(borrow)]
    text: Raw<'a>,
    #[serde(borrow)]
    finish_reason: Raw<'a>,
}

/// `reasoning_content` and `reasoning` are what compatible servers call reasoning text.
#[derive(Deserialize)]
struct Delta<'a> {
    #[serde(borrow)]
    content: Raw<'a>,
    #[serde(borrow)]
    refusal: Raw<'a>,
    #[serde(borrow)]
    reasoning_content: Raw<'a>,
    #[serde(borrow)]
    reasoning: Raw<'a>,
    #[serde(borrow)]
    tool_calls: Option<Vec<ToolCall<'a>>>,
    #[serde(borrow)]
    function_call: Option<Function<'a>>,
}

#[derive(Deserialize)]
struct ToolCall<'a> {
    #[serde(borrow)]
    function: Option<Function<'a>>,
}

#[derive(Deserialize)]
struct Function<'a> {
    #[serde(borrow)]
    arguments: Raw<'a>,
}

#[derive(Deserialize)]
struct Usage<'a> {
    #[serde(borrow)]
    prompt_tokens: Raw<'a>,
    #[serde(borrow)]
    prompt_tokens_details: Raw<'a>,
    #[serde(borrow)]
    completion_tokens: Raw<'a>,
    #[serde(borrow)]
    completion_tokens_details: Raw<'a>,
    #[serde(borrow)]
    total_tokens: Raw<'a>,
}

#[derive(Deserialize)]
struct PromptDetails<'a> {
    #[serde(borrow)]
    cached_tokens: Raw<'a>,
    #[serde(borrow)]
    cache_write_tokens: Raw<'a>,
}

#[derive(Deserialize)]
struct CompletionDetails<'a> {
    #[serde(borrow)]
    reasoning_tokens: Raw<'a>,
}

/// Reads one chunk of a stream.
pub(super) fn event(data: &[u8], tally: &mut Tally) {
    if data.trim_ascii() == b"[DONE]" {
        tally.hold = true;
        tally.terminal = true;
        return;
    }
    let Some(chunk) = object::<Chunk<'_>>(data) else {
        tally.alarm("an event of the stream cannot be read");
        return;
    };
    tally.name_model(chunk.model);
    let choices = chunk.choices.unwrap_or_default();
    for choice in &choices {
        count_choice(choice, tally);
    }
    if chunk.error.is_some() {
        tally.alarm("the provider broke off with an error event");
        tally.failed = true;
        tally.hold = true;
    }
    if let Some(raw) = chunk.usage {
        usage(raw, tally);
        tally.whole = tally.report.is_known();
        // with choices the next chunk may restate these figures, so they are held but not yet the last
        tally.hold |= tally.finished || choices.is_empty();
        tally.terminal |= tally.finished && choices.is_empty();
    }
}

/// Reads a usage object.
pub(super) fn usage(raw: &RawValue, tally: &mut Tally) {
    tally.keep_raw(raw);
    let Some(usage) = nested::<Usage<'_>>(Some(raw)) else {
        tally.alarm("the usage is not an object");
        return;
    };
    let prompt = tally.count("prompt_tokens", usage.prompt_tokens);
    let completion = tally.count("completion_tokens", usage.completion_tokens);
    let total = tally.count("total_tokens", usage.total_tokens);
    // embeddings state no completion: the total tells that there was none
    let completion = match (prompt, total) {
        (Some(prompt), Some(total)) if usage.completion_tokens.is_none() => total.checked_sub(prompt),
        _ => completion,
    };
    tally.report.input_includes_cache = true;
    renew(&mut tally.report.input, prompt);
    renew(&mut tally.report.output, completion);
    if let Some(details) = nested::<PromptDetails<'_>>(usage.prompt_tokens_details) {
        let cached = tally.count("cached_tokens", details.cached_tokens);
        let written = tally.count("cache_write_tokens", details.cache_write_tokens);
        renew(&mut tally.report.cache_read, cached);
        renew(&mut tally.report.cache_write, written);
    }
    if let Some(details) = nested::<CompletionDetails<'_>>(usage.completion_tokens_details) {
        let reasoning = tally.count("reasoning_tokens", details.reasoning_tokens);
        renew(&mut tally.report.reasoning, reasoning);
    }
}

fn count_choice(choice: &Choice<'_>, tally: &mut Tally) {
    tally.finished |= choice.finish_reason.is_some();
    tally.count_text(choice.text);
    let Some(delta) = &choice.delta else { return };
    tally.count_text(delta.content);
    tally.count_text(delta.refusal);
    tally.count_text(longer(delta.reasoning_content, delta.reasoning));
    if let Some(call) = &delta.function_call {
        tally.count_text(call.arguments);
    }
    for call in delta.tool_calls.iter().flatten() {
        tally.count_text(call.function.as_ref().and_then(|function| function.arguments));
    }
}

/// Some servers send the same reasoning under both names: the longer one counts, not both.
fn longer<'a>(one: Raw<'a>, other: Raw<'a>) -> Raw<'a> {
    let bytes = |text: Raw<'_>| text.map_or(0, |text| estimate::text_bytes(text.get()));
    if bytes(one) >= bytes(other) { one } else { other }
}
