//! The requests of a connection of HTTP/2, for clients that speak nothing else: each that is sent before the first
//! answer is answered, and then the connection ends.
//!
//! Not here: the answer's words (`refuse`), and how a client says that it speaks HTTP/2 in TLS.
use std::convert::Infallible;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::request::Parts;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Notify;
use tokio::time::timeout;

use super::request::answer_to;
use crate::framing::{HTTP2_PREFACE, http2};

/// Most requests at a time: with many, one connection would keep all others from the lane's thread.
const MAX_STREAMS: u32 = 8;
/// How long a connection may go on after its first answer.
const MAX_LAST: Duration = Duration::from_secs(2);

/// Whether these first words of a client are HTTP/2, as far as they go.
#[must_use]
pub fn begins(words: &[u8]) -> bool {
    !words.is_empty() && (words.starts_with(HTTP2_PREFACE) || HTTP2_PREFACE.starts_with(words))
}

/// Answers as `tell` says, and ends the connection: at once when its client goes along with that, and soon when not.
///
/// # Errors
/// When the connection breaks, carries no request, or goes on after its answer.
pub async fn answer(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    tell: impl Fn(&Parts) -> Response<Full<Bytes>> + Send + Sync + 'static,
) -> io::Result<()> {
    let (tell, answered) = (Arc::new(tell), Arc::new(Notify::new()));
    let service = service_fn(|request: Request<Incoming>| {
        let (tell, answered) = (Arc::clone(&tell), Arc::clone(&answered));
        async move {
            let answer = answer_to(request, &*tell).await;
            answered.notify_one();
            Ok::<_, Infallible>(answer)
        }
    });
    let mut http = http2();
    http.max_concurrent_streams(MAX_STREAMS);
    let mut connection = pin!(http.serve_connection(TokioIo::new(stream), service));
    tokio::select! {
        ended = connection.as_mut() => {
            return Err(ended.err().map_or(io::ErrorKind::UnexpectedEof.into(), io::Error::other));
        }
        () = answered.notified() => connection.as_mut().graceful_shutdown(),
    }
    timeout(MAX_LAST, connection).await?.map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_preface_is_known_by_its_beginning() {
        for words in [&b"PR"[..], b"PRI * HTTP/2.0\r\n", HTTP2_PREFACE, &[HTTP2_PREFACE, &[0; 9]].concat()] {
            assert!(begins(words), "{words:?}");
        }
        for words in [&b""[..], b"PRINT", b"PRI * HTTP/1.1\r\n", b"\0"] {
            assert!(!begins(words), "{words:?}");
        }
    }
}
