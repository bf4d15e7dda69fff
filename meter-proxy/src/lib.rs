//! The meter: every call of a bottle to a provider passes here, and what the provider reports is charged.
//!
//! [`run`] is its life, [`protocol`] its contract with the controller; `answer` below is the life of one request,
//! stage by stage. The meter opens no ledger, holds no key and reads no settings file.
#![forbid(unsafe_code)]

pub mod egress;
pub mod hosts;
pub mod protocol;
pub mod text;
pub mod tokens;

#[cfg(feature = "proxy")]
pub mod decode;
#[cfg(feature = "proxy")]
pub mod estimate;
#[cfg(feature = "proxy")]
pub mod event_stream;
#[cfg(feature = "proxy")]
pub mod events;
#[cfg(feature = "proxy")]
pub mod exchange;
#[cfg(feature = "proxy")]
pub mod facts;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
#[cfg(feature = "proxy")]
pub mod json_array;
#[cfg(feature = "proxy")]
pub mod lane;
#[cfg(feature = "proxy")]
pub mod privileges;
#[cfg(feature = "proxy")]
pub mod sse;
#[cfg(feature = "proxy")]
pub mod usage;

#[cfg(feature = "proxy")]
mod accept;
#[cfg(feature = "proxy")]
mod activity;
#[cfg(feature = "proxy")]
mod addresses;
#[cfg(feature = "proxy")]
mod arriving;
#[cfg(feature = "proxy")]
mod bottles;
#[cfg(feature = "proxy")]
mod certs;
#[cfg(feature = "proxy")]
mod controller;
#[cfg(feature = "proxy")]
mod dial;
#[cfg(feature = "proxy")]
mod extensions;
#[cfg(feature = "proxy")]
mod flights;
#[cfg(feature = "proxy")]
mod form;
#[cfg(feature = "proxy")]
mod forward;
#[cfg(feature = "proxy")]
mod framing;
#[cfg(feature = "proxy")]
mod gate;
#[cfg(feature = "proxy")]
mod gathered;
#[cfg(feature = "proxy")]
mod handshake;
#[cfg(feature = "proxy")]
mod hello;
#[cfg(feature = "proxy")]
mod identify;
#[cfg(feature = "proxy")]
mod include_usage;
#[cfg(feature = "proxy")]
mod intercept;
#[cfg(feature = "proxy")]
mod limits;
#[cfg(feature = "proxy")]
mod link;
#[cfg(feature = "proxy")]
mod listeners;
#[cfg(feature = "proxy")]
mod lock;
#[cfg(feature = "proxy")]
mod peers;
#[cfg(feature = "proxy")]
mod providers;
#[cfg(feature = "proxy")]
mod reach;
#[cfg(feature = "proxy")]
mod redirected;
#[cfg(feature = "proxy")]
mod refuse;
#[cfg(feature = "proxy")]
mod route;
#[cfg(feature = "proxy")]
mod settings;
#[cfg(feature = "proxy")]
mod settle;
#[cfg(feature = "proxy")]
mod shutdown;
#[cfg(feature = "proxy")]
mod silence;
#[cfg(feature = "proxy")]
mod sockets;
#[cfg(feature = "proxy")]
mod stop;
#[cfg(feature = "proxy")]
mod tail;
#[cfg(feature = "proxy")]
mod tunnel;
#[cfg(feature = "proxy")]
mod websocket;

#[cfg(feature = "proxy")]
use {
    http::{Method, Request, Response},
    http_body_util::Either,
    hyper::body::Incoming,
    std::os::fd::OwnedFd,
    std::sync::Arc,
    tokio::sync::{mpsc, watch},
};

/// What every stage may ask.
#[cfg(feature = "proxy")]
struct Meter {
    controller: Arc<controller::Controller>,
    settings: watch::Receiver<Arc<settings::Settings>>,
    certs: certs::Certs,
}

