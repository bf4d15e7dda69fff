//! HTTP/2 by hand, frame by frame, as no library would send it: RFC 9113, 4.1 and 6.
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::ops::Range;
use std::time::Duration;

use super::Rig;

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const CONTINUATION: u8 = 9;

/// The reason "cancel" of a reset, RFC 9113, 7.
pub const CANCEL: [u8; 4] = [0, 0, 0, 8];

pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;

/// One frame.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// The head of a request to a path of the gateway at `named`: indexed and literal fields, RFC 7541, 6.
pub fn post(named: &str, path: &str) -> Vec<u8> {
    let length = |text: &str| u8::try_from(text.len()).unwrap();
    let (post, http) = (0x83, 0x86);
    let head = [&[post, http, 4, length(path)][..], path.as_bytes(), &[1, length(named)], named.as_bytes()];
    head.concat()
}

/// A connection to the meter's own address that began as HTTP/2.
pub struct Raw {
    stream: TcpStream,
    /// What the meter is called in requests.
    named: String,
}

impl Raw {
    /// Begins with these settings, six bytes each.
    pub fn begin(rig: &Rig, settings: &[u8]) -> Self {
        let mut stream = rig.connect();
        stream.set_nodelay(true).unwrap();
        stream.set_write_timeout(Some(Duration::from_secs(2))).unwrap();
        stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").unwrap();
        stream.write_all(&frame(SETTINGS, 0, 0, settings)).unwrap();
        Self { stream, named: rig.address.to_string() }
    }

    /// Says this; false when nobody takes it any more.
    pub fn say(&mut self, bytes: &[u8]) -> bool {
        self.stream.write_all(bytes).is_ok()
    }

    /// Sends requests to `path`, all with these flags, each reset at once if that is wanted; as [`Raw::say`].
    pub fn ask(&mut self, path: &str, numbers: Range<u32>, flags: u8, then_reset: bool) -> bool {
        let head = post(&self.named, path);
        let one = |number| {
            let id = 2 * number + 1;
            let begun = frame(HEADERS, flags, id, &head);
            if then_reset { [begun, frame(RST_STREAM, 0, id, &CANCEL)].concat() } else { begun }
        };
        let all: Vec<u8> = numbers.flat_map(one).collect();
        self.say(&all)
    }

    /// Reads away what has come; false once the meter has closed the connection.
    pub fn hear(&mut self) -> bool {
        self.stream.set_nonblocking(true).unwrap();
        let mut buffer = [0; 16 * 1024];
        let is_open = loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => break false,
                Ok(_) => {}
                Err(error) => break error.kind() == ErrorKind::WouldBlock,
            }
        };
        self.stream.set_nonblocking(false).unwrap();
        is_open
    }
}
