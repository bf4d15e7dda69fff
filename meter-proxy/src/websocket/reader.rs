//! One direction of a WebSocket: its bytes as they came, and of each message a copy made readable.
//!
//! Not here: what messages say (`events`), and when their bytes are passed on (`client`, `server`).
use bytes::{Bytes, BytesMut};

use super::deflate::{Corrupt, Deflate, Inflate};
use super::frames::{FrameError, Frames, Part, Sender};
use crate::events::{Ends, Event, MAX_EVENT_BYTES};
use crate::facts::MAX_REQUEST_BYTES;

/// Why the rest of a direction cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    /// Its bytes are no frames.
    #[error(transparent)]
    Frames(#[from] FrameError),
    /// A message is not what its compression says.
    #[error(transparent)]
    Corrupt(#[from] Corrupt),
    /// A message of a client is longer than what is read whole.
    #[error("a message is longer than {MAX_REQUEST_BYTES} bytes")]
    TooLong,
}

/// Bytes as they came.
pub struct Passing {
    /// The bytes.
    pub wire: Bytes,
    /// What they are.
    pub part: Part,
}

/// Reads one direction.
pub struct Reader {
    sender: Sender,
    frames: Frames,
    inflate: Option<Inflate>,
    /// The message under way, or the one that has just ended, readable.
    message: Vec<u8>,
    /// Of one that grew too long no more than this.
    ends: Option<Ends>,
    /// The next piece begins a message.
    is_between: bool,
}

impl Reader {
    /// Begins behind the handshake, in which `deflate` was agreed on.
    #[must_use]
    pub fn new(sender: Sender, deflate: Option<Deflate>) -> Self {
        let takeover = |deflate: Deflate| match sender {
            Sender::Client => deflate.client_takeover,
            Sender::Server => deflate.server_takeover,
        };
        Self {
            sender,
            frames: Frames::new(sender, deflate.is_some()),
            inflate: deflate.map(|deflate| Inflate::new(takeover(deflate))),
            message: Vec::new(),
            ends: None,
            is_between: true,
        }
    }

    /// Where the next bytes go.
    pub fn buffer(&mut self) -> &mut BytesMut {
        self.frames.buffer()
    }

    /// Whether a message, or a frame, has begun and not ended.
    #[must_use]
    pub fn is_amid(&self) -> bool {
        self.frames.is_amid()
    }

    /// The next bytes to pass; `None`: more are needed. When a message ends with them, [`Self::message`] is that one.
    ///
    /// # Errors
    /// When they cannot be read, and nothing that follows.
    pub fn next(&mut self) -> Result<Option<Passing>, Unreadable> {
        let Some(piece) = self.frames.next()? else { return Ok(None) };
        if let Part::Data { compressed, ends } = piece.part {
            if std::mem::replace(&mut self.is_between, ends) {
                self.forget_message();
            }
            self.read(&piece.payload, compressed, ends)?;
        }
        Ok(Some(Passing { wire: piece.wire, part: piece.part }))
    }

    /// What is kept of the message under way, bytes.
    #[must_use]
    pub fn kept_bytes(&self) -> usize {
        self.message.len()
    }

    /// The message that has ended was read.
    pub fn forget_message(&mut self) {
        self.message.clear();
        self.message.shrink_to(MAX_KEPT_BUFFER_BYTES);
        self.ends = None;
    }

    /// The message under way, or the one that has just ended, as far as it is kept.
    #[must_use]
    pub fn message(&self) -> Event<'_> {
        match &self.ends {
            None => Event::Data(&self.message),
            Some(ends) => ends.event(),
        }
    }

    fn read(&mut self, payload: &[u8], compressed: bool, ends: bool) -> Result<(), Unreadable> {
        let Self { sender, inflate, message, ends: kept_ends, .. } = self;
        let mut fits = true;
        let mut keep = |piece: &[u8]| {
            fits = keep(*sender, message, kept_ends, piece);
            fits
        };
        match inflate.as_mut().filter(|_| compressed) {
            Some(inflate) => inflate.feed(payload, ends, &mut keep)?,
            None => {
                keep(payload);
            }
        }
        if fits { Ok(()) } else { Err(Unreadable::TooLong) }
    }
}

/// A buffer larger than this, in bytes, is given back after the message that needed it.
const MAX_KEPT_BUFFER_BYTES: usize = 16 * 1024;

