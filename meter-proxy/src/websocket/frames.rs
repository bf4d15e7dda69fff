//! WebSocket frames beside the bytes that carry them: every byte comes out again, in order, with what it is (RFC
//! 6455, 5).
//!
//! Payloads are handed on as they come, so that a frame's length costs no memory. Not here: compression, and what
//! messages say.
use std::io::Cursor;

use bytes::{Bytes, BytesMut};
use tungstenite::protocol::frame::FrameHeader;
use tungstenite::protocol::frame::coding::{Control, Data, OpCode};

/// Most compressed bytes of a client's message in one piece: it stands for a thousand times as many at most, for which
/// there must be memory before the next.
const MAX_COMPRESSED_BYTES: u64 = 256;
/// Longest payload of a control frame, bytes (RFC 6455, 5.5).
const MAX_CONTROL_BYTES: u64 = 125;
/// Longest payload of any frame, bytes: the highest bit must be 0 (RFC 6455, 5.2).
const MAX_FRAME_BYTES: u64 = u64::MAX >> 1;

/// Why bytes are no frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// An opcode that means nothing.
    #[error("a frame has an opcode without a meaning")]
    Opcode,
    /// A reserved bit that no extension explains.
    #[error("a frame has a reserved bit set")]
    Reserved,
    /// A client's frame without a mask, or a server's with one.
    #[error("a frame is masked, or not, against the rule")]
    Mask,
    /// A control frame that is long or in fragments.
    #[error("a control frame is too long, or in fragments")]
    Control,
    /// A continuation of nothing, or a message inside another.
    #[error("frames of messages are out of order")]
    Order,
    /// A length beyond all lengths.
    #[error("a frame has an impossible length")]
    Length,
}

/// Who sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sender {
    /// Masks its frames.
    Client,
    /// Does not.
    Server,
}

/// What the bytes of a [`Piece`] are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// One whole control frame.
    Control {
        /// It closes the connection.
        close: bool,
    },
    /// A part of a message.
    Data {
        /// The message is compressed.
        compressed: bool,
        /// The message ends with it.
        ends: bool,
    },
}

/// Bytes as they came, and what they carry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// As they came.
    pub wire: Bytes,
    /// What they carry, unmasked.
    pub payload: Bytes,
    /// What they are.
    pub part: Part,
}

/// A data frame whose payload is still to come.
struct Open {
    left_bytes: u64,
    mask: Option<[u8; 4]>,
    /// Place in the mask of the next byte.
    mask_at: usize,
    is_final: bool,
}

/// The frames of one direction.
pub struct Frames {
    sender: Sender,
    /// Messages may be compressed.
    deflate: bool,
    buffer: BytesMut,
    frame: Option<Open>,
    /// Whether the message under way is compressed.
    message: Option<bool>,
}

impl Frames {
    /// Begins behind the handshake. `deflate`: messages may be compressed.
    #[must_use]
    pub fn new(sender: Sender, deflate: bool) -> Self {
        Self { sender, deflate, buffer: BytesMut::new(), frame: None, message: None }
    }

    /// Where the next bytes go.
    pub fn buffer(&mut self) -> &mut BytesMut {
        &mut self.buffer
    }

    /// Whether a message, or a frame, has begun and not ended.
    #[must_use]
    pub fn is_amid(&self) -> bool {
        self.message.is_some() || !self.buffer.is_empty()
    }

    /// The next piece that has come; `None`: more bytes are needed.
    ///
    /// # Errors
    /// When the bytes are no frames; nothing that follows can be read then.
    pub fn next(&mut self) -> Result<Option<Piece>, FrameError> {
        if let Some(frame) = self.frame.take() {
            return Ok(self.payload(frame, 0));
        }
        let mut cursor = Cursor::new(&self.buffer[..]);
        let parsed = FrameHeader::parse(&mut cursor).map_err(|_| FrameError::Opcode)?;
        let Some((header, length)) = parsed else { return Ok(None) };
        let header_bytes = usize::try_from(cursor.position()).map_err(|_| FrameError::Length)?;
        self.check(&header, length)?;
        match header.opcode {
            OpCode::Control(kind) => self.control(kind, &header, header_bytes, length),
            OpCode::Data(_) if length > 0 && self.buffer.len() == header_bytes => Ok(None),
            OpCode::Data(kind) => {
                self.begin_frame(kind, header.rsv1)?;
                let FrameHeader { mask, is_final, .. } = header;
                Ok(self.payload(Open { left_bytes: length, mask, mask_at: 0, is_final }, header_bytes))
            }
        }
    }

