//! What one connection has under way: requests, those of them on their way, and how many were taken back.
//!
//! HTTP/1.1 bounds itself: a request at a time. A connection of HTTP/2 is bounded here; each of its requests takes
//! the places of a connection, since it may need an upstream of its own. Not here: bounds of frames (`framing`).
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use hyper_util::server::graceful::GracefulConnection;
use tokio::sync::Notify;

use crate::framing::Protocol;
use crate::identify::{Client, Places};

/// How long a connection may be without a request, before its first one too.
const REST: Duration = Duration::from_secs(60);
/// The same once it was told to end.
const LAST_REST: Duration = Duration::from_secs(5);
/// After so many requests that were taken back before they were answered, a connection is told to end; after twice
/// as many, which only who does not listen gets to, it is closed.
const MANY_TAKEN_BACK: usize = 128;

/// The requests of one connection.
#[derive(Clone)]
pub struct Flights {
    protocol: Protocol,
    counts: Arc<Counts>,
}

#[derive(Default)]
struct Counts {
    /// How often a request began or ended to be one of the next two.
    moves: AtomicUsize,
    unanswered: AtomicUsize,
    aloft: AtomicUsize,
    taken_back: AtomicUsize,
    one_more_taken_back: Notify,
}

impl Flights {
    /// Begins with none.
    #[must_use]
    pub fn of(protocol: Protocol) -> Self {
        Self { protocol, counts: Arc::default() }
    }

    /// Whether a request is on its way to or from an upstream.
    #[must_use]
    pub fn any(&self) -> bool {
        self.counts.aloft.load(Ordering::Acquire) > 0
    }

    /// Counts a request until it is answered, or taken back.
    #[must_use]
    pub fn ask(&self) -> Asked {
        self.counts.moved();
        self.counts.unanswered.fetch_add(1, Ordering::AcqRel);
        Asked { flights: self.clone(), is_answered: false }
    }

    /// Counts a request that its client takes back.
    pub fn take_back(&self) {
        self.counts.taken_back.fetch_add(1, Ordering::AcqRel);
        self.counts.one_more_taken_back.notify_one();
    }

    /// The places that a request needs beside those of its connection; `None`: its bottle has no more.
    #[must_use]
    pub fn places(&self, client: &Client) -> Option<Option<Places>> {
        match self.protocol {
            Protocol::Http1 => Some(None),
            Protocol::Http2 => client.more_places().map(Some),
        }
    }

    /// Counts one more on its way, until the value is dropped; its places are free again then.
    #[must_use]
    pub fn begin(&self, places: Option<Places>) -> Flight {
        self.counts.aloft.fetch_add(1, Ordering::AcqRel);
        Flight { counts: Arc::clone(&self.counts), _places: places }
    }

    /// Drives a connection of HTTP/2 to its end, and ends it when it rests or too many of its requests are taken back:
    /// first by telling the client, which lets requests under way come to their ends.
    ///
    /// # Errors
    /// When the connection breaks.
    pub async fn bound<C>(&self, mut connection: Pin<&mut C>) -> Result<(), C::Error>
    where
        C: GracefulConnection,
    {
        tokio::select! {
            ended = connection.as_mut() => return ended,
            () = self.rested(REST) => {}
            () = self.taken_back(MANY_TAKEN_BACK) => {}
        }
        connection.as_mut().graceful_shutdown();
        tokio::select! {
            ended = connection => ended,
            () = self.rested(LAST_REST) => Ok(()),
            () = self.taken_back(2 * MANY_TAKEN_BACK) => Ok(()),
        }
    }

    /// Completes when nothing was under way for at least `bound` and at most twice as long.
    async fn rested(&self, bound: Duration) {
        loop {
            let before = self.counts.moves.load(Ordering::Acquire);
            tokio::time::sleep(bound).await;
            let has_rested = self.counts.moves.load(Ordering::Acquire) == before;
            if has_rested && self.counts.unanswered.load(Ordering::Acquire) == 0 && !self.any() {
                return;
            }
        }
    }

