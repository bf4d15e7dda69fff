//! The gate: no request that may cost leaves without a permit, and a permit always ends in a settlement.
//!
//! Not here: the decision (the controller's), and what is done with a permit (`forward`, `tail`).
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use http::HeaderValue;
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, UPGRADE};
use http::request::Parts;
use http_body_util::BodyExt;
use hyper::body::{Body, Frame};

use crate::Meter;
use crate::activity::Activity;
use crate::arriving::Arriving;
use crate::bottles::{Bottle, Standing};
use crate::controller::{Controller, Slot};
use crate::exchange::{Exchange, Facts};
use crate::facts::MAX_REQUEST_BYTES;
use crate::forward::{BODY_TIMEOUT, Outgoing};
use crate::identify::Client;
use crate::protocol::{Refusal, Reserve};
use crate::providers::Metered;
use crate::refuse::{Reason, Refused};
use crate::route::Destination;
use crate::text::printable_within;
use crate::tokens::Ending;
use crate::usage::{self, Endpoint, Shape};

/// Most of a request's body that is read before the question is asked, bytes.
const MAX_PREFIX_BYTES: usize = 4 * 1024 * 1024;
/// The same where a body that is not read whole is refused: as much as is decoded.
const MAX_WHOLE_BYTES: usize = MAX_REQUEST_BYTES;
/// Most of an endpoint's path that the operator and the ledger are told, characters.
const MAX_ENDPOINT_CHARS: usize = 256;

/// Leave to forward one request.
pub enum Leave {
    /// It may cost: the permit to settle.
    Metered(Box<Permit>),
    /// It costs nothing.
    Free(Free),
}

/// The gate's word that a request costs nothing and its bottle was open; made here alone.
pub struct Free(());

/// The controller's leave for one exchange, with the state of that exchange. Dropped unsettled, it settles.
pub struct Permit {
    /// The meter's number of it.
    pub number: u64,
    /// What is seen of it.
    pub exchange: Exchange,
    /// Whose it is.
    pub bottle: Arc<Bottle>,
    /// Whom to tell.
    pub controller: Arc<Controller>,
    /// Status of the provider's answer, once there is one.
    pub status: Option<u16>,
    /// The request's way out, once it has begun: whether anything may have left.
    pub way_out: Option<Activity>,
    /// The place in the queue, got with the controller's leave; gone once settled.
    slot: Option<Slot>,
}

impl Permit {
    /// Whether anything of the request may have left: not while its connection is still being made.
    #[must_use]
    pub fn may_have_left(&self) -> bool {
        self.way_out.as_ref().is_some_and(Activity::has_begun)
    }

    /// The place to settle from, the first time.
    pub fn take_slot(&mut self) -> Option<Slot> {
        self.slot.take()
    }

