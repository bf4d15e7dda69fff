//! The meter's end of the socket to the controller: questions and their answers, settlements, running counts.
//!
//! Every task of the meter speaks to the controller through [`Controller`]; one task writes, one reads. Not
//! here: what is asked and why.
use std::collections::HashMap;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::time::Instant;

use crate::bottles::{Bottle, Bottles};
use crate::certs::Certs;
use crate::link::{ANSWER_TIMEOUT, ControllerError, Socket, Waiting, answered};
use crate::listeners::Order;
use crate::lock::lock;
use crate::protocol::{
    BottleRef, Config, Identity, Leaf, MAX_COUNTS, Notice, ProtocolError, Refusal, Reserve, Settle,
    ToController, ToMeter,
};
use crate::settings::Settings;
use crate::sockets::Listener;
use crate::text::printable;
use crate::tokens::{Ending, Provenance, Tokens};

/// Most messages of exchanges that wait for the socket; each exchange under way holds one place.
const MAX_EXCHANGES: usize = 32_768;
/// Most other messages that wait for the socket.
const MAX_QUESTIONS: usize = 1_024;
/// Running counts are sent this often at most …
const PROGRESS_EVERY: Duration = Duration::from_millis(20);
/// … and this often when one grew much.
const URGENT_EVERY: Duration = Duration::from_millis(1);

/// Whose connection it is, as the controller knows.
pub struct Known {
    /// What the controller said.
    pub identity: Identity,
    /// The bottle, as it stood when the answer came.
    pub bottle: Arc<Bottle>,
}

/// Where an exchange under way hears that it may not go on, and why. Boxed: each has room for 32 of them.
pub type Stops = mpsc::UnboundedSender<Box<Refusal>>;

/// A place in the queue to the controller, held by an exchange so that its end can be told without waiting.
pub type Slot = mpsc::OwnedPermit<ToController>;

/// Speaks to the controller.
pub struct Controller {
    exchanges: mpsc::Sender<ToController>,
    questions: mpsc::Sender<ToController>,
    numbers: AtomicU64,
    desk: Arc<Desk>,
}

/// What is under way between the tasks of the meter and the two tasks of the socket.
#[derive(Default)]
struct Desk {
    identified: Waiting<Option<Known>>,
    signed: Waiting<Result<Leaf, String>>,
    judged: Waiting<Option<Refusal>>,
    decided: Waiting<Result<(), Refusal>>,
    settled: Waiting<()>,
    stops: Mutex<HashMap<u64, Stops>>,
    progress: Mutex<Progress>,
    progressed: Notify,
}

/// Running counts that are not sent yet: the latest of each exchange.
#[derive(Default)]
struct Progress {
    latest: HashMap<u64, Tokens>,
    urgent: bool,
    last_sent: Option<Instant>,
}

impl Controller {
    fn number(&self) -> u64 {
        self.numbers.fetch_add(1, Ordering::Relaxed)
    }

    async fn ask(&self, question: ToController) -> Result<(), ControllerError> {
        self.questions.send(question).await.map_err(|_| ControllerError::Gone)
    }

    /// Says that connections are accepted.
    ///
    /// # Errors
    /// When the controller is gone.
    pub async fn ready(&self) -> Result<(), ControllerError> {
        self.ask(ToController::Ready { pid: std::process::id() }).await
    }

    /// Asks whose connection this is; `None`: nobody's.
    ///
    /// # Errors
    /// When the controller is gone or silent.
    pub async fn identify(
        &self,
        peer: SocketAddr,
        local: SocketAddr,
        listener: u32,
    ) -> Result<Option<Known>, ControllerError> {
        let question = self.number();
        let awaited = self.desk.identified.expect(question);
        self.ask(ToController::Identify { question, peer, local, listener }).await?;
        answered(ANSWER_TIMEOUT, awaited, || self.desk.identified.forget(question)).await
    }

    /// Asks for a leaf certificate for `host`.
    ///
    /// # Errors
    /// When the controller is gone or silent, or signs none.
    pub async fn sign(&self, host: String) -> Result<Leaf, ControllerError> {
        let question = self.number();
        let awaited = self.desk.signed.expect(question);
        self.ask(ToController::Sign { question, host }).await?;
        answered(ANSWER_TIMEOUT, awaited, || self.desk.signed.forget(question))
            .await?
            .map_err(ControllerError::NotSigned)
    }

