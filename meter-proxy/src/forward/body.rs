//! The body of a request on its way to a provider.
//!
//! Not here: what of it the gate reads before.
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Sleep;

use crate::activity::Activity;

/// Longest wait for the next piece of a request's body, at the gate and on its way.
pub const BODY_TIMEOUT: Duration = Duration::from_secs(60);

/// A request's body: what the gate has read of it, then the rest as it comes, without trailers.
pub struct Outgoing {
    begun: Option<Bytes>,
    rest: Option<Incoming>,
    /// Runs while the client sends nothing: a request under way holds a reservation.
    silence: Option<Pin<Box<Sleep>>>,
    /// Notes when it is asked for, which is when there is a connection.
    pub(super) way_out: Activity,
    _room: Option<OwnedSemaphorePermit>,
}

impl Outgoing {
    /// A body of which nothing was read.
    #[must_use]
    pub fn whole(body: Incoming) -> Self {
        Self::new(None, (!body.is_end_stream()).then_some(body), None)
    }

    /// A body of which `begun` was read, in memory that `room` stands for; no `rest` when that is all of it.
    #[must_use]
    pub fn begun(begun: Bytes, rest: Option<Incoming>, room: Option<OwnedSemaphorePermit>) -> Self {
        Self::new((!begun.is_empty()).then_some(begun), rest, room)
    }

    fn new(begun: Option<Bytes>, rest: Option<Incoming>, room: Option<OwnedSemaphorePermit>) -> Self {
        let way_out = Activity::default();
        if begun.is_none() && rest.is_none() {
            // Nobody asks for an empty body, so its head may leave at any time.
            way_out.note();
        }
        Self { begun, rest, silence: None, way_out, _room: room }
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
        let Some(rest) = &mut self.rest else { return Poll::Ready(None) };
        if let Poll::Ready(frame) = Pin::new(rest).poll_frame(cx) {
            self.silence = None;
            let data = frame.map(|frame| frame.map_err(io::Error::other)).filter(|frame| !is_trailers(frame));
            return Poll::Ready(data);
        }
        let silence = self.silence.get_or_insert_with(|| Box::pin(tokio::time::sleep(BODY_TIMEOUT)));
        silence.as_mut().poll(cx).map(|()| Some(Err(io::ErrorKind::TimedOut.into())))
    }

    fn is_end_stream(&self) -> bool {
        self.begun.is_none() && self.rest.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
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

/// Trailers are the last frame of a body.
fn is_trailers(frame: &io::Result<Frame<Bytes>>) -> bool {
    frame.as_ref().is_ok_and(Frame::is_trailers)
}
