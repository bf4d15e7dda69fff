//! One metered request and its answer, as a pure state machine: bytes in, figures out.
//!
//! It sees a copy of what passes and changes nothing. Not here: connections, time, the socket to the
//! controller; the caller delivers, holds back and settles as it is told.
use std::time::Duration;

use self::document::Document;
use self::quiet::Quiet;
use crate::decode::Decoder;
use crate::estimate::Text;
use crate::event_stream::Frames;
use crate::events::Event;
use crate::json_array::Elements;
use crate::sse::Parser;
use crate::tokens::{Ending, Provenance, Tokens};
use crate::usage::tally::Tally;
use crate::usage::{self, Named, Shape};

mod document;
mod quiet;

pub use crate::facts::Facts;

/// What a chunk meant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Step {
    /// [`Exchange::tokens`] changed.
    pub changed: bool,
    /// From this chunk on nothing may reach the client until the settlement is durable, or until a later step says
    /// that these figures were not the last.
    pub hold: bool,
    /// The final figures are known: settle now. `true` once. Never for JSON, which is judged at its end.
    pub terminal: bool,
}

/// The final figures of an exchange.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Figures {
    /// What is charged.
    pub tokens: Tokens,
    /// Where the figures come from.
    pub provenance: Provenance,
    /// How the exchange ended, as the exchange itself judges it.
    pub ending: Ending,
    /// The model that answered, as the provider names it, printable characters only.
    pub model: Option<String>,
    /// The provider's usage JSON, compact: the latest object, or an array of the latest and the first one;
    /// at most [`crate::protocol::MAX_RAW_BYTES`].
    pub raw: Option<String>,
    /// What the operator should know of these figures, one line.
    pub alarm: Option<String>,
}

/// The answer's body, by its form.
enum Body {
    /// The head has not come.
    Waiting,
    /// Server-sent events.
    Stream(Parser),
    /// A JSON array that grows.
    Array(Elements),
    /// AWS's binary event stream.
    Frames(Frames),
    /// One JSON document.
    Document(Document),
    /// Of an unlisted endpoint, and neither JSON nor an event stream.
    Ignored,
}

/// One metered request and its answer.
pub struct Exchange {
    facts: Facts,
    /// Whether the endpoint is known to bill.
    listed: bool,
    shape: Shape,
    status: Option<u16>,
    body: Body,
    /// `None`: the body cannot be decoded (any more).
    decoder: Option<Decoder>,
    /// Bytes that passed after decoding had failed.
    undecoded_bytes: u64,
    /// An event was too long to be read.
    hidden_event: bool,
    tally: Tally,
    quiet: Quiet,
    terminal_told: bool,
}

impl Exchange {
    /// Begins with what is known of the request.
    #[must_use]
    pub fn new(shape: Shape, facts: Facts) -> Self {
        Self {
            facts,
            listed: shape != Shape::Any,
            shape,
            status: None,
            body: Body::Waiting,
            decoder: None,
            undecoded_bytes: 0,
            hidden_event: false,
            tally: Tally::default(),
            quiet: Quiet::default(),
            terminal_told: false,
        }
    }

    /// The head of the answer: status, and the values of `Content-Type` and `Content-Encoding`, empty when
    /// missing.
    pub fn head(&mut self, status: u16, content_type: &str, content_encoding: &str) {
        self.status = Some(status);
        self.body = self.body_of(&content_type.to_ascii_lowercase());
        if matches!(self.body, Body::Ignored) {
            return;
        }
        match Decoder::new(content_encoding) {
            Ok(decoder) => self.decoder = Some(decoder),
            Err(why) => self.tally.alarm(why.to_string()),
        }
    }

    /// Takes what the head of the answer says of usage: the value of a header by its name in lower case. After
    /// [`Self::head`].
    pub fn counts_in_head<'a>(&mut self, header: &'a dyn Fn(&'static str) -> Option<&'a str>) {
        if let Some(reader) = self.shape.reader().filter(|_| self.is_success()) {
            reader.head(header, &mut self.tally);
        }
    }

    /// Whether the answer is a stream of events; of any other the caller withholds the last bytes itself.
    #[must_use]
    pub fn is_stream(&self) -> bool {
        matches!(self.body, Body::Stream(_) | Body::Array(_) | Body::Frames(_))
    }

    /// Whether the answer is an event stream of OpenAI Responses.
    #[must_use]
    pub fn is_responses_stream(&self) -> bool {
        self.is_stream() && self.shape == Shape::OpenaiResponses
    }

    /// Whether the answer is one document, whose usage stands near its end.
    #[must_use]
    pub fn is_document(&self) -> bool {
        matches!(self.body, Body::Document(_))
    }

    /// Whether most or all of the answer is generated: a document has begun to come, or a stream lacks nothing but its
    /// figures.
    #[must_use]
    pub fn is_near_its_end(&self) -> bool {
        let has_begun = matches!(&self.body, Body::Document(document) if document.seen_bytes() > 0);
        has_begun || self.tally.finished
    }

    /// Takes the time: so long since the request left. Before what comes then.
    pub fn at(&mut self, since_it_left: Duration) {
        self.quiet.at(since_it_left);
    }

