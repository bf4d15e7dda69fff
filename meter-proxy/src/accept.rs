//! Connections: taken in bounded numbers, identified once, served until they end or their bottle is closed.
//!
//! Not here: what becomes of a request.
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::Meter;
use crate::bottles::Standing;
use crate::controller::Listener;
use crate::identify::{self, Answer, Client};
use crate::protocol::Refusal;
use crate::redirected;
use crate::refuse::Refused;
use crate::route::Entrance;

/// Most connections at a time; each may take two descriptors.
pub const MAX_CONNECTIONS: usize = 8_192;
/// Most headers of a request.
const MAX_HEADERS: usize = 128;
/// Longest head of a request, and most of a message that waits in the meter, bytes.
const MAX_BUFFER_BYTES: usize = 32 * 1024;
/// Longest wait for the head of the next request, an idle connection's included.
const HEAD_TIMEOUT: Duration = Duration::from_secs(60);
/// First and longest pause after a connection could not be taken.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(5), Duration::from_secs(1));

/// Takes connections from one listening socket for ever.
pub async fn run(meter: Arc<Meter>, listener: Listener, places: Arc<Semaphore>) -> io::Result<()> {
    let socket = TcpListener::from_std(listener.socket)?;
    loop {
        let place = Arc::clone(&places).acquire_owned().await.map_err(io::Error::other)?;
        let (stream, peer) = next(&socket).await;
        tokio::spawn(connection(Arc::clone(&meter), stream, peer, listener.id, place));
    }
}

/// The next connection. What fails is tried again, ever more slowly: descriptors may have run out.
async fn next(socket: &TcpListener) -> (TcpStream, SocketAddr) {
    let (mut pause, longest) = BACK_OFF;
    loop {
        match socket.accept().await {
            Ok(taken) => return taken,
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                tracing::warn!(%error, "a connection could not be taken");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(longest);
            }
        }
    }
}

/// One connection: whose it is, then its requests.
async fn connection(
    meter: Arc<Meter>,
    stream: TcpStream,
    peer: SocketAddr,
    listener: u32,
    place: OwnedSemaphorePermit,
) {
    let local = match stream.set_nodelay(true).and_then(|()| stream.local_addr()) {
        Ok(local) => local,
        Err(error) => return tracing::debug!(%error, %peer, "a connection ended before it was served"),
    };
    match identify::identify(&meter, peer, local, listener, place).await {
        Ok(Answer::Client(client)) => match client.original {
            Some(original) => redirected::serve(meter, client, original, stream).await,
            None => serve(meter, client, Entrance::Listener { local }, stream).await,
        },
        Ok(Answer::Unattached) => refuse_all(stream).await,
        Ok(Answer::TooMany) => tracing::warn!(%peer, "a bottle has too many connections"),
        Err(error) => tracing::warn!(%error, %peer, "a connection could not be identified"),
    }
}

/// Serves requests until the connection ends, the bottle is detached, or it is closed with a request under
/// way. Dropping the connection drops what it was doing, upstream included, and settles it.
pub async fn serve<I>(meter: Arc<Meter>, client: Arc<Client>, entrance: Entrance, stream: I)
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut standing = client.bottle.watch();
    let flights = Flights::default();
    let entrance = Arc::new(entrance);
    let service = service_fn(|request: Request<Incoming>| {
        let (meter, client) = (Arc::clone(&meter), Arc::clone(&client));
        let (entrance, flights) = (Arc::clone(&entrance), flights.clone());
        async move { Ok::<_, Infallible>(crate::answer(&meter, &client, &entrance, &flights, request).await) }
    });
    let connection = http1().serve_connection(TokioIo::new(stream), service).with_upgrades();
    tokio::pin!(connection);
    while client.bottle.standing() != Standing::Detached {
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

/// Tells a peer of no bottle so, whatever it asks.
async fn refuse_all(stream: TcpStream) {
    let service = service_fn(|_: Request<Incoming>| async {
        Ok::<_, Infallible>(Refused::by_controller(Refusal::Unattached, None).response())
    });
    if let Err(error) = http1().keep_alive(false).serve_connection(TokioIo::new(stream), service).await {
        tracing::debug!(%error, "a connection of no bottle broke");
    }
}

/// HTTP/1.1 with every bound set.
fn http1() -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_headers(MAX_HEADERS)
        .max_header_size(MAX_BUFFER_BYTES)
        .max_buf_size(MAX_BUFFER_BYTES)
        .half_close(false)
        .auto_date_header(false);
    builder
}

/// How many requests of a connection are on their way to or from an upstream.
#[derive(Clone, Default)]
pub struct Flights(Arc<AtomicUsize>);

impl Flights {
    fn any(&self) -> bool {
        self.0.load(Ordering::Acquire) > 0
    }

    /// Counts one more, until the value is dropped.
    #[must_use]
    pub fn begin(&self) -> Flight {
        self.0.fetch_add(1, Ordering::AcqRel);
        Flight(Arc::clone(&self.0))
    }
}

/// One request on its way.
pub struct Flight(Arc<AtomicUsize>);

impl Drop for Flight {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}
