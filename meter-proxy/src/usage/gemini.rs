//! Usage of Gemini's `generateContent` and `streamGenerateContent`, at Google's own API, Vertex AI and Code Assist.
//!
//! `usageMetadata` is cumulative and may stand on every chunk. `promptTokenCount` includes what was cached and leaves
//! out `toolUsePromptTokenCount`; `candidatesTokenCount` leaves out `thoughtsTokenCount`. A field that is zero is not
//! written. No event ends a stream: it has ended well when its last chunk has a `finishReason`; older models put one
//! on every chunk. Code Assist puts each chunk into a `response`.
use memchr::memmem;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::read::{Raw, list, nested, object};
use super::report::Stated;
use super::tally::Tally;
use super::{Named, Reader, from_usage_on};

/// Gemini.
pub(super) struct Gemini;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Chunk<'a> {
    #[serde(borrow)]
    candidates: Raw<'a>,
    #[serde(borrow)]
    prompt_feedback: Raw<'a>,
    #[serde(borrow)]
    usage_metadata: Raw<'a>,
    #[serde(borrow)]
    model_version: Raw<'a>,
    #[serde(borrow)]
    error: Raw<'a>,
    #[serde(borrow)]
    response: Raw<'a>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Candidate<'a> {
    #[serde(borrow)]
    content: Raw<'a>,
    #[serde(borrow)]
    finish_reason: Raw<'a>,
}

#[derive(Deserialize)]
struct Content<'a> {
    #[serde(borrow)]
    parts: Raw<'a>,
}

/// The fields of all parts that are generated text. Signatures of thoughts and inline data are none.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Part<'a> {
    #[serde(borrow)]
    text: Raw<'a>,
    #[serde(borrow)]
    function_call: Raw<'a>,
    #[serde(borrow)]
    executable_code: Raw<'a>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Feedback<'a> {
    #[serde(borrow)]
    block_reason: Raw<'a>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Usage<'a> {
    #[serde(borrow)]
    prompt_token_count: Raw<'a>,
    #[serde(borrow)]
    cached_content_token_count: Raw<'a>,
    #[serde(borrow)]
    candidates_token_count: Raw<'a>,
    #[serde(borrow)]
    tool_use_prompt_token_count: Raw<'a>,
    #[serde(borrow)]
    thoughts_token_count: Raw<'a>,
    #[serde(borrow)]
    total_token_count: Raw<'a>,
}

impl Reader for Gemini {
    fn event(&self, event: Named<'_>, tally: &mut Tally) {
        if !self.chunk(event.data, tally) {
            tally.alarm("an event of the stream cannot be read");
        }
    }

    fn usage(&self, raw: &RawValue, tally: &mut Tally) {
        let Some(usage) = tally.usage_object::<Usage<'_>>(Some(raw)) else { return };
        let prompt = tally.count("promptTokenCount", usage.prompt_token_count);
        let candidates = tally.count("candidatesTokenCount", usage.candidates_token_count);
        let total = tally.count("totalTokenCount", usage.total_token_count);
        let strange = usage.candidates_token_count.is_some() && candidates.is_none();
        // cached contents state their total alone: all of it was input
        let input = if usage.prompt_token_count.is_none() { total } else { prompt };
        let stated = Stated {
            input,
            cache_read: tally.count("cachedContentTokenCount", usage.cached_content_token_count),
            tool_prompt: tally.count("toolUsePromptTokenCount", usage.tool_use_prompt_token_count),
            output: candidates.or(input.map(|_| 0).filter(|_| !strange)),
            reasoning: tally.count("thoughtsTokenCount", usage.thoughts_token_count),
            input_includes_cache: true,
            output_excludes_reasoning: true,
            ..Stated::default()
        };
        tally.take(&stated);
    }

    fn usage_key(&self) -> &'static str {
        "usageMetadata"
    }

    fn document(&self, body: &[u8], tally: &mut Tally) -> bool {
        self.chunk(body, tally)
    }

    fn oversized_event(&self, _start: &[u8], end: &[u8], tally: &mut Tally) -> bool {
        let Some(rebuilt) = from_usage_on(b"{", end, self.usage_key()) else { return false };
        self.chunk(&rebuilt, tally);
        // it stands between the content, which was too long, and the usage
        if memmem::find(end, b"\"finishReason\"").is_some() {
            finish(tally);
        }
        true
    }

    fn ends_unsaid(&self, tally: &Tally) -> bool {
        tally.finished
    }
}

impl Gemini {
    /// Reads a chunk, or a whole answer; `false` when it is no JSON object.
    fn chunk(&self, json: &[u8], tally: &mut Tally) -> bool {
        let Some(mut chunk) = object::<Chunk<'_>>(json) else { return false };
        if let Some(inner) = nested::<Chunk<'_>>(chunk.response) {
            chunk = inner;
        }
        tally.name_model(chunk.model_version);
        // held only while nothing follows, see the reasons on every chunk of older models; after an error, to the end
        tally.hold = tally.terminal;
        tally.finished = false;
        for candidate in list::<Candidate<'_>>(chunk.candidates) {
            count_candidate(&candidate, tally);
        }
        if nested::<Feedback<'_>>(chunk.prompt_feedback).is_some_and(|told| told.block_reason.is_some()) {
            finish(tally);
        }
        if chunk.error.is_some() {
            tally.break_off();
        }
        if let Some(usage) = chunk.usage_metadata {
            self.usage(usage, tally);
        }
        tally.whole = tally.finished && tally.report.is_known();
        true
    }
}

fn finish(tally: &mut Tally) {
    tally.finished = true;
    tally.hold = true;
}

fn count_candidate(candidate: &Candidate<'_>, tally: &mut Tally) {
    if candidate.finish_reason.is_some() {
        finish(tally);
    }
    let Some(content) = nested::<Content<'_>>(candidate.content) else { return };
    for part in list::<Part<'_>>(content.parts) {
        tally.count_text(part.text);
        tally.count_value(part.function_call);
        tally.count_value(part.executable_code);
    }
}
