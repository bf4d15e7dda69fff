//! What one connection has under way: requests, those of them on their way, and how many were taken back.
//!
//! HTTP/1.1 bounds itself: a request at a time. A connection of HTTP/2 is bounded here; each of its requests takes
//! the places of a connection, since it may need an upstream of its own. Not here: bounds of frames (`framing`).
use std::pin::pin;
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
    asked: AtomicUsize,
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
        self.counts.asked.fetch_add(1, Ordering::AcqRel);
        self.counts.unanswered.fetch_add(1, Ordering::AcqRel);
        Asked { counts: Arc::clone(&self.counts), is_answered: false }
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
    pub async fn bound<C>(&self, connection: C) -> Result<(), C::Error>
    where
        C: GracefulConnection,
    {
        let mut connection = pin!(connection);
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

    /// Completes when nothing was asked, and nothing was under way, for at least `bound` and at most twice as long.
    async fn rested(&self, bound: Duration) {
        loop {
            let before = self.counts.asked.load(Ordering::Acquire);
            tokio::time::sleep(bound).await;
            let is_same = self.counts.asked.load(Ordering::Acquire) == before;
            if is_same && self.counts.unanswered.load(Ordering::Acquire) == 0 && !self.any() {
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

/// A request that is not answered yet.
pub struct Asked {
    counts: Arc<Counts>,
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
        self.counts.unanswered.fetch_sub(1, Ordering::AcqRel);
        if !self.is_answered {
            self.counts.taken_back.fetch_add(1, Ordering::AcqRel);
            self.counts.one_more_taken_back.notify_one();
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
    }
}
