//! The gate: no request that may cost leaves without a permit, and a permit always ends in a settlement.
//!
//! Not here: the decision (the controller's), and what is done with a permit (`forward`, `tail`).
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, UPGRADE};
use http::request::Parts;
use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};

use crate::Meter;
use crate::bottles::{Bottle, Standing};
use crate::controller::{Controller, Slot};
use crate::exchange::{Exchange, Facts};
use crate::forward::{BODY_TIMEOUT, Outgoing};
use crate::identify::Client;
use crate::protocol::{Refusal, Reserve};
use crate::refuse::{Reason, Refused};
use crate::route::Destination;
use crate::settings::Metered;
use crate::tokens::Ending;
use crate::usage::{self, Endpoint, Shape};

/// Most of a request's body that is read before the question is asked, bytes.
const MAX_PREFIX_BYTES: usize = 4 * 1024 * 1024;
/// Most of an unlisted endpoint's path that the operator is told.
const MAX_NOTICED_CHARS: usize = 256;

/// Leave to forward one request.
pub enum Leave {
    /// It may cost: the permit to settle.
    Metered(Box<Permit>),
    /// It costs nothing.
    Free,
}

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
    /// Whether anything of the request may have left.
    pub sent: bool,
    /// The place in the queue; gone once settled.
    pub(crate) slot: Option<Slot>,
}

impl Permit {
    /// How the exchange ends when it is given up now.
    #[must_use]
    pub fn ending_if_dropped(&self) -> Ending {
        match self.bottle.standing() {
            _ if !self.sent => Ending::Unsent,
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
    body: Incoming,
) -> Result<(Leave, Outgoing), Refused> {
    let Some(provider) = &destination.provider else {
        return free(client, destination, body);
    };
    let shaped = |reason| Refused::shaped(reason, provider.dialect);
    if request.headers.contains_key(UPGRADE) {
        return Err(shaped(Reason::Upgrade));
    }
    match usage::endpoint(provider.dialect, request.method.as_str(), &destination.endpoint) {
        Endpoint::Free => free(client, destination, body),
        Endpoint::Refused(why) => Err(shaped(Reason::Unmeterable(why))),
        Endpoint::Unlisted => {
            notice_unlisted(meter, client, provider, &destination.endpoint);
            let ask = Question { shape: Shape::Any, facts: Facts::default(), provider, destination };
            Ok((ask.leave(meter, client).await.map_err(shaped)?, Outgoing::whole(body)))
        }
        Endpoint::Billing(shape) => {
            let (outgoing, facts) = read_facts(shape, client, request, body).await.map_err(shaped)?;
            let ask = Question { shape, facts, provider, destination };
            Ok((ask.leave(meter, client).await.map_err(shaped)?, outgoing))
        }
    }
}

/// Passes what costs nothing, unless the bottle is cut.
fn free(client: &Client, destination: &Destination, body: Incoming) -> Result<(Leave, Outgoing), Refused> {
    match client.refusal_when_cut() {
        Some(refusal) => Err(Refused::by_controller(refusal, destination.dialect())),
        None => Ok((Leave::Free, Outgoing::whole(body))),
    }
}

/// Tells the operator of an endpoint that is in no table, once for each bottle.
fn notice_unlisted(meter: &Meter, client: &Client, provider: &Metered, endpoint: &str) {
    let endpoint: String = endpoint.chars().take(MAX_NOTICED_CHARS).collect();
    let what = format!("unlisted endpoint of {}: {endpoint}", provider.name);
    meter.controller.notice_once(&client.bottle, &what);
}

/// Reads as much of the body as the estimate needs, and no more.
async fn read_facts(
    shape: Shape,
    client: &Client,
    request: &Parts,
    mut body: Incoming,
) -> Result<(Outgoing, Facts), Reason> {
    let text = |name| request.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let declared = text(CONTENT_LENGTH).parse().ok();
    let room = client.bottle.room_for(declared.unwrap_or(u64::MAX).min(MAX_PREFIX_BYTES as u64)).await;
    let mut prefix = BytesMut::new();
    let mut complete = body.is_end_stream();
    while !complete && prefix.len() < MAX_PREFIX_BYTES {
        match next_piece(&mut body).await? {
            Some(piece) => prefix.extend_from_slice(&piece),
            None => complete = true,
        }
    }
    let facts = Facts::of_request(shape, &prefix, complete, text(CONTENT_ENCODING), declared);
    let rest = if complete { None } else { Some(body) };
    Ok((Outgoing::begun(prefix.freeze(), rest, room), facts))
}

/// The next bytes of a body; `None` at its end. Trailers of requests are not forwarded.
async fn next_piece(body: &mut Incoming) -> Result<Option<Bytes>, Reason> {
    let frame = tokio::time::timeout(BODY_TIMEOUT, body.frame()).await.map_err(|_| Reason::Slow)?;
    match frame {
        None => Ok(None),
        Some(Ok(frame)) => Ok(Some(frame.into_data().unwrap_or_default())),
        Some(Err(_)) => Err(Reason::Malformed("the request's body broke off")),
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
            endpoint: self.destination.endpoint.clone(),
            model: self.facts.model.clone(),
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
            sent: false,
            slot: Some(slot),
        };
        client.refusal_when_cut().map_or(Ok(Leave::Metered(Box::new(permit))), |cut| Err(cut.into()))
    }
}
