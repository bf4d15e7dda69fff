//! The refusal lane: where the connections of a bottle go that was cut and is to hear why, and its DNS queries, so that
//! an agent that resolves names gets that far.
//!
//! [`run`] is its life; `conversation` is that of a connection: why → what it speaks → one answer → the end. The lane
//! connects to nobody: there is no code here that dials, and from [`seccomp`] on the kernel would not let it.
mod controller;
mod conversation;
pub(crate) mod dns;
mod guests;
mod listening;
mod multiplexed;
mod queries;
mod request;
mod rewound;
pub mod seccomp;
mod shape;

use std::convert::Infallible;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use self::controller::{Controller, Inbox};
use self::guests::Guests;
use self::listening::Listening;
use self::seccomp::SeccompError;
use crate::certs::Certs;
use crate::framing::{ALPN_HTTP1, ALPN_HTTP2};
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
    silence: Warning,
    unsigned: Warning,
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

/// A warning that is given once, until what it warns of is over: a client must not fill the log.
#[derive(Default)]
struct Warning(AtomicBool);

impl Warning {
    /// Says whether it is to be given now.
    fn is_new(&self) -> bool {
        !self.0.swap(true, Ordering::Relaxed)
    }

    /// What it warned of is over.
    fn is_over(&self) {
        self.0.store(false, Ordering::Relaxed);
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
    let (pid, mut listening) = (std::process::id(), Listening::of_this_process());
    seccomp::confine()?;
    let (controller, outbox) = Controller::new(socket);
    let lane = Arc::new(Lane {
        controller,
        silence: Warning::default(),
        unsigned: Warning::default(),
        providers: Mutex::new(Arc::new(providers)),
        // one request is all that a connection is for: HTTP/2 is for who speaks nothing else
        certs: Certs::offering(&[ALPN_HTTP1, ALPN_HTTP2]),
        guests: Guests::default(),
    });
    for (id, sockets) in sockets {
        listening.begin(&lane, id, sockets).map_err(ControllerError::Listener)?;
    }
    lane.controller.ready(pid).await?;
    let gone = tokio::select! {
        gone = inbox.run(&lane, listening) => gone,
        gone = outbox.run() => gone,
        never = signals.ignore() => match never {},
    };
    Err(gone.into())
}
