//! The body of a message on its way in, from either side: an end that is none is told as a break.
//!
//! In HTTP/2 a stream that is reset without an error, or that the other side will not process, ends for hyper as if it
//! had come to its end. What nobody wants of a request by HTTP/1.1 is read away. Not here: what is done with a body.
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::header::EXPECT;
use http::request::Parts;
use http::{Request, Response, Version};
use http_body_util::BodyExt;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::runtime::Handle;
use tokio::time::timeout;

/// Most of a request that is read away once it is answered, bytes: the largest requests of providers. And how long.
const MAX_UNWANTED_BYTES: usize = 32 * 1024 * 1024;
const UNWANTED_FOR: Duration = Duration::from_secs(10);

/// Why a body has no more to come, short of its end.
#[derive(Debug, thiserror::Error)]
pub enum Broken {
    /// The connection, or what is said on it, broke.
    #[error(transparent)]
    Connection(#[from] hyper::Error),
    /// The stream was closed without an error before its end.
    #[error("the stream was closed before its end")]
    Closed,
}

/// What becomes of the rest of a body that nobody wants.
#[derive(PartialEq, Eq)]
enum Unwanted {
    /// Its sender hears that it should stop.
    Stopped,
    /// It is read away: its sender may read nothing before all is sent.
    ReadAway,
    /// The same once something was read: its sender waits for that, by `Expect: 100-continue`.
    ReadAwayOnceBegun,
}

/// A body as it comes.
pub struct Arriving {
    /// `None` only while it is dropped.
    body: Option<Incoming>,
    /// HTTP/2 says when a stream is at its end; bodies of HTTP/1.1 that end early are errors already.
    says_its_end: bool,
    unwanted: Unwanted,
    /// What the message needs for as long as it comes.
    _kept: Option<Arc<()>>,
}

impl Arriving {
    /// The head and the body of a request.
    #[must_use]
    pub fn request(request: Request<Incoming>) -> (Parts, Self) {
        let (head, body) = request.into_parts();
        let says_its_end = head.version == Version::HTTP_2;
        let unwanted = match says_its_end {
            true => Unwanted::Stopped,
            false if head.headers.contains_key(EXPECT) => Unwanted::ReadAwayOnceBegun,
            false => Unwanted::ReadAway,
        };
        (head, Self { body: Some(body), says_its_end, unwanted, _kept: None })
    }

    /// An answer; `kept` is dropped with its body.
    #[must_use]
    pub fn answer(answer: Response<Incoming>, kept: Arc<()>) -> Response<Self> {
        let says_its_end = answer.version() == Version::HTTP_2;
        let unwanted = Unwanted::Stopped;
        answer.map(|body| Self { body: Some(body), says_its_end, unwanted, _kept: Some(kept) })
    }
}

impl Drop for Arriving {
    /// Were the connection closed with a part of a request unread, the kernel would reset it, and the client might
    /// never read its answer.
    fn drop(&mut self) {
        let rest = self.body.take().filter(|body| !body.is_end_stream());
        if let (Unwanted::ReadAway, Some(rest), Ok(runtime)) = (&self.unwanted, rest, Handle::try_current()) {
            runtime.spawn(timeout(UNWANTED_FOR, read_away(rest)));
        }
    }
}

/// Reads what nobody wants, until it ends, breaks or becomes too much.
async fn read_away(mut body: Incoming) {
    let mut left = MAX_UNWANTED_BYTES;
    while let Some(Ok(frame)) = body.frame().await {
        let read = frame.data_ref().map_or(0, Bytes::len);
        let Some(less) = left.checked_sub(read) else { return };
        left = less;
    }
}

impl Body for Arriving {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        let Some(body) = &mut self.body else { return Poll::Ready(None) };
        let frame = ready!(Pin::new(&mut *body).poll_frame(cx));
        let is_at_its_end = body.is_end_stream();
        if self.unwanted == Unwanted::ReadAwayOnceBegun {
            self.unwanted = Unwanted::ReadAway;
        }
        match frame {
            Some(frame) => Poll::Ready(Some(frame.map_err(Broken::from))),
            None if self.says_its_end && !is_at_its_end => Poll::Ready(Some(Err(Broken::Closed))),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}
