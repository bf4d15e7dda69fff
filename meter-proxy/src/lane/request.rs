//! The one request of a connection: read to its end, as far as that is bounded, and answered; or a CONNECT, which is
//! accepted.
//!
//! Not here: the answer's words (`refuse`), and what comes through a CONNECT.
use std::convert::Infallible;
use std::io;
use std::sync::OnceLock;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONNECTION, EXPECT, HeaderValue};
use http::request::Parts;
use http::{Method, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1::Parts as Left;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;

use crate::framing::http1;
use crate::hosts::Authority;
use crate::refuse;

/// Longest wait for the head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest that a body is read away before the answer, and most of it, bytes. Many clients read nothing before all
/// is sent; most requests are shorter.
const MAX_BODY_TIME: Duration = Duration::from_secs(5);
const MAX_BODY_BYTES: usize = 8 * 1024 * 1024;

/// What was said.
pub struct Spoken<S> {
    /// The connection; it is not ended.
    pub stream: S,
    /// What was read of it beyond.
    pub unread: Bytes,
    /// What was asked for by a CONNECT that was accepted; otherwise the answer was given.
    pub connect: Option<Authority>,
}

/// Answers the next request of a connection as `tell` says; accepts a CONNECT if it `may_connect`.
///
/// # Errors
/// When the connection breaks, or carries no request.
pub async fn answer<S>(
    stream: S,
    may_connect: bool,
    tell: impl Fn(&Parts) -> Response<Full<Bytes>> + Sync,
) -> io::Result<Spoken<S>>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let connect = OnceLock::new();
    let service = service_fn(|request: Request<Incoming>| async {
        if let Some(authority) = connect_target(&request).filter(|_| may_connect) {
            connect.get_or_init(|| authority);
            return Ok::<_, Infallible>(refuse::tunnel_open());
        }
        let mut answer = answer_to(request, &tell).await;
        answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        Ok(answer)
    });
    // A client that has said all it will say hears the answer too.
    let connection = http1(HEAD_TIMEOUT).half_close(true).serve_connection(TokioIo::new(stream), service);
    let served = connection.without_shutdown().await;
    let Left { io, read_buf, .. } = served.map_err(io::Error::other)?;
    Ok(Spoken { stream: io.into_inner(), unread: read_buf, connect: connect.into_inner() })
}

/// What a CONNECT asks for: RFC 9110, 9.3.6.
fn connect_target(request: &Request<Incoming>) -> Option<Authority> {
    let named = request.uri().authority().filter(|_| request.method() == Method::CONNECT)?;
    Authority::parse(named.as_str(), None).ok()
}

/// The answer to a request as `tell` says, once its body was read away. Who waits to be asked for that has not sent it,
/// and need not. The head takes no room meanwhile: there may be many requests at a time.
pub async fn answer_to(
    request: Request<Incoming>,
    tell: impl Fn(&Parts) -> Response<Full<Bytes>>,
) -> Response<Full<Bytes>> {
    let (head, body) = request.into_parts();
    let (answer, sends_body) = (tell(&head), !head.headers.contains_key(EXPECT));
    drop(head);
    if sends_body {
        read_away(body).await;
    }
    answer
}

/// Reads a body until it ends, or for as long and as far as is bounded.
async fn read_away(mut body: Incoming) {
    let mut left = MAX_BODY_BYTES;
    let until_its_end = async {
        while let Some(Ok(frame)) = body.frame().await {
            left = match left.checked_sub(frame.data_ref().map_or(0, Bytes::len)) {
                Some(left) => left,
                None => return tracing::debug!("a body is not read to its end"),
            };
        }
    };
    if timeout(MAX_BODY_TIME, until_its_end).await.is_err() {
        tracing::debug!("a body does not end");
    }
}
