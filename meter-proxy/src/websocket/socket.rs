//! A metered WebSocket from its handshake to its end: bytes pass both ways, each response is an exchange.
//!
//! However it ends — by either side, by a cut, by the gate — every response under way is settled once. Not here: the
//! two directions (`client`, `server`).
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tungstenite::protocol::frame::coding::{CloseCode, Data, OpCode};
use tungstenite::protocol::frame::{CloseFrame, Frame};

use super::deflate::Deflate;
use super::reader::Reader;
use super::session::Session;
use super::{client, server};
use crate::Meter;
use crate::activity::Activity;
use crate::controller::Stops;
use crate::exchange::Facts;
use crate::gate::{Permit, Question};
use crate::identify::Client;
use crate::lock::lock;
use crate::protocol::Refusal;
use crate::providers::Metered;
use crate::refuse::{Reason, Refused};
use crate::tokens::Ending;
use crate::tunnel::{self, MAX_IDLE};
use crate::usage::Shape;

/// Longest wait for the other side's part of closing, and for the client to take a farewell.
pub const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);
/// Bytes that are read at a time.
const READ_BYTES: usize = 8 * 1024;
/// Messages of the meter's own that wait for the client.
const MAX_OWN_MESSAGES: usize = 4;

/// What both directions of one WebSocket share.
pub struct Socket {
    /// Whom to ask.
    pub meter: Arc<Meter>,
    /// Whose it is.
    pub client: Arc<Client>,
    /// Who is paid.
    pub provider: Arc<Metered>,
    /// Path of the endpoint.
    pub endpoint: String,
    /// The compression that was agreed on.
    pub deflate: Option<Deflate>,
    /// Its responses.
    pub session: Mutex<Session>,
    /// What moves.
    pub activity: Activity,
    /// Where the controller's word reaches the responses.
    pub stops: Stops,
}

/// Why it ends.
#[derive(Debug)]
pub enum End {
    /// The client ended it, or broke off.
    ClientGone,
    /// The provider did.
    UpstreamBroke,
    /// Nothing moved for long.
    Idle,
    /// What a side sends cannot be passed; the client is told by this code and these words.
    Unusable(CloseCode, String),
    /// Responses under way may not go on; the client is told in the provider's own words.
    Refused(Refused),
}

impl Socket {
    /// Asks the gate for leave for one response.
    ///
    /// # Errors
    /// Why there is none.
    pub async fn ask(&self, facts: Facts) -> Result<Box<Permit>, Reason> {
        let (provider, endpoint) = (&*self.provider, self.endpoint.as_str());
        let question = Question { shape: Shape::OpenaiResponses, facts, provider, endpoint };
        let mut permit = question.permit(&self.meter, &self.client).await?;
        permit.status = Some(http::StatusCode::SWITCHING_PROTOCOLS.as_u16());
        self.meter.controller.hear_stop(permit.number, &self.stops);
        Ok(permit)
    }

    /// A refusal in the words of the provider.
    #[must_use]
    pub fn refused(&self, reason: Reason) -> Refused {
        Refused::shaped(reason, self.provider.dialect)
    }

    /// Reads what comes next; false at the end, or when it breaks.
    pub async fn read(&self, from: &mut (impl AsyncRead + Unpin), reader: &mut Reader) -> bool {
        let buffer = reader.buffer();
        buffer.reserve(READ_BYTES);
        let has_come = from.read_buf(buffer).await.is_ok_and(|read| read > 0);
        if has_come {
            self.activity.note();
        }
        has_come
    }

