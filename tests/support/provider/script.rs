//! What the mock answers: a reply a request, by default, in order or by a function; headers `x-mock-*` have the last word.
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http::HeaderMap;

use super::record::Billed;
use crate::encoding::Encoding;

/// How an answer ends that is not broken off.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Finish {
    /// Of its own accord.
    #[default]
    Stop,
    /// At the output limit (Responses: `response.incomplete`).
    Length,
    /// In an error inside a 200 (Responses: `response.failed`; Anthropic: `event: error`; Chat: an `error` chunk).
    Failed,
}

/// Odd but legal framing of the answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Framing {
    /// CRLF line ends in events.
    pub crlf: bool,
    /// Line ends in events that are a CR alone.
    pub cr: bool,
    /// The JSON of an event in two `data` lines.
    pub lines: bool,
    /// Comment lines before every event.
    pub comments: bool,
    /// `data:` without the space.
    pub tight: bool,
    /// A byte order mark first.
    pub bom: bool,
    /// Every event is sent in parts of this many bytes.
    pub split_bytes: Option<usize>,
    /// `Content-Length` for a stream, chunks for a JSON answer.
    pub swap_length: bool,
}

/// One answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// Status; from 400 on the provider's error shape is sent and nothing billed.
    pub status: u16,
    /// Text deltas of the answer (JSON: their text in one).
    pub deltas: usize,
    /// Tokens a delta bills; its text has 4 bytes for each.
    pub tokens_per_delta: usize,
    /// Pause before each delta.
    pub pace: Duration,
    /// Pause before the head of the answer.
    pub head_delay: Duration,
    /// Uncached input billed, in tokens.
    pub input: u64,
    /// Input written to the cache, in tokens.
    pub cache_write: u64,
    /// Input read from the cache, in tokens.
    pub cache_read: u64,
    /// Output without text, in tokens, billed from the answer's first byte on.
    pub reasoning: u64,
    /// Content coding; used only when the request accepts it.
    pub encoding: Option<Encoding>,
    /// The connection is broken after this many events.
    pub break_after: Option<usize>,
    /// The answer ends after this many events as if that were all of it (JSON: in its middle).
    pub stop_after: Option<usize>,
    /// No usage is told (and all is billed).
    pub omit_usage: bool,
    /// A tool that is called once the text is out, without arguments: Messages and Responses alone.
    pub call: Option<&'static str>,
    /// How it ends.
    pub finish: Finish,
    /// How it is framed.
    pub framing: Framing,
}

impl Default for Reply {
    fn default() -> Self {
        Self {
            status: 200,
            deltas: 5,
            tokens_per_delta: 8,
            pace: Duration::ZERO,
            head_delay: Duration::ZERO,
            input: 25,
            cache_write: 0,
            cache_read: 0,
            reasoning: 0,
            encoding: None,
            break_after: None,
            stop_after: None,
            omit_usage: false,
            call: None,
            finish: Finish::Stop,
            framing: Framing::default(),
        }
    }
}

impl Reply {
    /// A stream of `deltas` deltas of `tokens_per_delta` tokens, one every `pace`.
    #[must_use]
    pub fn paced(deltas: usize, tokens_per_delta: usize, pace: Duration) -> Self {
        Self { deltas, tokens_per_delta, pace, ..Self::default() }
    }

    /// An error answer.
    #[must_use]
    pub fn error(status: u16) -> Self {
        Self { status, ..Self::default() }
    }

    /// Output billed once `deltas_sent` deltas are out, in tokens.
    #[must_use]
    pub fn output_after(&self, deltas_sent: usize) -> u64 {
        self.reasoning + as_u64(deltas_sent * self.tokens_per_delta)
    }

    /// What the whole answer bills.
    #[must_use]
    pub fn bill(&self) -> Billed {
        Billed { output: self.output_after(self.deltas), ..self.bill_at_head() }
    }

    /// What is billed before the first delta: the input, the reasoning, and at least one token of any output.
    #[must_use]
    pub fn bill_at_head(&self) -> Billed {
        let output = self.reasoning.max(self.output_after(self.deltas).min(1));
        Billed {
            input: self.input,
            cache_write: self.cache_write,
            cache_read: self.cache_read,
            output,
            reasoning: self.reasoning,
        }
    }

    /// Text of one delta: `tokens_per_delta` words of four bytes.
    #[must_use]
    pub fn delta_text(&self, index: usize) -> String {
        const WORDS: [&str; 8] = ["the ", "cat ", "sat ", "and ", "saw ", "how ", "tä ", "end\n"];
        let first = index * self.tokens_per_delta;
        (first..first + self.tokens_per_delta).map(|word| WORDS[word % WORDS.len()]).collect()
    }

    /// Text of the whole answer.
    #[must_use]
    pub fn text(&self) -> String {
        (0..self.deltas).map(|index| self.delta_text(index)).collect()
    }