/// The meter's life: listeners and configuration come from the controller's `socket`, then connections are
/// served until the controller is gone. Never returns `Ok`; the caller ends the process, and with it every
/// connection to a provider.
///
/// # Errors
/// Why the meter ended.
#[cfg(feature = "proxy")]
pub async fn run(socket: OwnedFd) -> Result<std::convert::Infallible, link::ControllerError> {
    let signals = shutdown::Signals::take().map_err(protocol::ProtocolError::Io)?;
    let mut link = controller::Link::new(socket)?;
    let (beginning, config) = link.beginning().await?;
    let own = listeners::own_addresses(&beginning);
    let (apply, settings) = watch::channel(Arc::new(settings::Settings::apply(config, &own)?));
    let places = accept::Places::of_this_process();
    let bottles = bottles::Bottles::new(settings.clone(), places.most_of_one_bottle());
    let (controller, inbox, outbox) = link.split();
    let mut telling = tokio::spawn(outbox.run());
    let certs = certs::Certs::offering(&[framing::ALPN_HTTP2, framing::ALPN_HTTP1]);
    let meter = Arc::new(Meter { controller, settings, certs });
    let (listening, orders) = mpsc::unbounded_channel();
    let accepting = listeners::Listeners::start(Arc::clone(&meter), places, beginning);
    meter.controller.ready().await?;
    tokio::select! {
        gone = inbox.run(&bottles, &meter.certs, &apply, &own, &listening) => Err(gone),
        gone = &mut telling => Err(gone.unwrap_or(link::ControllerError::Gone)),
        broken = accepting.run(orders) => Err(broken),
        () = addresses::keep_fresh(meter.settings.clone()) => Err(link::ControllerError::Gone),
        never = signals.ignore() => match never {},
    }
}

/// Answers one request, by a provider's words or by our own. That a place may not be reached is audited.
#[cfg(feature = "proxy")]
async fn answer(
    meter: &Arc<Meter>,
    client: &Arc<identify::Client>,
    entrance: &route::Entrance,
    flights: &flights::Flights,
    request: Request<Incoming>,
) -> Response<tail::AnswerBody> {
    let answer = life_of_a_request(meter, client, entrance, flights, request).await;
    answer.unwrap_or_else(|refused| {
        match &refused.reason {
            refuse::Reason::Forbidden(what) => meter.controller.notice_once(&client.bottle, what),
            refuse::Reason::BrokenOff => flights.take_back(),
            _ => {}
        }
        refused.response().map(Either::Left)
    })
}

/// The life of a request: a tunnel, a WebSocket, or route → reach → gate → forward → tail. The connection was accepted
/// and identified before; the settlement comes when the tail has ended.
#[cfg(feature = "proxy")]
async fn life_of_a_request(
    meter: &Arc<Meter>,
    client: &Arc<identify::Client>,
    entrance: &route::Entrance,
    flights: &flights::Flights,
    request: Request<Incoming>,
) -> Result<Response<tail::AnswerBody>, refuse::Refused> {
    let (mut head, body) = arriving::Arriving::request(request);
    if head.method == Method::CONNECT {
        return intercept::connect(meter, client, entrance, head).await;
    }
    let settings = Arc::clone(&meter.settings.borrow());
    let destination = reach::judge(client, &settings, route::find(&settings, entrance, &head)?)?;
    if websocket::is_asked_for(&head) {
        return websocket::open(meter, client, destination, flights.begin(None), head, body).await;
    }
    let places = flights.places(client).ok_or_else(|| busy(meter, client, &destination))?;
    let (leave, body) = gate::admit(meter, client, &destination, &mut head, body).await?;
    let flight = flights.begin(places);
    let (leave, answer) = forward::forward(leave, &client.bottle.upstreams, &destination, head, body).await?;
    let answer = tail::tail(meter, Arc::clone(&client.bottle), flight, leave, answer).await;
    answer.ok_or_else(|| refuse::Refused::not_durable(destination.dialect()))
}

/// The answer to a bottle that asks for too much at a time, which is audited.
#[cfg(feature = "proxy")]
fn busy(meter: &Meter, client: &identify::Client, destination: &route::Destination) -> refuse::Refused {
    let what = format!("{} has as many requests under way as it may; more are refused", client.name);
    meter.controller.notice_once(&client.bottle, &what);
    refuse::Refused { reason: refuse::Reason::Busy, dialect: destination.dialect() }
}
