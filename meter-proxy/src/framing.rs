//! HTTP towards clients, with every bound set: what the meter and the lane serve connections with.
//!
//! Not here: what is answered, and how long a connection of HTTP/2 may rest (`flights`).
use std::time::Duration;

use hyper::server::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioTimer};

/// Names of the protocols in TLS (ALPN), RFC 7301 and RFC 9113, 3.1.
pub const ALPN_HTTP2: &[u8] = b"h2";
/// As above.
pub const ALPN_HTTP1: &[u8] = b"http/1.1";
/// What a client of HTTP/2 begins with: RFC 9113, 3.4.
pub const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Longest head of a request of HTTP/1.1, and most of a message that waits here, bytes.
const MAX_BUFFER_BYTES: usize = 32 * 1024;
/// Most headers of a request of HTTP/1.1; those of HTTP/2 are bounded by their length alone.
const MAX_HEADERS: usize = 128;

/// Most streams of one connection at a time.
const MAX_STREAMS: u32 = 128;
/// How much of one request's body, and of all of a connection's, may come before it is read, bytes. Clients are
/// near: a small window does not slow them down.
const STREAM_WINDOW_BYTES: u32 = 64 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 256 * 1024;
/// Longest head of a request of HTTP/2, bytes by the count of RFC 9113, 6.5.2.
const MAX_HEADER_LIST_BYTES: u32 = 32 * 1024;
/// Longest payload of a frame, bytes: the smallest that may be asked for.
const MAX_FRAME_BYTES: u32 = 16 * 1024;
/// Memory for names and values of headers that were sent before, bytes.
const HEADER_TABLE_BYTES: u32 = 4 * 1024;
/// Most streams that a client takes back before they are looked at, and most that are refused for what is wrong
/// with them, before the connection is closed.
const MAX_RESET_UNSEEN: usize = 20;
const MAX_RESET_FOR_ERRORS: usize = 64;

/// What a connection speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.1: a request at a time.
    Http1,
    /// HTTP/2: many at a time.
    Http2,
}

impl Protocol {
    /// What was agreed on in TLS; who says nothing speaks HTTP/1.1.
    #[must_use]
    pub fn by_alpn(agreed: Option<&[u8]>) -> Self {
        if agreed == Some(ALPN_HTTP2) { Self::Http2 } else { Self::Http1 }
    }
}

/// HTTP/1.1. `head_timeout`: longest wait for the head of the next request, an idle connection's included.
#[must_use]
pub fn http1(head_timeout: Duration) -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(head_timeout)
        .max_headers(MAX_HEADERS)
        .max_header_size(MAX_BUFFER_BYTES)
        .max_buf_size(MAX_BUFFER_BYTES)
        .auto_date_header(false);
    builder
}

/// HTTP/2. No client is asked whether it still lives: one in a silent cut could not answer, and is to find its
/// connection as it was. Extended CONNECT (RFC 8441) is not offered, so asking for it is an error of its stream.
#[must_use]
pub fn http2() -> http2::Builder<TokioExecutor> {
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .keep_alive_interval(None)
        .max_concurrent_streams(MAX_STREAMS)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .adaptive_window(false)
        .max_frame_size(MAX_FRAME_BYTES)
        .max_header_list_size(MAX_HEADER_LIST_BYTES)
        .header_table_size(HEADER_TABLE_BYTES)
        .max_send_buf_size(MAX_BUFFER_BYTES)
        .max_pending_accept_reset_streams(MAX_RESET_UNSEEN)
        .max_local_error_reset_streams(MAX_RESET_FOR_ERRORS)
        .auto_date_header(false);
    builder
}