    /// What holds for every frame.
    fn check(&self, header: &FrameHeader, length: u64) -> Result<(), FrameError> {
        let begins = matches!(header.opcode, OpCode::Data(Data::Text | Data::Binary));
        match () {
            () if header.rsv2 || header.rsv3 => Err(FrameError::Reserved),
            () if header.rsv1 && !(self.deflate && begins) => Err(FrameError::Reserved),
            () if header.mask.is_some() != (self.sender == Sender::Client) => Err(FrameError::Mask),
            () if length > MAX_FRAME_BYTES => Err(FrameError::Length),
            () => Ok(()),
        }
    }

    fn control(
        &mut self,
        kind: Control,
        header: &FrameHeader,
        header_bytes: usize,
        length: u64,
    ) -> Result<Option<Piece>, FrameError> {
        if !header.is_final || length > MAX_CONTROL_BYTES {
            return Err(FrameError::Control);
        }
        let whole = header_bytes + usize::try_from(length).map_err(|_| FrameError::Length)?;
        if self.buffer.len() < whole {
            return Ok(None);
        }
        let wire = self.buffer.split_to(whole).freeze();
        let payload = unmasked(&wire.slice(header_bytes..), header.mask, 0);
        Ok(Some(Piece { wire, payload, part: Part::Control { close: kind == Control::Close } }))
    }

    fn begin_frame(&mut self, kind: Data, compressed: bool) -> Result<(), FrameError> {
        match (kind, self.message) {
            (Data::Continue, Some(_)) => {}
            (Data::Text | Data::Binary, None) => self.message = Some(compressed),
            _ => return Err(FrameError::Order),
        }
        Ok(())
    }

    /// What has come of a data frame's payload, behind `header_bytes` of its header.
    fn payload(&mut self, mut frame: Open, header_bytes: usize) -> Option<Piece> {
        let come = (self.buffer.len() - header_bytes) as u64;
        let compressed = self.message.unwrap_or_default();
        let may_be_bomb = compressed && self.sender == Sender::Client;
        let most = if may_be_bomb { MAX_COMPRESSED_BYTES } else { u64::MAX };
        let taken = usize::try_from(come.min(frame.left_bytes).min(most)).unwrap_or(usize::MAX);
        if taken == 0 && frame.left_bytes > 0 {
            self.frame = Some(frame);
            return None;
        }
        let wire = self.buffer.split_to(header_bytes + taken).freeze();
        let payload = unmasked(&wire.slice(header_bytes..), frame.mask, frame.mask_at);
        frame.left_bytes -= taken as u64;
        frame.mask_at = (frame.mask_at + taken) % 4;
        let frame_ends = frame.left_bytes == 0;
        let ends = frame_ends && frame.is_final;
        if ends {
            self.message = None;
        }
        self.frame = (!frame_ends).then_some(frame);
        Some(Piece { wire, payload, part: Part::Data { compressed, ends } })
    }
}

