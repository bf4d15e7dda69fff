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
use tokio::time::Instant;

use crate::activity::{Activity, Watched};
use crate::bottles::{Bottle, Standing};
use crate::framing::Protocol;
use crate::handshake::{self, NoTls};
use crate::hello::Speech;
use crate::hosts::{Authority, HTTPS, Host};
use crate::identify::Client;
use crate::route::Entrance;
use crate::settings::Settings;
use crate::{Meter, accept, hello};

/// Longest time that nothing moves between a client and a server of its own: what people leave open over lunch
/// lives on.
pub const MAX_IDLE: Duration = Duration::from_secs(2 * 3_600);

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
        let host = authority.host.clone();
        let notice = |why: &dyn std::fmt::Display| {
            let what = format!("a client in {} that asked for {host} by TLS {why}", client.name);
            meter.controller.notice_once(&client.bottle, &what);
        };
        let stream = match handshake::handshake(stream, tls).await {
            Ok(stream) => stream,
            Err(NoTls::Broke(error)) => return tracing::debug!(%error, %authority, "no TLS with a client"),
            Err(why) => return notice(&why),
        };
        let named = stream.get_ref().1.server_name().map(str::parse::<Host>);
        let name_agrees = named.is_none_or(|named| named.as_ref() == Ok(&authority.host));
        let protocol = Protocol::by_alpn(stream.get_ref().1.alpn_protocol());
        let (activity, since) = (Activity::default(), Instant::now());
        let stream = Watched { stream, activity: activity.clone() };
        let entrance = Entrance::Tunnel { authority, name_agrees };
        accept::serve(Arc::clone(&meter), Arc::clone(&client), entrance, protocol, stream).await;
        // Some clients look at a certificate when the handshake is over, and leave then.
        let has_left_at_once = !activity.has_begun() && since.elapsed() < handshake::TIMEOUT;
        if has_left_at_once && client.bottle.standing() != Standing::Detached {
            notice(&"left at the meter's certificate, and asked nothing");
        }
    })
}

/// Copies both ways until the end, until nothing moves for long, or until the bottle is cut for good; nothing
/// moves while it is held. What the client says first is read before it is passed on, and the tunnel is closed
/// when there is an [`objection`].
pub async fn splice<S>(
    meter: &Meter,
    client: &Client,
    authority: &Authority,
    downstream: S,
    upstream: TcpStream,
) where
    S: AsyncRead + AsyncWrite,
{
    let judge = |speech: &Speech| objection(&meter.settings.borrow(), authority, speech);
    // boxed: most streams are not spliced, and would have room for it
    match while_open(&client.bottle, Box::pin(copy(downstream, upstream, judge))).await {
        Some(Err(Broken::Refused(why))) => {
            let what = format!("a tunnel to {authority} was closed: {why}");
            meter.controller.notice_once(&client.bottle, &what);
        }
        Some(Err(Broken::Io(error))) => tracing::debug!(%error, %authority, "a tunnel broke"),
        Some(Ok(())) | None => {}
    }
}

/// Why what a client says first is not passed on to `there`, where no metered host is known to be. Without a name
/// that it asks for, or with one that is hidden, that is not enough while some metered host was never found. A
/// client that names another host may still mean a metered one inside: that is not to be seen at any address, and
/// names that cannot be resolved for a while must not end all other traffic.
pub fn objection(settings: &Settings, there: &Authority, speech: &Speech) -> Option<String> {
    let says_too_little = match speech {
        Speech::Tls { name: Some(name), .. } if settings.provider_at(name).is_some() => {
            return Some(format!("its TLS asks for {name}, which is metered"));
        }
        Speech::Tls { name: Some(_), hides: false } | Speech::Http => false,
        Speech::Tls { .. } | Speech::BrokenTls => true,
        Speech::Other => there.port == HTTPS,
    };
    let missing = if says_too_little { settings.metered_addresses.missing() } else { None };
    missing.map(|host| format!("it may lead to {host}, which is metered and could not be found yet"))
}

