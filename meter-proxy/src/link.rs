//! What the meter's and the lane's ends of the socket to the controller share: the socket, polled, and questions
//! that wait for their answers.
//!
//! Not here: what is asked, and what the messages are.
use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde::{Serialize, de::DeserializeOwned};
use tokio::io::unix::AsyncFd;
use tokio::sync::oneshot;

use crate::lock::lock;
use crate::protocol::{self, ProtocolError};
use crate::providers::SettingsError;

/// Longest wait for an answer that the controller gives from memory.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Why the controller cannot be asked any more, or what it said wrong.
#[derive(Debug, thiserror::Error)]
pub enum ControllerError {
    /// It closed the socket or died.
    #[error("the controller is gone")]
    Gone,
    /// It did not answer in time.
    #[error("the controller did not answer in time")]
    Silent,
    /// The socket failed or carried something else than messages.
    #[error(transparent)]
    Protocol(#[from] ProtocolError),
    /// The first messages were not listeners and a configuration.
    #[error("the controller did not begin with listeners and a configuration")]
    Beginning,
    /// The listeners are no sockets that can be used.
    #[error("a listening socket cannot be used: {0}")]
    Listener(std::io::Error),
    /// The configuration cannot be applied.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// There is no leaf certificate.
    #[error("no certificate: {0}")]
    NotSigned(String),
}

/// The socket to the controller.
#[derive(Clone)]
pub struct Socket(Arc<AsyncFd<OwnedFd>>);

impl Socket {
    /// Takes the socket.
    ///
    /// # Errors
    /// When it cannot be polled.
    pub fn new(socket: OwnedFd) -> Result<Self, ControllerError> {
        rustix::io::ioctl_fionbio(&socket, true).map_err(|error| ProtocolError::Io(error.into()))?;
        #[allow(
            deprecated,
            reason = "its successor is unsafe, for types that may close their descriptor early"
        )]
        let socket = AsyncFd::new(socket).map_err(ProtocolError::Io)?;
        Ok(Self(Arc::new(socket)))
    }

    /// Waits for the next message. `buffer` is scratch space. Nothing is lost when this is given up.
    ///
    /// # Errors
    /// When the controller is gone, or sent something else than a message.
    pub async fn receive<M: DeserializeOwned>(
        &self,
        buffer: &mut Vec<u8>,
    ) -> Result<(M, Vec<OwnedFd>), ControllerError> {
        loop {
            let mut ready = self.0.readable().await.map_err(ProtocolError::Io)?;
            match protocol::receive(self.fd(), buffer) {
                Err(ProtocolError::Io(error)) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    ready.clear_ready();
                }
                Ok(Some(message)) => return Ok(message),
                Ok(None) => return Err(ControllerError::Gone),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Sends a message, when there is room.
    ///
    /// # Errors
    /// When the socket fails.
    pub async fn send<M: Serialize>(&self, message: &M) -> Result<(), ProtocolError> {
        loop {
            let mut ready = self.0.writable().await?;
            match protocol::send(self.fd(), message, &[]) {
                Err(ProtocolError::Io(error)) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    ready.clear_ready();
                }
                other => return other,
            }
        }
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.0.get_ref().as_fd()
    }
}

/// Tasks that wait for an answer, by number.
pub struct Waiting<T>(Mutex<HashMap<u64, oneshot::Sender<T>>>);

impl<T> Default for Waiting<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T> Waiting<T> {
    /// Waits for the answer to this question.
    pub fn expect(&self, number: u64) -> oneshot::Receiver<T> {
        let (answer, awaited) = oneshot::channel();
        lock(&self.0).insert(number, answer);
        awaited
    }

    /// Nobody waits for it any more.
    pub fn forget(&self, number: u64) {
        lock(&self.0).remove(&number);
    }

    /// Hands the answer over; false when nobody waits for it.
    pub fn answer(&self, number: u64, answer: T) -> bool {
        let asker = lock(&self.0).remove(&number);
        asker.is_some_and(|asker| asker.send(answer).is_ok())
    }
}

/// Waits for an answer that comes from memory; `forget` clears the question when none came.
///
/// # Errors
/// When none came within `patience`, or the controller is gone.
pub async fn answered<T>(
    patience: Duration,
    awaited: oneshot::Receiver<T>,
    forget: impl FnOnce(),
) -> Result<T, ControllerError> {
    match tokio::time::timeout(patience, awaited).await {
        Ok(answer) => answer.map_err(|_| ControllerError::Gone),
        Err(_) => {
            forget();
            Err(ControllerError::Silent)
        }
    }
}