    /// This reply as the request's `x-mock-*` headers want it.
    ///
    /// # Errors
    /// The name of the header that is unknown or cannot be read.
    pub fn wanted_by(mut self, headers: &HeaderMap) -> Result<Self, String> {
        for (name, value) in headers {
            if let Some(what) = name.as_str().strip_prefix("x-mock-") {
                let value = value.to_str().unwrap_or_default();
                self.set(what, value).ok_or_else(|| format!("{name}: {value}"))?;
            }
        }
        Ok(self)
    }

    fn set(&mut self, what: &str, value: &str) -> Option<()> {
        let millis = || value.parse().ok().map(Duration::from_millis);
        match what {
            "status" => self.status = value.parse().ok()?,
            "deltas" => self.deltas = value.parse().ok()?,
            "tokens-per-delta" => self.tokens_per_delta = value.parse().ok()?,
            "pace-ms" => self.pace = millis()?,
            "delay-ms" => self.head_delay = millis()?,
            "input" => self.input = value.parse().ok()?,
            "cache-write" => self.cache_write = value.parse().ok()?,
            "cache-read" => self.cache_read = value.parse().ok()?,
            "reasoning" => self.reasoning = value.parse().ok()?,
            "encoding" => self.encoding = Some(Encoding::from_name(value)?),
            "break-after" => self.break_after = Some(value.parse().ok()?),
            "stop-after" => self.stop_after = Some(value.parse().ok()?),
            "omit-usage" => self.omit_usage = value.parse().ok()?,
            "finish" => self.finish = finish_named(value)?,
            "framing" => self.framing = framing_named(value)?,
            _ => return None,
        }
        Some(())
    }
}

fn finish_named(name: &str) -> Option<Finish> {
    match name {
        "stop" => Some(Finish::Stop),
        "length" => Some(Finish::Length),
        "failed" => Some(Finish::Failed),
        _ => None,
    }
}

/// Words separated by commas: `crlf`, `cr`, `lines`, `comments`, `tight`, `bom`, `swap-length`, `split=BYTES`.
fn framing_named(words: &str) -> Option<Framing> {
    let mut framing = Framing::default();
    for word in words.split(',').map(str::trim) {
        match word {
            "crlf" => framing.crlf = true,
            "cr" => framing.cr = true,
            "lines" => framing.lines = true,
            "comments" => framing.comments = true,
            "tight" => framing.tight = true,
            "bom" => framing.bom = true,
            "swap-length" => framing.swap_length = true,
            _ => framing.split_bytes = Some(word.strip_prefix("split=")?.parse().ok().filter(|&n| n > 0)?),
        }
    }
    Some(framing)
}

/// What a script is told of a billing request.
#[derive(Clone, Debug)]
pub struct Asked {
    /// How many billing requests came before it.
    pub index: usize,
    /// Path without query.
    pub path: String,
    /// Its model.
    pub model: String,
    /// Whether a stream is asked for.
    pub stream: bool,
}

type Choose = Box<dyn Fn(&Asked) -> Reply + Send + Sync>;

/// Chooses the reply to each billing request.
pub struct Script {
    choose: Choose,
    asked: AtomicUsize,
    pub(super) forget_bodies: bool,
    pub(super) http2: bool,
    pub(super) deflate: bool,
}

impl Script {
    /// The same reply to every request.
    #[must_use]
    pub fn always(reply: Reply) -> Self {
        Self::by(move |_| reply.clone())
    }

    /// One reply after the other; the last one again and again. Panics without any.
    #[must_use]
    pub fn sequence(replies: Vec<Reply>) -> Self {
        assert!(!replies.is_empty(), "a script needs a reply");
        Self::by(move |asked| replies[asked.index.min(replies.len() - 1)].clone())
    }

    /// By a function.
    #[must_use]
    pub fn by(choose: impl Fn(&Asked) -> Reply + Send + Sync + 'static) -> Self {
        Self {
            choose: Box::new(choose),
            asked: AtomicUsize::new(0),
            forget_bodies: false,
            http2: false,
            deflate: false,
        }
    }

    /// Keeps only length and hash of what is sent: for long runs.
    #[must_use]
    pub fn forgetting_bodies(self) -> Self {
        Self { forget_bodies: true, ..self }
    }

    /// Offers HTTP/2 by TLS, before HTTP/1.1.
    #[must_use]
    pub fn offering_http2(self) -> Self {
        Self { http2: true, ..self }
    }

    /// Compresses the messages of a WebSocket whose client offers that.
    #[must_use]
    pub fn compressing_messages(self) -> Self {
        Self { deflate: true, ..self }
    }

    pub(super) fn reply(&self, path: &str, model: &str, stream: bool) -> Reply {
        let index = self.asked.fetch_add(1, Ordering::Relaxed);
        (self.choose)(&Asked { index, path: path.to_owned(), model: model.to_owned(), stream })
    }
}

impl From<Reply> for Script {
    fn from(reply: Reply) -> Self {
        Self::always(reply)
    }
}

/// A count as the figures have it.
pub(super) fn as_u64(count: usize) -> u64 {
    u64::try_from(count).expect("usize is at most 64 bits here")
}
