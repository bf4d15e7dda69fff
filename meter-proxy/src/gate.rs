//! The gate: no request that may cost leaves without a permit, and a permit always ends in a settlement.
//!
//! `reading` is what it reads of a request before. Not here: the decision (the controller's), and what is done with a
//! permit (`forward`, `tail`, `websocket`).
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::request::Parts;
use hyper::body::{Body, Frame};
use tokio::time::Instant;

use self::reading::{ask_for_usage, read_facts};
use crate::Meter;
use crate::activity::Activity;
use crate::arriving::Arriving;
use crate::bottles::{Bottle, Standing};
use crate::controller::{Controller, Slot};
use crate::exchange::{Exchange, Facts};
use crate::form;
use crate::forward::Outgoing;
use crate::identify::Client;
use crate::include_usage::Hiding;
use crate::protocol::{Refusal, Reserve};
use crate::providers::Metered;
use crate::refuse::{Reason, Refused};
use crate::route::Destination;
use crate::text::printable_within;
use crate::tokens::Ending;
use crate::usage::{self, Endpoint, Shape};

mod reading;

/// Growth of the running count that is told at once, tokens.
const URGENT_GROWTH: u64 = 64;
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
    /// When the request set out.
    left_at: Option<Instant>,
    /// The request's way out, once it has begun: whether anything may have left.
    pub way_out: Option<Activity>,
    /// The provider that was asked for the usage of a chat stream in the client's place.
    pub asked_for_usage: Option<Arc<Metered>>,
    /// Takes out of the answer what is there for that.
    pub hiding: Option<Hiding>,
    /// The place in the queue, got with the controller's leave; gone once settled.
    slot: Option<Slot>,
    /// The running count that was told at once last.
    told_tokens: u64,
}

impl Permit {
    /// Whether anything of the request may have left: not while its connection is still being made.
    #[must_use]
    pub fn may_have_left(&self) -> bool {
        self.way_out.as_ref().is_some_and(Activity::has_begun)
    }

    /// The request sets out, unless it has.
    pub fn sets_out(&mut self) {
        self.left_at.get_or_insert_with(Instant::now);
    }

    /// What is seen of the exchange, now.
    pub fn seen_now(&mut self) -> &mut Exchange {
        self.exchange.at(self.left_at.map_or(Duration::ZERO, |left| left.elapsed()));
        &mut self.exchange
    }

    /// Tells the controller the running count.
    pub fn tell_progress(&mut self) {
        let tokens = self.exchange.tokens();
        let urgent = tokens.total().saturating_sub(self.told_tokens) >= URGENT_GROWTH;
        if urgent {
            self.told_tokens = tokens.total();
        }
        self.controller.progress(self.number, tokens, urgent);
    }

    /// Begins to hide what the client did not ask for, where the meter asked for it; whether there is anything to hide.
    /// After the head of the answer.
    pub fn hides_usage(&mut self, content_encoding: &str) -> bool {
        let Some(provider) = &self.asked_for_usage else { return false };
        let is_plain = content_encoding.is_empty() || content_encoding.eq_ignore_ascii_case("identity");
        if self.exchange.is_stream() && is_plain {
            self.hiding = Some(Hiding::default());
        } else if self.exchange.is_stream() {
            let what =
                "an answer came in a content coding that was not asked for: a chunk with usage stays in it";
            self.controller.notice_once(&self.bottle, what);
        } else if matches!(self.status, Some(400 | 422)) {
            let what = format!(
                "{0} refused a chat request to which stream_options.include_usage was added; should it not know that, \
                 set providers.{0}.include_usage to false",
                provider.name
            );
            self.controller.notice_once(&self.bottle, &what);
        }
        self.hiding.is_some()
    }

