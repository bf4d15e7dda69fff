//! The lane's sockets: TCP listeners and DNS sockets, served from when the controller hands them over until it
//! takes them back.
//!
//! Not here: how a connection (`conversation`) and a query (`queries`) is answered.
use std::io;
use std::net::UdpSocket;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::net::{SocketType, sockopt};
use rustix::process::{Resource, getrlimit};
use tokio::sync::Semaphore;

use super::{Lane, conversation, queries};
use crate::protocol::{MAX_LANE_SOCKETS, namespaces_within};
use crate::sockets::{self, Listener, Tasks};

/// Most connections at a time; fewer where the process may open fewer descriptors.
const MAX_CONNECTIONS: usize = 1_024;
/// Descriptors for all else but sockets: the controller, polling, standard error.
const RESERVED_DESCRIPTORS: usize = 32;

/// The tasks that serve the sockets.
pub struct Listening {
    places: Arc<Semaphore>,
    tasks: Tasks,
}

impl Listening {
    /// As many connections as the limit of open descriptors lets this process have; no socket yet.
    #[must_use]
    pub fn of_this_process() -> Self {
        let limit = getrlimit(Resource::Nofile).current;
        let limit = limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX));
        Self { places: Arc::new(Semaphore::new(places_within(limit))), tasks: Tasks::default() }
    }

    /// Serves these sockets.
    ///
    /// # Errors
    /// When one is no socket, or cannot be polled.
    pub fn begin(&mut self, lane: &Arc<Lane>, id: u32, sockets: Vec<OwnedFd>) -> io::Result<()> {
        for socket in sockets {
            if sockopt::socket_type(&socket)? == SocketType::DGRAM {
                let socket = UdpSocket::from(socket);
                socket.set_nonblocking(true)?;
                self.tasks.begin(id, queries::serve(tokio::net::UdpSocket::from_std(socket)?));
            } else {
                let lane = Arc::clone(lane);
                let serve = move |taken| conversation::serve(Arc::clone(&lane), taken);
                let listener = Listener::take(id, socket)?;
                self.tasks.begin(id, sockets::accept(listener, Arc::clone(&self.places), serve));
            }
        }
        Ok(())
    }

    /// Closes the sockets of this id.
    pub fn end(&mut self, id: u32) {
        self.tasks.end(id);
    }

    /// Waits until a task breaks; returns why.
    pub async fn broken(&mut self) -> io::Error {
        self.tasks.broken().await
    }
}

/// How many connections are served under a limit of open descriptors; at least one.
fn places_within(descriptors: usize) -> usize {
    let listeners = namespaces_within(descriptors) * MAX_LANE_SOCKETS;
    let left = descriptors.saturating_sub(listeners).saturating_sub(RESERVED_DESCRIPTORS);
    left.clamp(1, MAX_CONNECTIONS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_follow_the_descriptors() {
        for (descriptors, places) in
            [(0, 1), (256, 96), (1_024, 480), (20_608, 1_024), (1_048_576, 1_024), (usize::MAX, 1_024)]
        {
            assert_eq!(places_within(descriptors), places, "{descriptors}");
        }
    }
}
