//! What the tests ask, and what the providers that they play answer.
use std::io::Write;
use std::net::TcpStream;
use std::sync::{Mutex, mpsc};

use meter_proxy::protocol::ToController;

use crate::rig::{Answer, Rig, Upstream, chunk, config, post, read_chunk, until_closed};

pub const MESSAGES: &str = "/claude/v1/messages";

pub const ASK: &str = r#"{"model":"claude-x","max_tokens":100,"messages":[{"role":"user","content":"hi"}]}"#;

pub const ASK_STREAM: &str =
    r#"{"model":"claude-x","max_tokens":100,"stream":true,"messages":[{"role":"user","content":"hi"}]}"#;

pub const JSON: &str =
    r#"{"type":"message","model":"claude-x","content":[],"usage":{"input_tokens":10,"output_tokens":5}}"#;

pub const STREAM_HEAD: &str =
    "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";

pub const START: &str = concat!(
    "event: message_start\n",
    r#"data: {"type":"message_start","message":{"model":"claude-x","usage":{"input_tokens":10,"output_tokens":1}}}"#,
    "\n\n"
);

pub const WORDS: &str = concat!(
    "event: content_block_delta\n",
    r#"data: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"Some words of an answer. "}}"#,
    "\n\n"
);

pub const DELTA: &str = concat!(
    "event: message_delta\n",
    r#"data: {"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"output_tokens":25}}"#,
    "\n\n"
);

pub const STOP: &str = "event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n";

/// A JSON answer in chunks: most of it first, then a little, then its end with the usage.
pub const PARTS: [&str; 3] = [
    r#"{"type":"message","model":"claude-x","content":["#,
    r#""w"],"#,
    r#""usage":{"input_tokens":10,"output_tokens":5}}"#,
];

pub const JSON_HEAD: &str =
    "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n";

pub fn is_settle(message: &ToController) -> bool {
    matches!(message, ToController::Settle(_))
}

/// An upstream that streams `parts`, one each time the test lets it; then waits to be closed.
pub fn stepped(parts: &'static [&'static str]) -> (Upstream, mpsc::Sender<()>) {
    let (step, steps) = mpsc::channel();
    let steps = Mutex::new(steps);
    let upstream = Upstream::start(move |stream| {
        stream.write_all(STREAM_HEAD.as_bytes())?;
        for part in parts {
            if steps.lock().unwrap().recv().is_err() {
                return until_closed(stream);
            }
            stream.write_all(chunk(part).as_bytes())?;
        }
        match steps.lock().unwrap().recv() {
            Ok(()) => stream.write_all(b"0\r\n\r\n"),
            Err(_) => until_closed(stream),
        }
    });
    (upstream, step)
}

/// A streamed answer of which the client has read the first part.
pub struct Begun {
    pub rig: Rig,
    pub client: TcpStream,
    pub step: mpsc::Sender<()>,
    pub upstream: Upstream,
}

/// Asks a [`stepped`] upstream, and reads the first part of its answer.
pub fn begun(path: &str, body: &str, parts: &'static [&'static str]) -> Begun {
    let (upstream, step) = stepped(parts);
    let rig = Rig::start(config(upstream.address));
    let mut client = rig.connect();
    client.write_all(post(path, body).as_bytes()).unwrap();
    step.send(()).unwrap();
    Answer::read_head(&mut client).unwrap();
    read_chunk(&mut client).unwrap();
    Begun { rig, client, step, upstream }
}
