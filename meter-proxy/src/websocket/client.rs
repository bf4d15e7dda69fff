//! From the client to the provider: no request for a response leaves before the gate has given leave for it.
//!
//! A message is held until it is whole and read, then its bytes pass as they came. Not here: the way back (`server`).
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tungstenite::protocol::frame::coding::CloseCode;

use super::events::{Asked, Lane};
use super::frames::{Part, Sender};
use super::reader::{Passing, Reader, Unreadable};
use super::session::Cost;
use super::socket::{CLOSE_TIMEOUT, End, Socket, text_frame};
use crate::exchange::{Exchange, Facts};
use crate::facts::{MAX_READ_AT_ONCE_BYTES, MAX_REQUEST_BYTES};
use crate::forward::BODY_TIMEOUT;
use crate::lock::lock;
use crate::refuse::Reason;
use crate::text::printable_within;
use crate::tokens::Ending;
use crate::tunnel::MAX_IDLE;
use crate::usage::Shape;

/// Most responses of one WebSocket that are under way or asked for; the provider runs 16 at a time.
const MAX_OPEN: usize = 64;
/// Most bytes that a message may come in: frames of no content are bytes too.
const MAX_WIRE_BYTES: usize = MAX_REQUEST_BYTES + MAX_REQUEST_BYTES / 4;
/// Most memory for a message, bytes: as it came, and readable.
const MAX_KEPT_BYTES: usize = MAX_WIRE_BYTES + MAX_REQUEST_BYTES;
/// Bytes of a message from which on its bottle's memory is asked for.
const FREE_BYTES: usize = 64 * 1024;
/// Most that is read ahead while the gate is asked, bytes.
const MAX_AHEAD_BYTES: usize = 64 * 1024;
/// Longest kind of a message that the operator is told of, characters.
const MAX_KIND_CHARS: usize = 64;
/// Messages that cost nothing.
const FREE: [&str; 2] = ["response.cancel", "response.processed"];

/// Passes what the client sends until it, or the provider, is gone.
pub async fn run(
    socket: &Socket,
    from: impl AsyncRead + Unpin,
    to: impl AsyncWrite + Unpin,
    own: mpsc::Sender<Vec<u8>>,
) -> End {
    let reader = Reader::new(Sender::Client, socket.deflate);
    let mut client = FromClient {
        socket,
        from,
        to,
        own,
        reader,
        held: Vec::new(),
        room: Vec::new(),
        room_bytes: FREE_BYTES,
        is_out_of_step: false,
    };
    loop {
        if let Err(end) = client.step().await {
            return end;
        }
    }
}

struct FromClient<'a, R, W> {
    socket: &'a Socket,
    from: R,
    to: W,
    /// Messages of the meter's own to the client.
    own: mpsc::Sender<Vec<u8>>,
    reader: Reader,
    /// What has come of the message under way.
    held: Vec<u8>,
    /// The memory of its bottle that a long message lies in, and how long it may grow there, bytes.
    room: Vec<OwnedSemaphorePermit>,
    room_bytes: usize,
    /// A compressed message did not pass, and later ones build on it.
    is_out_of_step: bool,
}

