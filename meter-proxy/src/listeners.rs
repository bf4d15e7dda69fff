//! The meter's listening sockets: taken over when the controller hands them out, given up when it says so.
//!
//! Not here: how connections are taken from them (`sockets`), and what becomes of one.
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use tokio::sync::mpsc;

use crate::Meter;
use crate::accept::{self, Places};
use crate::link::ControllerError;
use crate::protocol::OWN_LISTENER;
use crate::sockets::{Listener, Tasks};

/// Where the meter listens in its own network namespace: what it must never dial. The same address in another
/// namespace is another place.
#[must_use]
pub fn own_addresses(listeners: &[Listener]) -> Vec<SocketAddr> {
    listeners.iter().filter(|listener| listener.id == OWN_LISTENER).map(|listener| listener.address).collect()
}

/// What the controller says of listening sockets while the meter runs.
pub enum Order {
    /// Accept from this one too.
    Listen {
        /// The controller's id of it.
        id: u32,
        /// The socket.
        socket: OwnedFd,
    },
    /// Close the sockets of this id.
    Unlisten {
        /// The controller's id of them.
        id: u32,
    },
}

/// The tasks that accept connections.
pub struct Listeners {
    meter: Arc<Meter>,
    places: Places,
    tasks: Tasks,
}

impl Listeners {
    /// Begins with these.
    #[must_use]
    pub fn start(meter: Arc<Meter>, places: Places, beginning: Vec<Listener>) -> Self {
        let mut listeners = Self { meter, places, tasks: Tasks::default() };
        for listener in beginning {
            listeners.open(listener);
        }
        listeners
    }

    /// Follows the controller's orders until it is gone or a task breaks; returns why.
    pub async fn run(mut self, mut orders: mpsc::UnboundedReceiver<Order>) -> ControllerError {
        loop {
            tokio::select! {
                order = orders.recv() => match order {
                    Some(Order::Listen { id, socket }) => match Listener::take(id, socket) {
                        Ok(listener) => self.open(listener),
                        Err(error) => return ControllerError::Listener(error),
                    },
                    Some(Order::Unlisten { id }) => self.tasks.end(id),
                    None => return ControllerError::Gone,
                },
                error = self.tasks.broken() => return ControllerError::Listener(error),
            }
        }
    }

    fn open(&mut self, listener: Listener) {
        let id = listener.id;
        self.tasks.begin(id, accept::run(Arc::clone(&self.meter), listener, self.places.clone()));
    }
}
