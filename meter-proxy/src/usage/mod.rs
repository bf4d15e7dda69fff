//! How providers report usage: one file a shape of answers, each a [`Reader`] that fills one [`tally::Tally`].
//!
//! Everything here is pure: bytes of an answer in, figures out. Not here: framing, decoding, connections.
mod anthropic;
mod bedrock;
mod endpoint;
mod gemini;
mod in_path;
mod openai_chat;
mod openai_responses;
mod path;
pub(crate) mod read;
pub(crate) mod report;
pub(crate) mod tally;

pub(crate) use self::path::hex;
pub use endpoint::{Endpoint, endpoint};
pub use in_path::{InPath, has_no_output, in_path};
use memchr::memmem;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;

use self::read::{Raw, nested, object, word};
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
    /// Gemini's `generateContent`, JSON, SSE and a JSON array that grows.
    Gemini,
    /// Bedrock's `invoke` and Converse, JSON and event stream.
    Bedrock,
    /// An unlisted endpoint: tailed for any usage that is known.
    Any,
}

/// One event of a stream, as its framing hands it on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Named<'a> {
    /// What the framing itself calls it; empty where the name stands in the data.
    pub(crate) name: &'a str,
    pub(crate) data: &'a [u8],
}

impl<'a> Named<'a> {
    pub(crate) fn unnamed(data: &'a [u8]) -> Self {
        Self { name: "", data }
    }
}

/// The value of a header by its name in lower case.
pub(crate) type HeaderText<'a> = &'a dyn Fn(&'static str) -> Option<&'a str>;

/// Reads what answers of one shape say of usage. Has no state: all that was said so far is in the tally.
pub(crate) trait Reader: Sync {
    /// Reads one event of a stream.
    fn event(&self, event: Named<'_>, tally: &mut Tally);

    /// Reads what the head of an answer says.
    fn head(&self, _header: HeaderText<'_>, _tally: &mut Tally) {}

    /// Reads a usage object.
    fn usage(&self, raw: &RawValue, tally: &mut Tally);

    /// The key of the usage object in an answer.
    fn usage_key(&self) -> &'static str {
        "usage"
    }

    /// Reads a whole JSON answer; `false` when it is not JSON to its end.
    fn document(&self, body: &[u8], tally: &mut Tally) -> bool {
        let Some(document) = object::<Document<'_>>(body) else { return false };
        tally.name_model(document.model);
        if let Some(usage) = document.usage {
            self.usage(usage, tally);
        }
        true
    }

    /// Reads what is left of an event that was too long to be kept: its type at the start, usage at the end. `false`
    /// when figures may have been in it and were not found.
    fn oversized_event(&self, start: &[u8], end: &[u8], tally: &mut Tally) -> bool {
        let opening = kind_in(start).map_or_else(|| "{".to_owned(), |kind| format!(r#"{{"type":"{kind}","#));
        let rebuilt = from_usage_on(opening.as_bytes(), end, self.usage_key());
        let found = rebuilt.is_some();
        self.event(Named::unnamed(&rebuilt.unwrap_or_default()), tally);
        found
    }

    /// Whether a stream has ended well that ends here, though no event said that it was the last.
    fn ends_unsaid(&self, _tally: &Tally) -> bool {
        false
    }
}

impl Shape {
    /// Who reads it; nobody while the shape is not known.
    pub(crate) fn reader(self) -> Option<&'static dyn Reader> {
        match self {
            Self::AnthropicMessages => Some(&anthropic::AnthropicMessages),
            Self::OpenaiChat => Some(&openai_chat::OpenaiChat),
            Self::OpenaiResponses => Some(&openai_responses::OpenaiResponses),
            Self::Gemini => Some(&gemini::Gemini),
            Self::Bedrock => Some(&bedrock::Bedrock),
            Self::Any => None,
        }
    }
}

/// The top level of most JSON answers.
#[derive(Deserialize)]
struct Document<'a> {
    #[serde(borrow)]
    model: Raw<'a>,
    #[serde(borrow)]
    usage: Raw<'a>,
}

/// What tells the shape of an event or a document.
#[derive(Deserialize)]
struct Marks<'a> {
    #[serde(borrow, rename = "type")]
    kind: Raw<'a>,
    #[serde(borrow)]
    choices: Raw<'a>,
    #[serde(borrow)]
    usage: Raw<'a>,
    #[serde(borrow, rename = "usageMetadata")]
    usage_metadata: Raw<'a>,
    #[serde(borrow)]
    candidates: Raw<'a>,
}

/// What tells the shape of a usage object.
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
    #[serde(borrow, rename = "inputTokens")]
    camel_input: Raw<'a>,
}

