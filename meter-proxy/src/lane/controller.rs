//! The lane's end of the socket to the controller: two kinds of questions, and what it is told.
//!
//! Not here: the socket itself (`link`).
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::mpsc;

use super::Lane;
use super::guests::{Guest, Guests};
use super::listening::Listening;
use crate::link::{ANSWER_TIMEOUT, ControllerError, Socket, Waiting, answered};
use crate::protocol::{LaneConfig, LaneToController, Leaf, ToLane};
use crate::providers::Providers;

/// Most questions that wait for the socket.
const MAX_QUESTIONS: usize = 1_024;
/// Longest wait for a reason: the client waits as well.
const REASON_TIMEOUT: Duration = Duration::from_secs(2);

/// Asks the controller.
pub struct Controller {
    questions: mpsc::Sender<LaneToController>,
    numbers: AtomicU64,
    reasons: Waiting<Option<Guest>>,
    signed: Waiting<Result<Leaf, String>>,
}

impl Controller {
    /// The handle to ask with, and the end that writes what is asked.
    #[must_use]
    pub fn new(socket: Socket) -> (Self, Outbox) {
        let (questions, to_write) = mpsc::channel(MAX_QUESTIONS);
        let numbers = AtomicU64::new(1);
        let controller = Self { questions, numbers, reasons: Waiting::default(), signed: Waiting::default() };
        (controller, Outbox { socket, to_write })
    }

    /// Says that connections are taken.
    ///
    /// # Errors
    /// When the controller is gone.
    pub async fn ready(&self, pid: u32) -> Result<(), ControllerError> {
        self.ask(LaneToController::Ready { pid }).await
    }

    /// Asks why a connection may not go on. None when it may, as far as the lane is concerned, or when there are
    /// too many of its bottle.
    ///
    /// # Errors
    /// When the controller is gone or silent.
    pub async fn why(
        &self,
        peer: SocketAddr,
        local: SocketAddr,
        listener: u32,
    ) -> Result<Option<Guest>, ControllerError> {
        let question = self.number();
        let awaited = self.reasons.expect(question);
        self.ask(LaneToController::Why { question, peer, local, listener }).await?;
        answered(REASON_TIMEOUT, awaited, || self.reasons.forget(question)).await
    }

    /// Asks for a leaf certificate.
    ///
    /// # Errors
    /// When the controller is gone or silent, or signs none.
    pub async fn sign(&self, host: String) -> Result<Leaf, ControllerError> {
        let question = self.number();
        let awaited = self.signed.expect(question);
        self.ask(LaneToController::Sign { question, host }).await?;
        let leaf = answered(ANSWER_TIMEOUT, awaited, || self.signed.forget(question)).await?;
        leaf.map_err(ControllerError::NotSigned)
    }

    fn number(&self) -> u64 {
        self.numbers.fetch_add(1, Ordering::Relaxed)
    }

    async fn ask(&self, question: LaneToController) -> Result<(), ControllerError> {
        self.questions.send(question).await.map_err(|_| ControllerError::Gone)
    }
}

/// The questions, written in their order.
pub struct Outbox {
    socket: Socket,
    to_write: mpsc::Receiver<LaneToController>,
}

impl Outbox {
    /// Writes until the socket fails or nobody asks any more; returns why.
    pub async fn run(mut self) -> ControllerError {
        while let Some(question) = self.to_write.recv().await {
            if let Err(error) = self.socket.send(&question).await {
                return error.into();
            }
        }
        ControllerError::Gone
    }
}

/// What the controller tells.
pub struct Inbox {
    socket: Socket,
    buffer: Vec<u8>,
}

impl Inbox {
    /// Reads from this socket.
    #[must_use]
    pub fn new(socket: Socket) -> Self {
        Self { socket, buffer: Vec::new() }
    }

    /// Reads what the controller begins with: a configuration, and sockets before it if it likes.
    ///
    /// # Errors
    /// When it begins otherwise, or with something that cannot be used.
    pub async fn beginning(&mut self) -> Result<(Vec<(u32, Vec<OwnedFd>)>, Providers), ControllerError> {
        let mut sockets = Vec::new();
        loop {
            match self.socket.receive(&mut self.buffer).await? {
                (ToLane::Config(LaneConfig { providers }), _) => {
                    return Ok((sockets, Providers::parse(providers)?));
                }
                (ToLane::Listen { id }, received) => sockets.push((id, received)),
                _ => return Err(ControllerError::Beginning),
            }
        }
    }

    /// Does as the controller says until it is gone, or something that it sent cannot be used; returns why.
    pub async fn run(mut self, lane: &Arc<Lane>, mut listening: Listening) -> ControllerError {
        loop {
            let done = tokio::select! {
                told = self.socket.receive(&mut self.buffer) => {
                    told.and_then(|(message, sockets)| obey(message, sockets, lane, &mut listening))
                }
                error = listening.broken() => Err(ControllerError::Listener(error)),
            };
            if let Err(error) = done {
                return error;
            }
        }
    }
}

/// Does one thing that the controller said.
fn obey(
    message: ToLane,
    sockets: Vec<OwnedFd>,
    lane: &Arc<Lane>,
    listening: &mut Listening,
) -> Result<(), ControllerError> {
    let is_awaited = match message {
        ToLane::Config(LaneConfig { providers }) => {
            lane.replace(Providers::parse(providers)?);
            true
        }
        ToLane::Listen { id } => {
            listening.begin(lane, id, sockets).map_err(ControllerError::Listener)?;
            true
        }
        ToLane::Unlisten { id } => {
            listening.end(id);
            true
        }
        ToLane::Because { question, answer } => {
            let guest = answer.and_then(|answer| admit(&lane.guests, answer));
            lane.controller.reasons.answer(question, guest)
        }
        ToLane::Signed { question, leaf } => lane.controller.signed.answer(question, leaf),
        ToLane::Opened { bottle } => {
            lane.guests.opened(bottle);
            true
        }
    };
    if !is_awaited {
        tracing::debug!("an answer came that nobody waits for any more");
    }
    Ok(())
}

/// Lets a connection in, here and not by its own task: what the controller says next is of this bottle as well.
fn admit(guests: &Guests, answer: crate::protocol::LaneAnswer) -> Option<Guest> {
    let name = answer.name.clone();
    let guest = guests.enter(answer);
    if guest.is_none() {
        tracing::debug!(bottle = %name, "a bottle has too many connections");
    }
    guest
}
