//! Connections: taken in bounded numbers, identified once, served until they end or their bottle is closed.
//!
//! Not here: what becomes of a request.
use std::convert::Infallible;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use http::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustix::process::{Resource, getrlimit};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use crate::arriving::Arriving;
use crate::bottles::{Bottle, Standing};
use crate::flights::Flights;
use crate::framing::{HTTP2_PREFACE, Protocol, http1, http2};
use crate::gathered::Gathered;
use crate::identify::{self, Answer, Client};
use crate::peers::watch_client;
use crate::protocol::{MAX_SOCKETS_OF_LISTENER, Refusal, namespaces_within};
use crate::refuse::Refused;
use crate::route::Entrance;
use crate::sockets::{Listener, Taken};
use crate::{Meter, redirected, sockets};

/// Most connections at a time; fewer where the process may open fewer descriptors.
const MAX_CONNECTIONS: usize = 8_192;
/// Descriptors that a connection takes: its own and one upstream.
const DESCRIPTORS_EACH: usize = 2;
/// Descriptors for all else but the listeners of namespaces: the controller, libraries.
const RESERVED_DESCRIPTORS: usize = 128;
/// One bottle has no more than this part of all places.
const BOTTLES_PART: usize = 4;
/// Most connections of no bottle that are told so at a time, and how long that may take.
const MAX_STRANGERS: usize = 64;
const STRANGER_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest wait for the head of the next request, an idle connection's included.
const HEAD_TIMEOUT: Duration = Duration::from_secs(60);

/// The places of connections: of all, and of those of no bottle.
#[derive(Clone)]
pub struct Places {
    all: Arc<Semaphore>,
    strangers: Arc<Semaphore>,
    most: usize,
}

impl Places {
    /// As many as the limit of open descriptors lets this process have.
    #[must_use]
    pub fn of_this_process() -> Self {
        let limit = getrlimit(Resource::Nofile).current;
        let limit = limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX));
        let most = places_within(limit);
        Self { all: Arc::new(Semaphore::new(most)), strangers: Arc::new(Semaphore::new(MAX_STRANGERS)), most }
    }

    /// Most connections of one bottle.
    #[must_use]
    pub fn most_of_one_bottle(&self) -> usize {
        (self.most / BOTTLES_PART).max(1)
    }
}

/// How many connections are served under a limit of open descriptors; at least one.
fn places_within(descriptors: usize) -> usize {
    let listeners = namespaces_within(descriptors) * MAX_SOCKETS_OF_LISTENER;
    let left = descriptors.saturating_sub(listeners).saturating_sub(RESERVED_DESCRIPTORS);
    (left / DESCRIPTORS_EACH).clamp(1, MAX_CONNECTIONS)
}

/// Takes connections from one listening socket until it is told to end.
pub async fn run(meter: Arc<Meter>, listener: Listener, places: Places) -> Infallible {
    let serve = |taken| connection(Arc::clone(&meter), taken, Arc::clone(&places.strangers));
    sockets::accept(listener, Arc::clone(&places.all), serve).await
}

/// One connection: whose it is, then its requests.
async fn connection(meter: Arc<Meter>, taken: Taken, strangers: Arc<Semaphore>) {
    let Taken { stream, peer, listener, place } = taken;
    let local = match watch_client(&stream).and_then(|()| stream.local_addr()) {
        Ok(local) => local,
        Err(error) => return tracing::debug!(%error, %peer, "a connection ended before it was served"),
    };
    match identify::identify(&meter, peer, local, listener, place).await {
        Ok(Answer::Client(client)) => match client.original {
            Some(original) => redirected::serve(meter, client, original, stream).await,
            None => match first_words(&stream).await {
                Ok(protocol) => serve(meter, client, Entrance::Listener { local }, protocol, stream).await,
                Err(error) => tracing::debug!(%error, %peer, "a connection ended before it asked anything"),
            },
        },
        Ok(Answer::Unattached(place)) => match strangers.try_acquire() {
            Ok(_among_strangers) => refuse_all(stream, place).await,
            Err(_) => tracing::debug!(%peer, "too many connections of no bottle"),
        },
        Ok(Answer::TooMany) => tracing::debug!(%peer, "a bottle has too many connections"),
        Err(error) => tracing::warn!(%error, %peer, "a connection could not be identified"),
    }
}

