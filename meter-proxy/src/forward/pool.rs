//! Connections to providers, kept for each bottle and authority.
//!
//! Not here: how an address is found and judged (`dial`).
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use http::uri::Scheme;
use http::{Request, Response, Uri};
use hyper::body::Incoming;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::client::legacy::{self, Client};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;

use super::body::Outgoing;
use crate::dial::{self, Chosen, DialError, Lookups};
use crate::hosts::Authority;
use crate::lock::lock;
use crate::settings::Settings;

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

    /// Sends a request on a connection that is kept, or on a new one, and waits for the head of its answer.
    ///
    /// # Errors
    /// When there is no connection, or it breaks before.
    pub(super) async fn request(
        &self,
        chosen: Chosen,
        request: Request<Outgoing>,
    ) -> Result<Response<Incoming>, legacy::Error> {
        let client = match chosen {
            Chosen::BySettings => lock(&self.clients).by_settings.clone(),
            Chosen::ByClient => lock(&self.clients).by_client.clone(),
        };
        client.request(request).await
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
