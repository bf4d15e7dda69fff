//! What the messages of OpenAI Responses over WebSocket say: the client's requests, and whose a server's event is.
//!
//! The format is that of the API's WebSocket mode: requests are `response.create` with the fields of the HTTP body;
//! `stream_id` names a lane, in which responses follow each other. Not here: figures (`exchange`).
use memchr::memmem;
use serde::Deserialize;

use crate::events::Event;
use crate::exchange::Facts;
use crate::usage::read::{Raw, has_key_in_another_case, nested, object};
use crate::usage::{InPath, Shape};

/// Longest name of a lane, and of a response that is told apart, characters.
const MAX_NAME_CHARS: usize = 256;

/// What is judged of a client's message here.
const JUDGED: [&str; 3] = ["type", "stream_id", "generate"];

/// The name of a lane; `None`: the one without a name.
pub type Lane = Option<String>;

/// What a client's message asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Asked {
    /// A response.
    Response {
        /// Where it is answered.
        lane: Lane,
        /// What the gate needs to know.
        facts: Facts,
        /// It is generated; otherwise it is prepared alone, which is free.
        generates: bool,
    },
    /// Something else, of this kind: nothing that is known to cost.
    Other(String),
    /// What cannot be told: why, in words.
    Unclear(&'static str),
}

#[derive(Deserialize)]
struct Request<'a> {
    #[serde(borrow, rename = "type")]
    kind: Raw<'a>,
    #[serde(borrow)]
    stream_id: Raw<'a>,
    #[serde(borrow)]
    generate: Raw<'a>,
}

impl Asked {
    /// Reads a client's message.
    #[must_use]
    pub fn read(message: Event<'_>) -> Self {
        let Event::Data(text) = message else { return Self::Unclear("its message is too long to be read") };
        let Some(request) = object::<Request<'_>>(text) else {
            return Self::Unclear("its message is no JSON object, or says something twice");
        };
        if has_key_in_another_case(text, &JUDGED) {
            return Self::Unclear(
                "a key of its message is another one to servers that take no notice of case",
            );
        }
        match word(request.kind).as_deref() {
            Some("response.create") => request.response(text),
            Some(kind) => Self::Other(kind.to_owned()),
            None => Self::Unclear("its message has no type"),
        }
    }
}

impl Request<'_> {
    fn response(&self, text: &[u8]) -> Asked {
        let lane = word(self.stream_id);
        if self.stream_id.is_some() && !lane.as_deref().is_some_and(is_lane) {
            return Asked::Unclear("its stream_id names no lane");
        }
        let generates = self.generate.is_none_or(|generate| generate.get() != "false");
        // answers come as events, whether the request says so or not
        let facts = Facts::of_request(Shape::OpenaiResponses, InPath::default(), text, true, "", None);
        Asked::Response { lane, facts: Facts { streamed: true, output_allowance: 0, ..facts }, generates }
    }
}

/// What the provider takes for the name of a lane. It answers any other without naming one.
fn is_lane(name: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
    !name.is_empty() && name.len() <= MAX_NAME_CHARS && name.chars().all(allowed)
}

/// A JSON string.
fn word(field: Raw<'_>) -> Option<String> {
    serde_json::from_str(field?.get()).ok()
}

/// What tells whose a server's event is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Heard {
    /// Its type; empty when it cannot be read.
    pub kind: String,
    /// The lane that it names.
    pub lane: Lane,
    /// The response that it names.
    pub response: Option<String>,
    /// The status of an error.
    pub status: Option<u16>,
}

#[derive(Deserialize)]
struct ServerEvent<'a> {
    #[serde(borrow, rename = "type")]
    kind: Raw<'a>,
    #[serde(borrow)]
    stream_id: Raw<'a>,
    #[serde(borrow)]
    response: Raw<'a>,
    #[serde(borrow)]
    response_id: Raw<'a>,
    #[serde(borrow)]
    status: Raw<'a>,
}

#[derive(Deserialize)]
struct Response<'a> {
    #[serde(borrow)]
    id: Raw<'a>,
}

impl Heard {
    /// Reads a server's event. What cannot be read names nothing.
    #[must_use]
    pub fn read(event: Event<'_>) -> Self {
        let text = match event {
            Event::Data(text) | Event::Named { data: text, .. } => text,
            Event::Oversized { start, .. } => return Self::of_start(start),
        };
        let Some(event) = object::<ServerEvent<'_>>(text) else { return Self::default() };
        let own = nested::<Response<'_>>(event.response).and_then(|response| word(response.id));
        Self {
            kind: word(event.kind).unwrap_or_default(),
            lane: word(event.stream_id),
            response: own
                .or_else(|| word(event.response_id))
                .map(|id| id.chars().take(MAX_NAME_CHARS).collect()),
            status: event.status.and_then(|status| status.get().parse().ok()),
        }
    }

