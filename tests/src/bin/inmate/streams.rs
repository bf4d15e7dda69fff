//! TCP as a hostile program uses it: from chosen ports, brought into being by hand, received from others, in crowds.
use std::io::{self, IoSliceMut, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, Backlog, ControlMessageOwned, MsgFlags, SockFlag, SockType, SockaddrStorage, bind,
    connect as dial, listen as start_listening, recvmsg, setsockopt, socket, sockopt,
};

/// How long a connection, an answer or room to write is waited for.
pub const WAIT: Duration = Duration::from_millis(500);

/// A new socket of the address's family.
pub fn socket_for(address: SocketAddr, kind: SockType) -> io::Result<OwnedFd> {
    let family = if address.is_ipv6() { AddressFamily::Inet6 } else { AddressFamily::Inet };
    Ok(socket(family, kind, SockFlag::SOCK_CLOEXEC, None)?)
}

/// Connects, from a port of its choice if one is named.
pub fn connect(to: SocketAddr, from_port: Option<u16>) -> io::Result<TcpStream> {
    let stream = match from_port {
        None => TcpStream::connect_timeout(&to, WAIT)?,
        Some(port) => {
            let socket = socket_for(to, SockType::Stream)?;
            setsockopt(&socket, sockopt::ReuseAddr, &true)?;
            bind(socket.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(unspecified(to), port)))?;
            dial(socket.as_raw_fd(), &SockaddrStorage::from(to))?;
            socket.into()
        }
    };
    bounded(stream)
}

/// A connection that the other end knows nothing of: in repair mode (as CRIU restores one) connect() sends no packet.
pub fn repair(from: SocketAddr, to: SocketAddr) -> io::Result<TcpStream> {
    let socket = socket_for(to, SockType::Stream)?;
    setsockopt(&socket, sockopt::TcpRepair, &1)?;
    bind(socket.as_raw_fd(), &SockaddrStorage::from(from))?;
    dial(socket.as_raw_fd(), &SockaddrStorage::from(to))?;
    bounded(socket.into())
}

/// Ends the repair: the kernel sends a probe of the other end's window.
pub fn wake(stream: &mut TcpStream) -> io::Result<()> {
    Ok(setsockopt(stream, sockopt::TcpRepair, &0)?)
}

/// Receives a connection from the process that listens at `path`.
pub fn take(path: &str) -> io::Result<TcpStream> {
    let stream = UnixStream::connect(path)?;
    let (mut byte, mut room) = ([0; 1], nix::cmsg_space!(i32));
    let mut payload = [IoSliceMut::new(&mut byte)];
    let message =
        recvmsg::<()>(stream.as_raw_fd(), &mut payload, Some(&mut room), MsgFlags::MSG_CMSG_CLOEXEC)?;
    for part in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(descriptors) = part
            && let Some(&descriptor) = descriptors.first()
        {
            // SAFETY: the kernel has just made this descriptor for us; nothing else in this process knows of it.
            return bounded(unsafe { OwnedFd::from_raw_fd(descriptor) }.into());
        }
    }
    Err(io::Error::other("no descriptor came"))
}

fn bounded(stream: TcpStream) -> io::Result<TcpStream> {
    stream.set_read_timeout(Some(WAIT))?;
    stream.set_write_timeout(Some(WAIT))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Writes some bytes: into the socket's buffer, whether they get out or not.
pub fn write(stream: &mut TcpStream) -> io::Result<()> {
    stream.write_all(b"out of the bottle")
}

/// Reads what is there; how many bytes.
pub fn read(stream: &mut TcpStream) -> io::Result<usize> {
    stream.read(&mut [0; 4096])
}

/// Connects again and again and keeps what comes about; how many did, and the last error.
pub fn flood(to: SocketAddr, count: usize, crowd: &mut Vec<TcpStream>) -> (usize, Option<io::Error>) {
    keep((0..count).map(|_| TcpStream::connect_timeout(&to, WAIT)), crowd)
}

/// Brings connections into being without the other end, one from each port from this one on, and keeps them.
pub fn claim(
    first_port: u16,
    count: u16,
    to: SocketAddr,
    crowd: &mut Vec<TcpStream>,
) -> (usize, Option<io::Error>) {
    keep((0..count).map(|n| repair(SocketAddr::new(to.ip(), first_port + n), to)), crowd)
}

/// Begins connections, one from each port from this one on, and keeps them: each opens when something is written to it
/// (TCP Fast Open, in a namespace that does it without a cookie).
pub fn begin(
    first_port: u16,
    count: u16,
    to: SocketAddr,
    crowd: &mut Vec<TcpStream>,
) -> (usize, Option<io::Error>) {
    let begin_from = |port| {
        let socket = socket_for(to, SockType::Stream)?;
        setsockopt(&socket, sockopt::TcpFastOpenConnect, &true)?;
        bind(socket.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(to.ip(), port)))?;
        dial(socket.as_raw_fd(), &SockaddrStorage::from(to))?;
        bounded(socket.into())
    };
    keep((0..count).map(|n| begin_from(first_port + n)), crowd)
}

fn keep(
    outcomes: impl Iterator<Item = io::Result<TcpStream>>,
    crowd: &mut Vec<TcpStream>,
) -> (usize, Option<io::Error>) {
    let (before, mut failed) = (crowd.len(), None);
    for outcome in outcomes {
        match outcome {
            Ok(stream) => crowd.push(stream),
            Err(error) => failed = Some(error),
        }
    }
    (crowd.len() - before, failed)
}

/// Binds (and for TCP listens at) an address, for a moment.
pub fn listen(kind: &str, at: SocketAddr, shared: bool) -> io::Result<()> {
    let stream = kind == "tcp";
    let socket = socket_for(at, if stream { SockType::Stream } else { SockType::Datagram })?;
    if shared {
        setsockopt(&socket, sockopt::ReuseAddr, &true)?;
        setsockopt(&socket, sockopt::ReusePort, &true)?;
    }
    bind(socket.as_raw_fd(), &SockaddrStorage::from(at))?;
    if stream {
        start_listening(&socket, Backlog::new(1).map_err(|_: Errno| io::Error::other("backlog"))?)?;
    } else {
        drop(UdpSocket::from(socket));
    }
    Ok(())
}

/// The address that stands for all, in the family of another.
pub fn unspecified(like: SocketAddr) -> std::net::IpAddr {
    if like.is_ipv6() {
        std::net::Ipv6Addr::UNSPECIFIED.into()
    } else {
        std::net::Ipv4Addr::UNSPECIFIED.into()
    }
}
