//! OpenAI Responses over one WebSocket, which is kept open between requests.
//!
//! An answer's body is the texts of its events, one behind the other. No lanes: one request after the other.
use anyhow::{Context as _, bail};
use futures_util::{SinkExt as _, StreamExt as _};
use http::{HeaderMap, Request, header};
use serde_json::{Value, json};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::client::generate_key;
use tokio_tungstenite::tungstenite::{self, Message};

use super::answer::{Answer, Ended, Reading};
use super::{Agent, Api, Wire};

/// An open WebSocket.
pub(super) type Socket = WebSocketStream<Box<dyn Wire>>;

/// Status of an answer that came to its end: the upgrade's own says nothing of it.
const ANSWERED: u16 = 200;

impl Agent {
    /// Asks once and reads the events to the last one, or to an error.
    pub(super) async fn ask_over_websocket(
        &mut self,
        on_event: &mut impl FnMut(&str),
    ) -> anyhow::Result<Answer> {
        if self.api() != Api::Responses {
            bail!("only responses are asked for over WebSocket");
        }
        if self.socket.is_none() {
            self.connections += 1;
            match self.open().await? {
                Ok(socket) => self.socket = Some(socket),
                Err(refused) => return refused.answer(self.connections),
            }
        }
        let mut create = self.question();
        create["type"] = json!("response.create");
        let connection = self.connections;
        let socket = self.socket.as_mut().context("it was opened")?;
        socket.send(Message::text(create.to_string())).await.context("the request cannot be sent")?;
        let mut reading = Reading::new(&HeaderMap::new());
        let (status, ended) = loop {
            match socket.next().await {
                Some(Ok(Message::Text(text))) => {
                    if let Some(status) = last_status(&reading.take_event(&text, on_event)) {
                        break (status, Ended::Complete);
                    }
                }
                Some(Ok(Message::Close(close))) => {
                    break (ANSWERED, Ended::Broken(format!("closed: {close:?}")));
                }
                Some(Ok(_)) => {}
                Some(Err(error)) => break (ANSWERED, Ended::Broken(error.to_string())),
                None => break (ANSWERED, Ended::Broken("the connection ended".to_owned())),
            }
        };
        if ended != Ended::Complete {
            self.socket = None;
        }
        Ok(reading.answer(status, &HeaderMap::new(), ended, connection))
    }

    async fn open(&self) -> anyhow::Result<Result<Socket, Refused>> {
        let mut request = Request::get(format!("ws://{}{}", self.way.host_header, self.way.path))
            .header(header::HOST, &self.way.host_header)
            .header(header::CONNECTION, "Upgrade")
            .header(header::UPGRADE, "websocket")
            .header(header::SEC_WEBSOCKET_VERSION, "13")
            .header(header::SEC_WEBSOCKET_KEY, generate_key())
            .header(header::AUTHORIZATION, "Bearer sk-test");
        for (name, value) in &self.options.headers {
            request = request.header(name, value);
        }
        let (stream, _) = self.dial().await?;
        match tokio_tungstenite::client_async(request.body(())?, stream).await {
            Ok((socket, _)) => Ok(Ok(socket)),
            Err(tungstenite::Error::Http(answer)) => Ok(Err(Refused(*answer))),
            Err(error) => Err(error).context("no WebSocket"),
        }
    }
}

/// The status of an answer that ends with this event.
fn last_status(event: &Value) -> Option<u16> {
    match event["type"].as_str()? {
        "error" => event["status"].as_u64().and_then(|status| u16::try_from(status).ok()),
        "response.completed" | "response.incomplete" | "response.failed" => Some(ANSWERED),
        _ => None,
    }
}

/// What was answered instead of an open WebSocket.
struct Refused(http::Response<Option<Vec<u8>>>);

impl Refused {
    fn answer(self, connection: usize) -> anyhow::Result<Answer> {
        let (head, body) = self.0.into_parts();
        let mut reading = Reading::new(&head.headers);
        reading.take(&body.unwrap_or_default(), &mut |_| {})?;
        Ok(reading.finished().answer(head.status.as_u16(), &head.headers, Ended::Complete, connection))
    }
}