    /// Asks whether a request that costs nothing would be refused now, and why; nothing is reserved.
    ///
    /// # Errors
    /// When the controller is gone or silent.
    pub async fn judge(
        &self,
        bottle: BottleRef,
        provider: String,
    ) -> Result<Option<Refusal>, ControllerError> {
        let question = self.number();
        let awaited = self.desk.judged.expect(question);
        self.ask(ToController::Judge { question, bottle, provider }).await?;
        answered(ANSWER_TIMEOUT, awaited, || self.desk.judged.forget(question)).await
    }

    /// Tells the operator something; lost when the controller cannot keep up, and logged then.
    pub fn notice(&self, bottle: Option<BottleRef>, detail: &str) {
        let detail = printable(detail);
        if let Err(error) = self.questions.try_send(ToController::Notice(Notice { bottle, detail })) {
            tracing::warn!(%error, "a notice could not be sent");
        }
    }

    /// Tells the operator something of a bottle, once in a while.
    pub fn notice_once(&self, bottle: &Bottle, detail: &str) {
        if bottle.is_new(detail) {
            self.notice(Some(bottle.id), detail);
        }
    }

    /// Sends a running count; the latest of each exchange wins. `urgent`: do not wait for the next round.
    pub fn progress(&self, exchange: u64, tokens: Tokens, urgent: bool) {
        let mut progress = lock(&self.desk.progress);
        let is_awaited = progress.latest.is_empty() || (urgent && !progress.urgent);
        progress.latest.insert(exchange, tokens);
        progress.urgent |= urgent;
        drop(progress);
        if is_awaited {
            self.desk.progressed.notify_one();
        }
    }

    /// Says where an exchange that has leave hears that it may not go on after all.
    pub fn hear_stop(&self, exchange: u64, stops: &Stops) {
        lock(&self.desk.stops).insert(exchange, stops.clone());
    }

    /// Asks for leave to forward. The question is withdrawn when it is dropped before the answer.
    ///
    /// # Errors
    /// When the controller is gone.
    pub async fn reserve(self: &Arc<Self>, reserve: Reserve) -> Result<Reservation, ControllerError> {
        let exchange = reserve.exchange;
        let gone = |_| ControllerError::Gone;
        let slot = self.exchanges.clone().reserve_owned().await.map_err(gone)?;
        let place = self.exchanges.reserve().await.map_err(|_| ControllerError::Gone)?;
        let awaited = self.desk.decided.expect(exchange);
        place.send(ToController::Reserve(reserve));
        Ok(Reservation { exchange, awaited, slot: Some(slot), controller: Arc::clone(self) })
    }

    /// A number for an exchange, unique on this socket.
    #[must_use]
    pub fn next_exchange(&self) -> u64 {
        self.number()
    }

    /// Sends the end of an exchange and returns what completes when it is durable.
    pub fn settle(&self, slot: Slot, settle: Settle) -> Settling {
        let exchange = settle.exchange;
        let awaited = self.desk.settled.expect(exchange);
        self.end(slot, settle);
        Settling { exchange, awaited, desk: Arc::clone(&self.desk) }
    }

    /// Sends the end of an exchange; nobody waits for it to be durable.
    pub fn end(&self, slot: Slot, settle: Settle) {
        lock(&self.desk.stops).remove(&settle.exchange);
        // A running count must not follow the final one.
        lock(&self.desk.progress).latest.remove(&settle.exchange);
        drop(slot.send(ToController::Settle(settle)));
    }
}

/// A question for leave that is not answered yet.
pub struct Reservation {
    exchange: u64,
    awaited: oneshot::Receiver<Result<(), Refusal>>,
    slot: Option<Slot>,
    controller: Arc<Controller>,
}

impl Reservation {
    /// Waits for the answer: the slot to tell the end with, or the refusal. How long the wait may be is the
    /// controller's to decide.
    pub async fn decided(mut self) -> Result<Result<Slot, Refusal>, ControllerError> {
        match (&mut self.awaited).await {
            Ok(Ok(())) => self.slot.take().map(Ok).ok_or(ControllerError::Gone),
            Ok(Err(refusal)) => {
                self.slot = None;
                Ok(Err(refusal))
            }
            Err(_) => {
                self.slot = None;
                Err(ControllerError::Gone)
            }
        }
    }
}

impl Drop for Reservation {
    /// Withdraws the question. A permit that had come already is settled: nothing was sent.
    fn drop(&mut self) {
        let Some(slot) = self.slot.take() else { return };
        self.awaited.close();
        match self.awaited.try_recv() {
            Ok(Ok(())) => self.controller.end(slot, unsent(self.exchange)),
            Ok(Err(_)) => {}
            Err(_) => {
                self.controller.desk.decided.forget(self.exchange);
                drop(slot.send(ToController::Withdraw { exchange: self.exchange }));
            }
        }
    }
}

