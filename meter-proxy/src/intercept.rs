//! CONNECT: a tunnel to a metered name is opened by our own certificate, every other is spliced.
//!
//! Not here: what goes on in the tunnel (`tunnel`).
use std::sync::Arc;

use http::request::Parts;
use http::{Request, Response, Uri, Version};
use http_body_util::Either;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;

use crate::Meter;
use crate::dial::{self, Chosen, DialError};
use crate::hosts::{Authority, HTTPS, Host};
use crate::identify::Client;
use crate::reach;
use crate::refuse::{self, Reason, Refused};
use crate::route::Entrance;
use crate::tail::AnswerBody;
use crate::tunnel;

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
    if !matches!(entrance, Entrance::Listener { .. }) {
        let what = "a CONNECT is answered at the meter's own address only";
        return Err(Refused::plain(Reason::Malformed(what)));
    }
    if request.version == Version::HTTP_2 {
        return Err(Refused::plain(Reason::Malformed("a CONNECT is answered in HTTP/1.1 only")));
    }
    let authority = target(&request.uri)
        .ok_or_else(|| Refused::plain(Reason::Malformed("CONNECT needs a host and a port")))?;
    let settings = Arc::clone(&meter.settings.borrow());
    let upgrade = hyper::upgrade::on(Request::from_parts(request, ()));
    let (for_meter, for_client) = (Arc::clone(meter), Arc::clone(client));
    match (&authority.host, settings.provider_of(&authority)) {
        (Host::Name(name), Some(_)) if authority.port == HTTPS => {
            let tls = meter.certs.for_host(name, meter.controller.sign(name.clone())).await;
            let tls = tls.map_err(|error| Refused::plain(Reason::Upstream(error.to_string())))?;
            tokio::spawn(async move {
                if let Some(stream) = taken_up(upgrade).await {
                    tunnel::open(for_meter, for_client, authority, tls, stream).await;
                }
            });
        }
        (_, Some(_)) => {
            let what = format!("{authority} is metered, and reached by name on port {HTTPS} only");
            return Err(Refused::plain(Reason::Forbidden(what)));
        }
        (_, None) => {
            reach::check(client, &settings, &authority)?;
            if let Some(refusal) = client.refusal_when_cut() {
                return Err(Refused::by_controller(refusal, None));
            }
            let upstream = dial::connect(&authority, Chosen::ByClient, &settings, &client.bottle.lookups)
                .await
                .map_err(unreachable)?;
            tokio::spawn(async move {
                if let Some(stream) = taken_up(upgrade).await {
                    tunnel::splice(&for_meter, &for_client, &authority, stream, upstream).await;
                }
            });
        }
    }
    Ok(refuse::tunnel_open().map(Either::Left))
}

/// What a CONNECT asks for: a host and a port and nothing else (RFC 9110, 9.3.6).
fn target(uri: &Uri) -> Option<Authority> {
    let alone = uri.scheme().is_none() && uri.path_and_query().is_none();
    uri.authority().filter(|_| alone).and_then(|named| Authority::parse(named.as_str(), None).ok())
}

/// The connection once the CONNECT is answered; none when it broke first.
async fn taken_up(upgrade: OnUpgrade) -> Option<TokioIo<Upgraded>> {
    match upgrade.await {
        Ok(upgraded) => Some(TokioIo::new(upgraded)),
        Err(error) => {
            tracing::debug!(%error, "a tunnel was not taken up");
            None
        }
    }
}

fn unreachable(error: DialError) -> Refused {
    Refused::plain(match error {
        DialError::Forbidden(_) | DialError::Metered { .. } => Reason::Forbidden(error.to_string()),
        DialError::NoHost(_) | DialError::Failed { .. } => Reason::Upstream(error.to_string()),
    })
}