/// Why a spliced tunnel ends before its sides end it.
#[derive(Debug)]
enum Broken {
    Io(io::Error),
    Refused(String),
}

impl From<io::Error> for Broken {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// Copies until both sides have ended, one breaks, nothing moves for [`MAX_IDLE`], or `judge` objects to what the
/// client says first.
async fn copy(
    downstream: impl AsyncRead + AsyncWrite,
    upstream: impl AsyncRead + AsyncWrite,
    judge: impl Fn(&Speech) -> Option<String>,
) -> Result<(), Broken> {
    let activity = Activity::default();
    let downstream = Watched { stream: Box::pin(downstream), activity: activity.clone() };
    let (mut client_says, mut client_hears) = tokio::io::split(downstream);
    let (mut server_says, mut server_hears) = tokio::io::split(upstream);
    let up = async {
        let opening = hello::read(&mut client_says).await?;
        if let Some(why) = judge(&opening.speech) {
            return Err(Broken::Refused(why));
        }
        server_hears.write_all(&opening.bytes).await?;
        tokio::io::copy(&mut client_says, &mut server_hears).await?;
        server_hears.shutdown().await.map_err(Broken::from)
    };
    let down = async {
        tokio::io::copy(&mut server_says, &mut client_hears).await?;
        client_hears.shutdown().await.map_err(Broken::from)
    };
    tokio::select! {
        copied = async { tokio::try_join!(up, down) } => copied.map(|((), ())| ()),
        () = activity.rested(MAX_IDLE) => Err(Broken::Io(io::ErrorKind::TimedOut.into())),
    }
}

/// Works while the bottle is open, pauses while it is held, and gives up when it is closed or gone.
pub async fn while_open<T>(bottle: &Bottle, mut work: impl Future<Output = T> + Unpin) -> Option<T> {
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

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, DuplexStream, duplex};
    use tokio::task::JoinHandle;

    use super::*;

    /// A tunnel under way, and its two ends.
    fn tunnel() -> (DuplexStream, DuplexStream, JoinHandle<Result<(), Broken>>) {
        let ((client, downstream), (upstream, server)) = (duplex(64), duplex(64));
        (client, server, tokio::spawn(copy(downstream, upstream, |_| None)))
    }

    #[tokio::test(start_paused = true)]
    async fn a_tunnel_in_which_both_sides_are_silent_ends() {
        let (mut client, mut server, ended) = tunnel();
        let since = Instant::now();
        assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
        assert_eq!(server.read(&mut [0]).await.unwrap(), 0);
        assert!(since.elapsed() >= MAX_IDLE && since.elapsed() <= 2 * MAX_IDLE);
        assert!(
            matches!(ended.await.unwrap(), Err(Broken::Io(error)) if error.kind() == io::ErrorKind::TimedOut)
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_tunnel_in_which_one_side_speaks_now_and_then_goes_on() {
        let (mut client, mut server, ended) = tunnel();
        for _ in 0..5 {
            tokio::time::sleep(MAX_IDLE * 3 / 4).await;
            server.write_all(b"x").await.unwrap();
            client.read_exact(&mut [0]).await.unwrap();
        }
        for _ in 0..5 {
            tokio::time::sleep(MAX_IDLE * 3 / 4).await;
            client.write_all(b"y").await.unwrap();
            server.read_exact(&mut [0]).await.unwrap();
        }
        drop((client, server));
        ended.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn nothing_of_what_is_objected_to_is_passed_on() {
        let ((mut client, downstream), (upstream, mut server)) = (duplex(64), duplex(64));
        let ended = tokio::spawn(copy(downstream, upstream, |speech| Some(speech.to_string())));
        client.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        assert_eq!(server.read(&mut [0]).await.unwrap(), 0);
        assert!(matches!(ended.await.unwrap(), Err(Broken::Refused(why)) if why == "plain HTTP"));
    }
}
