//! Splits AWS's binary event stream (`application/vnd.amazon.eventstream`) into its events, however it is cut.
//!
//! Frames are read by AWS's own crate, which checks both of their CRCs; here they are collected, in bounded memory.
//! Not here: what an event means.
use aws_smithy_eventstream::frame::read_message_from;
use aws_smithy_types::event_stream::Message;

use crate::events::{Event, KEPT_BUFFER_BYTES, MAX_EVENT_BYTES};

/// Name of every event that is an exception or an error.
pub(crate) const EXCEPTION: &str = "exception";

/// Bytes of the length that a frame begins with, itself included in it.
const LENGTH_BYTES: usize = 4;
/// Shortest frame, bytes: its prelude of 12 and a CRC.
const MIN_FRAME_BYTES: usize = 16;
/// Longest frame, bytes: what the format allows, with room. What claims to be longer is something else.
const MAX_FRAME_BYTES: usize = 32 * 1024 * 1024;

/// The bytes are no event stream; nothing behind them can be found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the event stream is corrupt")]
pub struct Corrupt;

/// The state between two chunks.
#[derive(Debug, Default)]
pub struct Frames {
    frame: Vec<u8>,
    /// Bytes of a frame too long to be kept that are still to come.
    skipping: usize,
}

impl Frames {
    /// Takes the next bytes and calls `on_event` for each event that they complete.
    ///
    /// # Errors
    /// When they are no event stream.
    pub fn feed(&mut self, bytes: &[u8], mut on_event: impl FnMut(Event<'_>)) -> Result<(), Corrupt> {
        let mut rest = bytes;
        while !rest.is_empty() {
            if self.skipping > 0 {
                rest = self.skip(rest, &mut on_event);
                continue;
            }
            let wanted = self.frame_bytes()?.unwrap_or(LENGTH_BYTES);
            let (part, after) = rest.split_at((wanted - self.frame.len()).min(rest.len()));
            self.frame.extend_from_slice(part);
            rest = after;
            match self.frame_bytes()? {
                Some(length) if length > MAX_EVENT_BYTES => {
                    self.skipping = length - self.frame.len();
                    self.frame.clear();
                }
                Some(length) if length == self.frame.len() => self.dispatch(&mut on_event)?,
                _ => {}
            }
        }
        Ok(())
    }

    /// Length of the frame under way, bytes; `None` until it is known.
    fn frame_bytes(&self) -> Result<Option<usize>, Corrupt> {
        let Some(length) = self.frame.first_chunk::<LENGTH_BYTES>() else { return Ok(None) };
        let length = usize::try_from(u32::from_be_bytes(*length)).map_err(|_| Corrupt)?;
        if (MIN_FRAME_BYTES..=MAX_FRAME_BYTES).contains(&length) { Ok(Some(length)) } else { Err(Corrupt) }
    }

    fn skip<'a>(&mut self, bytes: &'a [u8], on_event: &mut impl FnMut(Event<'_>)) -> &'a [u8] {
        let (skipped, rest) = bytes.split_at(self.skipping.min(bytes.len()));
        self.skipping -= skipped.len();
        if self.skipping == 0 {
            on_event(Event::Oversized { start: b"", end: b"" });
        }
        rest
    }

    fn dispatch(&mut self, on_event: &mut impl FnMut(Event<'_>)) -> Result<(), Corrupt> {
        let message = read_message_from(&self.frame[..]).map_err(|_| Corrupt)?;
        on_event(Event::Named { name: name(&message), data: message.payload() });
        self.frame.clear();
        self.frame.shrink_to(KEPT_BUFFER_BYTES);
        Ok(())
    }
}

/// What its headers call an event; empty when they do not.
fn name(message: &Message) -> &str {
    let text = |name: &str| {
        let header = message.headers().iter().find(|header| header.name().as_str() == name);
        header.and_then(|header| header.value().as_string().ok()).map_or("", |text| text.as_str())
    };
    if text(":message-type") == "event" { text(":event-type") } else { EXCEPTION }
}

#[cfg(test)]
pub(crate) mod tests {
    use aws_smithy_eventstream::frame::write_message_to;
    use aws_smithy_types::event_stream::{Header, HeaderValue};
    use proptest::prelude::*;

    use super::*;

    /// One frame as Bedrock writes it.
    pub(crate) fn frame(message_type: &str, name: &str, payload: &[u8]) -> Vec<u8> {
        let text = |text: &str| HeaderValue::String(text.to_owned().into());
        let kind = if message_type == "event" { ":event-type" } else { ":exception-type" };
        let message = Message::new(payload.to_vec())
            .add_header(Header::new(kind.to_owned(), text(name)))
            .add_header(Header::new(":content-type", text("application/json")))
            .add_header(Header::new(":message-type", text(message_type)));
        let mut bytes = Vec::new();
        write_message_to(&message, &mut bytes).unwrap();
        bytes
    }

    fn events_of(chunks: &[&[u8]]) -> Result<Vec<(String, usize)>, Corrupt> {
        let mut frames = Frames::default();
        let mut seen = Vec::new();
        for chunk in chunks {
            frames.feed(chunk, |event| {
                seen.push(match event {
                    Event::Named { name, data } => (name.to_owned(), data.len()),
                    Event::Data(_) | Event::Oversized { .. } => ("too long".to_owned(), 0),
                });
            })?;
        }
        Ok(seen)
    }

    #[test]
    fn events_and_exceptions_are_named() {
        let stream = [
            frame("event", "messageStart", b"{}"),
            frame("event", "metadata", b"{\"usage\":{}}"),
            frame("exception", "throttlingException", b"{}"),
            frame("event", "x", b""),
        ]
        .concat();
        let expected = [("messageStart", 2), ("metadata", 12), (EXCEPTION, 2), ("x", 0)]
            .map(|(name, bytes)| (name.to_owned(), bytes));
        assert_eq!(events_of(&[&stream]).unwrap(), expected);
        let bytes: Vec<&[u8]> = stream.chunks(1).collect();
        assert_eq!(events_of(&bytes).unwrap(), expected);
    }

    #[test]
    fn a_frame_too_long_is_skipped_and_said() {
        let long = frame("event", "chunk", &vec![b'x'; MAX_EVENT_BYTES]);
        let stream = [long, frame("event", "metadata", b"{}")].concat();
        let chunks: Vec<&[u8]> = stream.chunks(40_000).collect();
        let expected = [("too long".to_owned(), 0), ("metadata".to_owned(), 2)];
        assert_eq!(events_of(&chunks).unwrap(), expected);
    }

    #[test]
    fn what_is_no_event_stream_is_corrupt() {
        let mut broken = frame("event", "chunk", b"{}");
        let last = broken.len() - 1;
        broken[last] ^= 1;
        for bytes in [&broken[..], b"{\"message\":\"no\"}, and more of it", &[0, 0, 0, 1, 2, 3], &[0; 40]] {
            let whole = events_of(&[bytes]);
            let single: Vec<&[u8]> = bytes.chunks(1).collect();
            assert_eq!(events_of(&single), whole, "{bytes:?}");
            assert_eq!(whole, Err(Corrupt), "{bytes:?}");
        }
    }

    proptest! {
        #[test]
        fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..400), length in 16_u8..200) {
            let framed = [&[0, 0, 0, length][..], &bytes].concat();
            for bytes in [&bytes, &framed] {
                // either result will do; what counts is that there is one
                drop(events_of(&bytes.chunks(7).collect::<Vec<_>>()));
            }
        }
    }
}
