//! Opening handshakes (RFC 6455, 4): the client's request goes to the provider, whose answer is the client's.
//!
//! Not here: leave to open one (`gate`).
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONNECTION, HOST, HeaderValue, UPGRADE};
use http::request::Parts;
use http::{Method, Request, Response, StatusCode, Uri, Version};
use http_body_util::{Empty, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};

use super::deflate::{Deflate, keep_readable_offers};
use crate::dial::{self, DialError, Lookups};
use crate::forward::strip_hop_by_hop;
use crate::refuse::Reason;
use crate::route::Destination;
use crate::settings::Settings;

/// Longest wait for the provider's answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest head of that answer, bytes.
const MAX_BUFFER_BYTES: usize = 32 * 1024;
const WEBSOCKET: HeaderValue = HeaderValue::from_static("websocket");

/// Whether a request is for a WebSocket. Any other upgrade is an offer that is not taken up (Java's clients offer h2c
/// each time).
#[must_use]
pub fn is_asked_for(request: &Parts) -> bool {
    let names = |value: &HeaderValue| {
        let names = String::from_utf8_lossy(value.as_bytes()).to_ascii_lowercase();
        names.split(',').any(|name| name.trim() == "websocket")
    };
    request.method == Method::GET && request.headers.get_all(UPGRADE).iter().any(names)
}

/// The client's connection, once it has been answered.
pub fn take_upgrade(head: &mut Parts) -> OnUpgrade {
    let mut request = Request::new(());
    std::mem::swap(request.extensions_mut(), &mut head.extensions);
    hyper::upgrade::on(&mut request)
}

/// Asks the provider, on a connection of its own.
///
/// # Errors
/// When there is no answer.
pub async fn ask(
    destination: &Destination,
    settings: &Settings,
    lookups: &Lookups,
    head: Parts,
) -> Result<Response<Incoming>, Reason> {
    let request = outgoing(destination, head)
        .map_err(|_| Reason::Malformed("the request cannot be forwarded as it is"))?;
    let stream = dial::connect(&destination.authority, destination.chosen, settings, lookups)
        .await
        .map_err(unreachable)?;
    if destination.tls {
        let stream = dial::secure_by(&settings.tls_http1, stream, &destination.authority)
            .await
            .map_err(unreachable)?;
        answer(stream, request).await
    } else {
        answer(stream, request).await
    }
}

fn unreachable(error: DialError) -> Reason {
    Reason::from(&error)
}

async fn answer<S>(stream: S, request: Request<Empty<Bytes>>) -> Result<Response<Incoming>, Reason>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let answered = async {
        let (mut sender, connection) =
            http1::Builder::new().max_buf_size(MAX_BUFFER_BYTES).handshake(TokioIo::new(stream)).await?;
        tokio::spawn(async move {
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(%error, "a connection for a WebSocket broke");
            }
        });
        sender.send_request(request).await
    };
    match tokio::time::timeout(ANSWER_TIMEOUT, answered).await {
        Ok(Ok(mut answer)) => {
            if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
                strip_hop_by_hop(answer.headers_mut());
            }
            Ok(answer)
        }
        Ok(Err(_)) => Err(Reason::Upstream("the connection broke".to_owned())),
        Err(_) => Err(Reason::Upstream("it did not answer in time".to_owned())),
    }
}

/// The request as it leaves.
fn outgoing(destination: &Destination, mut head: Parts) -> Result<Request<Empty<Bytes>>, http::Error> {
    head.uri = Uri::try_from(destination.target.as_str())?;
    head.version = Version::HTTP_11;
    strip_hop_by_hop(&mut head.headers);
    as_upgrade(&mut head.headers);
    if destination.provider.is_some() {
        keep_readable_offers(&mut head.headers);
    }
    head.headers.insert(HOST, HeaderValue::from_str(&destination.host())?);
    Ok(Request::from_parts(head, Empty::new()))
}

/// The provider's answer as the client gets it.
///
/// # Errors
/// When it opens something else.
pub fn accepted(answer: &Response<Incoming>) -> Result<Response<Full<Bytes>>, Reason> {
    let opens = answer.headers().get(UPGRADE).map(|value| value.as_bytes().to_ascii_lowercase());
    if opens.as_deref() != Some(WEBSOCKET.as_bytes()) {
        return Err(Reason::Upstream("it switched to something else than a WebSocket".to_owned()));
    }
    let mut accepted = Response::new(Full::default());
    *accepted.status_mut() = answer.status();
    *accepted.headers_mut() = answer.headers().clone();
    strip_hop_by_hop(accepted.headers_mut());
    as_upgrade(accepted.headers_mut());
    Ok(accepted)
}

/// The compression that was agreed on, where messages are `read`.
///
/// # Errors
/// When the provider chose an extension under which they cannot be.
pub fn agreed(answer: &Response<Incoming>, read: bool) -> Result<Option<Deflate>, Reason> {
    if !read {
        return Ok(None);
    }
    Deflate::chosen(answer.headers()).map_err(|error| Reason::Upstream(error.to_string()))
}

fn as_upgrade(headers: &mut http::HeaderMap) {
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, WEBSOCKET);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_websocket_is_asked_for_by_get_and_by_name() {
        for (method, upgrade, expected) in [
            ("GET", &["websocket"][..], true),
            ("GET", &["h2c", "WebSocket"], true),
            ("GET", &["h2c, websocket"], true),
            ("GET", &["h2c"], false),
            ("GET", &["websockets"], false),
            ("GET", &[], false),
            ("POST", &["websocket"], false),
        ] {
            let mut request = Request::builder().method(method).uri("/");
            for value in upgrade {
                request = request.header(UPGRADE, *value);
            }
            let (head, ()) = request.body(()).unwrap().into_parts();
            assert_eq!(is_asked_for(&head), expected, "{method} {upgrade:?}");
        }
    }
}
