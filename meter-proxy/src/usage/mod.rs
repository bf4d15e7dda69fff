//! How providers report usage: one file a dialect, all filling one [`tally::Tally`].
//!
//! Everything here is pure: bytes of an answer in, figures out. Not here: framing, decoding, connections.
mod anthropic;
mod endpoint;
mod openai_chat;
mod openai_responses;
mod path;
pub(crate) mod read;
pub(crate) mod tally;

pub use endpoint::{Endpoint, endpoint};
use memchr::memmem;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;

use self::read::{Raw, model_name, nested, object};
use self::tally::Tally;

/// The form of an answer and of the usage figures in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// Anthropic Messages, JSON and SSE.
    AnthropicMessages,
    /// OpenAI Chat Completions (and the older Completions, and Embeddings), JSON and SSE.
    OpenaiChat,
    /// OpenAI Responses, JSON and SSE.
    OpenaiResponses,
    /// An unlisted endpoint: tailed for any usage that is known.
    Any,
}

/// What tells the dialect of an event or a document.
#[derive(Deserialize)]
struct Marks<'a> {
    #[serde(borrow, rename = "type")]
    kind: Raw<'a>,
    #[serde(borrow)]
    choices: Raw<'a>,
}

/// The top level of every JSON answer.
#[derive(Deserialize)]
struct Document<'a> {
    #[serde(borrow)]
    model: Raw<'a>,
    #[serde(borrow)]
    usage: Raw<'a>,
}

/// What tells the dialect of a usage object.
#[derive(Deserialize)]
struct UsageMarks<'a> {
    #[serde(borrow)]
    prompt_tokens: Raw<'a>,
    #[serde(borrow)]
    total_tokens: Raw<'a>,
    #[serde(borrow)]
    input_tokens_details: Raw<'a>,
    #[serde(borrow)]
    input_tokens: Raw<'a>,
    #[serde(borrow)]
    output_tokens: Raw<'a>,
}

/// Reads one event of a stream into the tally. `shape` becomes definite with the first event that tells it.
pub(crate) fn event(shape: &mut Shape, data: &[u8], tally: &mut Tally) {
    if *shape == Shape::Any {
        *shape = shape_of_event(data);
    }
    match shape {
        Shape::AnthropicMessages => anthropic::event(data, tally),
        Shape::OpenaiChat => openai_chat::event(data, tally),
        Shape::OpenaiResponses => openai_responses::event(data, tally),
        Shape::Any => {}
    }
}

/// Reads what is left of an event that was too long to be kept: its type at the start, usage at the end. `false`
/// when figures may have been in it and were not found.
pub(crate) fn oversized_event(shape: &mut Shape, start: &[u8], end: &[u8], tally: &mut Tally) -> bool {
    let kind = kind_in(start);
    if *shape == Shape::Any && kind.is_some_and(|kind| kind.starts_with("response.")) {
        *shape = Shape::OpenaiResponses;
    }
    match (*shape, kind) {
        (Shape::Any, _) => true,
        (Shape::OpenaiResponses, Some(kind)) if !openai_responses::is_terminal(kind) => true,
        (Shape::OpenaiResponses, Some(kind)) => {
            let opening = format!(r#"{{"type":"{kind}","response":{{"#);
            let rebuilt = from_usage_on(opening.as_bytes(), end);
            let bare = || format!("{opening}}}}}").into_bytes();
            openai_responses::event(&rebuilt.unwrap_or_else(bare), tally);
            tally.whole
        }
        (_, kind) => {
            let opening = kind.map_or_else(|| "{".to_owned(), |kind| format!(r#"{{"type":"{kind}","#));
            let rebuilt = from_usage_on(opening.as_bytes(), end);
            let found = rebuilt.is_some();
            event(shape, &rebuilt.unwrap_or_default(), tally);
            found
        }
    }
}

/// The type that the start of an event names; only what needs no escapes.
fn kind_in(start: &[u8]) -> Option<&str> {
    let after_key = start.get(memmem::find(start, b"\"type\"")? + b"\"type\"".len()..)?;
    let value = after_key.trim_ascii_start().strip_prefix(b":")?.trim_ascii_start().strip_prefix(b"\"")?;
    let kind = std::str::from_utf8(&value[..memchr::memchr(b'"', value)?]).ok()?;
    kind.bytes().all(|byte| byte.is_ascii_lowercase() || b"._".contains(&byte)).then_some(kind)
}

/// Reads a whole JSON answer into the tally; `false` when it is not JSON to its end.
pub(crate) fn document(shape: &mut Shape, body: &[u8], tally: &mut Tally) -> bool {
    let Some(document) = object::<Document<'_>>(body) else { return false };
    tally.model = model_name(document.model);
    let Some(usage) = document.usage else { return true };
    if *shape == Shape::Any {
        *shape = shape_of_usage(usage);
    }
    match shape {
        Shape::AnthropicMessages => anthropic::usage(usage, tally),
        Shape::OpenaiChat => openai_chat::usage(usage, tally),
        Shape::OpenaiResponses => openai_responses::usage(usage, tally),
        Shape::Any => {}
    }
    tally.whole = tally.report.is_known();
    tally.terminal = true;
    true
}

/// Most places in an object's end where its usage is looked for.
const MAX_PLACES: usize = 16;

/// Reads the end of a JSON answer whose beginning is lost; `false` when no usage stands there at the top level.
pub(crate) fn document_end(shape: &mut Shape, end: &[u8], tally: &mut Tally) -> bool {
    from_usage_on(b"{", end).is_some_and(|rebuilt| document(shape, &rebuilt, tally))
}

/// Makes an object of its end: `opening`, then all from the last `"usage"` that leaves the whole balanced. One
/// deeper inside closes more than it opens, and inside a string the quotes are escaped.
fn from_usage_on(opening: &[u8], end: &[u8]) -> Option<Vec<u8>> {
    memmem::rfind_iter(end, b"\"usage\"")
        .take(MAX_PLACES)
        .map(|at| [opening, &end[at..]].concat())
        .find(|rebuilt| serde_json::from_slice::<IgnoredAny>(rebuilt).is_ok())
}

fn shape_of_event(data: &[u8]) -> Shape {
    let Some(marks) = object::<Marks<'_>>(data) else { return Shape::Any };
    match marks.kind.map_or("", |kind| kind.get().trim_matches('"')) {
        "message_start" => Shape::AnthropicMessages,
        kind if kind.starts_with("response.") => Shape::OpenaiResponses,
        _ if marks.choices.is_some() => Shape::OpenaiChat,
        _ => Shape::Any,
    }
}

/// Chat counts prompts; Responses states totals, which Anthropic never does. Usage of anything but tokens is
/// no dialect's.
fn shape_of_usage(usage: &RawValue) -> Shape {
    match nested::<UsageMarks<'_>>(Some(usage)) {
        None => Shape::Any,
        Some(marks) if marks.prompt_tokens.is_some() => Shape::OpenaiChat,
        Some(marks) if marks.total_tokens.is_some() || marks.input_tokens_details.is_some() => {
            Shape::OpenaiResponses
        }
        Some(marks) if marks.input_tokens.is_some() || marks.output_tokens.is_some() => {
            Shape::AnthropicMessages
        }
        Some(_) => Shape::Any,
    }
}
