//! The control API as a script uses it: raw requests to the socket, and the events it tells.
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::enforcer::Daemon;
use crate::sse::Reader;

/// How long an answer or an event may take.
const SOON: Duration = Duration::from_secs(10);

/// A raw HTTP/1.0 request: whatever comes back ends with the connection.
fn connect(daemon: &Daemon, method: &str, path: &str, body: &str) -> UnixStream {
    let mut stream = UnixStream::connect(daemon.socket()).expect("the control socket");
    let head =
        format!("{method} {path} HTTP/1.0\r\nHost: enforcer\r\nContent-Length: {}\r\n\r\n", body.len());
    stream.write_all(format!("{head}{body}").as_bytes()).expect("a request is taken");
    stream.set_read_timeout(Some(SOON)).expect("a bound on the answer's time");
    stream
}

/// Status and document of one request; null where the answer has none.
#[must_use]
pub fn request(daemon: &Daemon, method: &str, path: &str, body: &str) -> (u16, Value) {
    let mut answer = String::new();
    connect(daemon, method, path, body).read_to_string(&mut answer).expect("an answer");
    let (head, body) = answer.split_once("\r\n\r\n").expect("an answer has a head");
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("an HTTP status");
    (status, serde_json::from_str(body).unwrap_or_default())
}

/// What `GET /v1/events` tells from now on.
pub struct Events {
    stream: UnixStream,
    reader: Reader,
}

impl Events {
    /// Listens.
    #[must_use]
    pub fn follow(daemon: &Daemon) -> Self {
        Self { stream: connect(daemon, "GET", "/v1/events", ""), reader: Reader::default() }
    }

    /// The next event of this name for which it holds. Panics, with what came instead, when none comes soon.
    pub fn next(&mut self, name: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + SOON;
        let (mut seen, mut byte) = (Vec::new(), [0]);
        while Instant::now() < deadline {
            assert_eq!(self.stream.read(&mut byte).unwrap_or(0), 1, "the stream ended; it said {seen:#?}");
            for event in self.reader.feed(&byte) {
                let value = serde_json::from_str(&event.data).expect("an event's data is JSON");
                if event.name == name && wanted(&value) {
                    return value;
                }
                seen.push(event);
            }
        }
        panic!("not within {SOON:?}; it said {seen:#?}");
    }
}
