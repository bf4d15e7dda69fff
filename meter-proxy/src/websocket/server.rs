//! From the provider to the client: bytes pass as they came, and the message that ends a response only when its
//! settlement is durable.
//!
//! A message is held until it is whole; one that grows too long passes as it comes if its type says that no figures
//! are in it. Not here: whose an event is (`session`).
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tungstenite::protocol::frame::coding::CloseCode;

use super::events::Heard;
use super::frames::{Part, Sender};
use super::reader::{Passing, Reader};
use super::session::{Unasked, Verdict};
use super::socket::{CLOSE_TIMEOUT, End, Socket};
use crate::events::Event;
use crate::exchange::Facts;
use crate::forward::MAX_SILENCE;
use crate::gate::Permit;
use crate::lock::lock;
use crate::refuse::Refused;
use crate::settle;
use crate::tail::MAX_HELD_BYTES;
use crate::tokens::Ending;
use crate::tunnel::MAX_IDLE;

/// A buffer larger than this, in bytes, is given back.
const FREE_BYTES: usize = 16 * 1024;
/// Bytes of a message in which its type is looked for.
const START_BYTES: usize = 4 * 1024;

/// Passes what the provider sends, and the meter's `own` messages between, until either side is gone.
pub async fn run(
    socket: &Socket,
    from: impl AsyncRead + Unpin,
    to: &mut (impl AsyncWrite + Unpin),
    mut own: mpsc::Receiver<Vec<u8>>,
) -> End {
    let reader = Reader::new(Sender::Server, socket.deflate);
    let mut server = FromServer { socket, from, to, reader, held: Vec::new(), passes_on: false };
    loop {
        if let Err(end) = server.step(&mut own).await {
            return end;
        }
    }
}

struct FromServer<'a, R, W> {
    socket: &'a Socket,
    from: R,
    to: &'a mut W,
    reader: Reader,
    /// What has come of the message under way and has not passed.
    held: Vec<u8>,
    /// The message under way passes as it comes.
    passes_on: bool,
}

impl<R: AsyncRead + Unpin, W: AsyncWrite + Unpin> FromServer<'_, R, W> {
    /// Takes what has come, or waits for more.
    async fn step(&mut self, own: &mut mpsc::Receiver<Vec<u8>>) -> Result<(), End> {
        let unusable = |why: &dyn std::fmt::Display| {
            End::Unusable(CloseCode::Protocol, format!("what the provider sends cannot be read: {why}"))
        };
        if let Some(passing) = self.reader.next().map_err(|why| unusable(&why))? {
            return self.take(passing).await;
        }
        let silence = self.longest_silence();
        tokio::select! {
            more = tokio::time::timeout(silence, self.socket.read(&mut self.from, &mut self.reader)) => {
                if more.unwrap_or(false) { Ok(()) } else { Err(End::UpstreamBroke) }
            }
            Some(message) = own.recv(), if !self.passes_on => self.write(&message).await,
        }
    }

    /// Between responses a socket may rest, which others watch.
    fn longest_silence(&self) -> Duration {
        let session = lock(&self.socket.session);
        match (session.closing, session.open_count()) {
            (Some(_), _) => CLOSE_TIMEOUT,
            (None, 0) => 2 * MAX_IDLE,
            (None, _) => MAX_SILENCE,
        }
    }

    async fn take(&mut self, passing: Passing) -> Result<(), End> {
        let is_between = self.held.is_empty();
        self.held.extend_from_slice(&passing.wire);
        match passing.part {
            Part::Control { close } => {
                if close {
                    lock(&self.socket.session).closing.get_or_insert(Ending::UpstreamBroke);
                }
                if is_between || close { self.pass().await } else { Ok(()) }
            }
            Part::Data { ends: false, .. } => self.hold_or_pass_on().await,
            Part::Data { ends: true, .. } => self.decide().await,
        }
    }

    /// A message is under way.
    async fn hold_or_pass_on(&mut self) -> Result<(), End> {
        if !self.passes_on && self.held.len() > MAX_HELD_BYTES {
            let start = match self.reader.message() {
                Event::Data(start) | Event::Named { data: start, .. } | Event::Oversized { start, .. } => {
                    start
                }
            };
            if !Heard::of_start(&start[..start.len().min(START_BYTES)]).is_harmless() {
                let why = "the provider's message is too long to be held back";
                return Err(End::Unusable(CloseCode::Size, why.to_owned()));
            }
            self.passes_on = true;
        }
        if self.passes_on { self.pass().await } else { Ok(()) }
    }

    /// A message is whole.
    async fn decide(&mut self) -> Result<(), End> {
        let midstream = self.socket.meter.settings.borrow().midstream;
        let verdict = lock(&self.socket.session).take(self.reader.message(), midstream);
        self.reader.forget_message();
        match verdict {
            Verdict::Pass => {}
            Verdict::Settle(permit) => settle_durably(self.socket, permit).await?,
            Verdict::Ask(unasked) => ask_after_all(self.socket, unasked).await?,
            Verdict::Hidden => {
                let why = "an event that may have figures in it is too long to be read";
                return Err(End::Unusable(CloseCode::Size, why.to_owned()));
            }
        }
        self.passes_on = false;
        self.pass().await
    }

    /// Passes what is held.
    async fn pass(&mut self) -> Result<(), End> {
        let mut held = std::mem::take(&mut self.held);
        self.write(&held).await?;
        held.clear();
        held.shrink_to(FREE_BYTES);
        self.held = held;
        Ok(())
    }

    /// Writes to the client. Given up once a part is taken, nothing may follow.
    async fn write(&mut self, mut wire: &[u8]) -> Result<(), End> {
        while !wire.is_empty() {
            let taken = self.to.write(wire).await.map_err(|_| End::ClientGone)?;
            if taken == 0 {
                return Err(End::ClientGone);
            }
            wire = &wire[taken..];
            lock(&self.socket.session).is_amid_message = self.passes_on || !wire.is_empty();
        }
        self.to.flush().await.map_err(|_| End::ClientGone)
    }
}

/// Settles a response, and waits until that is durable.
async fn settle_durably(socket: &Socket, permit: Box<Permit>) -> Result<(), End> {
    let longest = socket.meter.settings.borrow().settle_timeout;
    let Some(settling) = settle::settle(permit, Ending::Completed) else { return Ok(()) };
    let durable = tokio::time::timeout(longest, settling.durable()).await.unwrap_or(false);
    let refused = || Refused::not_durable(Some(socket.provider.dialect));
    if durable { Ok(()) } else { Err(End::Refused(refused())) }
}

/// Asks the gate for a response that nobody asked for.
async fn ask_after_all(socket: &Socket, mut unasked: Unasked) -> Result<(), End> {
    let provider = &socket.provider.name;
    let what = format!("{provider} generates on a WebSocket what was not asked for");
    socket.meter.controller.notice_once(&socket.client.bottle, &what);
    let asked = socket.ask(Facts { streamed: true, ..Facts::default() }).await;
    let mut permit = asked.map_err(|reason| End::Refused(socket.refused(reason)))?;
    unasked.hand_to(&mut permit);
    if unasked.is_over {
        return settle_durably(socket, permit).await;
    }
    lock(&socket.session).adopt(unasked, permit);
    Ok(())
}