    /// What the start of an event that is too long to be kept says.
    #[must_use]
    pub fn of_start(start: &[u8]) -> Self {
        let value = |key: &str| {
            let from = memmem::find(start, format!("\"{key}\":").as_bytes())? + key.len() + 3;
            let text = start[from..].trim_ascii_start().strip_prefix(b"\"")?;
            let end = memchr::memchr(b'"', text)?;
            std::str::from_utf8(&text[..end]).ok().filter(|word| !word.contains('\\')).map(str::to_owned)
        };
        Self {
            kind: value("type").unwrap_or_default(),
            lane: value("stream_id"),
            response: value("id").or_else(|| value("response_id")),
            status: None,
        }
    }

    /// Whether the event ends a response.
    #[must_use]
    pub fn is_last(&self) -> bool {
        matches!(self.kind.as_str(), "response.completed" | "response.incomplete" | "response.failed")
    }

    /// Whether the event cannot have figures in it: its type says so.
    #[must_use]
    pub fn is_harmless(&self) -> bool {
        self.kind.starts_with("response.") && !self.is_last()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(text: &str) -> Asked {
        Asked::read(Event::Data(text.as_bytes()))
    }

    fn response(text: &str) -> (Lane, Facts, bool) {
        match asked(text) {
            Asked::Response { lane, facts, generates } => (lane, facts, generates),
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn what_a_client_asks_for() {
        let (lane, facts, generates) =
            response(r#"{"type":"response.create","model":"gpt-x","input":"hi there"}"#);
        assert_eq!((lane, generates), (None, true));
        assert_eq!(
            (facts.model.as_deref(), facts.streamed, facts.output_allowance),
            (Some("gpt-x"), true, 0)
        );
        assert!(facts.reservation() > 0 && facts.unmeterable.is_none());
        let (lane, facts, generates) =
            response(r#"{"type":"response.create","stream_id":"a.b-C_9","background":true,"generate":true}"#);
        assert_eq!((lane.as_deref(), generates), (Some("a.b-C_9"), true));
        assert!(facts.unmeterable.is_some());
        for (generate, generates) in
            [("false", false), (" false ", false), ("null", true), ("0", true), ("\"false\"", true)]
        {
            let text = format!(r#"{{"type":"response.cr\u0065ate","generate":{generate},"stream_id":null}}"#);
            assert_eq!(response(&text).2, generates, "{text}");
        }
        assert_eq!(asked(r#"{"type":"response.processed"}"#), Asked::Other("response.processed".into()));
    }

    #[test]
    fn what_servers_may_read_in_two_ways_is_unclear() {
        for text in [
            "",
            "5",
            "[]",
            "{",
            "\u{0}",
            r#"{"input":"x"}"#,
            r#"{"type":5}"#,
            r#"{"type":"x","type":"response.create"}"#,
            r#"{"type":"response.create","generate":false,"generate":true}"#,
            r#"{"type":"response.create","stream_id":""}"#,
            r#"{"type":"response.create","stream_id":5}"#,
            r#"{"type":"response.create","stream_id":"a b"}"#,
            r#"{"type":"session.update","Type":"response.create"}"#,
            r#"{"type":"response.create","generate":false,"Generate":true}"#,
            r#"{"type":"response.create","Stream_id":"a"}"#,
        ] {
            assert!(matches!(asked(text), Asked::Unclear(_)), "{text}");
        }
        assert!(matches!(Asked::read(Event::Data(b"{\"type\":\"\xff\"}")), Asked::Unclear(_)));
        assert!(matches!(Asked::read(Event::Oversized { start: b"{", end: b"}" }), Asked::Unclear(_)));
    }

    #[test]
    fn whose_an_event_is() {
        let read = |text: &str| Heard::read(Event::Data(text.as_bytes()));
        let created = read(
            r#"{"type":"response.created","stream_id":"a","response":{"id":"r1","status":"in_progress"}}"#,
        );
        assert_eq!((created.lane.as_deref(), created.response.as_deref()), (Some("a"), Some("r1")));
        assert!(created.is_harmless() && !created.is_last());
        let error = read(r#"{"type":"error","status":400,"error":{"code":"x"}}"#);
        assert_eq!((error.status, error.is_harmless()), (Some(400), false));
        assert!(read(r#"{"type":"response.failed","response":null}"#).is_last());
        assert_eq!(
            read(r#"{"type":"response.output_text.delta","response_id":"r2"}"#).response.as_deref(),
            Some("r2")
        );
        assert_eq!(read("not json"), Heard::default());
        let start =
            br#"{"type": "response.completed", "stream_id":"a","response":{"id":"r3","output":[{"id":"x"#;
        let long = Heard::read(Event::Oversized { start, end: b"}" });
        assert!(long.is_last());
        assert_eq!((long.lane.as_deref(), long.response.as_deref()), (Some("a"), Some("r3")));
    }
}
