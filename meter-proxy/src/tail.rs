//! The answer on its way to the client: bytes pass untouched, usage is seen, and the end is held back until its
//! settlement is durable. Streaming → Settling → Passing (→ Breaking).
//!
//! However the answer ends — at its end, by a hang-up on either side, by a cut — it is settled once. Not here:
//! what usage looks like (`exchange`).
use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::Response;
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE};
use http_body_util::{BodyExt, Either, Full};
use hyper::body::{Body, Frame, SizeHint};
use tokio::time::Sleep;

use crate::Meter;
use crate::arriving::{Arriving, Broken};
use crate::bottles::{Bottle, Standing};
use crate::flights::Flight;
use crate::forward::MAX_SILENCE;
use crate::gate::{Leave, Permit};
use crate::include_usage::Hiding;
use crate::settle;
use crate::silence::Silence;
use crate::stop::Stop;
use crate::tokens::Ending;

/// The body of every answer: the meter's own, or a provider's.
pub type AnswerBody = Either<Full<Bytes>, Tail>;

/// Most that is held back, bytes. An answer whose end is longer than this is broken off.
pub const MAX_HELD_BYTES: usize = 1024 * 1024;
/// Most of a document's end that is held back until it is settled, bytes: what tells where the usage stands, and
/// enough that nobody can leave with the answer and without its figures.
const DOCUMENT_END_BYTES: usize = 8 * 1024;
/// How long the usage is read for after the client left close to the end.
const READ_ON: Duration = Duration::from_secs(2);
/// How long what came before a break has to leave: the error makes a connection drop what it has not written yet.
const BREAK_AFTER: Duration = Duration::from_millis(50);

/// Why an answer is broken off.
#[derive(Debug, thiserror::Error)]
pub enum TailError {
    /// The provider's side broke. No source: by HTTP/2 the client would be told the provider's code, which may say
    /// that nothing is wrong, or that it may ask again for what is charged.
    #[error("the provider broke off: {0}")]
    Upstream(Broken),
    /// The provider sent nothing for too long.
    #[error("the provider sent nothing for {} s", MAX_SILENCE.as_secs())]
    Silent,
    /// The bottle was cut.
    #[error("the bottle was cut")]
    Cut,
    /// The controller stopped the exchange.
    #[error("the gate refuses the rest")]
    Refused,
    /// The settlement did not become durable in time.
    #[error("the settlement is not durable")]
    NotDurable,
    /// The end of the answer is longer than what may be held back.
    #[error("the end of the answer is too long to be held back")]
    TooLong,
}

type Waiting<T> = Pin<Box<dyn Future<Output = T> + Send>>;

enum Phase {
    /// Bytes pass, and are seen.
    Streaming(Box<Permit>),
    /// The settlement is sent; nothing passes until it is durable.
    Settling(Waiting<bool>),
    /// Settled, or free: what is held goes out, then the rest passes.
    Passing,
    /// Everything is handed over, and the break that follows is told in a moment.
    Breaking(TailError, Pin<Box<Sleep>>),
    /// Nothing more comes.
    Done,
}

/// The body of a provider's answer.
pub struct Tail {
    upstream: Option<Arriving>,
    phase: Phase,
    held: VecDeque<Frame<Bytes>>,
    held_bytes: usize,
    /// The usage-bearing end has begun: nothing passes any more.
    holding: bool,
    /// At least so many of the latest bytes are held back: only the end tells that a plain answer has ended.
    kept_back_bytes: usize,
    /// All that comes from upstream passes.
    length_is_known: bool,
    midstream: bool,
    settle_timeout: Duration,
    bottle: Arc<Bottle>,
    reopened: Option<Waiting<()>>,
    /// The provider's side broke; the client is told once it has what came before.
    broken: Option<TailError>,
    /// Hears whether it may go on.
    stop: Option<Stop>,
    /// How long the provider has sent nothing.
    silence: Silence,
    _flight: Flight,
}

