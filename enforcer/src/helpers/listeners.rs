//! A helper's listening sockets, as the controller holds them: the meter's are opened here for the host's network;
//! handed to each process when it starts, and to the running one when they come or go.
//!
//! Not here: which network namespaces have sockets of their own, and how those are opened.
use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use enforcer_ebpf::LISTENER_HOST;
use meter_proxy::protocol::{self, MAX_DESCRIPTORS, OWN_LISTENER, ProtocolError, ToMeter};

use crate::kernel::namespace_cookie;
use crate::meter::MeterError;

/// The meter speaks of its own namespace as the kernel's entries do.
const _: () = assert!(OWN_LISTENER == LISTENER_HOST);

/// How many ports are tried where any will do, until one is free for both families.
const TRIES: u32 = 64;

/// The sockets of one listener, of one port.
pub type Sockets = Arc<Vec<OwnedFd>>;

/// Where the host's bottles find the meter.
pub struct HostListeners {
    /// As set, with the port that was found.
    pub address: SocketAddr,
    /// Loopback of the other family at the same port, where it could be had.
    pub beside: Option<SocketAddr>,
    /// Cookie of the network namespace that they are in.
    pub cookie: u64,
    /// The sockets, that of `address` first.
    pub sockets: Vec<TcpListener>,
}

/// Opens the meter's sockets in the host's network namespace: the one that is set, and beside it one on loopback of
/// the other family at the same port, for sockets that take that family alone (`IPV6_V6ONLY`). Where that one cannot
/// be had it is said, and those sockets are refused.
///
/// # Errors
/// When the address is taken or cannot be bound.
pub fn listen(address: SocketAddr) -> Result<HostListeners, MeterError> {
    let mut tries = if address.port() == 0 { TRIES } else { 1 };
    loop {
        tries -= 1;
        let (found, socket) = bind(address)?;
        let cookie =
            namespace_cookie(socket.as_fd()).map_err(|source| MeterError::Listen { address, source })?;
        let alone = HostListeners { address: found, beside: None, cookie, sockets: vec![socket] };
        match bind(beside(found)) {
            Ok((beside, other)) => return Ok(alone.and(beside, other)),
            // any port will do: another may be free for both
            Err(MeterError::Listen { source, .. })
                if source.kind() == io::ErrorKind::AddrInUse && tries > 0 => {}
            Err(error) => {
                let family = if address.is_ipv4() { "IPv6" } else { "IPv4" };
                tracing::warn!(%error, "sockets of bottles that take {family} alone are refused");
                return Ok(alone);
            }
        }
    }
}

impl HostListeners {
    fn and(mut self, beside: SocketAddr, socket: TcpListener) -> Self {
        self.beside = Some(beside);
        self.sockets.push(socket);
        self
    }
}

fn bind(address: SocketAddr) -> Result<(SocketAddr, TcpListener), MeterError> {
    let bound = TcpListener::bind(address).and_then(|socket| Ok((socket.local_addr()?, socket)));
    bound.map_err(|source| MeterError::Listen { address, source })
}

/// Loopback of the other family, at the same port.
fn beside(address: SocketAddr) -> SocketAddr {
    let other = match address.ip() {
        IpAddr::V4(_) => IpAddr::V6(Ipv6Addr::LOCALHOST),
        IpAddr::V6(_) => IpAddr::V4(Ipv4Addr::LOCALHOST),
    };
    SocketAddr::new(other, address.port())
}

/// Every listener that a helper is to have, by id. A change reaches the running process in the order of its socket; one
/// that starts is handed all.
pub struct Listeners<O> {
    state: Mutex<State<O>>,
    listen: fn(u32) -> O,
    unlisten: fn(u32) -> O,
}

struct State<O> {
    sockets: BTreeMap<u32, Sockets>,
    link: Option<Sender<O>>,
}

impl<O> Listeners<O> {
    /// None yet; by these orders they come and go.
    pub fn new(listen: fn(u32) -> O, unlisten: fn(u32) -> O) -> Self {
        Self { state: Mutex::new(State { sockets: BTreeMap::new(), link: None }), listen, unlisten }
    }

    /// Adds one. A connection to it waits in its queue until the helper has been told.
    pub fn add(&self, id: u32, sockets: Vec<OwnedFd>) {
        let mut state = self.state();
        state.sockets.insert(id, Arc::new(sockets));
        state.tell((self.listen)(id));
    }

