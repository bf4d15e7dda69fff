//! Usage of OpenAI Chat Completions, of the older Completions and of Embeddings.
//!
//! `prompt_tokens` includes what caches gave and took, `completion_tokens` includes reasoning. In a stream the
//! figures come in a last chunk without choices when they were asked for; compatible servers repeat
//! cumulative figures on many chunks. `data: [DONE]` ends a stream.
use serde::Deserialize;
use serde_json::value::RawValue;

use super::read::{Raw, list, nested, object};
use super::report::Stated;
use super::tally::Tally;
use super::{Named, Reader};
use crate::estimate::Text;

/// OpenAI Chat Completions.
pub(super) struct OpenaiChat;

#[derive(Deserialize)]
struct Chunk<'a> {
    #[serde(borrow)]
    model: Raw<'a>,
    #[serde(borrow)]
    choices: Raw<'a>,
    #[serde(borrow)]
    usage: Raw<'a>,
    #[serde(borrow)]
    error: Raw<'a>,
}

#[derive(Deserialize)]
struct Choice<'a> {
    #[serde(borrow)]
    delta: Raw<'a>,
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
    tool_calls: Raw<'a>,
    #[serde(borrow)]
    function_call: Raw<'a>,
}

#[derive(Deserialize)]
struct ToolCall<'a> {
    #[serde(borrow)]
    function: Raw<'a>,
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

#[derive(Default, Deserialize)]
struct PromptDetails<'a> {
    #[serde(borrow)]
    cached_tokens: Raw<'a>,
    #[serde(borrow)]
    cache_write_tokens: Raw<'a>,
}

#[derive(Default, Deserialize)]
struct CompletionDetails<'a> {
    #[serde(borrow)]
    reasoning_tokens: Raw<'a>,
}

impl Reader for OpenaiChat {
    fn event(&self, event: Named<'_>, tally: &mut Tally) {
        if event.data.trim_ascii() == b"[DONE]" {
            tally.hold = true;
            tally.terminal = true;
            return;
        }
        let Some(chunk) = object::<Chunk<'_>>(event.data) else {
            return tally.alarm("an event of the stream cannot be read");
        };
        tally.name_model(chunk.model);
        let choices: Vec<Choice<'_>> = list(chunk.choices).collect();
        for choice in &choices {
            count_choice(choice, tally);
        }
        if chunk.error.is_some() {
            // [DONE] may follow
            tally.break_off();
            tally.terminal = false;
        }
        if let Some(raw) = chunk.usage {
            self.usage(raw, tally);
            tally.whole = tally.report.is_known();
            // with choices the next chunk may restate these figures, so they are held but not yet the last
            tally.hold |= tally.finished || choices.is_empty();
            tally.terminal |= tally.finished && choices.is_empty();
        }
    }

    fn usage(&self, raw: &RawValue, tally: &mut Tally) {
        let Some(usage) = tally.usage_object::<Usage<'_>>(Some(raw)) else { return };
        let input = tally.count("prompt_tokens", usage.prompt_tokens);
        let completion = tally.count("completion_tokens", usage.completion_tokens);
        let total = tally.count("total_tokens", usage.total_tokens);
        // embeddings state no completion, and some servers leave their reasoning out of it: the total tells
        let beyond_prompt = input.zip(total).and_then(|(input, total)| total.checked_sub(input));
        let strange = usage.completion_tokens.is_some() && completion.is_none();
        let prompt = nested::<PromptDetails<'_>>(usage.prompt_tokens_details).unwrap_or_default();
        let details = nested::<CompletionDetails<'_>>(usage.completion_tokens_details).unwrap_or_default();
        let stated = Stated {
            input,
            cache_read: tally.count("cached_tokens", prompt.cached_tokens),
            cache_write: tally.count("cache_write_tokens", prompt.cache_write_tokens),
            output: if strange { None } else { completion.max(beyond_prompt) },
            reasoning: tally.count("reasoning_tokens", details.reasoning_tokens),
            input_includes_cache: true,
            ..Stated::default()
        };
        tally.take(&stated);
    }

    /// Some compatible servers never send `[DONE]`.
    fn ends_unsaid(&self, tally: &Tally) -> bool {
        tally.finished && tally.whole
    }
}

fn count_choice(choice: &Choice<'_>, tally: &mut Tally) {
    tally.finished |= choice.finish_reason.is_some();
    tally.count_text(choice.text);
    let Some(delta) = nested::<Delta<'_>>(choice.delta) else { return };
    tally.count_text(delta.content);
    tally.count_text(delta.refusal);
    tally.count_text(longer(delta.reasoning_content, delta.reasoning));
    count_arguments(delta.function_call, tally);
    for call in list::<ToolCall<'_>>(delta.tool_calls) {
        count_arguments(call.function, tally);
    }
}

fn count_arguments(function: Raw<'_>, tally: &mut Tally) {
    tally.count_text(nested::<Function<'_>>(function).and_then(|function| function.arguments));
}

/// Some servers send the same reasoning under both names: the longer one counts, not both.
fn longer<'a>(one: Raw<'a>, other: Raw<'a>) -> Raw<'a> {
    let bytes = |text: Raw<'_>| text.map_or(0, |text| Text::of_string(text.get()).bytes());
    if bytes(one) >= bytes(other) { one } else { other }
}
