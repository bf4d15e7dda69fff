//! OpenAI Responses over WebSocket: every request on it has its own reply of the script and its own record.
//!
//! Requests of one lane are answered one after the other, lanes side by side. A record's answer is the texts of its
//! events.
use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, Method, Request, Response, StatusCode, header, request};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use super::body::{AnswerBody, Note};
use super::frames::{Frames, Heard};
use super::openai;
use super::record::{Billed, End};
use super::script::Reply;
use super::server::Server;

/// The extension that compresses messages: RFC 7692.
const DEFLATE: &str = "permessage-deflate";

/// What a lane says to its connection.
enum Say {
    Event(String),
    /// The script breaks it off.
    Break,
}

/// One request.
struct Create {
    body: Value,
    id: usize,
}

/// Whether a request is for a WebSocket at an endpoint that has one.
pub(super) fn is_asked_for<B>(request: &Request<B>) -> bool {
    let at = matches!(request.uri().path(), "/v1/responses" | "/backend-api/codex/responses");
    request.method() == Method::GET && at && request.headers().contains_key(header::SEC_WEBSOCKET_KEY)
}

/// Answers the handshake, and the requests that follow.
pub(super) fn accept(server: Arc<Server>, request: Request<Incoming>, tls: bool) -> Response<AnswerBody> {
    let key = request.headers().get(header::SEC_WEBSOCKET_KEY).map(|key| derive_accept_key(key.as_bytes()));
    let mut request = request.map(|_| ());
    let upgrade = hyper::upgrade::on(&mut request);
    let (head, ()) = request.into_parts();
    let deflate = server.script.deflate && offers_deflate(&head.headers);
    tokio::spawn(async move {
        if let Ok(upgraded) = upgrade.await {
            // a client that is gone is noted with its answers
            drop(serve(server, Frames::new(TokioIo::new(upgraded), deflate), head, tls).await);
        }
    });
    let mut accepted = Response::builder()
        .status(StatusCode::SWITCHING_PROTOCOLS)
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, "websocket")
        .header(header::SEC_WEBSOCKET_ACCEPT, key.unwrap_or_default());
    if deflate {
        accepted = accepted.header(header::SEC_WEBSOCKET_EXTENSIONS, DEFLATE);
    }
    accepted.body(AnswerBody::whole(Vec::new(), None)).expect("headers of the mock's own making")
}

fn offers_deflate(headers: &HeaderMap) -> bool {
    let mut offers = headers.get_all(header::SEC_WEBSOCKET_EXTENSIONS).iter();
    offers.any(|offer| offer.as_bytes().starts_with(DEFLATE.as_bytes()))
}

async fn serve(
    server: Arc<Server>,
    mut socket: Frames<TokioIo<hyper::upgrade::Upgraded>>,
    head: request::Parts,
    tls: bool,
) -> io::Result<()> {
    let head = Arc::new(head);
    let (say, mut said) = mpsc::channel(1);
    let mut lanes: HashMap<Option<String>, mpsc::UnboundedSender<Create>> = HashMap::new();
    loop {
        tokio::select! {
            heard = socket.next() => match heard? {
                Some(Heard::Text { text, deflated }) => {
                    let Some(create) = taken(&server, &head, tls, &text, deflated) else { continue };
                    let lane = create.body["stream_id"].as_str().map(str::to_owned);
                    let queue = lanes.entry(lane.clone()).or_insert_with(|| {
                        let (queue, queued) = mpsc::unbounded_channel();
                        let (server, head, say) = (Arc::clone(&server), Arc::clone(&head), say.clone());
                        tokio::spawn(run_lane(server, head, lane, queued, say));
                        queue
                    });
                    // a lane that has broken off has ended
                    drop(queue.send(create));
                }
                Some(Heard::Ping(payload)) => socket.pong(payload).await?,
                Some(Heard::Other) => {}
                None => return Ok(()),
            },
            Some(say) = said.recv() => match say {
                Say::Event(text) => socket.send(&text).await?,
                Say::Break => return Ok(()),
            },
        }
    }
}

/// A request for a response, with its record; other messages are taken and not answered.
fn taken(server: &Server, head: &request::Parts, tls: bool, text: &str, deflated: bool) -> Option<Create> {
    let body: Value = serde_json::from_str(text).ok()?;
    if body["type"] != "response.create" {
        return None;
    }
    let id = server.book.open(head, tls, server.script.forget_bodies);
    server.book.received_body(id, text.as_bytes(), body["generate"] != false);
    server.book.came_deflated(id, deflated);
    Some(Create { body, id })
}

async fn run_lane(
    server: Arc<Server>,
    head: Arc<request::Parts>,
    lane: Option<String>,
    mut queued: mpsc::UnboundedReceiver<Create>,
    say: mpsc::Sender<Say>,
) {
    while let Some(create) = queued.recv().await {
        let note = Note { book: Arc::clone(&server.book), id: create.id };
        let model = create.body["model"].as_str().unwrap_or_default();
        let warm_up = Reply { deltas: 0, input: 0, ..Reply::default() };
        let reply = if create.body["generate"] == false {
            warm_up
        } else {
            let chosen = server.script.reply(head.uri.path(), model, true);
            chosen.wanted_by(&head.headers).unwrap_or_else(|header| panic!("the mock cannot do {header}"))
        };
        if answer(&note, &lane, model, reply, &say).await.is_none() {
            return;
        }
    }
}

/// Sends the events of one response; `None`: the connection is gone, or broken off.
async fn answer(
    note: &Note,
    lane: &Option<String>,
    model: &str,
    reply: Reply,
    say: &mpsc::Sender<Say>,
) -> Option<()> {
    let book = &note.book;
    tokio::time::sleep(reply.head_delay).await;
    if reply.status >= 400 {
        let mut error = openai::error(reply.status);
        error["type"] = json!("error");
        error["status"] = json!(reply.status);
        book.answering(note.id, reply.status, Billed::default());
        send(note, lane, error, 0, say).await?;
        book.ended(note.id, End::Completed);
        return Some(());
    }
    book.answering(note.id, StatusCode::SWITCHING_PROTOCOLS.as_u16(), reply.bill_at_head());
    let (pace, limit) = (reply.pace, reply.break_after);
    for (n, piece) in openai::responses_stream(reply, note.id, model).enumerate() {
        if limit.is_some_and(|limit| n >= limit) {
            book.ended(note.id, End::Broken);
            // the connection may be gone already
            drop(say.send(Say::Break).await);
            return None;
        }
        tokio::time::sleep(if piece.paced { pace } else { Duration::ZERO }).await;
        let event = serde_json::from_str(&piece.data).expect("the mock's own event");
        send(note, lane, event, piece.output, say).await?;
    }
    book.ended(note.id, End::Completed);
    Some(())
}

async fn send(
    note: &Note,
    lane: &Option<String>,
    mut event: Value,
    output: u64,
    say: &mpsc::Sender<Say>,
) -> Option<()> {
    if let Some(lane) = lane {
        event["stream_id"] = json!(lane);
    }
    let text = event.to_string();
    let bytes = text.clone().into_bytes();
    // first: who hears it may look at the record at once
    note.book.sent(note.id, &bytes, output);
    say.send(Say::Event(text)).await.ok()
}