impl<R: AsyncRead + Unpin, W: AsyncWrite + Unpin> FromClient<'_, R, W> {
    /// Takes what has come, or waits for more.
    async fn step(&mut self) -> Result<(), End> {
        match self.reader.next() {
            Ok(Some(passing)) => self.take(passing).await,
            Ok(None) => self.read().await,
            Err(Unreadable::TooLong) => Err(End::Unusable(CloseCode::Size, Unreadable::TooLong.to_string())),
            Err(why) => Err(End::Unusable(CloseCode::Protocol, why.to_string())),
        }
    }

    /// Waits for more: between messages as long as others let it.
    async fn read(&mut self) -> Result<(), End> {
        let longest = if self.reader.is_amid() { BODY_TIMEOUT } else { 2 * MAX_IDLE };
        let more = self.socket.read(&mut self.from, &mut self.reader);
        match tokio::time::timeout(longest, more).await {
            Ok(true) => Ok(()),
            Ok(false) | Err(_) => Err(End::ClientGone),
        }
    }

    async fn take(&mut self, passing: Passing) -> Result<(), End> {
        let is_between = self.held.is_empty();
        self.hold(&passing.wire).await?;
        match passing.part {
            Part::Control { close: true } => self.close().await,
            Part::Control { close: false } if is_between => self.pass().await,
            Part::Control { close: false } | Part::Data { ends: false, .. } => Ok(()),
            Part::Data { ends: true, compressed } => self.decide(compressed).await,
        }
    }

    async fn hold(&mut self, wire: &[u8]) -> Result<(), End> {
        if self.held.len() + wire.len() > MAX_WIRE_BYTES {
            return Err(End::Unusable(CloseCode::Size, Unreadable::TooLong.to_string()));
        }
        self.held.extend_from_slice(wire);
        let kept = self.held.len() + self.reader.kept_bytes();
        if kept > self.room_bytes { self.make_room(kept).await } else { Ok(()) }
    }

    /// Takes as much again of its bottle's memory as the message has come to.
    async fn make_room(&mut self, kept: usize) -> Result<(), End> {
        let more = kept.min(MAX_KEPT_BYTES.saturating_sub(self.room_bytes));
        let room = self.socket.client.bottle.room_for(more as u64);
        let Ok(room) = tokio::time::timeout(BODY_TIMEOUT, room).await else {
            let why = "the messages of this bottle that are under way are too long together";
            return Err(End::Unusable(CloseCode::Again, why.to_owned()));
        };
        self.room.extend(room);
        self.room_bytes += more;
        Ok(())
    }

    /// The message is whole: it passes, or its client hears why not.
    async fn decide(&mut self, compressed: bool) -> Result<(), End> {
        let is_long = self.reader.kept_bytes() > MAX_READ_AT_ONCE_BYTES;
        let read = || Asked::read(self.reader.message());
        let asked = if is_long { self.socket.client.bottle.in_turn(read).await } else { read() };
        self.reader.forget_message();
        let builds_on = compressed && self.socket.deflate.is_some_and(|deflate| deflate.client_takeover);
        if builds_on && self.is_out_of_step {
            let why = "a compressed message builds on one that was refused: connect again";
            return Err(End::Unusable(CloseCode::Restart, why.to_owned()));
        }
        let (lane, refused) = match asked {
            Asked::Response { lane, facts, generates } => match self.leave(facts, generates).await? {
                Ok(cost) => {
                    lock(&self.socket.session).begin(lane, cost);
                    return self.pass().await;
                }
                Err(reason) => (lane, reason),
            },
            Asked::Other(kind) => {
                self.notice_unlisted(&kind);
                return self.pass().await;
            }
            Asked::Unclear(why) => (None, Reason::Malformed(why)),
        };
        self.is_out_of_step |= builds_on;
        self.refuse(lane, refused).await
    }

    /// Asks the gate for what costs, and notices meanwhile when the client leaves.
    async fn leave(&mut self, facts: Facts, generates: bool) -> Result<Result<Cost, Reason>, End> {
        let unmeterable = facts.unmeterable.map(Reason::Unmeterable);
        if let Some(reason) = unmeterable.or_else(|| self.too_many()) {
            return Ok(Err(reason));
        }
        if !generates {
            return Ok(Ok(Cost::WarmUp(Box::new(Exchange::new(Shape::OpenaiResponses, facts)))));
        }
        let asking = self.socket.ask(facts);
        tokio::pin!(asking);
        loop {
            let may_read = self.reader.buffer().len() < MAX_AHEAD_BYTES;
            tokio::select! {
                answer = &mut asking => return Ok(answer.map(Cost::Metered)),
                has_come = self.socket.read(&mut self.from, &mut self.reader), if may_read => {
                    if !has_come {
                        return Err(End::ClientGone);
                    }
                }
            }
        }
    }

    fn too_many(&self) -> Option<Reason> {
        let is_full = lock(&self.socket.session).open_count() >= MAX_OPEN;
        is_full.then_some(Reason::Malformed("too many responses are under way on this connection"))
    }

    /// Passes what is held.
    async fn pass(&mut self) -> Result<(), End> {
        self.to.write_all(&self.held).await.map_err(|_| End::UpstreamBroke)?;
        self.forget_held();
        self.to.flush().await.map_err(|_| End::UpstreamBroke)
    }

    async fn refuse(&mut self, lane: Lane, reason: Reason) -> Result<(), End> {
        self.forget_held();
        let event = self.socket.refused(reason).event(lane.as_deref());
        self.own.send(text_frame(&event)).await.map_err(|_| End::ClientGone)
    }

    fn forget_held(&mut self) {
        self.held.clear();
        self.held.shrink_to(FREE_BYTES);
        self.room.clear();
        self.room_bytes = FREE_BYTES;
    }

    /// The client closes, or answers a close. What is under way would cost on: then upstream is not waited for.
    async fn close(&mut self) -> Result<(), End> {
        let may_linger = {
            let mut session = lock(&self.socket.session);
            let first = *session.closing.get_or_insert(Ending::ClientGone);
            (first != Ending::ClientGone || session.open_count() == 0) && !self.reader.is_amid()
        };
        if may_linger {
            self.pass().await?;
            tokio::time::sleep(CLOSE_TIMEOUT).await;
        }
        Err(End::ClientGone)
    }

    fn notice_unlisted(&self, kind: &str) {
        if !FREE.contains(&kind) {
            let (kind, provider) = (printable_within(kind, MAX_KIND_CHARS), &self.socket.provider.name);
            let what = format!("unlisted message to {provider} on a WebSocket: {kind}");
            self.socket.meter.controller.notice_once(&self.socket.client.bottle, &what);
        }
    }
}