    /// Takes bytes of the answer as they pass, still encoded.
    pub fn feed(&mut self, bytes: &[u8]) -> Step {
        self.step(|exchange| exchange.read(bytes))
    }

    /// Takes one event of a stream that is framed by something else than its own lines.
    pub fn feed_event(&mut self, event: Event<'_>) -> Step {
        self.step(|exchange| {
            exchange.hidden_event |= on_event(event, &mut exchange.shape, &mut exchange.tally);
        })
    }

    fn step(&mut self, read: impl FnOnce(&mut Self)) -> Step {
        let (before, reported) = (self.tokens(), self.tally.report.tokens().output);
        let (text, undecoded_bytes) = (self.tally.text, self.undecoded_bytes);
        read(self);
        if self.tally.report.tokens().output > reported {
            self.quiet.is_covered();
        } else if self.tally.text != text || self.undecoded_bytes != undecoded_bytes {
            self.quiet.ends();
        }
        let terminal =
            self.tally.terminal && !std::mem::replace(&mut self.terminal_told, self.tally.terminal);
        Step { changed: self.tokens() != before, hold: self.tally.hold, terminal }
    }

    /// Figures so far: the provider's, output topped up with the running count. Input is the provider's word
    /// alone, so that no agent is cut early by a guess.
    #[must_use]
    pub fn tokens(&self) -> Tokens {
        self.tally.tokens()
    }

    /// The final figures; call once. `ending` is how the caller saw it end.
    pub fn end(&mut self, ending: Ending) -> Figures {
        self.close_body(ending);
        let (tokens, provenance, ending) = self.judge(ending);
        Figures {
            tokens,
            provenance,
            ending,
            model: self.tally.model.take(),
            raw: self.tally.raw(),
            alarm: self.tally.alarms(),
        }
    }

    /// Servers that mislabel a stream still answer a request for one with one, unless they say it is JSON.
    fn body_of(&self, content_type: &str) -> Body {
        let json = content_type.contains("json");
        let asked_for_stream = self.listed && self.facts.streamed && self.is_success();
        if content_type.starts_with("text/event-stream") {
            return Body::Stream(Parser::new());
        }
        if content_type.starts_with("application/vnd.amazon.eventstream") {
            return Body::Frames(Frames::default());
        }
        match self.shape {
            Shape::Gemini if asked_for_stream && json => Body::Array(Elements::default()),
            Shape::Bedrock if asked_for_stream && !json => Body::Frames(Frames::default()),
            _ if asked_for_stream && !json => Body::Stream(Parser::new()),
            _ if self.listed || json => Body::Document(Document::default()),
            _ => Body::Ignored,
        }
    }

    fn is_success(&self) -> bool {
        self.status.is_some_and(|status| (200..300).contains(&status))
    }

    /// Decodes a copy and reads what it makes readable.
    fn read(&mut self, bytes: &[u8]) {
        let Self { decoder: Some(decoder), body, shape, tally, hidden_event, .. } = self else {
            self.undecoded_bytes = self.undecoded_bytes.saturating_add(bytes.len() as u64);
            return;
        };
        let mut on_event = |event: Event<'_>| *hidden_event |= self::on_event(event, shape, tally);
        let mut corrupt = None;
        let decoded = decoder.feed(bytes, &mut |piece| match body {
            Body::Stream(parser) => parser.feed(piece, &mut on_event),
            Body::Array(elements) => elements.feed(piece, &mut on_event),
            Body::Frames(frames) if corrupt.is_none() => corrupt = frames.feed(piece, &mut on_event).err(),
            Body::Document(document) => document.feed(piece),
            Body::Frames(_) | Body::Waiting | Body::Ignored => {}
        });
        let why = decoded.err().map(|why| why.to_string()).or(corrupt.map(|why| why.to_string()));
        if let Some(why) = why {
            self.decoder = None;
            self.tally.alarm(why);
        }
    }

    /// Reads what only the end completes: the last event, or the document.
    fn close_body(&mut self, ending: Ending) {
        let (shape, tally) = (&mut self.shape, &mut self.tally);
        match &mut self.body {
            Body::Stream(parser) => {
                parser.end(|event| self.hidden_event |= on_event(event, shape, tally));
            }
            Body::Document(document) if self.decoder.is_some() => {
                let (is_read, why_not) = if document.is_whole() {
                    (usage::document(shape, document.kept(), tally), "the answer is not JSON")
                } else {
                    let is_read = usage::document_end(shape, document.kept(), tally);
                    (is_read, "the answer is too long to be read, and has no usage at its end")
                };
                let worth_an_alarm = self.listed && ending == Ending::Completed;
                if !is_read && worth_an_alarm && self.is_success() && !self.tally.report.is_known() {
                    self.tally.alarm(why_not);
                }
            }
            _ => {}
        }
        let ends_unsaid = match self.shape.reader() {
            Some(reader) => reader.ends_unsaid(&self.tally),
            None => self.tally.whole,
        };
        self.tally.terminal |= ending == Ending::Completed && ends_unsaid;
    }

