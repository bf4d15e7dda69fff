//! One network namespace: whose processes are in it, and sockets of the meter's opened inside it.
//!
//! A socket belongs for ever to the namespace of the thread that made it; so a thread enters, opens and ends. Not
//! here: which namespaces get sockets, and for how long.
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use nix::sched::{CloneFlags, setns};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};

use crate::kernel;

/// Connections that wait for the meter in a socket's queue.
const BACKLOG: i32 = 1_024;

/// Threads of one process that are looked at.
const MAX_THREADS: usize = 256;

/// Why a namespace has no sockets of the meter's.
#[derive(Debug, thiserror::Error)]
pub enum NamespaceError {
    /// The process, or its namespace, cannot be seen; it may have ended.
    #[error("the network namespace of process {pid} cannot be opened: {source}")]
    Process {
        /// Which.
        pid: u32,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Something else has the port.
    #[error("{0} is taken there, so nothing of ours can listen on it")]
    Taken(SocketAddr),
    /// Any other refusal.
    #[error("the meter cannot listen on {address} there: {source}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// The kernel's answer.
        source: io::Error,
    },
    /// No thread can be started, or it cannot enter.
    #[error("the network namespace cannot be entered: {0}")]
    Enter(io::Error),
    /// It has no cookie.
    #[error("the network namespace cannot be told from others: {0}")]
    Cookie(io::Error),
}

impl NamespaceError {
    /// Whether a socket of IPv6 cannot be had because there is no IPv6.
    #[must_use]
    pub fn is_without_ip6(&self) -> bool {
        let Self::Listen { source, .. } = self else { return false };
        matches!(source.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL))
    }
}

/// A network namespace by the number that `/proc` shows of it. Another may bear it as soon as the namespace has
/// ended, which it does not while a socket or a descriptor of it is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NamespaceId(u64);

impl NamespaceId {
    /// That of this process (its first thread).
    ///
    /// # Errors
    /// When `/proc` cannot be read.
    pub fn own() -> io::Result<Self> {
        Self::at(Path::new("/proc/self/ns/net"))
    }

    /// That of a process, or of one thread by its own number.
    ///
    /// # Errors
    /// When there is none, or it has ended.
    pub fn of_process(pid: u32) -> io::Result<Self> {
        Self::at(Path::new(&format!("/proc/{pid}/ns/net")))
    }

    /// By the text of the link, `net:[NUMBER]`: to follow it would cost twice as much.
    fn at(link: &Path) -> io::Result<Self> {
        let text = fs::read_link(link)?;
        let number =
            text.to_str().and_then(|text| text.strip_prefix("net:[")?.strip_suffix(']')?.parse().ok());
        number
            .map(Self)
            .ok_or_else(|| io::Error::other(format!("{} is no network namespace", text.display())))
    }
}

impl From<u64> for NamespaceId {
    fn from(number: u64) -> Self {
        Self(number)
    }
}

/// The namespaces that a process's threads are in, each with the number of one of them: a thread can leave its
/// process's. Threads that end meanwhile are in none.
///
/// # Errors
/// When there is no such process.
pub fn of_threads(pid: u32) -> io::Result<Vec<(NamespaceId, u32)>> {
    let mut found = BTreeMap::new();
    for thread in fs::read_dir(format!("/proc/{pid}/task"))?.take(MAX_THREADS) {
        let number = thread?.file_name().to_str().and_then(|number| number.parse().ok());
        if let Some(thread) = number
            && let Ok(id) = NamespaceId::of_process(thread)
        {
            found.entry(id).or_insert(thread);
        }
    }
    Ok(found.into_iter().collect())
}

/// An opened network namespace. It does not end before this is dropped.
#[derive(Debug)]
pub struct Namespace {
    file: File,
    id: NamespaceId,
}

/// The meter's sockets inside a namespace.
#[derive(Debug)]
pub struct Inside {
    /// The namespace's cookie.
    pub cookie: u64,
    /// The IPv4 one first.
    pub sockets: Vec<TcpListener>,
    /// Where the first listens.
    pub ip4: SocketAddr,
    /// Where the second does, if there is one.
    pub ip6: Option<Ipv6Addr>,
    /// Why there is no second one, where IPv6 is not just absent.
    pub without_ip6: Option<NamespaceError>,
}

impl Namespace {
    /// Opens the namespace that a process (or one thread, by its own number) is in now.
    ///
    /// # Errors
    /// [`NamespaceError::Process`].
    pub fn of_process(pid: u32) -> Result<Self, NamespaceError> {
        let opened = File::open(format!("/proc/{pid}/ns/net")).and_then(|file| {
            let id = NamespaceId(file.metadata()?.ino());
            Ok(Self { file, id })
        });
        opened.map_err(|source| NamespaceError::Process { pid, source })
    }

    /// The namespace's number.
    #[must_use]
    pub fn id(&self) -> NamespaceId {
        self.id
    }

