//! An answer while it comes in, and when it is there: exact bytes, decoded text, usage, how it ended.
use anyhow::Context as _;
use http::{HeaderMap, header};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::clock::mono_ns;
use crate::encoding::{Decoder, Encoding};
use crate::provider::sha256_hex;
use crate::sse::Reader;

/// How an answer came to its end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ended {
    /// As HTTP says.
    Complete,
    /// In the middle; why.
    Broken(String),
}

/// What came back for one request.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Answer {
    /// Status.
    pub status: u16,
    /// Whether it came by HTTP/2.
    pub http2: bool,
    /// Response headers, names in lower case.
    pub headers: Vec<(String, String)>,
    /// The body as received: content-coded, without chunk framing.
    #[serde(skip)]
    pub body: Vec<u8>,
    /// Its length.
    pub body_bytes: usize,
    /// Its SHA-256, in hex: to compare with the provider's record.
    pub body_sha256: String,
    /// The text the model said.
    pub text: String,
    /// Events of a stream.
    pub events: usize,
    /// The last usage the answer told, raw.
    pub usage: Option<Value>,
    /// Its end.
    pub ended: Ended,
    /// Message of an error answer.
    pub error: Option<String>,
    /// When the last bytes came (or the end did), on the monotonic clock.
    pub last_ns: u64,
    /// Which connection of this agent carried it, from 1.
    pub connection: usize,
}

impl Answer {
    /// The message when the answer is a refusal that clients do not retry: 402 or 429.
    #[must_use]
    pub fn refusal(&self) -> Option<&str> {
        let refused = matches!(self.status, 402 | 429);
        refused.then(|| self.error.as_deref().unwrap_or("refused without a message"))
    }

    /// Value of a response header.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }
}

/// Reads an answer to its end.
pub(super) async fn receive(
    response: http::Response<Incoming>,
    connection: usize,
    on_event: &mut impl FnMut(&str),
) -> anyhow::Result<Answer> {
    let (head, mut incoming) = response.into_parts();
    let mut reading = Reading::new(&head.headers);
    let mut last_ns = mono_ns();
    let ended = loop {
        let frame = incoming.frame().await;
        last_ns = mono_ns().max(last_ns);
        match frame {
            None => break Ended::Complete,
            Some(Err(error)) => break Ended::Broken(format!("{:#}", anyhow::Error::from(error))),
            Some(Ok(frame)) => {
                if let Ok(bytes) = frame.into_data() {
                    reading.take(&bytes, on_event)?;
                }
            }
        }
    };
    let Reading { body, text, events, usage, error, .. } = reading.finished();
    let headers = head.headers.iter();
    let headers = headers.map(|(n, v)| (n.to_string(), String::from_utf8_lossy(v.as_bytes()).into_owned()));
    Ok(Answer {
        status: head.status.as_u16(),
        http2: head.version == http::Version::HTTP_2,
        headers: headers.collect(),
        body_bytes: body.len(),
        body_sha256: sha256_hex(&body),
        body,
        text,
        events,
        usage,
        ended,
        error,
        last_ns,
        connection,
    })
}

/// An answer while it comes in.
struct Reading {
    decoder: Decoder,
    stream: Option<Reader>,
    plain: Vec<u8>,
    body: Vec<u8>,
    text: String,
    events: usize,
    usage: Option<Value>,
    error: Option<String>,
}

impl Reading {
    fn new(headers: &HeaderMap) -> Self {
        let value = |name| headers.get(name).and_then(|v: &http::HeaderValue| v.to_str().ok()).unwrap_or("");
        Self {
            decoder: Decoder::new(Encoding::from_name(value(header::CONTENT_ENCODING))),
            stream: value(header::CONTENT_TYPE).starts_with("text/event-stream").then(Reader::default),
            plain: Vec::new(),
            body: Vec::new(),
            text: String::new(),
            events: 0,
            usage: None,
            error: None,
        }
    }

    fn take(&mut self, bytes: &[u8], on_event: &mut impl FnMut(&str)) -> anyhow::Result<()> {
        self.body.extend_from_slice(bytes);
        let plain = self.decoder.piece(bytes).context("the body is not of its content coding")?;
        let Some(reader) = &mut self.stream else {
            self.plain.extend(plain);
            return Ok(());
        };
        for event in reader.feed(&plain) {
            self.events += 1;
            on_event(&event.data);
            if let Ok(value) = serde_json::from_str(&event.data) {
                self.note(&value);
            }
        }
        Ok(())
    }

    fn finished(mut self) -> Self {
        if let Ok(value) = serde_json::from_slice(&std::mem::take(&mut self.plain)) {
            self.note(&value);
        }
        self
    }

    fn note(&mut self, value: &Value) {
        self.text.push_str(text_in(value));
        let usages = ["/usage", "/message/usage", "/response/usage"];
        if let Some(usage) = usages.iter().filter_map(|at| value.pointer(at)).find(|usage| usage.is_object())
        {
            self.usage = Some(usage.clone());
        }
        let errors = ["/error/message", "/response/error/message"];
        if let Some(message) = errors.iter().find_map(|at| value.pointer(at)?.as_str()) {
            self.error = Some(message.to_owned());
        }
    }
}

/// The model's words in an event or a JSON answer of any of the three APIs.
#[must_use]
pub fn text_in(value: &Value) -> &str {
    let delta_event = value["type"] == "response.output_text.delta";
    let places: &[&str] = if delta_event {
        &["/delta"]
    } else {
        &[
            "/delta/text",
            "/choices/0/delta/content",
            "/content/0/text",
            "/choices/0/message/content",
            "/output/0/content/0/text",
        ]
    };
    places.iter().find_map(|at| value.pointer(at)?.as_str()).unwrap_or("")
}
