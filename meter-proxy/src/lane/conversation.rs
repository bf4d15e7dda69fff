//! One connection: whose it is, what it speaks, one answer, the end.
//!
//! The client says what it speaks: HTTP is answered as it is; TLS for a metered name is opened by our own
//! certificate and answered inside; a CONNECT is accepted, and what comes through it is taken for a connection of
//! its own. All else is closed. Not here: the HTTP (`request`, `multiplexed`), and whose shape an answer has (`shape`).
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::Response;
use http::request::Parts;
use http_body_util::Full;
use rustls::ServerConfig;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::guests::Guest;
use super::rewound::Rewound;
use super::{Lane, multiplexed, request, shape};
use crate::certs::CertError;
use crate::framing::Protocol;
use crate::handshake::handshake;
use crate::hello::{self, ACCESS_DENIED, Speech};
use crate::hosts::Host;
use crate::protocol::{Dialect, LaneAnswer, Refusal};
use crate::refuse::Refused;
use crate::sockets::Taken;

/// Longest life of a connection, whatever it does.
const MAX_LIFE: Duration = Duration::from_secs(10);
/// Longest wait for a client to read its answer and leave.
const MAX_LINGER: Duration = Duration::from_secs(2);
/// Most of what a client still sends then that is read away, bytes: the largest requests of providers.
const MAX_LINGER_BYTES: usize = 32 * 1024 * 1024;
const LINGER_PIECE_BYTES: usize = 16 * 1024;

/// Serves one connection to its end: until it was answered, its bottle is opened, or its time is up. Its place among
/// all connections is free again then.
pub async fn serve(lane: Arc<Lane>, taken: Taken) {
    let Taken { stream, peer, listener, place } = taken;
    let life = async {
        let local = stream.set_nodelay(true).and_then(|()| stream.local_addr());
        let local = match local {
            Ok(local) => local,
            Err(error) => return tracing::debug!(%error, %peer, "a connection ended before it was served"),
        };
        if let Some(guest) = identify(&lane, peer, local, listener).await {
            tokio::select! {
                () = guest.opened() => {}
                () = converse(&lane, &guest, stream) => {}
            }
        }
    };
    if timeout(MAX_LIFE, life).await.is_err() {
        tracing::debug!(%peer, "a connection took too long");
    }
    drop(place);
}

/// Whose connection this is; none's when nothing is to be said.
async fn identify(lane: &Lane, peer: SocketAddr, local: SocketAddr, listener: u32) -> Option<Guest> {
    let why = lane.controller.why(peer, local, listener).await;
    match &why {
        Ok(None) => tracing::debug!(%peer, "a connection that is not answered"),
        Err(error) if lane.silence.is_new() => tracing::warn!(%error, "a connection could not be identified"),
        Err(error) => tracing::debug!(%error, %peer, "a connection could not be identified"),
        Ok(Some(_)) => {}
    }
    if why.is_ok() {
        lane.silence.is_over();
    }
    why.ok().flatten()
}

/// Tells one client why, and lets it read that.
async fn converse(lane: &Lane, guest: &Guest, stream: TcpStream) {
    let LaneAnswer { name: bottle, original, .. } = &guest.answer;
    match speak(lane, guest, stream).await {
        Ok(Some(stream)) => {
            tracing::debug!(%bottle, ?original, "a client was told why its bottle is cut");
            linger(stream).await;
        }
        Ok(None) => tracing::debug!(%bottle, ?original, "a connection that cannot be answered was closed"),
        Err(error) => tracing::debug!(%error, %bottle, ?original, "a connection broke"),
    }
}