/// Makes a provider's answer the client's. An answer without a body is settled before its head is sent; `None`
/// when that settlement is not durable in time: the answer may not be delivered.
pub async fn tail(
    meter: &Meter,
    bottle: Arc<Bottle>,
    flight: Flight,
    leave: Leave,
    answer: Response<Arriving>,
) -> Option<Response<AnswerBody>> {
    let (mut head, upstream) = answer.into_parts();
    let settings = meter.settings.borrow().clone();
    let mut tail = Tail {
        upstream: Some(upstream),
        phase: Phase::Passing,
        held: VecDeque::new(),
        held_bytes: 0,
        holding: false,
        kept_back_bytes: 0,
        length_is_known: true,
        midstream: settings.midstream,
        settle_timeout: settings.settle_timeout,
        bottle,
        reopened: None,
        broken: None,
        stop: None,
        silence: Silence::of_at_most(MAX_SILENCE),
        _flight: flight,
    };
    if let Leave::Metered(mut permit) = leave {
        let named = |name| head.headers.get(name).and_then(|value| value.to_str().ok());
        let text = |name| head.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
        permit.status = Some(head.status.as_u16());
        permit.exchange.head(head.status.as_u16(), text(CONTENT_TYPE), text(CONTENT_ENCODING));
        permit.exchange.counts_in_head(&named);
        if permit.hides_usage(text(CONTENT_ENCODING)) {
            head.headers.remove(CONTENT_LENGTH);
            tail.length_is_known = false;
        }
        tail.kept_back_bytes = match () {
            () if permit.exchange.is_stream() => 0,
            () if permit.exchange.is_document() => DOCUMENT_END_BYTES,
            () => 1,
        };
        tail.stop = Some(Stop::of(&permit, &head.headers));
        tail.phase = Phase::Streaming(permit);
        if tail.is_empty() && !tail.settled_at_once().await {
            return None;
        }
    }
    Some(Response::from_parts(head, Either::Right(tail)))
}

impl Tail {
    /// Whether there is no body: then nobody would poll it.
    fn is_empty(&self) -> bool {
        self.upstream.as_ref().is_some_and(Body::is_end_stream)
    }

    /// Settles an answer without a body; whether that became durable in time.
    async fn settled_at_once(&mut self) -> bool {
        self.at_end();
        match std::mem::replace(&mut self.phase, Phase::Done) {
            Phase::Settling(durable) => durable.await,
            _ => false,
        }
    }

    /// Sends the settlement; from here on it is waited for.
    fn settle(&mut self, ending: Ending) {
        let Phase::Streaming(mut permit) = std::mem::replace(&mut self.phase, Phase::Passing) else { return };
        let left = permit.hiding.as_mut().map(Hiding::end).unwrap_or_default();
        self.held_bytes += left.len();
        self.held.extend((!left.is_empty()).then(|| Frame::data(Bytes::from(left))));
        if let Some(settling) = settle::settle(permit, ending) {
            let bounded = tokio::time::timeout(self.settle_timeout, settling.durable());
            self.phase = Phase::Settling(Box::pin(async { bounded.await.unwrap_or(false) }));
        }
    }

    /// Ends the answer with an error: upstream is closed at once, and settled if it was not.
    fn break_off(
        &mut self,
        ending: Ending,
        error: TailError,
    ) -> Poll<Option<Result<Frame<Bytes>, TailError>>> {
        if let Phase::Streaming(mut permit) = std::mem::replace(&mut self.phase, Phase::Done) {
            settle::end(&mut permit, ending);
        }
        self.upstream = None;
        self.held.clear();
        self.broken = None;
        tracing::debug!(%error, "an answer is broken off");
        Poll::Ready(Some(Err(error)))
    }

    /// The provider's side broke: what is held back, perhaps its reason, still goes out once that is settled.
    fn upstream_broke(&mut self, error: TailError) {
        tracing::debug!(%error, "a provider broke off");
        self.upstream = None;
        self.settle(Ending::UpstreamBroke);
        self.broken = Some(error);
    }

    /// Whether the answer is to end now, and with what words. One whose end is held back ends by itself.
    fn poll_stop(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        match (&self.phase, &mut self.stop) {
            (Phase::Streaming(_), Some(stop)) if !self.holding => stop.poll(cx),
            _ => Poll::Pending,
        }
    }

    /// Upstream is closed at once; `words` are the end of the answer, once that is settled.
    fn end_with(&mut self, words: Bytes) {
        self.upstream = None;
        self.settle(Ending::Cut);
        self.held_bytes += words.len();
        self.held.push_back(Frame::data(words));
    }

