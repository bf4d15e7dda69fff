//! A server's end of a WebSocket: whole texts in and out, compressed (permessage-deflate, RFC 7692) where that was
//! agreed on. Not here: the handshake, and checks of what a client may send.
use std::io::{self, Cursor, ErrorKind};

use bytes::{Buf as _, BytesMut};
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Control, Data, OpCode};
use tokio_tungstenite::tungstenite::protocol::frame::{Frame, FrameHeader};

/// What a sender leaves out at the end of each compressed message (RFC 7692, 7.2.1).
const TAIL: [u8; 4] = [0, 0, 0xff, 0xff];
/// Room for output that is made at a time.
const ROOM_BYTES: usize = 16 * 1024;

/// What a client says.
pub(super) enum Heard {
    Text {
        text: String,
        deflated: bool,
    },
    /// To be answered with the same payload.
    Ping(Vec<u8>),
    /// Nothing that is answered.
    Other,
}

/// See the top of this file.
pub(super) struct Frames<S> {
    stream: S,
    received: BytesMut,
    /// The message whose last frame has not come, and whether it is compressed.
    message: (Vec<u8>, bool),
    deflate: Option<Deflate>,
}

/// Both directions, whose messages build on earlier ones.
struct Deflate {
    client: Decompress,
    server: Compress,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Frames<S> {
    /// Begins behind the handshake; `deflate`: compression was agreed on.
    pub(super) fn new(stream: S, deflate: bool) -> Self {
        let deflate = deflate.then(|| Deflate {
            client: Decompress::new(false),
            server: Compress::new(Compression::default(), false),
        });
        Self { stream, received: BytesMut::new(), message: (Vec::new(), false), deflate }
    }

    /// What comes next; `None`: the client has closed or gone. Can be cancelled without loss.
    pub(super) async fn next(&mut self) -> io::Result<Option<Heard>> {
        loop {
            if let Some((header, payload)) = self.frame()? {
                return self.heard(&header, payload);
            }
            if self.stream.read_buf(&mut self.received).await? == 0 {
                return Ok(None);
            }
        }
    }

    /// Sends a text, compressed where that was agreed on.
    pub(super) async fn send(&mut self, text: &str) -> io::Result<()> {
        let mut payload = text.as_bytes().to_vec();
        if let Some(deflate) = &mut self.deflate {
            payload = compressed(&mut deflate.server, &payload)?;
        }
        let mut frame = Frame::message(payload, OpCode::Data(Data::Text), true);
        frame.header_mut().rsv1 = self.deflate.is_some();
        self.write(frame).await
    }

    /// Answers a ping.
    pub(super) async fn pong(&mut self, payload: Vec<u8>) -> io::Result<()> {
        self.write(Frame::pong(payload)).await
    }

    async fn write(&mut self, frame: Frame) -> io::Result<()> {
        let mut wire = Vec::new();
        frame.format(&mut wire).map_err(io::Error::other)?;
        self.stream.write_all(&wire).await?;
        self.stream.flush().await
    }

    /// The next frame without its mask, once all of it is here.
    fn frame(&mut self) -> io::Result<Option<(FrameHeader, Vec<u8>)>> {
        let mut cursor = Cursor::new(&self.received[..]);
        let Some((header, length)) = FrameHeader::parse(&mut cursor).map_err(io::Error::other)? else {
            return Ok(None);
        };
        let head = usize::try_from(cursor.position()).map_err(io::Error::other)?;
        let length = usize::try_from(length).map_err(io::Error::other)?;
        if self.received.len() - head < length {
            return Ok(None);
        }
        self.received.advance(head);
        let mask = header.mask.unwrap_or_default();
        let payload = self.received.split_to(length);
        Ok(Some((header, payload.iter().zip(mask.iter().cycle()).map(|(byte, key)| byte ^ key).collect())))
    }

    fn heard(&mut self, header: &FrameHeader, payload: Vec<u8>) -> io::Result<Option<Heard>> {
        match header.opcode {
            OpCode::Data(data) => {
                if data != Data::Continue {
                    self.message = (Vec::new(), header.rsv1);
                }
                self.message.0.extend(payload);
                if header.is_final { self.text().map(Some) } else { Ok(Some(Heard::Other)) }
            }
            OpCode::Control(Control::Close) => Ok(None),
            OpCode::Control(Control::Ping) => Ok(Some(Heard::Ping(payload))),
            OpCode::Control(_) => Ok(Some(Heard::Other)),
        }
    }

    fn text(&mut self) -> io::Result<Heard> {
        let (mut message, deflated) = std::mem::take(&mut self.message);
        if deflated {
            let not_agreed = || io::Error::new(ErrorKind::InvalidData, "no compression was agreed on");
            message = readable(&mut self.deflate.as_mut().ok_or_else(not_agreed)?.client, message)?;
        }
        let text = String::from_utf8(message).map_err(io::Error::other)?;
        Ok(Heard::Text { text, deflated })
    }
}

fn compressed(codec: &mut Compress, text: &[u8]) -> io::Result<Vec<u8>> {
    let (mut out, before) = (Vec::new(), codec.total_in());
    // output that fills its room is not all of it
    while out.len() == out.capacity() {
        out.reserve(ROOM_BYTES);
        let read = usize::try_from(codec.total_in() - before).map_err(io::Error::other)?;
        codec.compress_vec(&text[read..], &mut out, FlushCompress::Sync)?;
    }
    out.truncate(out.len() - TAIL.len());
    Ok(out)
}

fn readable(codec: &mut Decompress, mut message: Vec<u8>) -> io::Result<Vec<u8>> {
    message.extend(TAIL);
    let (mut out, before) = (Vec::new(), codec.total_in());
    while out.len() == out.capacity() {
        out.reserve(ROOM_BYTES);
        let read = usize::try_from(codec.total_in() - before).map_err(io::Error::other)?;
        codec.decompress_vec(&message[read..], &mut out, FlushDecompress::Sync)?;
    }
    Ok(out)
}
