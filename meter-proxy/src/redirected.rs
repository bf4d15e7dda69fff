//! Redirected connections: the kernel sent them here, and the client believes that it speaks to `original`.
//!
//! The client's first words decide: TLS for a metered name is opened by our own certificate, plain HTTP is
//! served, all else is spliced to the original address, unless a metered host was found there or may be. While
//! the client is silent its server may speak first. Not here: how the kernel does it.
use std::io::Cursor;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::dial::{self, Chosen, DialError};
use crate::framing::Protocol;
use crate::hello::{ACCESS_DENIED, Opening, Speech};
use crate::hosts::{Authority, HTTPS, Host};
use crate::identify::Client;
use crate::route::Entrance;
use crate::{Meter, accept, hello, reach, tunnel};

/// A client that is silent for this long may be waiting for its server to speak.
const SERVER_FIRST_AFTER: Duration = Duration::from_millis(300);
/// Longest wait for a client's first words where its server may not speak: it may just be busy.
const FIRST_WORDS_TIMEOUT: Duration = Duration::from_secs(10);

/// Serves one redirected connection to its end.
pub async fn serve(meter: Arc<Meter>, client: Arc<Client>, original: SocketAddr, mut stream: TcpStream) {
    let there = Authority::from(original);
    if let Some(server) = server_that_speaks_first(&meter, &client, &there, &stream).await {
        return tunnel::splice(&meter, &client, &there, stream, server).await;
    }
    let Opening { bytes, speech } = match timeout(FIRST_WORDS_TIMEOUT, hello::read(&mut stream)).await {
        Ok(Ok(opening)) => opening,
        Ok(Err(error)) => return tracing::debug!(%error, %there, "a redirected connection broke"),
        Err(_) => {
            let what = format!("a connection to {there} was closed: its client did not say what it wants");
            return meter.controller.notice_once(&client.bottle, &what);
        }
    };
    let stream = from_the_beginning(bytes, stream);
    match speech {
        Speech::Http => {
            accept::serve(meter, client, Entrance::redirected(original), Protocol::Http1, stream).await;
        }
        Speech::Tls { name: Some(name), .. } if meter.settings.borrow().provider_at(&name).is_some() => {
            open(meter, client, there, name, stream).await;
        }
        other => pass(&meter, &client, &there, &other, stream).await,
    }
}

/// The server, when the client is silent and the server speaks. None as soon as the client speaks, and where the
/// server cannot or may not be reached.
async fn server_that_speaks_first(
    meter: &Meter,
    client: &Client,
    there: &Authority,
    stream: &TcpStream,
) -> Option<TcpStream> {
    if timeout(SERVER_FIRST_AFTER, speaks(stream)).await.is_ok() || client.refusal_when_cut().is_some() {
        return None;
    }
    let settings = Arc::clone(&meter.settings.borrow());
    reach::check(client, &settings, there).ok()?;
    let server_speaks = pin!(async {
        let server = dial::connect(there, Chosen::ByClient, &settings, &client.bottle.lookups).await;
        let server =
            server.inspect_err(|error| tracing::debug!(%error, "a server may not speak first")).ok()?;
        speaks(&server).await;
        Some(server)
    });
    let one_speaks = async {
        tokio::select! {
            biased;
            () = speaks(stream) => None,
            server = tunnel::while_open(&client.bottle, server_speaks) => server.flatten(),
        }
    };
    timeout(tunnel::MAX_IDLE, one_speaks).await.unwrap_or(None)
}

/// Waits until the other side has said something, or has ended, and leaves it unread. Readiness alone would not
/// do: it may be reported where there is nothing.
async fn speaks(stream: &TcpStream) {
    if let Err(error) = stream.peek(&mut [0]).await {
        tracing::debug!(%error, "a connection broke before anything was said");
    }
}

/// The stream as it was before `bytes` were read from it.
fn from_the_beginning(
    bytes: Vec<u8>,
    stream: TcpStream,
) -> impl AsyncRead + AsyncWrite + Unpin + Send + 'static {
    let (rest, writer) = stream.into_split();
    tokio::io::join(Cursor::new(bytes).chain(rest), writer)
}

/// Opens TLS for a metered name; requests in it go to that name, wherever the client found it.
async fn open<S>(meter: Arc<Meter>, client: Arc<Client>, there: Authority, name: Host, stream: S)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let closed = if there.port == HTTPS {
        let host = name.to_string();
        match meter.certs.for_host(&host, meter.controller.sign(host.clone())).await {
            Ok(tls) => return tunnel::open(meter, client, Authority::https(name), tls, stream).await,
            Err(error) => error.to_string(),
        }
    } else {
        format!("it is metered, and reached on port {HTTPS} only")
    };
    let speech = Speech::Tls { name: Some(name), hides: false };
    refuse(&meter, &client, &there, &speech, &closed, stream).await;
}

/// Splices to the original address, as if nobody stood in between, if it may be reached; or to the name that the
/// client asks for, if only that may.
async fn pass<S>(meter: &Meter, client: &Client, there: &Authority, speech: &Speech, stream: S)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    if client.refusal_when_cut().is_some() {
        return;
    }
    let settings = Arc::clone(&meter.settings.borrow());
    let Some(dialled) = reach::redirected(client, &settings, there, speech.name()) else {
        return refuse(meter, client, there, speech, &reach::why(client, there), stream).await;
    };
    settings.metered_addresses.resolved_once().await;
    if let Some(why) = tunnel::objection(&settings, &dialled, speech) {
        return refuse(meter, client, there, speech, &why, stream).await;
    }
    match dial::connect(&dialled, Chosen::ByClient, &settings, &client.bottle.lookups).await {
        Ok(server) => tunnel::splice(meter, client, &dialled, stream, server).await,
        Err(error @ (DialError::Forbidden(_) | DialError::Metered { .. })) => {
            refuse(meter, client, there, speech, &error.to_string(), stream).await;
        }
        Err(error) => tracing::debug!(%error, "a redirected connection leads nowhere"),
    }
}

/// Closes a connection that may not go on, and says so in the audit; to a TLS client by an alert as well.
async fn refuse<S>(
    meter: &Meter,
    client: &Client,
    there: &Authority,
    speech: &Speech,
    why: &str,
    mut stream: S,
) where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let what = format!("a connection to {there} that speaks {speech} was closed: {why}");
    meter.controller.notice_once(&client.bottle, &what);
    if matches!(speech, Speech::Tls { .. } | Speech::BrokenTls)
        && let Err(error) = stream.write_all(&ACCESS_DENIED).await
    {
        tracing::debug!(%error, "a refused client had left");
    }
}
