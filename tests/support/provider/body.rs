//! The body of an answer: pieces at their pace, coded, split, perhaps broken off; every byte is noted in the book.
use std::collections::VecDeque;
use std::io;
use std::iter::Peekable;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame};
use tokio::time::Sleep;

use super::bedrock;
use super::record::{Book, End};
use super::script::Framing;
use crate::encoding::Encoder;

/// Something to send.
pub(super) struct Step {
    /// Pause before it.
    pub pause: Duration,
    /// Its bytes, not yet coded.
    pub bytes: Vec<u8>,
    /// Output billed once it is out, in tokens.
    pub output: u64,
}

/// One event of a stream, before framing.
pub(super) struct Piece {
    /// Name for the `event:` line.
    pub name: Option<&'static str>,
    /// Its data, one line.
    pub data: String,
    /// Output billed once it is out, in tokens.
    pub output: u64,
    /// Whether it comes at the pace of the deltas.
    pub paced: bool,
}

/// How the pieces of a stream are told apart.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Wire {
    /// Server-sent events.
    Events,
    /// Not at all: the data says it.
    Bare,
    /// AWS's binary event stream.
    EventStream,
}

impl Piece {
    /// Its bytes on the wire; `framing` is for events alone.
    pub fn framed(&self, wire: Wire, framing: Framing, first: bool) -> Vec<u8> {
        match wire {
            Wire::Events => self.as_event(framing, first),
            Wire::Bare => self.data.clone().into_bytes(),
            Wire::EventStream => bedrock::frame(self.name.unwrap_or_default(), &self.data),
        }
    }

    fn as_event(&self, framing: Framing, first: bool) -> Vec<u8> {
        let mut text = String::new();
        if first && framing.bom {
            text.push('\u{feff}');
        }
        if framing.comments {
            text.push_str(": keep-alive\n");
        }
        let space = if framing.tight { "" } else { " " };
        if let Some(name) = self.name {
            text.push_str(&format!("event:{space}{name}\n"));
        }
        let data = match self.data.strip_prefix('{').filter(|_| framing.lines) {
            Some(rest) => format!("{{\ndata:{space}{rest}"),
            None => self.data.clone(),
        };
        text.push_str(&format!("data:{space}{data}\n\n"));
        if framing.crlf {
            text = text.replace('\n', "\r\n");
        } else if framing.cr {
            text = text.replace('\n', "\r");
        }
        text.into_bytes()
    }
}

/// Notes the end of one request's answer; an answer dropped before its end means that the client is gone.
pub(super) struct Note {
    pub book: Arc<Book>,
    pub id: usize,
}

impl Drop for Note {
    fn drop(&mut self) {
        self.book.ended(self.id, End::ClientGone);
    }
}

pub(super) type Steps = Box<dyn Iterator<Item = Step> + Send>;

/// An answer's body.
pub(super) struct AnswerBody {
    steps: Peekable<Steps>,
    encoder: Option<Encoder>,
    split_bytes: usize,
    breaks: bool,
    parts: VecDeque<Bytes>,
    output: u64,
    sleep: Option<Pin<Box<Sleep>>>,
    breathe: bool,
    note: Option<Note>,
}

impl AnswerBody {
    /// `breaks`: the connection is broken after the last step. `note` is `None` for what is not on the bill.
    pub fn new(steps: Steps, encoder: Encoder, framing: Framing, breaks: bool, note: Option<Note>) -> Self {
        Self {
            steps: steps.peekable(),
            encoder: Some(encoder),
            split_bytes: framing.split_bytes.unwrap_or(usize::MAX),
            breaks,
            parts: VecDeque::new(),
            output: 0,
            sleep: None,
            breathe: false,
            note,
        }
    }

    /// All of these bytes at once.
    pub fn whole(bytes: Vec<u8>, note: Option<Note>) -> Self {
        let step = Step { pause: Duration::ZERO, bytes, output: 0 };
        Self::new(Box::new(std::iter::once(step)), Encoder::new(None), Framing::default(), false, note)
    }

    fn load(&mut self, step: &Step) -> io::Result<()> {
        let encoder = self.encoder.as_mut().ok_or_else(|| io::Error::other("the coding has ended"))?;
        let mut coded = encoder.piece(&step.bytes)?;
        if self.steps.peek().is_none()
            && !self.breaks
            && let Some(encoder) = self.encoder.take()
        {
            coded.extend(encoder.finish()?);
        }
        self.output = step.output;
        self.parts = coded.chunks(self.split_bytes).map(Bytes::copy_from_slice).collect();
        Ok(())
    }

    /// Hands one part over; what it bills is billed with the last part of its step.
    fn send(&mut self, part: Bytes) -> Frame<Bytes> {
        self.breathe = self.split_bytes != usize::MAX || self.breaks;
        if let Some(note) = &self.note {
            note.book.sent(note.id, &part, if self.parts.is_empty() { self.output } else { 0 });
        }
        Frame::data(part)
    }

    fn end(&self, end: End) {
        if let Some(note) = &self.note {
            note.book.ended(note.id, end);
        }
    }
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        loop {
            if std::mem::take(&mut self.breathe) {
                // being pending makes the connection write out what it has: parts leave in writes of their own
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            if let Some(sleep) = &mut self.sleep {
                ready!(sleep.as_mut().poll(cx));
                self.sleep = None;
            } else if let Some(part) = self.parts.pop_front() {
                return Poll::Ready(Some(Ok(self.send(part))));
            } else if let Some(step) = self.steps.next() {
                self.sleep = (!step.pause.is_zero()).then(|| Box::pin(tokio::time::sleep(step.pause)));
                self.load(&step)?;
            } else {
                return Poll::Ready(self.close());
            }
        }
    }
}

impl AnswerBody {
    fn close(&mut self) -> Option<io::Result<Frame<Bytes>>> {
        if self.breaks {
            self.end(End::Broken);
            return Some(Err(io::Error::other("broken off by the script")));
        }
        self.end(End::Completed);
        None
    }
}

impl Drop for AnswerBody {
    /// A body of known length is not asked again after its last byte.
    fn drop(&mut self) {
        if self.steps.peek().is_none() && self.parts.is_empty() && !self.breaks {
            self.end(End::Completed);
        }
    }
}
