//! What becomes of a client's stream once it is known where it leads: opened by our own certificate, or spliced.
//!
//! Inside an opened tunnel requests go the same way as outside. Not here: which of the two (`intercept` for
//! CONNECT, `redirected`), and the request path itself.
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;

use crate::activity::{Activity, Watched};
use crate::bottles::{Bottle, Standing};
use crate::hello::Speech;
use crate::hosts::{Authority, Host};
use crate::identify::Client;
use crate::route::Entrance;
use crate::{Meter, accept, hello};

/// Longest wait for a client's TLS handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest time that nothing moves in a spliced tunnel: what people leave open over lunch lives on.
const MAX_IDLE: Duration = Duration::from_secs(2 * 3_600);

/// Speaks TLS as the metered host that the tunnel goes to, and serves the requests inside. A client that takes
/// no such TLS is audited: it may pin certificates, or not trust the meter's authority. Boxed: it serves what
/// may open it.
pub fn open<S>(
    meter: Arc<Meter>,
    client: Arc<Client>,
    authority: Authority,
    tls: Arc<ServerConfig>,
    stream: S,
) -> Pin<Box<dyn Future<Output = ()> + Send>>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    Box::pin(async move {
        let handshake = TlsAcceptor::from(tls).accept(stream);
        let stream = match tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return notice_failure(&meter, &client, &authority, &error),
            Err(_) => return tracing::debug!(%authority, "a client did not finish its TLS handshake"),
        };
        let named = stream.get_ref().1.server_name().map(str::parse::<Host>);
        let name_agrees = named.is_none_or(|named| named.as_ref() == Ok(&authority.host));
        accept::serve(meter, client, Entrance::Tunnel { authority, name_agrees }, stream).await;
    })
}

/// Audits a handshake that failed by what one side said, and not by a connection that broke.
fn notice_failure(meter: &Meter, client: &Client, authority: &Authority, error: &io::Error) {
    let refused = match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(rustls::Error::AlertReceived(alert)) => format!("refused the meter's certificate ({alert:?})"),
        Some(error) => format!("could not agree with the meter ({error})"),
        None => return tracing::debug!(%error, %authority, "no TLS with a client"),
    };
    let what = format!("a client in {} that asked for {} by TLS {refused}", client.name, authority.host);
    meter.controller.notice_once(&client.bottle, &what);
}

/// Copies both ways until the end, until nothing moves for long, or until the bottle is cut for good; nothing moves
/// while it is held. What the
/// client says first is read before it is passed on: its TLS may ask for a metered name after all, and then the
/// tunnel is closed.
pub async fn splice<S>(
    meter: &Meter,
    client: &Client,
    authority: &Authority,
    downstream: S,
    upstream: TcpStream,
) where
    S: AsyncRead + AsyncWrite,
{
    let activity = Activity::default();
    let downstream = Watched { stream: Box::pin(downstream), activity: activity.clone() };
    let (mut client_says, mut client_hears) = tokio::io::split(downstream);
    let (mut server_says, mut server_hears) = upstream.into_split();
    let up = async {
        let first_words = first_words(meter, &mut client_says).await?;
        server_hears.write_all(&first_words).await?;
        tokio::io::copy(&mut client_says, &mut server_hears).await?;
        server_hears.shutdown().await.map_err(Broken::from)
    };
    let down = async {
        tokio::io::copy(&mut server_says, &mut client_hears).await?;
        client_hears.shutdown().await.map_err(Broken::from)
    };
    let copied = async {
        tokio::select! {
            copied = async { tokio::try_join!(up, down) } => copied.map(drop),
            () = activity.rested(MAX_IDLE) => Err(Broken::Io(io::ErrorKind::TimedOut.into())),
        }
    };
    match while_open(&client.bottle, copied).await {
        Some(Err(Broken::Metered(name))) => {
            let what =
                format!("a tunnel to {authority} was closed: its TLS asks for {name}, which is metered");
            meter.controller.notice_once(&client.bottle, &what);
        }
        Some(Err(Broken::Io(error))) => tracing::debug!(%error, %authority, "a tunnel broke"),
        Some(Ok(_)) | None => {}
    }
}

/// Why a spliced tunnel ends before its sides end it.
enum Broken {
    Io(io::Error),
    Metered(Host),
}

impl From<io::Error> for Broken {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// What the client says first, unless it asks for a metered name.
async fn first_words(meter: &Meter, client_says: &mut (impl AsyncRead + Unpin)) -> Result<Vec<u8>, Broken> {
    let opening = hello::read(client_says).await?;
    match opening.speech {
        Speech::Tls(Some(name)) if meter.settings.borrow().provider_at(&name).is_some() => {
            Err(Broken::Metered(name))
        }
        _ => Ok(opening.bytes),
    }
}

/// Works while the bottle is open, pauses while it is held, and gives up when it is closed or gone.
pub async fn while_open<T>(bottle: &Bottle, work: impl Future<Output = T>) -> Option<T> {
    tokio::pin!(work);
    let mut standing = bottle.watch();
    while stays_open(bottle, &mut standing).await {
        tokio::select! {
            biased;
            changed = standing.changed() => if changed.is_err() { return None },
            done = &mut work => return Some(done),
        }
    }
    None
}

/// Waits while the bottle is held; false when it is closed or gone.
async fn stays_open(bottle: &Bottle, standing: &mut tokio::sync::watch::Receiver<Standing>) -> bool {
    let settled = standing.wait_for(|standing| !matches!(standing, Standing::Held(_))).await;
    settled.is_ok() && bottle.standing() == Standing::Open
}