    /// Takes one away: with the helper's copies the sockets are closed.
    pub fn remove(&self, id: u32) {
        let mut state = self.state();
        if state.sockets.remove(&id).is_some() {
            state.tell((self.unlisten)(id));
        }
    }

    /// The sockets of an id; none when it was taken away.
    pub fn of(&self, id: u32) -> Option<Sockets> {
        self.state().sockets.get(&id).cloned()
    }

    /// All listeners that a new process is to be handed now; what changes from here on goes into its `link`.
    pub fn begin(&self, link: Sender<O>) -> Vec<(u32, Sockets)> {
        let mut state = self.state();
        state.link = Some(link);
        state.sockets.iter().map(|(id, sockets)| (*id, sockets.clone())).collect()
    }

    /// The process is gone.
    pub fn end(&self) {
        self.state().link = None;
    }

    fn state(&self) -> MutexGuard<'_, State<O>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<O> State<O> {
    fn tell(&self, message: O) {
        if let Some(link) = &self.link
            && link.send(message).is_err()
        {
            tracing::debug!("the helper is gone; the next one is handed every listener");
        }
    }
}

/// Hands listeners to a meter that starts, as many in a message as it takes.
///
/// # Errors
/// When it is gone.
pub fn hand_over(socket: &OwnedFd, listeners: &[(u32, Sockets)]) -> Result<(), ProtocolError> {
    let each =
        listeners.iter().flat_map(|(id, sockets)| sockets.iter().map(move |socket| (*id, socket.as_fd())));
    let all: Vec<(u32, BorrowedFd<'_>)> = each.collect();
    for batch in all.chunks(MAX_DESCRIPTORS) {
        let (ids, sockets): (Vec<u32>, Vec<BorrowedFd<'_>>) = batch.iter().copied().unzip();
        protocol::send(socket.as_fd(), &ToMeter::Listeners { ids }, &sockets)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    fn socket() -> OwnedFd {
        TcpListener::bind("127.0.0.1:0").unwrap().into()
    }

    #[test]
    fn a_meter_is_handed_all_and_told_what_changes() {
        let listeners = Listeners::new(|id| ToMeter::Listen { id }, |id| ToMeter::Unlisten { id });
        listeners.add(LISTENER_HOST, vec![socket(), socket()]);
        listeners.add(2, vec![socket()]);
        let (link, told) = channel();
        let handed = listeners.begin(link);
        assert_eq!(
            handed.iter().map(|(id, sockets)| (*id, sockets.len())).collect::<Vec<_>>(),
            [(1, 2), (2, 1)]
        );
        listeners.add(3, vec![socket()]);
        listeners.remove(2);
        listeners.remove(2);
        let told: Vec<_> = told.try_iter().collect();
        assert_eq!(told, [ToMeter::Listen { id: 3 }, ToMeter::Unlisten { id: 2 }]);
        assert!(listeners.of(2).is_none() && listeners.of(3).is_some());
    }

    #[test]
    fn more_listeners_than_one_message_takes_come_in_several() {
        let (ours, theirs) = protocol::pair().unwrap();
        let listeners: Vec<_> = (1..=5).map(|id| (id, Arc::new(vec![socket(), socket()]))).collect();
        hand_over(&ours, &listeners).unwrap();
        drop(ours);
        let mut got = Vec::new();
        while let Some((message, sockets)) =
            protocol::receive::<ToMeter>(theirs.as_fd(), &mut Vec::new()).unwrap()
        {
            let ToMeter::Listeners { ids } = message else { panic!("{message:?}") };
            assert_eq!(ids.len(), sockets.len());
            got.extend(ids);
        }
        assert_eq!(got, [1, 1, 2, 2, 3, 3, 4, 4, 5, 5]);
    }

    #[test]
    fn loopback_of_the_other_family_is_beside() {
        let both = listen("127.0.0.1:0".parse().unwrap()).unwrap();
        let beside = both.beside.expect("::1 is there");
        assert_eq!((beside.ip(), beside.port()), (Ipv6Addr::LOCALHOST.into(), both.address.port()));
        assert_eq!(both.sockets.len(), 2);
        // taken: the listener that was set does without
        let taken = TcpListener::bind("[::1]:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        let alone = listen(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port)).unwrap();
        assert_eq!((alone.beside, alone.sockets.len()), (None, 1));
    }
}