    /// Completes when so many were taken back.
    async fn taken_back(&self, many: usize) {
        while self.counts.taken_back.load(Ordering::Acquire) < many {
            self.counts.one_more_taken_back.notified().await;
        }
    }
}

impl Counts {
    fn moved(&self) {
        self.moves.fetch_add(1, Ordering::AcqRel);
    }
}

/// A request that is not answered yet.
pub struct Asked {
    flights: Flights,
    is_answered: bool,
}

impl Asked {
    /// It is answered, as far as its head.
    pub fn answered(mut self) {
        self.is_answered = true;
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        self.flights.counts.unanswered.fetch_sub(1, Ordering::AcqRel);
        self.flights.counts.moved();
        if !self.is_answered {
            self.flights.take_back();
        }
    }
}

/// One request on its way.
pub struct Flight {
    counts: Arc<Counts>,
    _places: Option<Places>,
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.counts.aloft.fetch_sub(1, Ordering::AcqRel);
        self.counts.moved();
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::pin::pin;

    use bytes::Bytes;
    use http::{Request, Response};
    use http_body_util::Empty;
    use hyper::body::Incoming;
    use hyper::service::service_fn;
    use hyper_util::rt::TokioIo;
    use tokio::io::DuplexStream;
    use tokio::task::JoinHandle;
    use tokio::time::{Instant, sleep};

    use super::*;
    use crate::framing::http2;

    /// A connection that takes `each` to answer a request, and the time when it ended.
    fn served(each: Duration) -> (DuplexStream, JoinHandle<Instant>) {
        let (client, server) = tokio::io::duplex(64 * 1024);
        let serving = async move {
            let flights = Flights::of(Protocol::Http2);
            let service = service_fn(|_: Request<Incoming>| {
                let flights = flights.clone();
                async move {
                    let asked = flights.ask();
                    sleep(each).await;
                    asked.answered();
                    Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new()))
                }
            });
            // How it ends is the client's choice.
            drop(flights.bound(pin!(http2().serve_connection(TokioIo::new(server), service))).await);
            Instant::now()
        };
        (client, tokio::spawn(serving))
    }

    async fn connected(stream: DuplexStream) -> h2::client::SendRequest<Bytes> {
        let (send, connection) = h2::client::handshake(stream).await.unwrap();
        tokio::spawn(connection);
        send.ready().await.unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_asks_nothing_ends() {
        for speaks in [false, true] {
            let since = Instant::now();
            let (client, ended) = served(Duration::ZERO);
            let (silent, speaking) = match speaks {
                false => (Some(client), None),
                true => (None, Some(connected(client).await)),
            };
            let took = ended.await.unwrap() - since;
            assert!(took >= REST && took <= 2 * (REST + LAST_REST), "{took:?}");
            drop((silent, speaking));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_takes_long_is_waited_for() {
        let since = Instant::now();
        let (client, ended) = served(REST * 5);
        let mut client = connected(client).await;
        let (answer, _) = client.send_request(Request::new(()), true).unwrap();
        assert_eq!(answer.await.unwrap().status(), 200);
        assert!(since.elapsed() >= REST * 5 && !ended.is_finished());
        assert!(ended.await.unwrap() - since <= 7 * REST + 2 * LAST_REST);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_takes_everything_back_is_told_to_leave_and_then_left() {
        let (client, ended) = served(REST * 5);
        let client = connected(client).await;
        let mut taken_back = 0;
        while !ended.is_finished() {
            let Ok(mut ready) = client.clone().ready().await else { break };
            let Ok((answer, _)) = ready.send_request(Request::new(()), true) else { break };
            sleep(Duration::from_millis(1)).await;
            drop(answer);
            taken_back += 1;
        }
        assert!((MANY_TAKEN_BACK..2 * MANY_TAKEN_BACK).contains(&taken_back), "{taken_back}");
    }
}
