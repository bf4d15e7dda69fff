//! Requests on their way to a provider: headers that end here removed, the rest untouched, connections kept
//! for each bottle and authority.
//!
//! Not here: leave to forward (`gate`), and the answer's body (`tail`).
use std::error::Error as _;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::request::Parts;
use http::uri::Scheme;
use http::{Request, Response, Uri, Version};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::client::legacy::{self, Client};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::Sleep;

use crate::activity::Activity;
use crate::dial::{self, Chosen, DialError, Lookups};
use crate::gate::Leave;
use crate::hosts::Authority;
use crate::lock::lock;
use crate::refuse::{Reason, Refused};
use crate::route::Destination;
use crate::settings::Settings;
use crate::tokens::Ending;

/// Longest wait for the next piece of a request's body, at the gate and on its way.
pub const BODY_TIMEOUT: Duration = Duration::from_secs(60);
/// Longest silence of a provider, before its answer and in it: the longest that its own clients wait.
pub const MAX_SILENCE: Duration = Duration::from_secs(600);
/// Idle connections to one authority that a bottle keeps.
const MAX_IDLE: usize = 16;
/// How long it keeps them.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// Most of an answer that waits in the meter, and its longest head, bytes.
const MAX_BUFFER_BYTES: usize = 32 * 1024;

/// The connections of one bottle to providers. Those that the settings chose and those that clients chose are
/// kept apart: the address of the first was not judged.
pub struct Upstreams {
    settings: watch::Receiver<Arc<Settings>>,
    lookups: Lookups,
    clients: Mutex<Clients>,
}

struct Clients {
    by_settings: Client<Connector, Outgoing>,
    by_client: Client<Connector, Outgoing>,
}

impl Upstreams {
    /// Begins with no connection; `lookups` are those of the bottle.
    #[must_use]
    pub fn new(settings: watch::Receiver<Arc<Settings>>, lookups: Lookups) -> Self {
        let clients = Mutex::new(Clients::new(&settings, &lookups));
        Self { settings, lookups, clients }
    }

    /// Drops the idle connections; those in use end with their answers.
    pub fn forget(&self) {
        *lock(&self.clients) = Clients::new(&self.settings, &self.lookups);
    }

    fn client(&self, chosen: Chosen) -> Client<Connector, Outgoing> {
        let clients = lock(&self.clients);
        match chosen {
            Chosen::BySettings => clients.by_settings.clone(),
            Chosen::ByClient => clients.by_client.clone(),
        }
    }
}

impl Clients {
    fn new(settings: &watch::Receiver<Arc<Settings>>, lookups: &Lookups) -> Self {
        let client = |chosen| {
            Client::builder(TokioExecutor::new())
                .timer(TokioTimer::new())
                .pool_timer(TokioTimer::new())
                .pool_max_idle_per_host(MAX_IDLE)
                .pool_idle_timeout(IDLE_TIMEOUT)
                .http1_max_buf_size(MAX_BUFFER_BYTES)
                .build(Connector { chosen, settings: settings.clone(), lookups: lookups.clone() })
        };
        Self { by_settings: client(Chosen::BySettings), by_client: client(Chosen::ByClient) }
    }
}

/// Forwards a request that has leave. Returns the leave with the answer's head; its body is still to come.
///
/// # Errors
/// When the provider cannot be reached or breaks off before it answers. The leave is settled then.
pub async fn forward(
    mut leave: Leave,
    upstreams: &Upstreams,
    destination: &Destination,
    request: Parts,
    body: Outgoing,
) -> Result<(Leave, Response<Incoming>), Refused> {
    let refused = |reason| Refused { reason, dialect: destination.dialect() };
    let request = outgoing(destination, request, body)
        .map_err(|_| refused(Reason::Malformed("the request cannot be forwarded as it is")))?;
    let way_out = request.body().way_out.clone();
    if let Leave::Metered(permit) = &mut leave {
        permit.way_out = Some(way_out.clone());
    }
    let answer = tokio::select! {
        answer = upstreams.client(destination.chosen).request(request) => answer,
        () = way_out.rested(MAX_SILENCE) => {
            give_up(leave, false);
            return Err(refused(Reason::Upstream("it was silent for too long".to_owned())));
        }
    };
    match answer {
        Ok(mut answer) => {
            strip_hop_by_hop(answer.headers_mut());
            Ok((leave, answer))
        }
        Err(error) => {
            give_up(leave, error.is_connect());
            Err(refused(reason(&error)))
        }
    }
}

/// Settles what got no answer: nothing is charged when there was no connection.
fn give_up(leave: Leave, no_connection: bool) {
    if let Leave::Metered(mut permit) = leave {
        let is_unsent = no_connection || !permit.may_have_left();
        crate::settle::end(&mut permit, if is_unsent { Ending::Unsent } else { Ending::UpstreamBroke });
    }
}