/// The payload without its mask, whose byte at `at` is the first one's (RFC 6455, 5.3).
fn unmasked(payload: &Bytes, mask: Option<[u8; 4]>, at: usize) -> Bytes {
    match mask {
        None => payload.clone(),
        Some(mask) => {
            payload.iter().zip(mask.iter().cycle().skip(at)).map(|(byte, key)| byte ^ key).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::websocket::testing::{Frame, frame};

    /// All pieces of `wire`, which comes in parts that end at `cuts`.
    fn pieces(sender: Sender, wire: &[u8], cuts: &[usize]) -> Result<Vec<Piece>, FrameError> {
        let mut frames = Frames::new(sender, true);
        let mut pieces = Vec::new();
        let mut from = 0;
        for to in cuts.iter().copied().chain([wire.len()]) {
            frames.buffer().extend_from_slice(&wire[from..to]);
            from = to;
            while let Some(piece) = frames.next()? {
                pieces.push(piece);
            }
        }
        Ok(pieces)
    }

    /// Messages and control frames as (compressed, payload), whatever the pieces.
    fn messages(pieces: &[Piece]) -> Vec<(Option<bool>, Vec<u8>)> {
        let (mut messages, mut open) = (Vec::new(), Vec::new());
        for piece in pieces {
            match piece.part {
                Part::Control { .. } => messages.push((None, piece.payload.to_vec())),
                Part::Data { compressed, ends } => {
                    open.extend_from_slice(&piece.payload);
                    if ends {
                        messages.push((Some(compressed), std::mem::take(&mut open)));
                    }
                }
            }
        }
        messages
    }

    fn frames_of(masked: bool, payloads: &[(Vec<u8>, bool)]) -> Vec<u8> {
        let mut wire = Vec::new();
        for (payload, ping) in payloads {
            let (first, rest) = payload.split_at(payload.len() / 2);
            let mask = masked.then_some([1, 2, 3, 255]);
            wire.extend(frame(&Frame { opcode: 1, is_final: false, mask, ..Frame::of(first) }));
            if *ping {
                wire.extend(frame(&Frame { opcode: 9, mask, ..Frame::of(b"still there?") }));
            }
            wire.extend(frame(&Frame { opcode: 0, mask, ..Frame::of(rest) }));
        }
        wire
    }

    proptest! {
        #[test]
        fn however_bytes_are_cut_the_messages_are_the_same_and_no_byte_is_lost(
            payloads in prop::collection::vec((prop::collection::vec(any::<u8>(), 0..300), any::<bool>()), 1..5),
            masked: bool,
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..20),
        ) {
            let wire = frames_of(masked, &payloads);
            let sender = if masked { Sender::Client } else { Sender::Server };
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(wire.len())).collect();
            cuts.sort_unstable();
            let cut = pieces(sender, &wire, &cuts).unwrap();
            prop_assert_eq!(messages(&cut), messages(&pieces(sender, &wire, &[]).unwrap()));
            let passed: Vec<u8> = cut.iter().flat_map(|piece| piece.wire.to_vec()).collect();
            prop_assert_eq!(passed, wire);
            let data: Vec<Vec<u8>> = messages(&cut).into_iter().filter_map(|(data, text)| data.map(|_| text)).collect();
            prop_assert_eq!(data, payloads.into_iter().map(|(payload, _)| payload).collect::<Vec<_>>());
        }

        #[test]
        fn whatever_comes_is_read_or_refused(wire in prop::collection::vec(any::<u8>(), 0..400), client: bool) {
            let sender = if client { Sender::Client } else { Sender::Server };
            if let Ok(pieces) = pieces(sender, &wire, &[]) {
                let passed: Vec<u8> = pieces.iter().flat_map(|piece| piece.wire.to_vec()).collect();
                prop_assert!(wire.starts_with(&passed));
            }
        }
    }

    #[test]
    fn what_the_protocol_forbids_is_refused() {
        let mask = Some([9, 8, 7, 6]);
        let of = |frames: &[Frame<'_>]| frames.iter().flat_map(frame).collect::<Vec<u8>>();
        let text = Frame::of(b"x");
        let table = [
            (Sender::Client, of(&[text]), FrameError::Mask),
            (Sender::Server, of(&[Frame { mask, ..text }]), FrameError::Mask),
            (Sender::Server, of(&[Frame { opcode: 3, ..text }]), FrameError::Opcode),
            (Sender::Server, of(&[Frame { opcode: 11, ..text }]), FrameError::Opcode),
            (Sender::Server, of(&[Frame { reserved: 0x20, ..text }]), FrameError::Reserved),
            (Sender::Server, of(&[Frame { reserved: 0x10, ..text }]), FrameError::Reserved),
            (Sender::Server, of(&[Frame { opcode: 9, reserved: 0x40, ..text }]), FrameError::Reserved),
            (Sender::Server, of(&[Frame { opcode: 9, is_final: false, ..text }]), FrameError::Control),
            (Sender::Server, of(&[Frame { opcode: 8, ..Frame::of(&[b'x'; 126]) }]), FrameError::Control),
            (Sender::Server, of(&[Frame { opcode: 0, ..text }]), FrameError::Order),
            (Sender::Server, of(&[Frame { is_final: false, ..text }, text]), FrameError::Order),
            (Sender::Server, [&[0x81, 127][..], &[0xff; 8]].concat(), FrameError::Length),
        ];
        for (sender, wire, expected) in table {
            assert_eq!(pieces(sender, &wire, &[]), Err(expected), "{wire:02x?}");
        }
        let mut plain = Frames::new(Sender::Server, false);
        plain.buffer().extend_from_slice(&frame(&Frame { reserved: 0x40, ..text }));
        assert_eq!(plain.next(), Err(FrameError::Reserved), "nobody agreed on compression");
    }

    #[test]
    fn a_frame_of_any_length_keeps_nothing() {
        let mut frames = Frames::new(Sender::Server, false);
        frames.buffer().extend_from_slice(&[0x81, 127, 0, 0, 0, 0, 0x40, 0, 0, 0]);
        assert_eq!(frames.next(), Ok(None));
        for _ in 0..64 {
            frames.buffer().extend_from_slice(&[b'x'; 1024]);
            assert_eq!(frames.next().unwrap().unwrap().payload.len(), 1024);
            assert_eq!(frames.next(), Ok(None));
        }
        assert!(frames.is_amid() && frames.buffer().is_empty());
    }
}
