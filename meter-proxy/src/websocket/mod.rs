//! WebSockets: a request for one is answered by the provider's own answer, and what passes then is metered.
//!
//! On hosts that are not metered bytes pass both ways. On metered hosts OpenAI Responses are, each of them an
//! exchange; any other WebSocket there is refused, because what it costs would not be seen. Not here: tunnels to
//! hosts that are not metered, in which nobody sees a WebSocket.
mod client;
pub(crate) mod deflate;
pub(crate) mod events;
pub(crate) mod frames;
mod handshake;
pub(crate) mod reader;
mod server;
mod session;
mod socket;
#[cfg(test)]
mod testing;

use std::pin::pin;
use std::sync::Arc;

use http::request::Parts;
use http::{Response, StatusCode};
use http_body_util::Either;
use hyper::body::Body;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::sync::mpsc;

pub use self::handshake::is_asked_for;
use self::socket::Socket;
use crate::activity::{Activity, Watched};
use crate::arriving::Arriving;
use crate::flights::Flight;
use crate::identify::Client;
use crate::protocol::Dialect;
use crate::refuse::{Reason, Refused};
use crate::route::Destination;
use crate::tail::{self, AnswerBody};
use crate::tunnel::{self, MAX_IDLE};
use crate::usage::{self, Endpoint, Shape};
use crate::{Meter, gate};

const UNMETERABLE: &str = "what a WebSocket at this endpoint costs cannot be metered";

/// Answers a request for a WebSocket. What the provider answers is the answer: its client's socket is open when its
/// own is.
///
/// # Errors
/// When it may not be opened, or nothing answers.
pub async fn open(
    meter: &Arc<Meter>,
    client: &Arc<Client>,
    destination: Destination,
    flight: Flight,
    mut head: Parts,
    body: Arriving,
) -> Result<Response<AnswerBody>, Refused> {
    let refused = |reason| Refused { reason, dialect: destination.dialect() };
    if !body.is_end_stream() {
        return Err(refused(Reason::Malformed("a request for a WebSocket has no body")));
    }
    let provider = destination.provider.as_deref();
    if provider.is_some_and(|provider| !reports_usage(provider.dialect, &destination.endpoint)) {
        return Err(refused(Reason::Unmeterable(UNMETERABLE)));
    }
    let leave = gate::admit_socket(meter, client, provider).await?;
    let client_side = handshake::take_upgrade(&mut head);
    let settings = Arc::clone(&meter.settings.borrow());
    let answer = handshake::ask(&destination, &settings, &client.bottle.lookups, head);
    let mut answer = answer.await.map_err(refused)?;
    if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
        let answer = Arriving::answer(answer, Arc::default());
        let answer = tail::tail(meter, Arc::clone(&client.bottle), flight, leave, answer).await;
        return answer.ok_or_else(|| Refused::not_durable(destination.dialect()));
    }
    let accepted = handshake::accepted(&answer).map_err(refused)?;
    let deflate = handshake::agreed(&answer, provider.is_some()).map_err(refused)?;
    let sides = Sides { client: client_side, upstream: hyper::upgrade::on(&mut answer) };
    let (meter, client) = (Arc::clone(meter), Arc::clone(client));
    tokio::spawn(async move {
        let Some((downstream, upstream)) = sides.taken_up().await else { return };
        match destination.provider {
            None => splice(&client, downstream, upstream).await,
            Some(provider) => {
                let (stops, stopped) = mpsc::unbounded_channel();
                let socket = Socket {
                    meter,
                    client,
                    provider,
                    endpoint: destination.endpoint,
                    deflate,
                    session: Default::default(),
                    activity: Activity::default(),
                    stops,
                };
                socket.run(stopped, downstream, upstream).await;
            }
        }
    });
    Ok(accepted.map(Either::Left))
}

/// Whether responses asked for there report their usage: those of OpenAI Responses.
fn reports_usage(dialect: Dialect, endpoint: &str) -> bool {
    // the table has it under the method by which the same is asked for without a WebSocket
    usage::endpoint(dialect, "POST", endpoint) == Endpoint::Billing(Shape::OpenaiResponses)
}

/// Both sides of a handshake.
struct Sides {
    client: OnUpgrade,
    upstream: OnUpgrade,
}

type Side = TokioIo<Upgraded>;

impl Sides {
    /// The two connections once both are open; none when one broke first.
    async fn taken_up(self) -> Option<(Side, Side)> {
        match tokio::try_join!(self.client, self.upstream) {
            Ok((client, upstream)) => Some((TokioIo::new(client), TokioIo::new(upstream))),
            Err(error) => {
                tracing::debug!(%error, "a WebSocket was not taken up");
                None
            }
        }
    }
}

/// Copies both ways, as in a tunnel.
async fn splice(client: &Client, downstream: Side, mut upstream: Side) {
    let activity = Activity::default();
    let mut downstream = Watched { stream: downstream, activity: activity.clone() };
    let copied = pin!(async {
        tokio::select! {
            copied = tokio::io::copy_bidirectional(&mut downstream, &mut upstream) => copied.map(|_| ()),
            () = activity.rested(MAX_IDLE) => Err(std::io::ErrorKind::TimedOut.into()),
        }
    });
    if let Some(Err(error)) = tunnel::while_open(&client.bottle, copied).await {
        tracing::debug!(%error, "a WebSocket broke");
    }
}
