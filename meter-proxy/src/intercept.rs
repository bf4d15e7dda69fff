//! Tunnels: a CONNECT to a metered name is opened by our own certificate, every other is spliced.
//!
//! Inside an opened tunnel requests go the same way as outside. Not here: the request path itself.
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use http::request::Parts;
use http::{Request, Response, Uri};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use rustls::ServerConfig;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;

use crate::bottles::{Bottle, Standing};
use crate::dial::{self, Chosen, DialError};
use crate::hosts::{Authority, Host};
use crate::identify::Client;
use crate::refuse::{self, Reason, Refused};
use crate::route::Entrance;
use crate::tail::AnswerBody;
use crate::{Meter, accept, hello};

/// The one port of metered names that is opened.
const HTTPS: u16 = 443;
/// Longest wait for a client's TLS handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of a spliced tunnel that wait in the meter, each way.
const SPLICE_BUFFER_BYTES: usize = 8 * 1024;

/// Answers a CONNECT, and carries on with what comes through it.
///
/// # Errors
/// When it names no host and port, or one that may not or cannot be reached.
pub async fn connect(
    meter: &Arc<Meter>,
    client: &Arc<Client>,
    entrance: &Entrance,
    request: Parts,
) -> Result<Response<AnswerBody>, Refused> {
    if matches!(entrance, Entrance::Tunnel { .. }) {
        return Err(Refused::plain(Reason::Malformed("there is no CONNECT inside a tunnel")));
    }
    let authority = target(&request.uri)
        .ok_or_else(|| Refused::plain(Reason::Malformed("CONNECT needs a host and a port")))?;
    let settings = Arc::clone(&meter.settings.borrow());
    let upgrade = hyper::upgrade::on(Request::from_parts(request, ()));
    match (&authority.host, settings.provider_at(&authority.host)) {
        (Host::Name(name), Some(_)) if authority.port == HTTPS => {
            let tls = meter.certs.for_host(&meter.controller, name).await;
            let tls = tls.map_err(|error| Refused::plain(Reason::Upstream(error.to_string())))?;
            tokio::spawn(open(Arc::clone(meter), Arc::clone(client), authority, tls, upgrade));
        }
        (_, Some(_)) => {
            let what = format!("{authority} is metered, and reached on port {HTTPS} only");
            return Err(Refused::plain(Reason::Forbidden(what)));
        }
        (_, None) => {
            if let Some(refusal) = client.refusal_when_cut() {
                return Err(Refused::by_controller(refusal, None));
            }
            let upstream =
                dial::connect(&authority, Chosen::ByClient, &settings).await.map_err(unreachable)?;
            tokio::spawn(pass(Arc::clone(meter), Arc::clone(client), authority, upgrade, upstream));
        }
    }
    Ok(refuse::tunnel_open())
}

/// What a CONNECT asks for: a host and a port and nothing else (RFC 9110, 9.3.6).
fn target(uri: &Uri) -> Option<Authority> {
    let alone = uri.scheme().is_none() && uri.path_and_query().is_none();
    uri.authority().filter(|_| alone).and_then(|named| Authority::parse(named.as_str(), None).ok())
}

fn unreachable(error: DialError) -> Refused {
    Refused::plain(match error {
        DialError::Forbidden(_) => Reason::Forbidden(error.to_string()),
        DialError::NoHost(_) | DialError::Failed { .. } => Reason::Upstream(error.to_string()),
    })
}

/// Speaks TLS as the host that the tunnel goes to, and serves the requests inside. Boxed: it serves what may
/// open it.
fn open(
    meter: Arc<Meter>,
    client: Arc<Client>,
    authority: Authority,
    tls: Arc<ServerConfig>,
    upgrade: OnUpgrade,
) -> Pin<Box<dyn Future<Output = ()> + Send>> {
    Box::pin(async move {
        let handshake = async {
            let upgraded = upgrade.await.map_err(std::io::Error::other)?;
            TlsAcceptor::from(tls).accept(TokioIo::new(upgraded)).await
        };
        let stream = match tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return tracing::debug!(%error, %authority, "no TLS with a client"),
            Err(_) => return tracing::debug!(%authority, "a client did not finish its TLS handshake"),
        };
        let named = stream.get_ref().1.server_name().map(str::parse::<Host>);
        let name_agrees = named.is_none_or(|named| named.as_ref() == Ok(&authority.host));
        accept::serve(meter, client, Entrance::Tunnel { authority, name_agrees }, stream).await;
    })
}

/// Splices a tunnel, unless its TLS asks for a metered name after all.
async fn pass(
    meter: Arc<Meter>,
    client: Arc<Client>,
    authority: Authority,
    upgrade: OnUpgrade,
    mut upstream: TcpStream,
) {
    let mut downstream = match upgrade.await {
        Ok(upgraded) => TokioIo::new(upgraded),
        Err(error) => return tracing::debug!(%error, "a tunnel was not taken up"),
    };
    if authority.port == HTTPS
        && let Err(error) = pass_hello(&meter, &mut downstream, &mut upstream).await
    {
        let what = format!("a tunnel to {authority} was closed: {error}");
        return meter.controller.notice(Some(client.bottle.id), &what);
    }
    splice(&client, downstream, upstream).await;
}

/// Passes the client's first message on, unless it asks for a metered name.
async fn pass_hello(
    meter: &Meter,
    downstream: &mut TokioIo<Upgraded>,
    upstream: &mut TcpStream,
) -> std::io::Result<()> {
    let opening = hello::read(downstream).await?;
    let settings = Arc::clone(&meter.settings.borrow());
    match opening.name {
        Some(name) if settings.provider_at(&name).is_some() => {
            Err(std::io::Error::other(format!("its TLS asks for {name}, which is metered")))
        }
        _ => upstream.write_all(&opening.bytes).await,
    }
}

/// Copies both ways until either side ends, or the bottle is cut for good; nothing moves while it is held.
async fn splice(client: &Client, mut downstream: TokioIo<Upgraded>, mut upstream: TcpStream) {
    let copy = tokio::io::copy_bidirectional_with_sizes(
        &mut downstream,
        &mut upstream,
        SPLICE_BUFFER_BYTES,
        SPLICE_BUFFER_BYTES,
    );
    tokio::pin!(copy);
    let mut standing = client.bottle.watch();
    while stays_open(&client.bottle, &mut standing).await {
        tokio::select! {
            biased;
            changed = standing.changed() => if changed.is_err() { return },
            ended = &mut copy => {
                if let Err(error) = ended {
                    tracing::debug!(%error, "a tunnel broke");
                }
                return;
            }
        }
    }
}

/// Waits while the bottle is held; false when it is closed or gone.
async fn stays_open(bottle: &Bottle, standing: &mut tokio::sync::watch::Receiver<Standing>) -> bool {
    let settled = standing.wait_for(|standing| !matches!(standing, Standing::Held(_))).await;
    settled.is_ok() && bottle.standing() == Standing::Open
}