    /// Decides what is charged, on whose word, and how the exchange really ended.
    fn judge(&mut self, ending: Ending) -> (Tokens, Provenance, Ending) {
        let reported = self.tally.report.tokens();
        if ending == Ending::Unsent {
            return (Tokens::default(), Provenance::Reported, ending);
        }
        if self.status.is_some() && !self.is_success() {
            return (reported, Provenance::Reported, Ending::UpstreamError);
        }
        // nothing of it looked like an inference
        if self.shape == Shape::Any && self.tally.text == Text::default() && !self.tally.report.is_known() {
            return (Tokens::default(), Provenance::Reported, ending);
        }
        if self.is_settled_by_report() {
            return (reported, Provenance::Reported, ending);
        }
        let ending = if self.broke_off(ending) { Ending::UpstreamBroke } else { ending };
        let (tokens, provenance) = self.guess(ending);
        if ending == Ending::Completed {
            self.tally.alarm(match provenance {
                Provenance::Estimated => "a successful answer without usage",
                _ => "a successful answer without its final usage",
            });
        }
        (tokens, provenance, ending)
    }

    /// Whether the provider's figures cover the whole answer. No inference is free, so zeros settle nothing.
    fn is_settled_by_report(&self) -> bool {
        let Tally { report, whole, terminal, failed, .. } = &self.tally;
        *terminal && *whole && !*failed && report.is_complete() && report.tokens().total() > 0
    }

    /// Whether a stream that seemed to end well lacks its last event. One that could not be read to its end
    /// may have had it.
    fn broke_off(&self, ending: Ending) -> bool {
        let ended_well = self.tally.terminal && !self.tally.failed;
        let unread = self.decoder.is_none() || self.hidden_event;
        ending == Ending::Completed && self.is_stream() && !ended_well && !unread
    }

    /// The safe side: what the provider stated, and for the rest the estimates: what was shown, and what may have been
    /// generated while nothing was. An answer that is not streamed is charged at least its whole reservation, and
    /// its length if that is more.
    fn guess(&self, ending: Ending) -> (Tokens, Provenance) {
        let hidden = if self.may_have_hidden(ending) { self.quiet.hidden_tokens() } else { 0 };
        let stated = self.tally.report.tokens();
        let known = stated.total() > 0;
        let mut tokens = stated;
        if tokens.input + tokens.cache_read + tokens.cache_write == 0 {
            tokens.input = self.facts.charged_input();
        }
        let seen = self.shown().plus(Text::of_length(self.undecoded_bytes));
        let shown = seen.charged_tokens();
        if self.facts.has_no_output {
            tokens.output = stated.output;
        } else if self.is_stream() {
            let stated_and_since = stated.output + seen.beyond(self.tally.covered).charged_tokens();
            tokens.output = self.with_hidden(stated_and_since.max(shown), hidden);
        } else if !known || !self.tally.report.has_output() {
            let silent = self.facts.output_allowance.max(self.with_hidden(0, hidden));
            tokens.output = stated.output.max(silent).max(shown);
        }
        (tokens, if known { Provenance::Partial } else { Provenance::Estimated })
    }

    /// Whether more may have been generated than was shown: not when the answer ended well and all of it was read,
    /// nor when the provider never began it and broke off itself.
    fn may_have_hidden(&self, ending: Ending) -> bool {
        match ending {
            Ending::Completed => !self.is_read_whole(),
            Ending::UpstreamBroke => self.status.is_some(),
            _ => true,
        }
    }

    /// Whether nothing of what came was too long or too strange to be read.
    fn is_read_whole(&self) -> bool {
        let is_kept = match &self.body {
            Body::Document(document) => document.is_whole(),
            _ => true,
        };
        is_kept && self.decoder.is_some() && !self.hidden_event
    }

    /// This much output and `hidden` beside it, which together is no more than the request allows.
    fn with_hidden(&self, output: u64, hidden: u64) -> u64 {
        let most = self.facts.output_limit.unwrap_or(u64::MAX);
        output.saturating_add(hidden).min(most).max(output)
    }

    /// Output that was seen: the text of a stream, all of a document.
    fn shown(&self) -> Text {
        match &self.body {
            Body::Document(document) => Text::of_length(document.seen_bytes()),
            _ => self.tally.text,
        }
    }
}

/// Reads one event; `true` when it may have had figures and was too long to be read.
fn on_event(event: Event<'_>, shape: &mut Shape, tally: &mut Tally) -> bool {
    match event {
        Event::Data(data) => {
            usage::event(shape, Named::unnamed(data), tally);
            false
        }
        Event::Named { name, data } => {
            usage::event(shape, Named { name, data }, tally);
            false
        }
        Event::Oversized { start, end } => {
            let is_read = usage::oversized_event(shape, start, end, tally);
            if !is_read {
                tally.alarm("an event of the stream is too long to be read");
                tally.hold = true;
                // the figures may have been in it; later ones, being cumulative, make up for it
                tally.whole &= tally.terminal;
            }
            !is_read
        }
    }
}

#[cfg(test)]
mod tests;
