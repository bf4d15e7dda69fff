//! The listening sockets: taken over when the controller hands them out, given up when it says so.
//!
//! Each is accepted from by a task of its own. Not here: what becomes of a connection.
use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use tokio::io::unix::{AsyncFd, AsyncFdReadyGuard};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinError, JoinSet};

use crate::Meter;
use crate::accept::{self, Places};
use crate::link::ControllerError;
use crate::protocol::OWN_LISTENER;

/// A listening socket and the controller's id of it.
pub struct Listener {
    /// Id to name in `Identify`.
    pub id: u32,
    /// Where it listens.
    pub address: SocketAddr,
    socket: AsyncFd<TcpListener>,
}

impl Listener {
    /// Takes a socket over.
    ///
    /// # Errors
    /// When it cannot be polled, or is no socket of TCP.
    pub fn take(id: u32, socket: OwnedFd) -> io::Result<Self> {
        let socket = TcpListener::from(socket);
        socket.set_nonblocking(true)?;
        let address = socket.local_addr()?;
        #[allow(
            deprecated,
            reason = "its successor is unsafe, for types that may close their descriptor early"
        )]
        let socket = AsyncFd::new(socket)?;
        Ok(Self { id, address, socket })
    }

    /// Waits until a connection can be taken.
    ///
    /// # Errors
    /// When the socket cannot be polled any more.
    pub async fn waiting(&self) -> io::Result<Waiting<'_>> {
        Ok(Waiting(self.socket.readable().await?))
    }
}

/// A connection that can be taken, or could just now.
pub struct Waiting<'a>(AsyncFdReadyGuard<'a, TcpListener>);

impl Waiting<'_> {
    /// Takes it; `None` when it has gone meanwhile.
    ///
    /// # Errors
    /// As accept(2), but for a connection that was given up.
    pub fn take(mut self) -> io::Result<Option<(TcpStream, SocketAddr)>> {
        match self.0.try_io(|socket| socket.get_ref().accept()) {
            Ok(Ok((stream, peer))) => {
                stream.set_nonblocking(true)?;
                Ok(Some((TcpStream::from_std(stream)?, peer)))
            }
            Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionAborted => Ok(None),
            Ok(Err(error)) => Err(error),
            Err(_would_block) => Ok(None),
        }
    }
}

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
    tasks: JoinSet<Infallible>,
    by_id: HashMap<u32, Vec<AbortHandle>>,
}

impl Listeners {
    /// Begins with these.
    #[must_use]
    pub fn start(meter: Arc<Meter>, places: Places, beginning: Vec<Listener>) -> Self {
        let mut listeners = Self { meter, places, tasks: JoinSet::new(), by_id: HashMap::new() };
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
                    Some(Order::Unlisten { id }) => self.close(id),
                    None => return ControllerError::Gone,
                },
                Some(Err(ended)) = self.tasks.join_next(), if !self.tasks.is_empty() => {
                    if let Some(error) = broken(ended) {
                        return ControllerError::Listener(error);
                    }
                }
            }
        }
    }

    fn open(&mut self, listener: Listener) {
        let id = listener.id;
        let task = self.tasks.spawn(accept::run(Arc::clone(&self.meter), listener, self.places.clone()));
        self.by_id.entry(id).or_default().push(task);
    }

    /// Ends the tasks of the id, and with them closes its sockets.
    fn close(&mut self, id: u32) {
        self.by_id.remove(&id).into_iter().flatten().for_each(|task| task.abort());
    }
}

/// What went wrong with a task that was not told to end.
fn broken(ended: JoinError) -> Option<io::Error> {
    (!ended.is_cancelled()).then(|| io::Error::other(ended))
}