    /// Tells of the break, once what came before it has had its time.
    fn poll_break(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, TailError>>> {
        if let Phase::Breaking(_, pause) = &mut self.phase {
            ready!(pause.as_mut().poll(cx));
        }
        match std::mem::replace(&mut self.phase, Phase::Done) {
            Phase::Breaking(error, _) => Poll::Ready(Some(Err(error))),
            _ => Poll::Ready(None),
        }
    }

    /// Waits while the bottle is held. Ready with whether anything may pass at all.
    fn poll_open(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        loop {
            match self.bottle.standing() {
                Standing::Open => {
                    self.reopened = None;
                    return Poll::Ready(true);
                }
                Standing::Closed | Standing::Detached => return Poll::Ready(false),
                Standing::Held(_) => {
                    let reopened = self.reopened.get_or_insert_with(|| not_held(Arc::clone(&self.bottle)));
                    ready!(reopened.as_mut().poll(cx));
                    self.reopened = None;
                }
            }
        }
    }

    /// The next frame from upstream; `None` at its end.
    fn poll_upstream(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, TailError>>> {
        let Some(upstream) = &mut self.upstream else { return Poll::Ready(None) };
        if let Poll::Ready(frame) = Pin::new(upstream).poll_frame(cx) {
            self.silence.broken();
            return Poll::Ready(frame.map(|frame| frame.map_err(TailError::Upstream)));
        }
        self.silence.poll_too_long(cx).map(|()| Some(Err(TailError::Silent)))
    }

    /// One frame from upstream, seen. `None` in the result: it is held back.
    fn see(&mut self, frame: Frame<Bytes>) -> Result<Option<Frame<Bytes>>, TailError> {
        let Phase::Streaming(permit) = &mut self.phase else { return Ok(Some(frame)) };
        let mut terminal = false;
        if let Some(bytes) = frame.data_ref() {
            let step = permit.seen_now().feed(bytes);
            self.holding = step.hold;
            terminal = step.terminal;
            if step.changed && self.midstream && !terminal {
                permit.tell_progress();
            }
        }
        let frame = permit.shown(frame);
        if !terminal && frame.data_ref().is_some_and(Bytes::is_empty) {
            return Ok(None);
        }
        if !terminal && !self.holding && self.kept_back_bytes == 0 && self.held.is_empty() {
            self.note_passed(&frame);
            return Ok(Some(frame));
        }
        self.hold(frame)?;
        if terminal {
            self.settle(Ending::Completed);
        }
        Ok(None)
    }

    fn hold(&mut self, frame: Frame<Bytes>) -> Result<(), TailError> {
        self.held_bytes += frame.data_ref().map_or(0, Bytes::len);
        self.held.push_back(frame);
        if self.held_bytes > MAX_HELD_BYTES { Err(TailError::TooLong) } else { Ok(()) }
    }

    fn release(&mut self) -> Option<Frame<Bytes>> {
        let frame = self.held.pop_front()?;
        self.held_bytes -= frame.data_ref().map_or(0, Bytes::len);
        Some(frame)
    }

    /// The oldest frame, if enough stays behind it. Only data counts: trailers do not tell that the end is near
    /// before it has come.
    fn release_ahead(&mut self) -> Option<Frame<Bytes>> {
        let oldest_bytes = self.held.front()?.data_ref().map_or(0, Bytes::len);
        let may_go = !self.holding && self.held_bytes - oldest_bytes >= self.kept_back_bytes;
        let released = if may_go { self.release() } else { None };
        released.inspect(|frame| self.note_passed(frame))
    }

    /// What has passed tells where a last event could stand.
    fn note_passed(&mut self, frame: &Frame<Bytes>) {
        if let (Some(stop), Some(bytes)) = (&mut self.stop, frame.data_ref()) {
            stop.passed(bytes);
        }
    }

    /// The end of upstream: what streams is settled, what was settled is done.
    fn at_end(&mut self) {
        self.upstream = None;
        match self.phase {
            Phase::Streaming(_) => self.settle(Ending::Completed),
            _ => self.phase = Phase::Done,
        }
    }
}

/// Completes when the bottle is held no more.
fn not_held(bottle: Arc<Bottle>) -> Waiting<()> {
    Box::pin(async move {
        let mut standing = bottle.watch();
        // Fails only when the bottle's own sender is gone, and this task holds the bottle.
        drop(standing.wait_for(|standing| !matches!(standing, Standing::Held(_))).await);
    })
}

impl Body for Tail {
    type Data = Bytes;
    type Error = TailError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, TailError>>> {
        let this = &mut *self;
        loop {
            if !matches!(this.phase, Phase::Done) && !ready!(this.poll_open(cx)) {
                return this.break_off(Ending::Cut, TailError::Cut);
            }
            match &mut this.phase {
                Phase::Done => return Poll::Ready(None),
                Phase::Breaking(..) => return this.poll_break(cx),
                Phase::Settling(durable) => match ready!(durable.as_mut().poll(cx)) {
                    true => this.phase = Phase::Passing,
                    false => return this.break_off(Ending::Completed, TailError::NotDurable),
                },
                Phase::Passing if !this.held.is_empty() => return Poll::Ready(this.release().map(Ok)),
                Phase::Passing | Phase::Streaming(_) => {
                    match this.poll_stop(cx) {
                        Poll::Ready(Some(words)) => {
                            this.end_with(words);
                            continue;
                        }
                        Poll::Ready(None) => return this.break_off(Ending::Cut, TailError::Refused),
                        Poll::Pending => {}
                    }
                    if let Some(error) = this.broken.take() {
                        this.phase = Phase::Breaking(error, Box::pin(tokio::time::sleep(BREAK_AFTER)));
                        continue;
                    }
                    if let Some(frame) = this.release_ahead() {
                        return Poll::Ready(Some(Ok(frame)));
                    }
                    match ready!(this.poll_upstream(cx)) {
                        None => this.at_end(),
                        Some(Err(error)) => this.upstream_broke(error),
                        Some(Ok(frame)) => match this.see(frame) {
                            Ok(None) => {}
                            Ok(Some(frame)) => return Poll::Ready(Some(Ok(frame))),
                            Err(error) => return this.break_off(Ending::UpstreamBroke, error),
                        },
                    }
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self.phase {
            Phase::Done => true,
            Phase::Passing => {
                let nothing_follows = self.held.is_empty() && self.broken.is_none();
                nothing_follows && self.upstream.as_ref().is_none_or(Body::is_end_stream)
            }
            Phase::Streaming(_) | Phase::Settling(_) | Phase::Breaking(..) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.upstream {
            Some(upstream) if self.held.is_empty() && self.length_is_known => upstream.size_hint(),
            _ => SizeHint::default(),
        }
    }
}

impl Drop for Tail {
    /// The client left, or the connection was closed by a cut. Close to the end the usage is still read.
    fn drop(&mut self) {
        let Phase::Streaming(mut permit) = std::mem::replace(&mut self.phase, Phase::Done) else { return };
        let Some(upstream) = self.upstream.take() else { return };
        let ending = permit.ending_if_dropped();
        if upstream.is_end_stream() {
            settle::end(&mut permit, Ending::Completed);
        } else if (self.holding || permit.exchange.is_near_its_end())
            && ending == Ending::ClientGone
            && tokio::runtime::Handle::try_current().is_ok()
        {
            tokio::spawn(read_on(permit, upstream));
        } else {
            settle::end(&mut permit, ending);
        }
    }
}

/// Reads what is left of an answer whose usage has begun to come, for a bounded time.
async fn read_on(mut permit: Box<Permit>, mut upstream: Arriving) {
    let bottle = Arc::clone(&permit.bottle);
    let rest = async {
        while let Some(frame) = upstream.frame().await {
            let Ok(frame) = frame else { return false };
            let Some(bytes) = frame.data_ref() else { continue };
            let step = permit.seen_now().feed(bytes);
            if step.terminal {
                return true;
            }
            // what seemed to be the end was not: nothing is generated for nobody
            if !step.hold && !permit.exchange.is_near_its_end() {
                return false;
            }
        }
        true
    };
    let mut standing = bottle.watch();
    let ended = tokio::select! {
        ended = rest => ended,
        _ = standing.changed() => false,
        () = tokio::time::sleep(READ_ON) => false,
    };
    let ending = if ended { Ending::Completed } else { permit.ending_if_dropped() };
    settle::end(&mut permit, ending);
}