    /// Opens sockets on loopback in it, at the port of `listen` (see [`loopback`]). Whether `lo` is up is its
    /// owner's business: they can be reached from when it is.
    ///
    /// # Errors
    /// When the namespace cannot be entered or its IPv4 port cannot be had. One of IPv6 may be missing.
    pub fn listen(&self, listen: SocketAddr) -> Result<Inside, NamespaceError> {
        self.enter(|| {
            let (ip4, ip6) = loopback(listen);
            let first = bind(ip4)?;
            let cookie = kernel::namespace_cookie(first.as_fd()).map_err(NamespaceError::Cookie)?;
            let mut inside = Inside { cookie, sockets: vec![first], ip4, ip6: None, without_ip6: None };
            match bind(SocketAddr::new(ip6.into(), listen.port())) {
                Ok(second) => {
                    inside.sockets.push(second);
                    inside.ip6 = Some(ip6);
                }
                Err(error) if error.is_without_ip6() => {}
                Err(error) => inside.without_ip6 = Some(error),
            }
            Ok(inside)
        })
    }

    /// Runs on a thread of its own in the namespace, and waits for it.
    fn enter<T: Send>(
        &self,
        work: impl FnOnce() -> Result<T, NamespaceError> + Send,
    ) -> Result<T, NamespaceError> {
        std::thread::scope(|scope| {
            let inside = std::thread::Builder::new().name("netns".into()).spawn_scoped(scope, || {
                setns(&self.file, CloneFlags::CLONE_NEWNET)
                    .map_err(|error| NamespaceError::Enter(error.into()))?;
                work()
            });
            let ended = inside.map_err(NamespaceError::Enter)?.join();
            ended.unwrap_or_else(|_| {
                Err(NamespaceError::Enter(io::Error::other("the thread inside panicked")))
            })
        })
    }
}

impl AsFd for Namespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Where the meter is in namespaces other than the host's: on loopback, at the port of `listen`. What `listen` says
/// is kept where it is a loopback address itself, so that one address is right everywhere.
#[must_use]
pub fn loopback(listen: SocketAddr) -> (SocketAddr, Ipv6Addr) {
    let ip4 = match listen.ip() {
        IpAddr::V4(ip) if ip.is_loopback() => ip,
        _ => Ipv4Addr::LOCALHOST,
    };
    (SocketAddr::new(ip4.into(), listen.port()), Ipv6Addr::LOCALHOST)
}

/// A listening socket in the namespace of this thread. Its address need not be there yet (`lo` may still be down).
///
/// # Errors
/// When it cannot be had.
pub fn bind(address: SocketAddr) -> Result<TcpListener, NamespaceError> {
    let listening = socket(address, SocketType::STREAM).and_then(|socket| {
        // connections of an earlier meter may linger at the port
        sockopt::set_socket_reuseaddr(&socket, true)?;
        rustix::net::bind(&socket, &address)?;
        rustix::net::listen(&socket, BACKLOG)?;
        Ok(TcpListener::from(socket))
    });
    listening.map_err(|error| refused(address, error))
}

/// As [`bind`], for datagrams.
///
/// # Errors
/// When it cannot be had.
pub fn bind_datagrams(address: SocketAddr) -> Result<UdpSocket, NamespaceError> {
    let bound = socket(address, SocketType::DGRAM).and_then(|socket| {
        // without leave to share the address: whoever had it too might be sent what is for us
        rustix::net::bind(&socket, &address)?;
        Ok(UdpSocket::from(socket))
    });
    bound.map_err(|error| refused(address, error))
}

fn socket(address: SocketAddr, kind: SocketType) -> Result<OwnedFd, Errno> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = rustix::net::socket_with(family, kind, SocketFlags::CLOEXEC, None)?;
    sockopt::set_ip_freebind(&socket, true)?;
    Ok(socket)
}

fn refused(address: SocketAddr, error: Errno) -> NamespaceError {
    match error {
        Errno::ADDRINUSE => NamespaceError::Taken(address),
        error => NamespaceError::Listen { address, source: error.into() },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_loopback_address_is_right_in_every_namespace() {
        for (listen, ip4) in [
            ("127.0.0.1:7080", "127.0.0.1:7080"),
            ("127.0.0.9:7080", "127.0.0.9:7080"),
            ("10.1.2.3:7080", "127.0.0.1:7080"),
            ("[::1]:7080", "127.0.0.1:7080"),
        ] {
            assert_eq!(loopback(listen.parse().unwrap()).0, ip4.parse().unwrap(), "{listen}");
        }
    }

    #[test]
    fn a_process_s_namespace_is_known_by_its_number() {
        let own = NamespaceId::own().unwrap();
        assert_eq!(NamespaceId::of_process(std::process::id()).unwrap(), own);
        assert_eq!(Namespace::of_process(std::process::id()).unwrap().id(), own);
        assert!(NamespaceId::of_process(u32::MAX).is_err());
        assert!(matches!(Namespace::of_process(u32::MAX), Err(NamespaceError::Process { .. })));
    }
}
