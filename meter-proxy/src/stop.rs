//! An answer that may not go on though its bottle is open: whether its client can be told so in the stream itself.
//!
//! Codex, whose answers are event streams of OpenAI Responses, takes one last event; to others a break has to do. Not
//! here: who says that it may not go on (the controller).
use std::task::{Context, Poll};

use bytes::Bytes;
use http::HeaderMap;
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH};
use tokio::sync::mpsc;

use crate::gate::Permit;
use crate::protocol::{Dialect, Refusal};
use crate::refuse::Refused;

/// What ends an event, in one of the three forms of a line's end.
const EVENT_ENDS: [&[u8]; 3] = [b"\n\n", b"\r\r", b"\r\n\r\n"];
/// The longest of them, bytes.
const LONGEST_END: usize = 4;

/// Hears whether one answer may go on.
pub struct Stop {
    heard: mpsc::UnboundedReceiver<Box<Refusal>>,
    refusal: Option<Box<Refusal>>,
    /// One more event can follow.
    takes_events: bool,
    /// The last bytes that passed; empty before the first.
    passed: Vec<u8>,
}

impl Stop {
    /// Begins with the head of the answer to what has this permit.
    #[must_use]
    pub fn of(permit: &Permit, head: &HeaderMap) -> Self {
        let (stops, heard) = mpsc::unbounded_channel();
        permit.controller.hear_stop(permit.number, &stops);
        let is_bare = !head.contains_key(CONTENT_ENCODING) && !head.contains_key(CONTENT_LENGTH);
        let takes_events = is_bare && permit.exchange.is_responses_stream();
        Self { heard, refusal: None, takes_events, passed: Vec::new() }
    }

    /// Takes bytes of the answer that have passed.
    pub fn passed(&mut self, bytes: &[u8]) {
        let last = &bytes[bytes.len().saturating_sub(LONGEST_END)..];
        self.passed.extend_from_slice(last);
        self.passed.drain(..self.passed.len().saturating_sub(LONGEST_END));
    }

    /// Ready when the answer is to end now, with its last words if there can be any. Where they can, the event under
    /// way ends first.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        if self.refusal.is_none()
            && let Poll::Ready(heard) = self.heard.poll_recv(cx)
        {
            self.refusal = heard;
        }
        let is_between = self.passed.is_empty() || EVENT_ENDS.iter().any(|end| self.passed.ends_with(end));
        match &self.refusal {
            None => Poll::Pending,
            Some(_) if !self.takes_events => Poll::Ready(None),
            Some(_) if !is_between => Poll::Pending,
            Some(refusal) => {
                let refused = Refused::by_controller((**refusal).clone(), Some(Dialect::Openai));
                let event = format!("event: response.failed\ndata: {}\n\n", refused.failure(None, None));
                Poll::Ready(Some(event.into()))
            }
        }
    }
}
