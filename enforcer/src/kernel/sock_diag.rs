//! NETLINK_SOCK_DIAG: the TCP and UDP sockets of one network namespace with their cgroups, all or one by its
//! addresses, and aborting one of them.
//!
//! Messages are written and read as bytes, by linux/netlink.h, linux/sock_diag.h and linux/inet_diag.h. Which
//! sockets are to be aborted is decided elsewhere; whose they are is found by cookie, never by address.
use std::collections::HashSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::sockopt::ReceiveTimeout;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, connect, recv, send, setsockopt,
    socket,
};
use nix::sys::time::{TimeVal, TimeValLike as _};

/// Kinds of messages, and flags of a request.
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_DUMP: u16 = 0x300;
/// Bytes of a message's head (`nlmsghdr`), of a socket's identity in it (`inet_diag_sockid`) and of what comes
/// before and after that (`inet_diag_msg`).
const HEAD: usize = 16;
const IDENTITY: usize = 48;
const BEFORE_IDENTITY: usize = 4;
const FIXED: usize = BEFORE_IDENTITY + IDENTITY + 20;
/// Where the inode stands in an `inet_diag_msg`.
const INODE: usize = FIXED - 4;
/// The attribute with the id of the cgroup that the socket was made in; since Linux 5.9.
const INET_DIAG_CGROUP_ID: u16 = 21;
/// The kernel's own pieces of a dump are at most half of this.
const BUFFER_BYTES: usize = 64 * 1024;
/// Longest wait for an answer of the kernel; it answers at once.
const ANSWER_TIMEOUT_S: i64 = 5;
/// Of linux/sockios.h: a descriptor of a socket's network namespace.
const SIOCGSKNS: libc::Ioctl = 0x894c;

/// Which sockets a dump lists: those of `AF_INET6` include what reaches IPv4 by mapped addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs, reason = "the words say it")]
pub enum Family {
    V4 = libc::AF_INET as isize,
    V6 = libc::AF_INET6 as isize,
}

/// Transport protocol; MPTCP's connections are listed as those of TCP that they are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs, reason = "the words say it")]
pub enum Transport {
    Tcp = libc::IPPROTO_TCP as isize,
    Udp = libc::IPPROTO_UDP as isize,
}

/// Everything that is listed.
pub const TABLES: [(Family, Transport); 4] = [
    (Family::V4, Transport::Tcp),
    (Family::V6, Transport::Tcp),
    (Family::V4, Transport::Udp),
    (Family::V6, Transport::Udp),
];

/// A socket as the kernel lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InetSocket {
    /// Address family.
    pub family: Family,
    /// Transport protocol.
    pub transport: Transport,
    /// Own address.
    pub local: SocketAddr,
    /// The other end's; port 0 when there is none.
    pub remote: SocketAddr,
    /// Inode, as in `/proc/PID/fd`; 0 when no process holds it.
    pub inode: u64,
    /// Never given to another socket while the host runs.
    pub cookie: u64,
    /// Id of the cgroup that it was made in; `None` where the kernel does not tell.
    pub cgroup: Option<u64>,
    /// `inet_diag_sockid`, by which the kernel finds it again.
    identity: [u8; IDENTITY],
}

impl InetSocket {
    /// A TCP connection as its own end knows it: it is found by both addresses, and is it only with this cookie. The
    /// kernel finds IPv6 sockets that speak IPv4 under `V4`.
    #[must_use]
    pub fn connection(local: SocketAddr, remote: SocketAddr, cookie: u64) -> Self {
        let is_v4 = local.ip().to_canonical().is_ipv4() && remote.ip().to_canonical().is_ipv4();
        let mut identity = [0; IDENTITY];
        for (at, end) in [(0, local), (1, remote)] {
            identity[2 * at..][..2].copy_from_slice(&end.port().to_be_bytes());
            let address = &mut identity[4 + 16 * at..][..16];
            match end.ip().to_canonical() {
                IpAddr::V4(ip) if is_v4 => address[..4].copy_from_slice(&ip.octets()),
                IpAddr::V4(ip) => address.copy_from_slice(&ip.to_ipv6_mapped().octets()),
                IpAddr::V6(ip) => address.copy_from_slice(&ip.octets()),
            }
        }
        identity[40..].copy_from_slice(&cookie.to_ne_bytes());
        let family = if is_v4 { Family::V4 } else { Family::V6 };
        Self { family, transport: Transport::Tcp, local, remote, inode: 0, cookie, cgroup: None, identity }
    }
}

