//! Connections to providers, kept for each bottle and authority; HTTP/2 where TLS agrees on it, HTTP/1.1 elsewhere.
//!
//! Not here: how an address is found and judged (`dial`).
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use http::uri::Scheme;
use http::{Request, Response, Uri};
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::client::legacy::{self, Client};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_rustls::client::TlsStream;

use super::body::Outgoing;
use crate::arriving::Arriving;
use crate::dial::{self, Chosen, DialError, Lookups};
use crate::framing::Protocol;
use crate::hosts::Authority;
use crate::lock::lock;
use crate::settings::Settings;

/// Idle connections to one authority that a bottle keeps.
const MAX_IDLE: usize = 16;
/// How long it keeps them.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// Most of an answer that waits in the meter, and its longest head, bytes.
const MAX_BUFFER_BYTES: usize = 32 * 1024;

/// Requests that share connections: as many as providers let one connection of HTTP/2 have at a time. The next ones
/// get connections of their own.
const MAX_SHARING: usize = 100;
/// How much of one answer may wait in the meter, bytes, and of all answers of a connection: so much that one which is
/// not read does not keep the others back.
const STREAM_WINDOW_BYTES: u32 = 128 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = STREAM_WINDOW_BYTES * 100;
/// Longest payload of a frame, bytes: the smallest that may be asked for.
const MAX_FRAME_BYTES: u32 = 16 * 1024;
/// Longest head of an answer of HTTP/2, bytes by the count of RFC 9113, 6.5.2, and memory for headers sent before.
const MAX_HEADER_LIST_BYTES: u32 = 32 * 1024;
const HEADER_TABLE_BYTES: u32 = 4 * 1024;
/// Streams that were given up and whose rest is still awaited.
const MAX_RESET: usize = 64;
/// A connection with requests under way on which nothing came for so long is asked whether it lives, and given up when
/// the answer takes so long.
const PING_EVERY: Duration = Duration::from_secs(20);
const PING_TIMEOUT: Duration = Duration::from_secs(20);

/// The connections of one bottle to providers. Those that the settings chose and those that clients chose are
/// kept apart: the address of the first was not judged.
pub struct Upstreams {
    settings: watch::Receiver<Arc<Settings>>,
    lookups: Lookups,
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    by_settings: Vec<Shared>,
    by_client: Vec<Shared>,
}

/// Connections, and as many copies of `users` as there are requests on them, and one. Bodies are boxed: each connection
/// has a queue with room for 32 requests.
struct Shared {
    client: Client<Connector, Box<Outgoing>>,
    users: Arc<()>,
}

impl Upstreams {
    /// Begins with no connection; `lookups` are those of the bottle.
    #[must_use]
    pub fn new(settings: watch::Receiver<Arc<Settings>>, lookups: Lookups) -> Self {
        Self { settings, lookups, kept: Mutex::default() }
    }

    /// Drops the idle connections; those in use end with their answers.
    pub fn forget(&self) {
        *lock(&self.kept) = Kept::default();
    }

    /// Sends a request on a connection that is kept, or on a new one, and waits for the head of its answer.
    ///
    /// # Errors
    /// When there is no connection, or it breaks before.
    pub(super) async fn request(
        &self,
        chosen: Chosen,
        request: Request<Outgoing>,
    ) -> Result<Response<Arriving>, legacy::Error> {
        let (client, user) = self.client(chosen);
        let answer = client.request(request.map(Box::new)).await?;
        Ok(Arriving::answer(answer, user))
    }

    /// The first client with room for one more, and what holds that room.
    fn client(&self, chosen: Chosen) -> (Client<Connector, Box<Outgoing>>, Arc<()>) {
        let mut kept = lock(&self.kept);
        let kept = match chosen {
            Chosen::BySettings => &mut kept.by_settings,
            Chosen::ByClient => &mut kept.by_client,
        };
        let has_room = |shared: &Shared| Arc::strong_count(&shared.users) <= MAX_SHARING;
        let place = kept.iter().position(has_room).unwrap_or_else(|| {
            let connector =
                Connector { chosen, settings: self.settings.clone(), lookups: self.lookups.clone() };
            kept.push(Shared { client: client(connector), users: Arc::default() });
            kept.len() - 1
        });
        (kept[place].client.clone(), Arc::clone(&kept[place].users))
    }
}

/// A client of either protocol with every bound set.
fn client(connector: Connector) -> Client<Connector, Box<Outgoing>> {
    Client::builder(TokioExecutor::new())
        .timer(TokioTimer::new())
        .pool_timer(TokioTimer::new())
        .pool_max_idle_per_host(MAX_IDLE)
        .pool_idle_timeout(IDLE_TIMEOUT)
        .http1_max_buf_size(MAX_BUFFER_BYTES)
        .http2_keep_alive_interval(PING_EVERY)
        .http2_keep_alive_timeout(PING_TIMEOUT)
        .http2_keep_alive_while_idle(false)
        .http2_initial_max_send_streams(MAX_SHARING)
        .http2_initial_stream_window_size(STREAM_WINDOW_BYTES)
        .http2_initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .http2_adaptive_window(false)
        .http2_max_frame_size(MAX_FRAME_BYTES)
        .http2_max_header_list_size(MAX_HEADER_LIST_BYTES)
        .http2_header_table_size(HEADER_TABLE_BYTES)
        .http2_max_send_buf_size(MAX_BUFFER_BYTES)
        .http2_max_concurrent_reset_streams(MAX_RESET)
        .http2_max_local_error_reset_streams(MAX_RESET)
        .build(connector)
}

/// A connection to an upstream, with TLS or without.
trait Wire: AsyncRead + AsyncWrite + Send + Unpin {
    fn protocol(&self) -> Protocol;
}

impl Wire for TcpStream {
    fn protocol(&self) -> Protocol {
        Protocol::Http1
    }
}

impl Wire for TlsStream<TcpStream> {
    fn protocol(&self) -> Protocol {
        Protocol::by_alpn(self.get_ref().1.alpn_protocol())
    }
}

impl Connection for Box<dyn Wire> {
    fn connected(&self) -> Connected {
        match self.protocol() {
            Protocol::Http1 => Connected::new(),
            Protocol::Http2 => Connected::new().negotiated_h2(),
        }
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
