//! The body of a message on its way in, from either side: an end that is none is told as a break.
//!
//! In HTTP/2 a stream that is reset without an error, or that the other side will not process, ends for hyper as if it
//! had come to its end. Not here: what is done with a body.
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::request::Parts;
use http::{Request, Response, Version};
use hyper::body::{Body, Frame, Incoming, SizeHint};

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

/// A body as it comes.
pub struct Arriving {
    body: Incoming,
    /// HTTP/2 says when a stream is at its end; bodies of HTTP/1.1 that end early are errors already.
    says_its_end: bool,
    /// What the message needs for as long as it comes.
    _kept: Option<Arc<()>>,
}

impl Arriving {
    /// The head and the body of a request.
    #[must_use]
    pub fn request(request: Request<Incoming>) -> (Parts, Self) {
        let (head, body) = request.into_parts();
        let says_its_end = head.version == Version::HTTP_2;
        (head, Self { body, says_its_end, _kept: None })
    }

    /// An answer; `kept` is dropped with its body.
    #[must_use]
    pub fn answer(answer: Response<Incoming>, kept: Arc<()>) -> Response<Self> {
        let says_its_end = answer.version() == Version::HTTP_2;
        answer.map(|body| Self { body, says_its_end, _kept: Some(kept) })
    }
}

impl Body for Arriving {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
            Some(frame) => Poll::Ready(Some(frame.map_err(Broken::from))),
            None if self.says_its_end && !self.body.is_end_stream() => Poll::Ready(Some(Err(Broken::Closed))),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
