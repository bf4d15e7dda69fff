//! WebSockets: the test is client and provider, and sees every byte at both ends.
mod bounds;
mod endings;
mod opening;
mod refusals;
mod responses;

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};

use serde_json::{Value, json};
use tungstenite::protocol::frame::Frame;
use tungstenite::protocol::frame::coding::{Control, Data, OpCode};

use crate::rig::{Answer, Rig, config, next_at};

/// Asks for a WebSocket; what follows the head is left out.
const UPGRADE: &str = concat!(
    "GET /codex/v1/responses?beta=1 HTTP/1.1\r\nHost: meter\r\nAuthorization: Bearer x\r\n",
    "Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
);

/// The provider's answer to it, likewise.
const ACCEPTED: &str = concat!(
    "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nx-models-etag: 7\r\n",
    "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"
);

const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

/// Both ends of a WebSocket through the meter.
struct Pair {
    client: TcpStream,
    server: TcpStream,
}

/// A meter and one open WebSocket, whose handshake adds `extensions` on both sides.
fn opened_with(extensions: &str) -> (Rig, Pair) {
    let origin = TcpListener::bind("127.0.0.1:0").unwrap();
    let rig = Rig::start(config(origin.local_addr().unwrap()));
    let pair = Pair::open(&rig, &origin, extensions);
    (rig, pair)
}

fn opened() -> (Rig, Pair) {
    opened_with("")
}

impl Pair {
    fn open(rig: &Rig, origin: &TcpListener, extensions: &str) -> Self {
        let mut client = rig.connect();
        write!(client, "{UPGRADE}{extensions}\r\n").unwrap();
        let mut server = next_at(origin);
        Answer::read_head(&mut server).unwrap();
        write!(server, "{ACCEPTED}{extensions}\r\n").unwrap();
        assert_eq!(Answer::read_head(&mut client).unwrap().status(), 101);
        Self { client, server }
    }

    /// Sends frames of the client's, and sees them arrive as they are.
    fn asks(&mut self, wire: &[u8]) {
        self.client.write_all(wire).unwrap();
        self.server_hears(wire);
    }

    fn server_hears(&mut self, wire: &[u8]) {
        assert_eq!(text(&take(&mut self.server, wire.len())), text(wire));
    }

    /// Sends frames of the provider's, and sees them arrive as they are.
    fn answers(&mut self, wire: &[u8]) {
        self.server.write_all(wire).unwrap();
        self.client_hears(wire);
    }

    fn client_hears(&mut self, wire: &[u8]) {
        assert_eq!(text(&take(&mut self.client, wire.len())), text(wire));
    }

    /// The next frame that the client gets: its opcode and payload.
    fn next_frame(&mut self) -> (u8, Vec<u8>) {
        let head = take(&mut self.client, 2);
        let length = match head[1] {
            126 => u16::from_be_bytes(take(&mut self.client, 2).try_into().unwrap()).into(),
            short => usize::from(short),
        };
        (head[0] & 0x0f, take(&mut self.client, length))
    }

    /// The next message that the client gets.
    fn next_json(&mut self) -> Value {
        let (opcode, payload) = self.next_frame();
        assert_eq!(opcode, 1, "{}", text(&payload));
        serde_json::from_slice(&payload).unwrap()
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn take(stream: &mut TcpStream, bytes: usize) -> Vec<u8> {
    let mut taken = vec![0; bytes];
    stream.read_exact(&mut taken).unwrap();
    taken
}

/// Whether nothing comes for a while.
fn is_silent(stream: &mut TcpStream) -> bool {
    stream.set_read_timeout(Some(std::time::Duration::from_millis(150))).unwrap();
    let read = stream.read(&mut [0; 64]);
    stream.set_read_timeout(Some(crate::rig::SOON)).unwrap();
    matches!(read, Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut))
}

/// Waits for the end, or the break, of a connection; what came before it.
fn rest(stream: &mut TcpStream) -> Vec<u8> {
    let mut rest = Vec::new();
    match stream.read_to_end(&mut rest) {
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
        Err(error) => panic!("the connection should have been closed: {error}"),
    }
    rest
}

fn written(mut frame: Frame, mask: Option<[u8; 4]>) -> Vec<u8> {
    frame.header_mut().mask = mask;
    let mut wire = Vec::new();
    frame.format(&mut wire).unwrap();
    wire
}

fn text_frame(text: &str, is_final: bool, mask: Option<[u8; 4]>) -> Vec<u8> {
    written(Frame::message(text.as_bytes().to_vec(), OpCode::Data(Data::Text), is_final), mask)
}

fn ping(mask: Option<[u8; 4]>) -> Vec<u8> {
    let mut frame = Frame::ping(b"there?".to_vec());
    frame.header_mut().opcode = OpCode::Control(Control::Ping);
    written(frame, mask)
}

fn close(mask: Option<[u8; 4]>) -> Vec<u8> {
    written(Frame::close(None), mask)
}

/// A client's message.
fn asking(message: &Value) -> Vec<u8> {
    text_frame(&message.to_string(), true, Some(MASK))
}

/// A provider's message.
fn saying(message: &Value) -> Vec<u8> {
    text_frame(&message.to_string(), true, None)
}

fn create() -> Value {
    json!({"type": "response.create", "model": "gpt-x", "input": "Say something long."})
}

fn create_in(lane: &str) -> Value {
    json!({"type": "response.create", "model": "gpt-x", "input": "x", "stream_id": lane})
}

fn created(id: &str) -> Value {
    json!({"type": "response.created", "response": {"id": id, "model": "gpt-x-1", "usage": null}})
}

fn delta(words: &str) -> Value {
    json!({"type": "response.output_text.delta", "item_id": "m", "delta": words})
}

fn completed(id: &str, input: u64, output: u64) -> Value {
    last("response.completed", id, input, output)
}

fn last(kind: &str, id: &str, input: u64, output: u64) -> Value {
    let usage = json!({
        "input_tokens": input, "input_tokens_details": {"cached_tokens": 1},
        "output_tokens": output, "output_tokens_details": {"reasoning_tokens": 2},
    });
    json!({"type": kind, "response": {"id": id, "model": "gpt-x-1", "usage": usage}})
}

/// The same event in a lane.
fn in_lane(mut event: Value, lane: &str) -> Value {
    event["stream_id"] = json!(lane);
    event
}
