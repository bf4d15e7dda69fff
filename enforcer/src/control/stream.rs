//! The event stream of the control API: events as they are written for a reader, until it or the daemon goes.
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Response, header};
use http_body_util::Either;
use http_body_util::channel::{Channel, Sender};
use tokio::sync::broadcast::{self, error::RecvError};
use tokio_util::sync::CancellationToken;

use super::Event;
use super::routes::Body;

/// A silent event stream says something this often, so that a dead reader is noticed.
const EVENTS_IDLE: Duration = Duration::from_secs(15);

/// Server-sent events until the reader or the daemon goes.
pub fn of(mut events: broadcast::Receiver<Event>, shutdown: CancellationToken) -> Response<Body> {
    let (mut sender, channel) = Channel::new(16);
    tokio::spawn(async move {
        loop {
            let next = tokio::time::timeout(EVENTS_IDLE, events.recv());
            let line = match shutdown.run_until_cancelled(next).await {
                None | Some(Ok(Err(RecvError::Closed))) => return,
                Some(Ok(Ok(event))) => server_sent(&event),
                Some(Ok(Err(RecvError::Lagged(missed)))) => server_sent(&Event::Lagged(missed)),
                Some(Err(_)) => Bytes::from_static(b": idle\n\n"),
            };
            if !deliver(&mut sender, line, &shutdown).await {
                return;
            }
        }
    });
    let mut response = Response::new(Either::Right(channel));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    response
}

/// Hands one event to the connection; `false` when reader or daemon is gone.
async fn deliver(sender: &mut Sender<Bytes>, line: Bytes, shutdown: &CancellationToken) -> bool {
    matches!(shutdown.run_until_cancelled(sender.send_data(line)).await, Some(Ok(())))
}

/// One event as `event:` and `data:` lines (WHATWG server-sent events; JSON holds no line end).
fn server_sent(event: &Event) -> Bytes {
    let written = match event {
        Event::State(bottle) => ("state", serde_json::to_string(bottle)),
        Event::Usage(row) => ("usage", serde_json::to_string(row)),
        Event::Audit(row) => ("audit", serde_json::to_string(row)),
        Event::Drop(dropped) => ("drop", serde_json::to_string(dropped)),
        Event::Lagged(missed) => ("lagged", serde_json::to_string(missed)),
    };
    match written {
        (name, Ok(data)) => Bytes::from(format!("event: {name}\ndata: {data}\n\n")),
        (name, Err(error)) => {
            tracing::error!(%error, name, "an event cannot be written as JSON");
            Bytes::from_static(b": an event was lost\n\n")
        }
    }
}