/// A connection to the kernel about the sockets of one network namespace.
#[derive(Debug)]
pub struct SockDiag {
    socket: OwnedFd,
    sequence: u32,
}

impl SockDiag {
    /// For the network namespace of the calling thread.
    ///
    /// # Errors
    /// When the kernel has no such socket.
    pub fn open() -> io::Result<Self> {
        let protocol = SockProtocol::NetlinkSockDiag;
        let socket = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
        // connected to the kernel: nobody else, not even root of that namespace, can answer
        connect(socket.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        setsockopt(&socket, ReceiveTimeout, &TimeVal::seconds(ANSWER_TIMEOUT_S))?;
        Ok(Self { socket, sequence: 0 })
    }

    /// For another network namespace: a thread enters it, opens, and ends. The result can be used from anywhere.
    ///
    /// # Errors
    /// When the namespace cannot be entered, and as [`Self::open`].
    pub fn open_in(namespace: BorrowedFd<'_>) -> io::Result<Self> {
        let enter_and_open = || {
            setns(namespace, CloneFlags::CLONE_NEWNET)?;
            Self::open()
        };
        std::thread::scope(|scope| {
            let entered = scope.spawn(enter_and_open).join();
            entered.unwrap_or_else(|_| Err(io::Error::other("the thread that entered a namespace failed")))
        })
    }

    /// The wanted ones among all sockets of this family and protocol. No list of the kernel holds those that are
    /// bound to nothing, or closed.
    ///
    /// # Errors
    /// When the kernel refuses, or says what cannot be understood.
    pub fn list(
        &mut self,
        family: Family,
        transport: Transport,
        wanted: impl Fn(&InetSocket) -> bool,
    ) -> io::Result<Vec<InetSocket>> {
        let every_state = u32::MAX.to_ne_bytes();
        let request = [&[family as u8, transport as u8, 0, 0], &every_state[..], &[0; IDENTITY]].concat();
        let sequence = self.ask(SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST | NLM_F_DUMP, &request)?;
        let mut found = Vec::new();
        loop {
            let answer = self.hear()?;
            for message in messages(&answer, sequence) {
                let (kind, body) = message?;
                match kind {
                    SOCK_DIAG_BY_FAMILY => {
                        found.extend(read_socket(body, family, transport)?.filter(|socket| wanted(socket)));
                    }
                    NLMSG_DONE => return read_outcome(body).map(|()| found),
                    NLMSG_ERROR => read_outcome(body)?,
                    _ => {}
                }
            }
        }
    }

    /// The TCP socket at `local` that is connected to `remote`. One that has been closed by its process counts no more
    /// than one that never was.
    ///
    /// # Errors
    /// As [`Self::list`].
    pub fn connected(&mut self, local: SocketAddr, remote: SocketAddr) -> io::Result<Option<InetSocket>> {
        let (local, remote) = (canonical(local), canonical(remote));
        let family = if local.is_ipv4() && remote.is_ipv4() { Family::V4 } else { Family::V6 };
        let every_state = u32::MAX.to_ne_bytes();
        let request =
            [&[family as u8, Transport::Tcp as u8, 0, 0], &every_state[..], &identity_of(local, remote)]
                .concat();
        let sequence = self.ask(SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST, &request)?;
        let answer = self.hear()?;
        let found = match messages(&answer, sequence).next().unwrap_or_else(|| Err(unreadable()))? {
            (SOCK_DIAG_BY_FAMILY, body) => read_socket(body, family_of(body)?, Transport::Tcp)?,
            (NLMSG_ERROR, body) => match read_outcome(body) {
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => None,
                outcome => return outcome.and_then(|()| Err(unreadable())),
            },
            _ => return Err(unreadable()),
        };
        // where nothing is connected so, the kernel finds who listens there
        Ok(found.filter(|socket| socket.local == local && socket.remote == remote))
    }

    /// Aborts one socket: whoever reads from it or writes to it gets ECONNABORTED, a TCP peer a reset.
    /// `false`: it is gone already.
    ///
    /// # Errors
    /// EOPNOTSUPP where the kernel is built without it (`CONFIG_INET_DIAG_DESTROY`), EPERM without `CAP_NET_ADMIN`.
    pub fn abort(&mut self, target: &InetSocket) -> io::Result<bool> {
        let request = [&[target.family as u8, target.transport as u8, 0, 0], &[0; 4][..], &target.identity];
        let sequence = self.ask(SOCK_DESTROY, NLM_F_REQUEST | NLM_F_ACK, &request.concat())?;
        let answer = self.hear()?;
        let acknowledged = messages(&answer, sequence).find_map(|message| match message {
            Ok((NLMSG_ERROR, body)) => Some(read_outcome(body)),
            Ok(_) => None,
            Err(error) => Some(Err(error)),
        });
        match acknowledged {
            Some(Err(error)) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            Some(outcome) => outcome.map(|()| true),
            None => Err(unreadable()),
        }
    }

    /// Aborts every socket that was made in one of these cgroups; how many there were. For a whole bottle: the ids
    /// of its cgroup and of all below it, once for each network namespace that its sockets live in.
    ///
    /// # Errors
    /// InvalidInput for the ids 0 and 1 (none, and the host's root: that would abort every socket of the host);
    /// and as [`Self::list`] and [`Self::abort`].
    pub fn abort_made_in(&mut self, cgroups: &HashSet<u64>) -> io::Result<usize> {
        if cgroups.contains(&0) || cgroups.contains(&1) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the root cgroup is no bottle's"));
        }
        let (mut aborted, mut failed) = (0, None);
        for (family, transport) in TABLES {
            let is_of = |socket: &InetSocket| socket.cgroup.is_some_and(|id| cgroups.contains(&id));
            for socket in self.list(family, transport, is_of)? {
                // one that cannot be aborted leaves no other alive
                match self.abort(&socket) {
                    Ok(found) => aborted += usize::from(found),
                    Err(error) => failed = failed.or(Some(error)),
                }
            }
        }
        failed.map_or(Ok(aborted), Err)
    }