    /// What of a frame of the answer the client sees.
    #[must_use]
    pub fn shown(&mut self, frame: Frame<Bytes>) -> Frame<Bytes> {
        match (&mut self.hiding, frame.data_ref()) {
            (Some(hiding), Some(bytes)) => Frame::data(hiding.feed(bytes).into()),
            _ => frame,
        }
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
    request: &mut Parts,
    body: Arriving,
) -> Result<(Leave, Outgoing), Refused> {
    let Some(provider) = &destination.provider else {
        return free(client, destination, body);
    };
    let shaped = |reason| Refused::shaped(reason, provider.dialect);
    let endpoint = usage::endpoint(provider.dialect, request.method.as_str(), &destination.endpoint);
    form::check(provider.dialect, endpoint, request).map_err(shaped)?;
    match endpoint {
        Endpoint::Free => free(client, destination, body),
        Endpoint::Refused(why) => Err(shaped(Reason::Unmeterable(why))),
        Endpoint::Ambiguous => Err(shaped(Reason::Malformed("the path can be read in more than one way"))),
        Endpoint::Unlisted => {
            notice_unlisted(meter, client, provider, &destination.endpoint);
            let facts = Facts::of_unlisted(body.size_hint().exact());
            let ask = Question { shape: Shape::Any, facts, provider, endpoint: &destination.endpoint };
            let permit = ask.permit(meter, client).await.map_err(shaped)?;
            Ok((Leave::Metered(permit), Outgoing::whole(body)))
        }
        Endpoint::Billing(shape) => {
            let in_path = usage::in_path(shape, &destination.endpoint);
            let (mut outgoing, facts) =
                read_facts(shape, in_path, client, request, body).await.map_err(shaped)?;
            let facts =
                if usage::has_no_output(&destination.endpoint) { facts.without_output() } else { facts };
            let is_asked = shape == Shape::OpenaiChat
                && provider.include_usage
                && ask_for_usage(client, request, &mut outgoing).await.map_err(shaped)?;
            let ask = Question { shape, facts, provider, endpoint: &destination.endpoint };
            let mut permit = ask.permit(meter, client).await.map_err(shaped)?;
            permit.asked_for_usage = is_asked.then(|| Arc::clone(provider));
            Ok((Leave::Metered(permit), outgoing))
        }
    }
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
    let what = format!(
        "unlisted endpoint of {}: {endpoint}; it passes, and costs what its answer says, which may be nothing",
        provider.name
    );
    meter.controller.notice_once(&client.bottle, &what);
}

/// Asks for leave to open a socket on which requests will come that ask for themselves: its bottle is open, and the
/// controller would refuse none now.
///
/// # Errors
/// When it would.
pub async fn admit_socket(
    meter: &Meter,
    client: &Client,
    provider: Option<&Metered>,
) -> Result<Leave, Refused> {
    let dialect = provider.map(|provider| provider.dialect);
    if let Some(refusal) = client.refusal_when_cut() {
        return Err(Refused::by_controller(refusal, dialect));
    }
    if let Some(provider) = provider {
        let judged = meter.controller.judge(client.bottle.id, provider.name.clone()).await;
        let refusal = judged.unwrap_or_else(|error| Some(Refusal::Closed { reason: error.to_string() }));
        if let Some(refusal) = refusal {
            return Err(Refused::by_controller(refusal, dialect));
        }
    }
    Ok(Leave::Free(Free(())))
}

/// One question to the controller.
pub struct Question<'a> {
    /// The form of the answer.
    pub shape: Shape,
    /// What is known of the request.
    pub facts: Facts,
    /// Who is paid.
    pub provider: &'a Metered,
    /// Path of the endpoint.
    pub endpoint: &'a str,
}

impl Question<'_> {
    /// Asks, waits, and makes the permit. A bottle that was cut while the answer came is refused.
    ///
    /// # Errors
    /// Why the request may not leave.
    pub async fn permit(self, meter: &Meter, client: &Client) -> Result<Box<Permit>, Reason> {
        let number = meter.controller.next_exchange();
        let reserve = Reserve {
            exchange: number,
            bottle: client.bottle.id,
            provider: self.provider.name.clone(),
            endpoint: printable_within(self.endpoint, MAX_ENDPOINT_CHARS),
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
            left_at: None,
            way_out: None,
            asked_for_usage: None,
            hiding: None,
            slot: Some(slot),
            told_tokens: 0,
        };
        client.refusal_when_cut().map_or(Ok(Box::new(permit)), |cut| Err(cut.into()))
    }
}
