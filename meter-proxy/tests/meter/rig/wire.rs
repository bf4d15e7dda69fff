//! Bytes on the wire: answers read, requests and answers written.
use std::io::{ErrorKind, Read};
use std::net::TcpStream;

use super::SOON;

/// An answer as it came over the wire.
#[derive(Debug, Clone)]
pub struct Answer {
    pub head: String,
    pub body: Vec<u8>,
}

impl Answer {
    /// Reads one answer: its head, then its body by `Content-Length`, chunks, or the end.
    ///
    /// # Errors
    /// When the connection ends, or breaks, before the answer does.
    pub fn read(stream: &mut impl Read) -> std::io::Result<Self> {
        let mut answer = Self::read_head(stream)?;
        if let Some(length) = answer.header("content-length") {
            answer.body = vec![0; length.parse().unwrap()];
            stream.read_exact(&mut answer.body)?;
        } else if answer.header("transfer-encoding").is_some() {
            while let Some(chunk) = read_chunk(stream)? {
                answer.body.extend(chunk);
            }
        }
        Ok(answer)
    }

    /// Reads the head alone.
    ///
    /// # Errors
    /// When the connection ends before it.
    pub fn read_head(stream: &mut impl Read) -> std::io::Result<Self> {
        let mut head = Vec::new();
        let mut byte = [0];
        while !head.ends_with(b"\r\n\r\n") {
            stream.read_exact(&mut byte)?;
            head.push(byte[0]);
        }
        Ok(Self { head: String::from_utf8(head).unwrap(), body: Vec::new() })
    }

    pub fn status(&self) -> u16 {
        self.head.split(' ').nth(1).unwrap().parse().unwrap()
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then_some(value.trim())
        })
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap()
    }
}

/// The next chunk of a chunked body; `None` at its end.
///
/// # Errors
/// When the connection ends before it.
pub fn read_chunk(stream: &mut impl Read) -> std::io::Result<Option<Vec<u8>>> {
    let mut size = Vec::new();
    let mut byte = [0];
    while !size.ends_with(b"\r\n") {
        stream.read_exact(&mut byte)?;
        size.push(byte[0]);
    }
    let length = usize::from_str_radix(std::str::from_utf8(&size).unwrap().trim(), 16).unwrap();
    let mut chunk = vec![0; length + 2];
    stream.read_exact(&mut chunk)?;
    chunk.truncate(length);
    Ok((length > 0).then_some(chunk))
}

/// Waits until the other side closes.
///
/// # Errors
/// Always: the connection is over.
pub fn until_closed(stream: &mut TcpStream) -> std::io::Result<()> {
    stream.set_read_timeout(Some(SOON))?;
    while stream.read(&mut [0; 64])? > 0 {}
    Err(std::io::ErrorKind::UnexpectedEof.into())
}

/// A JSON answer with a length.
pub fn json_answer(status: &str, body: &str) -> String {
    let length = body.len();
    format!("HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}")
}

/// One chunk.
pub fn chunk(text: &str) -> String {
    format!("{:x}\r\n{text}\r\n", text.len())
}

/// A request to a gateway path.
pub fn post(path: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "POST {path} HTTP/1.1\r\nHost: meter\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
    )
}

/// The alert "access denied", fatal: RFC 8446, 6.
pub const ACCESS_DENIED: [u8; 7] = [0x15, 3, 3, 0, 2, 2, 49];

/// What comes until the other side closes, in whichever way.
pub fn rest_of(stream: &mut TcpStream) -> Vec<u8> {
    let mut rest = Vec::new();
    match stream.read_to_end(&mut rest) {
        Ok(_) => {}
        Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset, "the connection should be closed"),
    }
    rest
}