/// Why there is no answer, from the innermost error that says something.
fn reason(error: &legacy::Error) -> Reason {
    let mut source = error.source();
    while let Some(inner) = source {
        match inner.downcast_ref::<DialError>() {
            Some(refused @ (DialError::Forbidden(_) | DialError::Metered { .. })) => {
                return Reason::Forbidden(refused.to_string());
            }
            Some(failed) => return Reason::Upstream(failed.to_string()),
            None => source = inner.source(),
        }
    }
    Reason::Upstream("the connection broke".to_owned())
}

/// The request as it leaves.
fn outgoing(
    destination: &Destination,
    mut request: Parts,
    body: Outgoing,
) -> Result<Request<Outgoing>, http::Error> {
    request.uri = destination.uri()?;
    request.version = Version::HTTP_11;
    request.extensions = http::Extensions::new();
    let takes_trailers = request.headers.get(header::TE).is_some_and(|te| te == "trailers");
    strip_hop_by_hop(&mut request.headers);
    request.headers.remove(header::EXPECT);
    request.headers.remove(header::TRAILER);
    if takes_trailers {
        request.headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
    request.headers.insert(header::HOST, HeaderValue::from_str(&destination.host_header())?);
    Ok(Request::from_parts(request, body))
}

/// Headers that end at a proxy: RFC 9110, 7.6.1, and what proxies are told alone.
static HOP_BY_HOP: [HeaderName; 8] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// Removes what is not for the other side, what `Connection` names included. Lengths and hosts stay whatever
/// it names: they frame and address the message.
fn strip_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .filter(|name| name != header::CONTENT_LENGTH && name != header::HOST)
        .collect();
    for name in named.iter().chain(HOP_BY_HOP.iter()) {
        headers.remove(name);
    }
}

/// A request's body: what the gate has read of it, then the rest as it comes, without trailers.
pub struct Outgoing {
    begun: Option<Bytes>,
    rest: Option<Incoming>,
    /// Runs while the client sends nothing: a request under way holds a reservation.
    silence: Option<Pin<Box<Sleep>>>,
    /// Notes when it is asked for, which is when there is a connection.
    way_out: Activity,
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

    /// Changes a body that was read whole; whether it did.
    pub fn rewrite(&mut self, change: impl FnOnce(&Bytes) -> Option<Bytes>) -> bool {
        let whole = if self.rest.is_none() { self.begun.as_ref() } else { None };
        let changed = whole.and_then(change);
        let is_changed = changed.is_some();
        self.begun = changed.or(self.begun.take());
        is_changed
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

/// A connection to an upstream, with TLS or without.
trait Wire: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Wire for T {}

impl Connection for Box<dyn Wire> {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

/// Dials for the pool, under the settings in force.
#[derive(Clone)]
struct Connector {
    chosen: Chosen,
    settings: watch::Receiver<Arc<Settings>>,
    lookups: Lookups,
}

impl Connector {
    async fn connect(self, uri: Uri) -> Result<TokioIo<Box<dyn Wire>>, DialError> {
        let settings = Arc::clone(&self.settings.borrow());
        let tls = uri.scheme() == Some(&Scheme::HTTPS);
        let named = uri.authority().map_or("", |authority| authority.as_str());
        let authority = Authority::parse(named, Some(if tls { 443 } else { 80 }))
            .map_err(|error| DialError::NoHost(error.to_string()))?;
        let stream = dial::connect(&authority, self.chosen, &settings, &self.lookups).await?;
        let wire: Box<dyn Wire> =
            if tls { Box::new(dial::secure(stream, &authority, &settings).await?) } else { Box::new(stream) };
        Ok(TokioIo::new(wire))
    }
}

impl tower_service::Service<Uri> for Connector {
    type Response = TokioIo<Box<dyn Wire>>;
    type Error = DialError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, DialError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), DialError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        Box::pin(self.clone().connect(uri))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_that_end_here_are_removed_and_no_others() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("connection", "keep-alive, X-Mine"),
            ("connection", "content-length"),
            ("content-length", "3"),
            ("x-mine", "1"),
            ("keep-alive", "timeout=5"),
            ("proxy-authorization", "Basic x"),
            ("te", "trailers"),
            ("upgrade", "h2c"),
            ("accept-encoding", "gzip, br"),
            ("authorization", "Bearer x"),
        ] {
            headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        strip_hop_by_hop(&mut headers);
        let mut left: Vec<&str> = headers.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["accept-encoding", "authorization", "content-length"]);
    }
}