/// Reads one event of a stream into the tally. `shape` becomes definite with the first event that tells it.
pub(crate) fn event(shape: &mut Shape, event: Named<'_>, tally: &mut Tally) {
    if *shape == Shape::Any {
        *shape = shape_of_event(event);
    }
    match shape.reader() {
        Some(reader) => reader.event(event, tally),
        None => any_event(event, tally),
    }
}

/// Reads an event of which nothing is known but that it may have usage, such as the last one of a stream of images or
/// speech. Held only while nothing follows.
fn any_event(event: Named<'_>, tally: &mut Tally) {
    let usage = object::<Marks<'_>>(event.data).and_then(|marks| marks.usage);
    let reader = usage.and_then(|usage| shape_of_usage(usage).reader());
    tally.hold = reader.is_some();
    if let Some((reader, usage)) = reader.zip(usage) {
        reader.usage(usage, tally);
        tally.whole = tally.report.is_known();
    }
}

/// As [`Reader::oversized_event`].
pub(crate) fn oversized_event(shape: &mut Shape, start: &[u8], end: &[u8], tally: &mut Tally) -> bool {
    if *shape == Shape::Any && kind_in(start).is_some_and(|kind| kind.starts_with("response.")) {
        *shape = Shape::OpenaiResponses;
    }
    if let Some(reader) = shape.reader() {
        return reader.oversized_event(start, end, tally);
    }
    let rebuilt = from_usage_on(b"{", end, "usage");
    any_event(Named::unnamed(&rebuilt.unwrap_or_default()), tally);
    true
}

/// Reads a whole JSON answer into the tally; `false` when it is not JSON to its end.
pub(crate) fn document(shape: &mut Shape, body: &[u8], tally: &mut Tally) -> bool {
    if *shape == Shape::Any {
        *shape = shape_of_document(body);
    }
    let is_read = shape.reader().is_none_or(|reader| reader.document(body, tally));
    tally.whole = tally.report.is_known();
    tally.terminal = true;
    is_read
}

/// Most places in an object's end where its usage is looked for.
const MAX_PLACES: usize = 16;

/// Reads the end of a JSON answer whose beginning is lost; `false` when no usage stands there at the top level.
pub(crate) fn document_end(shape: &mut Shape, end: &[u8], tally: &mut Tally) -> bool {
    let key = shape.reader().map_or("usage", Reader::usage_key);
    from_usage_on(b"{", end, key).is_some_and(|rebuilt| document(shape, &rebuilt, tally))
}

/// Makes an object of its end: `opening`, then all from the last usage that leaves the whole balanced. One deeper
/// inside closes more than it opens, and inside a string the quotes are escaped.
fn from_usage_on(opening: &[u8], end: &[u8], key: &str) -> Option<Vec<u8>> {
    memmem::rfind_iter(end, format!("\"{key}\"").as_bytes())
        .take(MAX_PLACES)
        .map(|at| [opening, &end[at..]].concat())
        .find(|rebuilt| serde_json::from_slice::<IgnoredAny>(rebuilt).is_ok())
}

/// The type that the start of an event names; only what needs no escapes.
fn kind_in(start: &[u8]) -> Option<&str> {
    let after_key = start.get(memmem::find(start, b"\"type\"")? + b"\"type\"".len()..)?;
    let value = after_key.trim_ascii_start().strip_prefix(b":")?.trim_ascii_start().strip_prefix(b"\"")?;
    let kind = std::str::from_utf8(&value[..memchr::memchr(b'"', value)?]).ok()?;
    kind.bytes().all(|byte| byte.is_ascii_lowercase() || b"._".contains(&byte)).then_some(kind)
}

fn shape_of_event(event: Named<'_>) -> Shape {
    if !event.name.is_empty() {
        return Shape::Bedrock;
    }
    let Some(marks) = object::<Marks<'_>>(event.data) else { return Shape::Any };
    match word(marks.kind) {
        "message_start" => Shape::AnthropicMessages,
        kind if kind.starts_with("response.") => Shape::OpenaiResponses,
        _ if marks.choices.is_some() => Shape::OpenaiChat,
        _ if marks.candidates.is_some() || marks.usage_metadata.is_some() => Shape::Gemini,
        _ => Shape::Any,
    }
}

fn shape_of_document(body: &[u8]) -> Shape {
    match object::<Marks<'_>>(body) {
        Some(Marks { usage: Some(usage), .. }) => shape_of_usage(usage),
        Some(Marks { usage_metadata: Some(_), .. }) => Shape::Gemini,
        _ => Shape::Any,
    }
}

/// Chat counts prompts; Responses states totals, which Anthropic never does; Converse writes in camels. Usage of
/// anything but tokens is no shape's.
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
        Some(marks) if marks.camel_input.is_some() => Shape::Bedrock,
        Some(_) => Shape::Any,
    }
}