/// The settlement of an exchange whose request never left.
fn unsent(exchange: u64) -> Settle {
    Settle {
        exchange,
        tokens: Tokens::default(),
        provenance: Provenance::Reported,
        ending: Ending::Unsent,
        http_status: None,
        model: None,
        raw: None,
    }
}

/// A settlement that is sent and not known to be durable.
pub struct Settling {
    exchange: u64,
    awaited: oneshot::Receiver<()>,
    desk: Arc<Desk>,
}

impl Settling {
    /// Waits until it is durable; false when the controller is gone.
    pub async fn durable(mut self) -> bool {
        (&mut self.awaited).await.is_ok()
    }
}

impl Drop for Settling {
    fn drop(&mut self) {
        self.desk.settled.forget(self.exchange);
    }
}

/// The socket before anything is started: its first messages are read in order.
pub struct Link {
    socket: Socket,
    buffer: Vec<u8>,
}

impl Link {
    /// Takes the socket.
    ///
    /// # Errors
    /// When it cannot be polled.
    pub fn new(socket: OwnedFd) -> Result<Self, ControllerError> {
        Ok(Self { socket: Socket::new(socket)?, buffer: Vec::new() })
    }

    /// Reads the listeners and the configuration that the controller begins with.
    ///
    /// # Errors
    /// When it begins otherwise, or with something that cannot be used.
    pub async fn beginning(&mut self) -> Result<(Vec<Listener>, Config), ControllerError> {
        let mut listeners = Vec::new();
        loop {
            match self.receive().await? {
                (ToMeter::Listeners { ids }, sockets) if ids.len() == sockets.len() => {
                    for (id, socket) in ids.into_iter().zip(sockets) {
                        listeners.push(Listener::take(id, socket).map_err(ControllerError::Listener)?);
                    }
                }
                (ToMeter::Config(config), _) if !listeners.is_empty() => return Ok((listeners, config)),
                _ => return Err(ControllerError::Beginning),
            }
        }
    }

    /// The handle to speak with, and the two ends to be run.
    #[must_use]
    pub fn split(self) -> (Arc<Controller>, Inbox, Outbox) {
        let (exchanges, exchanges_out) = mpsc::channel(MAX_EXCHANGES);
        let (questions, questions_out) = mpsc::channel(MAX_QUESTIONS);
        let desk = Arc::new(Desk::default());
        let outbox = Outbox {
            socket: self.socket.clone(),
            exchanges: exchanges_out,
            questions: questions_out,
            desk: Arc::clone(&desk),
        };
        let controller = Arc::new(Controller {
            exchanges,
            questions,
            numbers: AtomicU64::new(1),
            desk: Arc::clone(&desk),
        });
        (Arc::clone(&controller), Inbox { link: self, controller }, outbox)
    }

    async fn receive(&mut self) -> Result<(ToMeter, Vec<OwnedFd>), ControllerError> {
        self.socket.receive(&mut self.buffer).await
    }
}

/// The messages to the controller, written in their order.
pub struct Outbox {
    socket: Socket,
    exchanges: mpsc::Receiver<ToController>,
    questions: mpsc::Receiver<ToController>,
    desk: Arc<Desk>,
}

impl Outbox {
    /// Writes until the socket fails; returns why.
    pub async fn run(mut self) -> ControllerError {
        loop {
            let written = tokio::select! {
                biased;
                // First: behind a full queue the running counts would never be told.
                counts = self.desk.due() => self.write_counts(counts).await,
                Some(message) = self.exchanges.recv() => self.socket.send(&message).await,
                Some(message) = self.questions.recv() => self.socket.send(&message).await,
            };
            if let Err(error) = written {
                return error.into();
            }
        }
    }

    /// Writes running counts, and then one message that waits: to a socket so slow that the next counts are due once
    /// these are written, nothing else would ever be.
    async fn write_counts(&mut self, counts: Vec<(u64, Tokens)>) -> Result<(), ProtocolError> {
        for counts in counts.chunks(MAX_COUNTS) {
            self.socket.send(&ToController::Progress(counts.to_vec())).await?;
        }
        match self.exchanges.try_recv().or_else(|_| self.questions.try_recv()) {
            Ok(message) => self.socket.send(&message).await,
            Err(_) => Ok(()),
        }
    }
}

impl Desk {
    /// Tells an exchange under way that it may not go on; false when nobody hears it.
    fn stop(&self, exchange: u64, refusal: Refusal) -> bool {
        let stops = lock(&self.stops).remove(&exchange);
        stops.is_some_and(|stops| stops.send(Box::new(refusal)).is_ok())
    }

