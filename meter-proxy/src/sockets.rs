//! Listening sockets: taken over from the controller, accepted from in bounded numbers, by a task each.
//!
//! Not here: what becomes of a connection, and when a socket comes or goes.
use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::unix::{AsyncFd, AsyncFdReadyGuard};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::{AbortHandle, JoinSet};

/// First and longest pause after a connection could not be taken.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(5), Duration::from_secs(1));

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
    async fn waiting(&self) -> io::Result<Waiting<'_>> {
        Ok(Waiting(self.socket.readable().await?))
    }
}

/// A connection that can be taken, or could just now.
struct Waiting<'a>(AsyncFdReadyGuard<'a, TcpListener>);

impl Waiting<'_> {
    /// Takes it; `None` when it has gone meanwhile.
    ///
    /// # Errors
    /// As accept(2), but for a connection that was given up.
    fn take(mut self) -> io::Result<Option<(TcpStream, SocketAddr)>> {
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

/// A connection that was taken.
pub struct Taken {
    /// The connection.
    pub stream: TcpStream,
    /// The client's end.
    pub peer: SocketAddr,
    /// Id of the listening socket.
    pub listener: u32,
    /// Its place among all connections.
    pub place: OwnedSemaphorePermit,
}

/// Takes connections from one listening socket until it is told to end, and has each served by a task. A place is
/// asked for when there is a connection to take: thousands of idle sockets hold none.
///
/// # Panics
/// When the places are closed, which nobody does.
pub async fn accept<F>(listener: Listener, places: Arc<Semaphore>, serve: impl Fn(Taken) -> F) -> Infallible
where
    F: Future<Output = ()> + Send + 'static,
{
    let (mut pause, longest) = BACK_OFF;
    loop {
        let waiting = listener.waiting().await;
        let place = Arc::clone(&places).acquire_owned().await.expect("the places are never closed");
        match waiting.and_then(Waiting::take) {
            Ok(Some((stream, peer))) => {
                pause = BACK_OFF.0;
                tokio::spawn(serve(Taken { stream, peer, listener: listener.id, place }));
            }
            Ok(None) => {}
            // tried again, ever more slowly: descriptors may have run out
            Err(error) => {
                tracing::warn!(%error, "a connection could not be taken");
                drop(place);
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(longest);
            }
        }
    }
}

/// The tasks that sockets are served by, by the controller's ids.
#[derive(Default)]
pub struct Tasks {
    tasks: JoinSet<Infallible>,
    by_id: HashMap<u32, Vec<AbortHandle>>,
}

impl Tasks {
    /// Begins one more.
    pub fn begin(&mut self, id: u32, task: impl Future<Output = Infallible> + Send + 'static) {
        let task = self.tasks.spawn(task);
        self.by_id.entry(id).or_default().push(task);
    }

    /// Ends the tasks of the id, and with them closes its sockets.
    pub fn end(&mut self, id: u32) {
        self.by_id.remove(&id).into_iter().flatten().for_each(|task| task.abort());
    }

    /// Waits until a task breaks that was not told to end; returns why. Nothing is lost when this is given up.
    pub async fn broken(&mut self) -> io::Error {
        loop {
            match self.tasks.join_next().await {
                Some(Ok(never)) => match never {},
                Some(Err(ended)) if ended.is_cancelled() => {}
                Some(Err(broken)) => return io::Error::other(broken),
                None => std::future::pending().await,
            }
        }
    }
}