/// Keeps a piece of a message: of a client's all, of a server's only both ends once it is too long. Whether it was
/// kept.
fn keep(sender: Sender, message: &mut Vec<u8>, ends: &mut Option<Ends>, piece: &[u8]) -> bool {
    let whole_bytes = message.len() + piece.len();
    match (sender, ends) {
        (Sender::Client, _) if whole_bytes > MAX_REQUEST_BYTES => return false,
        (Sender::Server, Some(ends)) => ends.push(piece),
        (Sender::Server, ends) if whole_bytes > MAX_EVENT_BYTES => {
            let mut both = Ends::default();
            both.push(&std::mem::take(message));
            both.push(piece);
            *ends = Some(both);
        }
        _ => message.extend_from_slice(piece),
    }
    true
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::websocket::testing::{Deflater, Frame, frame};

    const BOTH: Deflate = Deflate { client_takeover: true, server_takeover: true };

    /// The messages of `wire`, which comes in parts of so many bytes, and the bytes that passed.
    fn read(
        sender: Sender,
        deflate: Option<Deflate>,
        wire: &[u8],
        part_bytes: usize,
    ) -> (Vec<Vec<u8>>, Vec<u8>) {
        let mut reader = Reader::new(sender, deflate);
        let (mut messages, mut passed) = (Vec::new(), Vec::new());
        for part in wire.chunks(part_bytes) {
            reader.buffer().extend_from_slice(part);
            while let Some(passing) = reader.next().unwrap() {
                passed.extend_from_slice(&passing.wire);
                if let (Part::Data { ends: true, .. }, Event::Data(text)) = (passing.part, reader.message()) {
                    messages.push(text.to_vec());
                }
            }
        }
        assert!(!reader.is_amid());
        (messages, passed)
    }

    proptest! {
        #[test]
        fn fragments_compression_masks_and_cuts_change_nothing(
            texts in prop::collection::vec("[ -~é]{0,800}", 1..5),
            compress in prop::collection::vec(any::<bool>(), 5),
            fragment_bytes in 1..300_usize,
            part_bytes in 1..700_usize,
            masked: bool,
            takeover: bool,
        ) {
            let mut deflater = Deflater::new();
            let mask = masked.then_some([7, 0, 255, 33]);
            let mut wire = Vec::new();
            for (text, compress) in texts.iter().zip(&compress) {
                let payload = if *compress { deflater.message(text.as_bytes(), takeover) } else { text.clone().into_bytes() };
                let fragments = payload.chunks(fragment_bytes).chain(payload.is_empty().then_some(&b""[..]));
                let count = fragments.clone().count();
                for (n, payload) in fragments.enumerate() {
                    let reserved = if n == 0 && *compress { 0x40 } else { 0 };
                    let opcode = if n == 0 { 1 } else { 0 };
                    wire.extend(frame(&Frame { opcode, is_final: n + 1 == count, reserved, mask, payload }));
                    wire.extend(frame(&Frame { opcode: 10, mask, ..Frame::of(b"pong") }));
                }
            }
            let sender = if masked { Sender::Client } else { Sender::Server };
            let deflate = Deflate { client_takeover: takeover, server_takeover: takeover };
            let (messages, passed) = read(sender, Some(deflate), &wire, part_bytes);
            prop_assert_eq!(passed, wire);
            prop_assert_eq!(messages, texts.into_iter().map(String::into_bytes).collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_clients_message_is_read_whole_or_not_at_all() {
        let mask = Some([1, 2, 3, 4]);
        let long = vec![b' '; MAX_REQUEST_BYTES + 1];
        let bomb = Deflater::new().message(&long, true);
        for (payload, reserved) in [(&long, 0), (&bomb, 0x40)] {
            let mut reader = Reader::new(Sender::Client, Some(BOTH));
            reader.buffer().extend_from_slice(&frame(&Frame { mask, reserved, ..Frame::of(payload) }));
            let mut kept = 0;
            let why = loop {
                match reader.next() {
                    Ok(passing) => assert!(passing.is_some(), "it is all here"),
                    Err(why) => break why,
                }
                assert!(reader.kept_bytes() - kept < 512 * 1024, "a bomb goes off step by step");
                kept = reader.kept_bytes();
            };
            assert_eq!(why, Unreadable::TooLong);
        }
    }

    #[test]
    fn of_a_servers_endless_message_both_ends_are_kept() {
        let mut reader = Reader::new(Sender::Server, Some(BOTH));
        let part = vec![b'x'; 1024 * 1024];
        let mut send = |opcode, is_final, payload: &[u8]| {
            reader.buffer().extend_from_slice(&frame(&Frame { opcode, is_final, ..Frame::of(payload) }));
            reader.next().unwrap().unwrap();
        };
        send(1, false, b"{\"type\":\"a.b\"");
        (0..64).for_each(|_| send(0, false, &part));
        send(0, true, b"the end");
        let Event::Oversized { start, end } = reader.message() else { panic!("too long to be kept") };
        assert!(start.starts_with(b"{\"type\":\"a.b\"xx") && start.len() < 1_000);
        assert!(end.ends_with(b"xthe end") && end.len() < 200_000);
        assert!(reader.message.capacity() < 1024);
    }
}