    /// How the exchange ends when it is given up now.
    #[must_use]
    pub fn ending_if_dropped(&self) -> Ending {
        match self.bottle.standing() {
            _ if !self.may_have_left() => Ending::Unsent,
            Standing::Closed | Standing::Detached => Ending::Cut,
            Standing::Open | Standing::Held(_) => Ending::ClientGone,
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let ending = self.ending_if_dropped();
        crate::settle::end(self, ending);
    }
}

/// Asks for leave. Returns it with the request's body, of which a part may have been read.
///
/// Endpoints that cost nothing need no permit, but an open bottle; unlisted ones take a permit that reserves
/// nothing, so that usage found in the answer can be settled.
///
/// # Errors
/// When the request may not leave, or cannot be metered.
pub async fn admit(
    meter: &Meter,
    client: &Client,
    destination: &Destination,
    request: &Parts,
    body: Arriving,
) -> Result<(Leave, Outgoing), Refused> {
    let Some(provider) = &destination.provider else {
        return free(client, destination, body);
    };
    let shaped = |reason| Refused::shaped(reason, provider.dialect);
    if asks_for_websocket(request) {
        return Err(shaped(Reason::Upgrade));
    }
    match usage::endpoint(provider.dialect, request.method.as_str(), &destination.endpoint) {
        Endpoint::Free => free(client, destination, body),
        Endpoint::Refused(why) => Err(shaped(Reason::Unmeterable(why))),
        Endpoint::Ambiguous => Err(shaped(Reason::Malformed("the path can be read in more than one way"))),
        Endpoint::Unlisted => {
            notice_unlisted(meter, client, provider, &destination.endpoint);
            let facts = Facts::of_unlisted(body.size_hint().exact());
            let ask = Question { shape: Shape::Any, facts, provider, destination };
            Ok((ask.leave(meter, client).await.map_err(shaped)?, Outgoing::whole(body)))
        }
        Endpoint::Billing(shape) => {
            let (outgoing, facts) = read_facts(shape, client, request, body).await.map_err(shaped)?;
            let ask = Question { shape, facts, provider, destination };
            Ok((ask.leave(meter, client).await.map_err(shaped)?, outgoing))
        }
    }
}

/// Whether the request would become a WebSocket. Any other upgrade is an offer that is not taken up (Java's
/// clients offer h2c each time).
fn asks_for_websocket(request: &Parts) -> bool {
    let names = |value: &HeaderValue| {
        value.as_bytes().to_ascii_lowercase().windows(9).any(|part| part == b"websocket")
    };
    request.headers.get_all(UPGRADE).iter().any(names)
}

/// Passes what costs nothing, unless the bottle is cut.
fn free(client: &Client, destination: &Destination, body: Arriving) -> Result<(Leave, Outgoing), Refused> {
    match client.refusal_when_cut() {
        Some(refusal) => Err(Refused::by_controller(refusal, destination.dialect())),
        None => Ok((Leave::Free(Free(())), Outgoing::whole(body))),
    }
}

/// Tells the operator of an endpoint that is in no table, once for each bottle.
fn notice_unlisted(meter: &Meter, client: &Client, provider: &Metered, endpoint: &str) {
    let endpoint = printable_within(endpoint, MAX_ENDPOINT_CHARS);
    let what = format!("unlisted endpoint of {}: {endpoint}", provider.name);
    meter.controller.notice_once(&client.bottle, &what);
}

/// Reads as much of the body as the estimate needs, and no more.
async fn read_facts(
    shape: Shape,
    client: &Client,
    request: &Parts,
    mut body: Arriving,
) -> Result<(Outgoing, Facts), Reason> {
    let text = |name| request.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let declared = text(CONTENT_LENGTH).parse().ok();
    let most = if shape == Shape::OpenaiResponses { MAX_WHOLE_BYTES } else { MAX_PREFIX_BYTES };
    let room = client.bottle.room_for(declared.unwrap_or(u64::MAX).min(most as u64)).await;
    let mut prefix = BytesMut::new();
    let (mut complete, mut trailers) = (body.is_end_stream(), None);
    while !complete && prefix.len() < most {
        match next_frame(&mut body).await?.map(Frame::into_data) {
            Some(Ok(piece)) => prefix.extend_from_slice(&piece),
            Some(Err(last)) => trailers = last.into_trailers().ok(),
            None => complete = true,
        }
    }
    let facts = Facts::of_request(shape, &prefix, complete, text(CONTENT_ENCODING), declared);
    if let Some(why) = facts.unmeterable {
        return Err(Reason::Unmeterable(why));
    }
    let rest = if complete { None } else { Some(body) };
    Ok((Outgoing::begun(prefix.freeze(), rest, room).with_trailers(trailers), facts))
}

/// The next part of a body; `None` at its end.
async fn next_frame(body: &mut Arriving) -> Result<Option<Frame<Bytes>>, Reason> {
    let frame = tokio::time::timeout(BODY_TIMEOUT, body.frame()).await.map_err(|_| Reason::Slow)?;
    match frame {
        None => Ok(None),
        Some(Ok(frame)) => Ok(Some(frame)),
        Some(Err(_)) => Err(Reason::BrokenOff),
    }
}

/// One question to the controller.
struct Question<'a> {
    shape: Shape,
    facts: Facts,
    provider: &'a Metered,
    destination: &'a Destination,
}

impl Question<'_> {
    /// Asks, waits, and makes the permit. A bottle that was cut while the answer came is refused.
    async fn leave(self, meter: &Meter, client: &Client) -> Result<Leave, Reason> {
        let number = meter.controller.next_exchange();
        let reserve = Reserve {
            exchange: number,
            bottle: client.bottle.id,
            provider: self.provider.name.clone(),
            endpoint: printable_within(&self.destination.endpoint, MAX_ENDPOINT_CHARS),
            model: self.facts.model.clone(),
            // nobody knows yet that an unlisted endpoint generates anything
            tokens: if self.shape == Shape::Any { 0 } else { self.facts.reservation() },
        };
        let gone = |_| Reason::from(Refusal::Closed { reason: "the controller is gone".to_owned() });
        let asked = meter.controller.reserve(reserve).await.map_err(gone)?;
        let slot = asked.decided().await.map_err(gone)?.map_err(Reason::from)?;
        let permit = Permit {
            number,
            exchange: Exchange::new(self.shape, self.facts),
            bottle: Arc::clone(&client.bottle),
            controller: Arc::clone(&meter.controller),
            status: None,
            way_out: None,
            slot: Some(slot),
        };
        client.refusal_when_cut().map_or(Ok(Leave::Metered(Box::new(permit))), |cut| Err(cut.into()))
    }
}