/// Answers in whatever the client speaks; the connection, when all was said. None when there is no answer to that.
async fn speak(lane: &Lane, guest: &Guest, stream: TcpStream) -> io::Result<Option<TcpStream>> {
    let mut stream = Rewound::new(stream);
    let mut through = None;
    loop {
        let opening = hello::read(&mut stream).await?;
        stream.put_back(&opening.bytes);
        match opening.speech {
            Speech::Http => {
                let providers = lane.providers();
                let tell =
                    |request: &Parts| told(&guest.answer.refusal, shape::of_request(&providers, request));
                let spoken = request::answer(stream, through.is_none(), tell).await?;
                stream = spoken.stream;
                stream.put_back(&spoken.unread);
                match spoken.connect {
                    Some(authority) => through = Some(authority.host),
                    None => return end(stream).await.map(Some),
                }
            }
            Speech::Tls { name, .. } => return speak_tls(lane, guest, name.or(through), stream).await,
            Speech::Other if multiplexed::begins(&opening.bytes) => {
                let (refusal, providers) = (guest.answer.refusal.clone(), lane.providers());
                let tell = move |request: &Parts| told(&refusal, shape::of_request(&providers, request));
                multiplexed::answer(&mut stream, tell).await?;
                return Ok(Some(stream.into_inner()));
            }
            Speech::BrokenTls | Speech::Other => return Ok(None),
        }
    }
}

/// Answers inside TLS, to a client that asks for `host`, if that is metered.
async fn speak_tls(
    lane: &Lane,
    guest: &Guest,
    host: Option<Host>,
    mut stream: Rewound<TcpStream>,
) -> io::Result<Option<TcpStream>> {
    let providers = lane.providers();
    let metered = host.and_then(|host| Some((providers.at(&host)?.dialect, host.to_string())));
    let Some((dialect, name)) = metered else {
        stream.write_all(&ACCESS_DENIED).await?;
        return end(stream).await.map(|_| None);
    };
    let tls = certificate(lane, &name).await.map_err(io::Error::other)?;
    let mut stream = handshake(stream, tls).await.map_err(io::Error::other)?;
    let refusal = guest.answer.refusal.clone();
    let tell = move |_: &Parts| told(&refusal, Some(dialect));
    let stream = match Protocol::by_alpn(stream.get_ref().1.alpn_protocol()) {
        Protocol::Http1 => {
            let mut spoken = request::answer(stream, false, tell).await?;
            spoken.stream.shutdown().await?;
            spoken.stream
        }
        Protocol::Http2 => {
            multiplexed::answer(&mut stream, tell).await?;
            stream
        }
    };
    Ok(Some(stream.into_inner().0.into_inner()))
}

/// TLS as a metered host.
async fn certificate(lane: &Lane, host: &str) -> Result<Arc<ServerConfig>, CertError> {
    let tls = lane.certs.for_host(host, lane.controller.sign(host.to_owned())).await;
    match &tls {
        Ok(_) => lane.unsigned.is_over(),
        Err(error) if lane.unsigned.is_new() => tracing::warn!(%error, %host, "no TLS for a metered host"),
        Err(_) => {}
    }
    tls
}

/// What a client is told.
fn told(refusal: &Refusal, dialect: Option<Dialect>) -> Response<Full<Bytes>> {
    Refused::by_controller(refusal.clone(), dialect).response()
}

/// Says that no more follows.
async fn end(mut stream: Rewound<TcpStream>) -> io::Result<TcpStream> {
    stream.shutdown().await?;
    Ok(stream.into_inner())
}

/// Reads away what a client still sends, until it leaves: were the connection closed before, the kernel would reset
/// it, and the client might never read its answer.
async fn linger(mut stream: TcpStream) {
    let mut left = MAX_LINGER_BYTES;
    let mut buffer = vec![0; LINGER_PIECE_BYTES];
    let until_it_leaves = async {
        while left > 0 {
            match stream.read(&mut buffer).await {
                Ok(0) => return,
                Ok(read) => left = left.saturating_sub(read),
                Err(error) => return tracing::debug!(%error, "a client that was answered broke off"),
            }
        }
    };
    if timeout(MAX_LINGER, until_it_leaves).await.is_err() {
        tracing::debug!("a client that was answered does not leave");
    }
}
