//! The upstream: one streamed message in Anthropic's shape, each event stamped with the instant of its writing.
//!
//! Leaner than the mock provider of the tests: it keeps no book.
use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::BodyExt as _;
use hyper::body::{Body, Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use support::clock::mono_ns;
use support::tls::TestCa;
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, Sleep, sleep_until};
use tokio_rustls::TlsAcceptor;

/// Events of an answer.
pub const EVENTS: usize = 200;
/// Bytes of an answer: what fills up the text of the events is chosen so.
const ANSWER_BYTES: usize = 33_000;
/// Name that the certificate is good for, besides `localhost`.
pub const NAME: &str = "bench.test";
/// Header of the pause between two events, microseconds.
pub const PACE: &str = "x-bench-pace-us";
/// Header of an answer that stays open after this many events.
pub const HOLD_AFTER: &str = "x-bench-hold-after";
/// Where an event's stamp begins; it is as long as the largest instant.
pub const STAMP: &str = "\"text\":\"";
pub const STAMP_DIGITS: usize = 20;

/// Serves until it is dropped.
pub struct Upstream {
    http: SocketAddr,
    https: SocketAddr,
    ca_dir: TempDir,
    _runtime: tokio::runtime::Runtime,
}

impl Upstream {
    /// On 127.0.0.1, plain and over TLS.
    pub fn start() -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let ca = TestCa::new();
        let ca_dir = tempfile::tempdir().unwrap();
        std::fs::write(ca_dir.path().join("ca.pem"), ca.pem()).unwrap();
        let tls = TlsAcceptor::from(ca.server_config(&[NAME, "localhost"], &[b"http/1.1"]));
        let (http, https) = runtime.block_on(async { (listen(None).await, listen(Some(tls)).await) });
        Self { http, https, ca_dir, _runtime: runtime }
    }

    pub fn http(&self) -> SocketAddr {
        self.http
    }

    pub fn https(&self) -> SocketAddr {
        self.https
    }

    /// Its CA's certificate, PEM.
    pub fn ca_file(&self) -> PathBuf {
        self.ca_dir.path().join("ca.pem")
    }
}

/// Length of a whole answer.
pub fn answer_bytes() -> usize {
    (0..EVENTS).map(|index| event(index).len()).sum()
}

async fn listen(tls: Option<TlsAcceptor>) -> SocketAddr {
    let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            stream.set_nodelay(true).unwrap();
            let tls = tls.clone();
            tokio::spawn(async move {
                match tls {
                    None => serve(stream).await,
                    Some(tls) => match tls.accept(stream).await {
                        Ok(stream) => serve(stream).await,
                        Err(error) => eprintln!("upstream: TLS handshake: {error}"),
                    },
                }
            });
        }
    });
    address
}

async fn serve(stream: impl AsyncRead + AsyncWrite + Unpin) {
    let service = service_fn(|request: Request<Incoming>| async move {
        let (head, body) = request.into_parts();
        drop(body.collect().await);
        let answer = Response::builder().header("content-type", "text/event-stream");
        Ok::<_, Infallible>(answer.body(Events::asked_by(&head.headers)).unwrap())
    });
    // its errors are hang-ups of clients
    drop(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await);
}

/// The events of one answer, at their pace.
struct Events {
    next: usize,
    pace: Duration,
    hold_after: usize,
    due: Pin<Box<Sleep>>,
}

impl Events {
    fn asked_by(headers: &HeaderMap) -> Self {
        let number = |name| headers.get(name).and_then(|value| value.to_str().ok()?.parse().ok());
        Self {
            next: 0,
            pace: Duration::from_micros(number(PACE).unwrap_or(0)),
            hold_after: number(HOLD_AFTER).map_or(usize::MAX, |after| usize::try_from(after).unwrap()),
            due: Box::pin(sleep_until(Instant::now())),
        }
    }
}

impl Body for Events {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.next == EVENTS {
            return Poll::Ready(None);
        }
        if self.next >= self.hold_after {
            return Poll::Pending;
        }
        if !self.pace.is_zero() {
            ready!(self.due.as_mut().poll(cx));
            let next = self.due.deadline() + self.pace;
            self.due.as_mut().reset(next);
        }
        let event = event(self.next);
        self.next += 1;
        Poll::Ready(Some(Ok(Frame::data(event.into()))))
    }
}

/// One event by its place: head, text, usage, end.
fn event(index: usize) -> String {
    match index {
        0 => framed(
            "message_start",
            r#"{"type":"message_start","message":{"id":"msg_bench","type":"message","role":"assistant","model":"claude-bench-1","content":[],"stop_reason":null,"usage":{"input_tokens":500,"output_tokens":1}}}"#,
        ),
        1 => framed(
            "content_block_start",
            r#"{"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}"#,
        ),
        _ if index == EVENTS - 2 => framed(
            "message_delta",
            r#"{"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"output_tokens":1000}}"#,
        ),
        _ if index == EVENTS - 1 => framed("message_stop", r#"{"type":"message_stop"}"#),
        _ => text(),
    }
}

/// A piece of text that begins with the instant.
fn text() -> String {
    const FRAME_BYTES: usize = 127;
    let filling = "x".repeat(ANSWER_BYTES / EVENTS - FRAME_BYTES);
    let data = format!(
        r#"{{"type":"content_block_delta","index":0,"delta":{{"type":"text_delta","text":"{:0digits$}{filling}"}}}}"#,
        mono_ns(),
        digits = STAMP_DIGITS,
    );
    framed("content_block_delta", &data)
}

fn framed(name: &str, data: &str) -> String {
    format!("event: {name}\ndata: {data}\n\n")
}