    /// Completes with the running counts when it is time to send them. Takes them only when it completes.
    async fn due(&self) -> Vec<(u64, Tokens)> {
        loop {
            let wait_until = {
                let mut progress = lock(&self.progress);
                let every = if progress.urgent { URGENT_EVERY } else { PROGRESS_EVERY };
                let due = progress.last_sent.map_or_else(Instant::now, |sent| sent + every);
                if !progress.latest.is_empty() && due <= Instant::now() {
                    progress.urgent = false;
                    progress.last_sent = Some(Instant::now());
                    return progress.latest.drain().collect();
                }
                (!progress.latest.is_empty()).then_some(due)
            };
            match wait_until {
                None => self.progressed.notified().await,
                Some(due) => tokio::select! {
                    () = self.progressed.notified() => {}
                    () = tokio::time::sleep_until(due) => {}
                },
            }
        }
    }
}

/// The controller's messages, handled in their order.
pub struct Inbox {
    link: Link,
    controller: Arc<Controller>,
}

impl Inbox {
    /// Handles messages until the controller is gone; returns why.
    pub async fn run(
        mut self,
        bottles: &Bottles,
        certs: &Certs,
        settings: &watch::Sender<Arc<Settings>>,
        own: &[SocketAddr],
        listening: &mpsc::UnboundedSender<Order>,
    ) -> ControllerError {
        loop {
            let (message, sockets) = match self.link.receive().await {
                Ok(received) => received,
                Err(error) => return error,
            };
            match message {
                ToMeter::Config(config) => match Settings::apply(config, own) {
                    Ok(applied) => {
                        let applied = applied.succeeding(&settings.borrow());
                        settings.send_replace(Arc::new(applied));
                        bottles.forget_upstreams();
                        certs.forget();
                    }
                    Err(error) => return error.into(),
                },
                ToMeter::Listeners { .. } => return ControllerError::Beginning,
                ToMeter::Listen { id } => {
                    for socket in sockets {
                        order(listening, Order::Listen { id, socket });
                    }
                }
                ToMeter::Unlisten { id } => order(listening, Order::Unlisten { id }),
                ToMeter::Cut { bottle, upstream } => bottles.cut(bottle, upstream),
                ToMeter::Open { bottle } => bottles.open(bottle),
                ToMeter::Detached { bottle } => bottles.detach(bottle),
                answer => self.hand_over(answer, bottles),
            }
        }
    }

    /// Gives an answer to the task that waits for it.
    fn hand_over(&self, answer: ToMeter, bottles: &Bottles) {
        let desk = &self.controller.desk;
        let awaited = match answer {
            ToMeter::Identified { question, identity } => {
                let known =
                    identity.map(|identity| Known { bottle: bottles.enter(identity.bottle), identity });
                desk.identified.answer(question, known)
            }
            ToMeter::Signed { question, leaf } => desk.signed.answer(question, leaf),
            ToMeter::Judged { question, refusal } => desk.judged.answer(question, refusal),
            ToMeter::Permit { exchange } => {
                let awaited = desk.decided.answer(exchange, Ok(()));
                if !awaited {
                    self.return_permit(exchange);
                }
                awaited
            }
            ToMeter::Refused { exchange, refusal } => {
                desk.decided.answer(exchange, Err(refusal.clone())) || desk.stop(exchange, refusal)
            }
            ToMeter::Settled { exchange } => desk.settled.answer(exchange, ()),
            ToMeter::Listeners { .. }
            | ToMeter::Config(_)
            | ToMeter::Listen { .. }
            | ToMeter::Unlisten { .. }
            | ToMeter::Cut { .. }
            | ToMeter::Open { .. }
            | ToMeter::Detached { .. } => true,
        };
        if !awaited {
            tracing::debug!("an answer came that nobody waits for any more");
        }
    }

    /// Settles a permit that crossed its withdrawal.
    fn return_permit(&self, exchange: u64) {
        let exchanges = self.controller.exchanges.clone();
        tokio::spawn(async move {
            if exchanges.send(ToController::Settle(unsent(exchange))).await.is_err() {
                tracing::debug!("a permit that nobody wanted could not be returned: the controller is gone");
            }
        });
    }
}

/// Passes on what the task that accepts is to do; when that has ended, so does the meter.
fn order(listening: &mpsc::UnboundedSender<Order>, order: Order) {
    if listening.send(order).is_err() {
        tracing::debug!("no connections are accepted any more");
    }
}