    /// Sends a request; the sequence number that its answers bear.
    fn ask(&mut self, kind: u16, flags: u16, body: &[u8]) -> io::Result<u32> {
        self.sequence = self.sequence.wrapping_add(1);
        let length = u32::try_from(HEAD + body.len()).map_err(io::Error::other)?;
        let mut request = Vec::with_capacity(HEAD + body.len());
        request.extend(length.to_ne_bytes());
        request.extend(kind.to_ne_bytes());
        request.extend(flags.to_ne_bytes());
        request.extend(self.sequence.to_ne_bytes());
        request.extend([0; 4]); // to the kernel
        request.extend(body);
        send(self.socket.as_raw_fd(), &request, MsgFlags::empty())?;
        Ok(self.sequence)
    }

    /// One piece of the kernel's answer.
    fn hear(&self) -> io::Result<Vec<u8>> {
        let mut buffer = vec![0; BUFFER_BYTES];
        let length = loop {
            match recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::MSG_TRUNC) {
                Err(Errno::EINTR) => {}
                length => break length?,
            }
        };
        if length == 0 || length > buffer.len() {
            return Err(unreadable());
        }
        buffer.truncate(length);
        Ok(buffer)
    }
}

/// A descriptor of the network namespace that a socket lives in, which need not be its process's.
///
/// # Errors
/// When it is no socket, or without `CAP_NET_ADMIN` over that namespace.
pub fn namespace_of(socket: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    // SAFETY: this request reads no third argument and returns a new descriptor or -1.
    let fd = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCGSKNS) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The family of a socket from its `inet_diag_msg`: one that takes IPv6 can be connected over IPv4.
