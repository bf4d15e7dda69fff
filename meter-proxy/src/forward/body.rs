//! The body of a request on its way to a provider.
//!
//! Not here: what of it the gate reads before.
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use hyper::body::{Body, Frame, SizeHint};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Sleep;

use crate::activity::Activity;
use crate::arriving::Arriving;

/// Longest wait for the next piece of a request's body, at the gate and on its way.
pub const BODY_TIMEOUT: Duration = Duration::from_secs(60);

/// A request's body: what the gate has read of it, then the rest as it comes.
pub struct Outgoing {
    begun: Option<Bytes>,
    rest: Option<Arriving>,
    trailers: Option<HeaderMap>,
    /// Runs while the client sends nothing: a request under way holds a reservation.
    silence: Option<Pin<Box<Sleep>>>,
    /// Notes when it is asked for, which is when there is a connection.
    pub(super) way_out: Activity,
    _room: Option<OwnedSemaphorePermit>,
}

impl Outgoing {
    /// A body of which nothing was read.
    #[must_use]
    pub fn whole(body: Arriving) -> Self {
        Self::new(None, (!body.is_end_stream()).then_some(body), None)
    }

    /// A body of which `begun` was read, in memory that `room` stands for; no `rest` when that is all of it.
    #[must_use]
    pub fn begun(begun: Bytes, rest: Option<Arriving>, room: Option<OwnedSemaphorePermit>) -> Self {
        Self::new((!begun.is_empty()).then_some(begun), rest, room)
    }

    /// The same, with the trailers that were read with all of it.
    #[must_use]
    pub fn with_trailers(self, trailers: Option<HeaderMap>) -> Self {
        Self { trailers, ..self }
    }

    /// The body, when it was read whole and is not empty.
    #[must_use]
    pub fn read_whole(&self) -> Option<&Bytes> {
        if self.rest.is_none() { self.begun.as_ref() } else { None }
    }

    /// Puts another body in the place of one that was read whole.
    pub fn replace(&mut self, body: Bytes) {
        self.begun = Some(body);
    }

    fn new(begun: Option<Bytes>, rest: Option<Arriving>, room: Option<OwnedSemaphorePermit>) -> Self {
        let way_out = Activity::default();
        if begun.is_none() && rest.is_none() {
            // Nobody asks for an empty body, so its head may leave at any time.
            way_out.note();
        }
        Self { begun, rest, trailers: None, silence: None, way_out, _room: room }
    }
}

impl Body for Outgoing {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        self.way_out.note();
        if let Some(begun) = self.begun.take() {
            return Poll::Ready(Some(Ok(Frame::data(begun))));
        }
        let Some(rest) = &mut self.rest else {
            return Poll::Ready(self.trailers.take().map(|trailers| Ok(Frame::trailers(trailers))));
        };
        if let Poll::Ready(frame) = Pin::new(rest).poll_frame(cx) {
            self.silence = None;
            return Poll::Ready(frame.map(|frame| frame.map_err(io::Error::other)));
        }
        let silence = self.silence.get_or_insert_with(|| Box::pin(tokio::time::sleep(BODY_TIMEOUT)));
        silence.as_mut().poll(cx).map(|()| Some(Err(io::ErrorKind::TimedOut.into())))
    }

    fn is_end_stream(&self) -> bool {
        let nothing_follows = self.begun.is_none() && self.trailers.is_none();
        nothing_follows && self.rest.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        if self.trailers.is_some() {
            // By HTTP/1.1 none follow a body of a stated length.
            return SizeHint::default();
        }
        let begun = self.begun.as_ref().map_or(0, |begun| u64::try_from(begun.len()).unwrap_or(u64::MAX));
        let rest = self.rest.as_ref().map_or(SizeHint::with_exact(0), Body::size_hint);
        let mut hint = SizeHint::new();
        hint.set_lower(rest.lower().saturating_add(begun));
        if let Some(upper) = rest.upper() {
            hint.set_upper(upper.saturating_add(begun));
        }
        hint
    }
}