    /// Passes bytes both ways until it ends; upstream is closed then, what is under way settled, and the client told.
    pub async fn run(
        self,
        stopped: mpsc::UnboundedReceiver<Box<Refusal>>,
        client: impl AsyncRead + AsyncWrite,
        upstream: impl AsyncRead + AsyncWrite,
    ) {
        let (from_client, mut to_client) = tokio::io::split(client);
        let end = {
            let work = pin!(self.pass(stopped, from_client, &mut to_client, upstream));
            tunnel::while_open(&self.client.bottle, work).await
        };
        // both directions were dropped, and with them the connection to the provider
        let farewell = self.farewell(end.as_ref());
        self.end_all(end.as_ref());
        let told = async {
            to_client.write_all(&farewell).await?;
            to_client.shutdown().await
        };
        match tokio::time::timeout(CLOSE_TIMEOUT, told).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::debug!(%error, "a client left before it was told that its WebSocket ends")
            }
            Err(_) => tracing::debug!("a client did not hear that its WebSocket ends"),
        }
    }

    async fn pass(
        &self,
        mut stopped: mpsc::UnboundedReceiver<Box<Refusal>>,
        from_client: impl AsyncRead + Unpin,
        to_client: &mut (impl AsyncWrite + Unpin),
        upstream: impl AsyncRead + AsyncWrite,
    ) -> End {
        let (from_upstream, to_upstream) = tokio::io::split(upstream);
        let (own, own_messages) = mpsc::channel(MAX_OWN_MESSAGES);
        tokio::select! {
            end = client::run(self, from_client, to_upstream, own) => end,
            end = server::run(self, from_upstream, to_client, own_messages) => end,
            Some(refusal) = stopped.recv() => End::Refused(self.refused(Reason::Refusal(refusal))),
            () = self.activity.rested(MAX_IDLE) => End::Idle,
        }
    }

    /// The meter's own last frames to the client.
    fn farewell(&self, end: Option<&End>) -> Vec<u8> {
        let session = lock(&self.session);
        if session.is_amid_message {
            return Vec::new();
        }
        match end {
            Some(End::Refused(refused)) => {
                let mut texts: Vec<String> =
                    session.names().map(|(lane, id)| refused.failure(lane, id)).collect();
                if texts.is_empty() {
                    texts.push(refused.event(None));
                }
                let texts = texts.iter().flat_map(|text| text_frame(text));
                texts.chain(close_frame(CloseCode::Policy, "refused by Enforcer")).collect()
            }
            Some(End::Unusable(code, why)) => close_frame(*code, why),
            Some(End::Idle) => close_frame(CloseCode::Away, "nothing moved for long"),
            // a side that is gone, or cut, hears nothing
            Some(End::ClientGone | End::UpstreamBroke) | None => Vec::new(),
        }
    }

    fn end_all(&self, end: Option<&End>) {
        let mut session = lock(&self.session);
        let ending = match end {
            None | Some(End::Refused(_)) => Ending::Cut,
            _ if session.closing.is_some() => session.closing.unwrap_or(Ending::ClientGone),
            Some(End::UpstreamBroke) => Ending::UpstreamBroke,
            Some(End::ClientGone | End::Idle | End::Unusable(..)) => Ending::ClientGone,
        };
        if let Some(End::Unusable(_, why)) = end {
            let what = format!("a WebSocket to {} was closed: {why}", self.provider.name);
            self.meter.controller.notice_once(&self.client.bottle, &what);
        }
        session.end_all(ending);
    }
}

/// A text of the meter's own.
#[must_use]
pub fn text_frame(text: &str) -> Vec<u8> {
    written(Frame::message(text.as_bytes().to_vec(), OpCode::Data(Data::Text), true))
}

fn close_frame(code: CloseCode, why: &str) -> Vec<u8> {
    // two bytes of a control frame's 125 are the code
    let reason: String = why.chars().filter(char::is_ascii).take(120).collect();
    written(Frame::close(Some(CloseFrame { code, reason: reason.into() })))
}

fn written(frame: Frame) -> Vec<u8> {
    let mut wire = Vec::new();
    match frame.format(&mut wire) {
        Ok(()) => wire,
        // memory takes everything
        Err(error) => {
            tracing::error!(%error, "a frame could not be written");
            Vec::new()
        }
    }
}