fn family_of(body: &[u8]) -> io::Result<Family> {
    [Family::V4, Family::V6]
        .into_iter()
        .find(|family| body.first() == Some(&(*family as u8)))
        .ok_or_else(unreadable)
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// An `inet_diag_sockid` of two addresses, on any device, with any cookie.
fn identity_of(local: SocketAddr, remote: SocketAddr) -> [u8; IDENTITY] {
    const ANY_COOKIE: [u8; 8] = [0xff; 8];
    let mut identity = [0; IDENTITY];
    identity[..2].copy_from_slice(&local.port().to_be_bytes());
    identity[2..4].copy_from_slice(&remote.port().to_be_bytes());
    for (at, ip) in [(4, local.ip()), (20, remote.ip())] {
        match ip {
            IpAddr::V4(ip) => identity[at..at + 4].copy_from_slice(&ip.octets()),
            IpAddr::V6(ip) => identity[at..at + 16].copy_from_slice(&ip.octets()),
        }
    }
    identity[40..].copy_from_slice(&ANY_COOKIE);
    identity
}

/// Kind and body of each message in a piece that answers this request; others are skipped.
fn messages(piece: &[u8], sequence: u32) -> impl Iterator<Item = io::Result<(u16, &[u8])>> {
    let mut rest = piece;
    std::iter::from_fn(move || {
        while !rest.is_empty() {
            let Some((kind, answers, body, after)) = split_message(rest) else {
                rest = &[];
                return Some(Err(unreadable()));
            };
            rest = after;
            if answers == sequence {
                return Some(Ok((kind, body)));
            }
        }
        None
    })
}

/// Kind, sequence number and body of the first message, and what comes after it.
fn split_message(bytes: &[u8]) -> Option<(u16, u32, &[u8], &[u8])> {
    let length = usize::try_from(u32_at(bytes, 0)?).ok()?;
    let (kind, sequence) = (u16_at(bytes, 4)?, u32_at(bytes, 8)?);
    let body = bytes.get(HEAD..length)?;
    Some((kind, sequence, body, bytes.get(length.next_multiple_of(4)..).unwrap_or_default()))
}

/// The number that ends a dump or acknowledges a request: 0, or an errno below 0.
fn read_outcome(body: &[u8]) -> io::Result<()> {
    match u32_at(body, 0).map(u32::cast_signed) {
        Some(0) => Ok(()),
        Some(error @ i32::MIN..0) => Err(io::Error::from_raw_os_error(error.saturating_neg())),
        _ => Err(unreadable()),
    }
}

/// A socket from an `inet_diag_msg` and its attributes; `None` for another family's.
fn read_socket(body: &[u8], family: Family, transport: Transport) -> io::Result<Option<InetSocket>> {
    if body.first() != Some(&(family as u8)) {
        return Ok(None);
    }
    let socket = || {
        let identity: [u8; IDENTITY] = body.get(BEFORE_IDENTITY..)?.first_chunk().copied()?;
        let (local_port, remote_port) = (port_at(&identity, 0)?, port_at(&identity, 2)?);
        let (low, high) = (u32_at(&identity, 40)?, u32_at(&identity, 44)?);
        Some(InetSocket {
            family,
            transport,
            local: SocketAddr::new(address_at(&identity, 4, family)?, local_port),
            remote: SocketAddr::new(address_at(&identity, 20, family)?, remote_port),
            inode: u64::from(u32_at(body, INODE)?),
            cookie: u64::from(low) | u64::from(high) << 32,
            cgroup: attribute(body.get(FIXED..)?, INET_DIAG_CGROUP_ID),
            identity,
        })
    };
    socket().map(Some).ok_or_else(unreadable)
}

/// The 64-bit value of an attribute; `None` when it is not there.
fn attribute(mut attributes: &[u8], wanted: u16) -> Option<u64> {
    loop {
        let length = usize::from(u16_at(attributes, 0)?);
        let value = attributes.get(4..length)?;
        if u16_at(attributes, 2)? == wanted {
            return value.first_chunk().map(|bytes| u64::from_ne_bytes(*bytes));
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
}

fn address_at(identity: &[u8; IDENTITY], at: usize, family: Family) -> Option<IpAddr> {
    let bytes = identity.get(at..)?;
    Some(match family {
        Family::V4 => Ipv4Addr::from(*bytes.first_chunk::<4>()?).into(),
        Family::V6 => Ipv6Addr::from(*bytes.first_chunk::<16>()?).to_canonical(),
    })
}

fn port_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|bytes| u16::from_be_bytes(*bytes))
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|bytes| u16::from_ne_bytes(*bytes))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes))
}