/// What a client of the meter's own address speaks: no method begins as the preface of HTTP/2 does (RFC 9113, 3.4).
/// One that comes byte by byte is taken for HTTP/1.1, which it is not.
async fn first_words(stream: &TcpStream) -> io::Result<Protocol> {
    let mut words = [0; 3];
    let read = timeout(HEAD_TIMEOUT, stream.peek(&mut words)).await??;
    Ok(if read == words.len() && HTTP2_PREFACE.starts_with(&words) {
        Protocol::Http2
    } else {
        Protocol::Http1
    })
}

/// Serves requests until the connection ends, the bottle is detached, or it is closed with a request under
/// way. Dropping the connection drops what it was doing, upstream included, and settles it.
pub async fn serve<I>(
    meter: Arc<Meter>,
    client: Arc<Client>,
    entrance: Entrance,
    protocol: Protocol,
    stream: I,
) where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let flights = Flights::of(protocol);
    let entrance = Arc::new(entrance);
    let service = service_fn(|request: Request<Incoming>| {
        let (meter, client) = (Arc::clone(&meter), Arc::clone(&client));
        let (entrance, flights) = (Arc::clone(&entrance), flights.clone());
        // boxed: a connection would else keep room for it while the answer passes
        Box::pin(async move {
            let asked = flights.ask();
            let answer = crate::answer(&meter, &client, &entrance, &flights, request).await;
            asked.answered();
            Ok::<_, Infallible>(answer)
        })
    });
    match protocol {
        Protocol::Http1 => {
            let stream = TokioIo::new(Gathered::new(stream));
            let connection = http1(HEAD_TIMEOUT).half_close(false).serve_connection(stream, service);
            while_open(&client.bottle, &flights, pin!(connection.with_upgrades())).await;
        }
        Protocol::Http2 => {
            // boxed: it is several times as large as one of HTTP/1.1
            let mut connection = Box::pin(http2().serve_connection(TokioIo::new(stream), service));
            while_open(&client.bottle, &flights, pin!(flights.bound(connection.as_mut()))).await;
        }
    }
}

/// Drives a connection for as long as its bottle lets it.
async fn while_open(
    bottle: &Bottle,
    flights: &Flights,
    mut connection: Pin<&mut impl Future<Output = hyper::Result<()>>>,
) {
    let mut standing = bottle.watch();
    while bottle.standing() != Standing::Detached {
        tokio::select! {
            ended = connection.as_mut() => {
                if let Err(error) = ended {
                    tracing::debug!(%error, "a connection broke");
                }
                return;
            }
            changed = standing.changed() => {
                if changed.is_err() || (*standing.borrow_and_update() == Standing::Closed && flights.any()) {
                    return;
                }
            }
        }
    }
}

/// Tells a peer of no bottle so, whatever it asks, and soon. It keeps its `place` among all until then.
async fn refuse_all(stream: TcpStream, place: OwnedSemaphorePermit) {
    let service = service_fn(|request: Request<Incoming>| async {
        drop(Arriving::request(request));
        Ok::<_, Infallible>(Refused::by_controller(Refusal::Unattached, None).response())
    });
    let connection =
        http1(STRANGER_TIMEOUT).keep_alive(false).serve_connection(TokioIo::new(stream), service);
    match timeout(STRANGER_TIMEOUT, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "a connection of no bottle broke"),
        Err(_) => tracing::debug!("a connection of no bottle asked nothing"),
    }
    drop(place);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_follow_the_descriptors() {
        for (descriptors, places) in
            [(0, 1), (256, 32), (1_024, 320), (20_608, 8_192), (1_048_576, 8_192), (usize::MAX, 8_192)]
        {
            assert_eq!(places_within(descriptors), places, "{descriptors}");
        }
    }

    /// Thousands are open at a time, each with room for the largest of what it may become.
    #[test]
    fn a_connection_takes_little_room() {
        fn bytes<A, B, C, F>(_: impl FnOnce(A, B, C) -> F) -> usize {
            size_of::<F>()
        }
        assert!(bytes(connection) <= 6 * 1024, "{}", bytes(connection));
    }
}
