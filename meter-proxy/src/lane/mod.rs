//! The refusal lane: where the connections of a bottle go that was cut and is to hear why.
//!
//! [`run`] is its life; `conversation` is that of a connection: why → what it speaks → one answer → the end. The lane
//! connects to nobody: there is no code here that dials, and from [`seccomp`] on the kernel would not let it.
mod controller;
mod conversation;
mod dns;
mod guests;
mod listening;
mod queries;
mod request;
mod rewound;
pub mod seccomp;
mod shape;

use std::convert::Infallible;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};

use self::controller::{Controller, Inbox};
use self::guests::Guests;
use self::listening::Listening;
use self::seccomp::SeccompError;
use crate::certs::Certs;
use crate::link::{ControllerError, Socket};
use crate::lock::lock;
use crate::protocol::ProtocolError;
use crate::providers::Providers;
use crate::shutdown::Signals;

/// Why the lane ended.
#[derive(Debug, thiserror::Error)]
pub enum LaneError {
    /// The controller is gone, or said something that cannot be done.
    #[error(transparent)]
    Controller(#[from] ControllerError),
    /// It could have done more than answer.
    #[error(transparent)]
    Seccomp(#[from] SeccompError),
}

/// What every connection may ask.
struct Lane {
    controller: Controller,
    providers: Mutex<Arc<Providers>>,
    certs: Certs,
    guests: Guests,
}

impl Lane {
    /// The providers as they are now.
    fn providers(&self) -> Arc<Providers> {
        Arc::clone(&lock(&self.providers))
    }

    /// Takes another configuration. The authority that signed may be another, too.
    fn replace(&self, providers: Providers) {
        *lock(&self.providers) = Arc::new(providers);
        self.certs.forget();
    }
}

/// The lane's life: configuration and sockets come from the controller's `socket`, then the process gives up every
/// system call that it does not need, then it answers until the controller is gone. Must run on a thread that is the
/// process's only one. Never returns `Ok`.
///
/// # Errors
/// Why the lane ended.
pub async fn run(socket: OwnedFd) -> Result<Infallible, LaneError> {
    let signals = Signals::take().map_err(|error| ControllerError::from(ProtocolError::Io(error)))?;
    let socket = Socket::new(socket)?;
    let mut inbox = Inbox::new(socket.clone());
    let (sockets, providers) = inbox.beginning().await?;
    seccomp::confine()?;
    let (controller, outbox) = Controller::new(socket);
    let lane = Arc::new(Lane {
        controller,
        providers: Mutex::new(Arc::new(providers)),
        certs: Certs::default(),
        guests: Guests::default(),
    });
    let mut listening = Listening::of_this_process();
    for (id, sockets) in sockets {
        listening.begin(&lane, id, sockets).map_err(ControllerError::Listener)?;
    }
    lane.controller.ready().await?;
    let gone = tokio::select! {
        gone = inbox.run(&lane, listening) => gone,
        gone = outbox.run() => gone,
        never = signals.ignore() => match never {},
    };
    Err(gone.into())
}