fn unreadable() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "the kernel's answer about sockets cannot be read")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u16, sequence: u32, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(HEAD + body.len()).unwrap();
        let mut bytes = length.to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend([0; 2]);
        bytes.extend(sequence.to_ne_bytes());
        bytes.extend([0; 4]);
        bytes.extend(body);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    /// 127.0.0.1:80 to 10.0.0.1:443, inode 7, cookie 2^32 + 5.
    fn listed(attributes: &[u8]) -> Vec<u8> {
        let mut body = vec![2, 1, 0, 0, 0, 80, 1, 187];
        body.extend([127, 0, 0, 1]);
        body.extend([0; 12]);
        body.extend([10, 0, 0, 1]);
        body.extend([0; 12 + 4]);
        body.extend(5u32.to_ne_bytes());
        body.extend(1u32.to_ne_bytes());
        body.extend([0; 16]);
        body.extend(7u32.to_ne_bytes());
        body.extend(attributes);
        body
    }

    fn cgroup_attribute(id: u64) -> Vec<u8> {
        let unknown = [5u16.to_ne_bytes(), 1u16.to_ne_bytes(), [9, 0], [0, 0]].concat();
        [unknown, 12u16.to_ne_bytes().to_vec(), 21u16.to_ne_bytes().to_vec(), id.to_ne_bytes().to_vec()]
            .concat()
    }

    #[test]
    fn a_listed_socket_is_read_with_its_cgroup() {
        let read = |body: &[u8]| read_socket(body, Family::V4, Transport::Tcp);
        let socket = read(&listed(&cgroup_attribute(99))).unwrap().unwrap();
        assert_eq!(socket.local, "127.0.0.1:80".parse().unwrap());
        assert_eq!(socket.remote, "10.0.0.1:443".parse().unwrap());
        assert_eq!((socket.inode, socket.cookie, socket.cgroup), (7, (1 << 32) + 5, Some(99)));
        assert_eq!(read(&listed(&[])).unwrap().unwrap().cgroup, None, "an old kernel");
        assert_eq!(read_socket(&listed(&[]), Family::V6, Transport::Tcp).unwrap(), None);
        for short in 1..FIXED {
            assert!(read(&listed(&[])[..short]).is_err(), "{short} bytes");
        }
    }

    #[test]
    fn a_connection_is_named_as_it_is_listed() {
        let socket = read_socket(&listed(&[]), Family::V4, Transport::Tcp).unwrap().unwrap();
        let named = InetSocket::connection(socket.local, socket.remote, socket.cookie);
        assert_eq!(named, InetSocket { inode: 0, cgroup: None, ..socket });
    }

    #[test]
    fn attributes_that_lie_about_their_length_end_the_search() {
        let whole = cgroup_attribute(99);
        assert_eq!(attribute(&whole, INET_DIAG_CGROUP_ID), Some(99));
        for short in 0..whole.len() {
            assert_eq!(attribute(&whole[..short], INET_DIAG_CGROUP_ID), None, "{short} bytes");
        }
        for length in [0u16, 3, 4, 11, 200] {
            let lie = [&length.to_ne_bytes()[..], &21u16.to_ne_bytes(), &[1; 8]].concat();
            assert_eq!(attribute(&lie, INET_DIAG_CGROUP_ID), None, "{length}");
        }
    }

    #[test]
    fn a_piece_is_split_into_the_answers_to_one_request() {
        let piece = [message(20, 4, b"old"), message(20, 5, b"one"), message(3, 5, &[0; 4])].concat();
        let found: Vec<_> = messages(&piece, 5).map(|message| message.unwrap()).collect();
        assert_eq!(found, [(20, &b"one"[..]), (3, &[0; 4][..])]);
        for cut in [1, HEAD - 1, HEAD + 2] {
            let broken = &message(20, 5, b"one")[..cut];
            assert!(messages(broken, 5).next().unwrap().is_err(), "{cut} bytes");
        }
        let mut lie = message(20, 5, b"one");
        lie[0] = 3;
        let mut read = messages(&lie, 5);
        assert!(read.next().unwrap().is_err() && read.next().is_none(), "and it ends");
    }

    #[test]
    fn an_outcome_is_nothing_or_an_errno() {
        assert!(read_outcome(&0i32.to_ne_bytes()).is_ok());
        let refused = read_outcome(&(-libc::ENOENT).to_ne_bytes()).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::ENOENT));
        for bad in [&1i32.to_ne_bytes()[..], &[], &[0, 0]] {
            assert_eq!(read_outcome(bad).unwrap_err().kind(), io::ErrorKind::InvalidData);
        }
    }

    #[test]
    fn the_root_cgroup_s_sockets_are_never_aborted() {
        let mut diag = SockDiag::open().unwrap();
        for id in [0, 1] {
            let refused = diag.abort_made_in(&HashSet::from([5, id])).unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::InvalidInput);
        }
    }
}
