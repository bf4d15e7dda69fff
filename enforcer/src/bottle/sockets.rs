//! The sockets that processes held already when their cgroup became a bottle, and which of them it does not govern.
//!
//! A socket belongs to the cgroup that it was made in, for ever. Each one that a process of the bottle holds is
//! looked at through a copy of its descriptor, and found again in the kernel's lists by its cookie. Best effort:
//! one that is only on its way to a process (in the queue of a Unix socket, say) is not seen.
mod report;
mod sort;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fs::{self, File};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd as _, RawFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use rustix::net::sockopt::{socket_cookie, socket_domain, socket_protocol, socket_type};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

pub use self::report::Report;
use self::sort::Sort;
use super::cgroup::{Cgroup, CgroupError};
use crate::kernel::sock_diag::{Family, InetSocket, SockDiag, Transport, namespace_of};

/// Most sockets of one bottle that are looked at.
const MAX_SOCKETS: usize = 16_384;
/// Most network namespaces that they may live in.
const MAX_NAMESPACES: usize = 64;

/// Looks at every socket that the processes of a cgroup hold; with `hard`, aborts exactly those that were made
/// outside it. To be called when the guard is on, so that whatever is made inside afterwards is governed.
/// What cannot be examined is a part of the report.
#[must_use]
pub fn examine(cgroup: &Cgroup, hard: bool) -> Report {
    let mut examination = Examination::default();
    if let Err(error) = examination.run(cgroup, hard) {
        examination.report.unexamined.push(error.to_string());
    }
    examination.report
}

/// Aborts the connections to the meter that were made in this cgroup, in the network namespace of the calling thread,
/// while it was no bottle: the meter took them for the host's. To be called when the guard is on and the bottle has not
/// been opened. How many there were.
///
/// # Errors
/// When the kernel does not list or abort sockets.
pub fn abort_hosts(cgroup: &Cgroup, meter: &[SocketAddr]) -> io::Result<usize> {
    let inside = cgroup.ids().map_err(io::Error::other)?;
    let mut diag = SockDiag::open()?;
    let mut aborted = 0;
    for family in [Family::V4, Family::V6] {
        let is_one = |socket: &InetSocket| {
            meter.contains(&socket.remote) && socket.cgroup.is_some_and(|id| inside.contains(&id))
        };
        for socket in diag.list(family, Transport::Tcp, is_one)? {
            aborted += usize::from(diag.abort(&socket)?);
        }
    }
    Ok(aborted)
}

/// A socket that a process holds and that the kernel may list.
struct Held {
    pid: u32,
    inode: u64,
    cookie: u64,
    list: (Family, Transport),
    /// Its connections are sockets of their own, with its inode.
    is_mptcp: bool,
    /// Index in [`Examination::namespaces`].
    namespace: usize,
}

/// A listed socket, the index of who holds it, and the index of its namespace.
type Listed = (InetSocket, usize);

#[derive(Default)]
struct Examination {
    report: Report,
    seen: HashSet<u64>,
    held: Vec<Held>,
    /// Inode of each namespace, and the way to ask the kernel about it.
    namespaces: Vec<(u64, SockDiag)>,
}

impl Examination {
    fn run(&mut self, cgroup: &Cgroup, hard: bool) -> Result<(), CgroupError> {
        let mut inside = cgroup.ids()?;
        for pid in cgroup.pids()? {
            if let Err(error) = self.look_at(pid) {
                self.report.unexamined.push(format!("those of pid {pid}: {error}"));
            }
        }
        let listed = self.list();
        // a cgroup that was made below it meanwhile is inside as well
        inside.extend(cgroup.ids()?);
        self.judge(listed, &inside, hard);
        Ok(())
    }

    /// Notes what a process holds that no process before it held. One that is gone holds nothing.
    fn look_at(&mut self, pid: u32) -> io::Result<()> {
        let sockets = match sockets_of(pid) {
            Err(error) if is_gone(&error) => return Ok(()),
            sockets => sockets?,
        };
        let id = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::InvalidInput)?;
        let process = match pidfd_open(id, PidfdFlags::empty()).map_err(io::Error::from) {
            Err(error) if is_gone(&error) => return Ok(()),
            process => process?,
        };
        for (fd, inode) in sockets {
            if self.seen.contains(&inode) {
                continue;
            }
            if self.seen.len() >= MAX_SOCKETS {
                return Err(io::Error::other(format!("more than {MAX_SOCKETS} sockets")));
            }
            match pidfd_getfd(&process, fd, PidfdGetfdFlags::empty()).map_err(io::Error::from) {
                Ok(copy) => self.note(pid, &File::from(copy))?,
                // closed meanwhile
                Err(error) if is_gone(&error) || error.raw_os_error() == Some(libc::EBADF) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Notes one descriptor, which may have become another one meanwhile: it is judged as it is.
    fn note(&mut self, pid: u32, socket: &File) -> io::Result<()> {
        let inode = socket.metadata()?.ino();
        let domain = match socket_domain(socket) {
            Ok(domain) => i32::from(domain.as_raw()),
            Err(rustix::io::Errno::NOTSOCK) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let kind = socket_type(socket)?.as_raw().cast_signed();
        let protocol = socket_protocol(socket)?.map_or(0, |protocol| protocol.as_raw().get().cast_signed());
        if !self.seen.insert(inode) {
            return Ok(());
        }
        match Sort::of(domain, kind, protocol) {
            Sort::Local => {}
            Sort::Listed(family, transport) => {
                let held = Held {
                    pid,
                    inode,
                    cookie: socket_cookie(socket)?,
                    list: (family, transport),
                    is_mptcp: protocol == libc::IPPROTO_MPTCP,
                    namespace: self.namespace(socket)?,
                };
                self.held.push(held);
            }
            Sort::Unlisted(words) => self.report.unjudged.push(format!("pid {pid}: {words}")),
            Sort::Beside(words) => self.report.beside.push(format!("pid {pid}: {words}")),
        }
        Ok(())
    }

    /// Index of the namespace that a socket lives in.
    fn namespace(&mut self, socket: &File) -> io::Result<usize> {
        let namespace = File::from(namespace_of(socket.as_fd())?);
        let inode = namespace.metadata()?.ino();
        if let Some(known) = self.namespaces.iter().position(|(known, _)| *known == inode) {
            return Ok(known);
        }
        if self.namespaces.len() >= MAX_NAMESPACES {
            return Err(io::Error::other(format!("more than {MAX_NAMESPACES} network namespaces")));
        }
        self.namespaces.push((inode, SockDiag::open_in(namespace.as_fd())?));
        Ok(self.namespaces.len() - 1)
    }

    /// Finds what is held in the kernel's lists: by cookie, and the connections of an MPTCP socket by its inode.
    fn list(&mut self) -> Vec<Listed> {
        let mut by_cookie = HashMap::new();
        let mut by_inode = HashMap::new();
        let mut lists = BTreeSet::new();
        for (index, held) in self.held.iter().enumerate() {
            by_cookie.insert(held.cookie, index);
            lists.insert((held.namespace, held.list));
            if held.is_mptcp {
                by_inode.insert((held.namespace, held.inode), index);
                // an IPv6 socket has connections of both families
                lists.insert((held.namespace, (Family::V4, Transport::Tcp)));
            }
        }
        let mut found = Vec::new();
        for (namespace, (family, transport)) in lists {
            let holder = |socket: &InetSocket| {
                let by_inode = || by_inode.get(&(namespace, socket.inode));
                by_cookie.get(&socket.cookie).or_else(by_inode).copied()
            };
            let diag = &mut self.namespaces[namespace].1;
            match diag.list(family, transport, |socket| holder(socket).is_some()) {
                Ok(sockets) => {
                    found.extend(sockets.into_iter().filter_map(|socket| Some((holder(&socket)?, socket))))
                }
                Err(error) => self.report.unexamined.push(format!(
                    "{} of {}: {error}",
                    word(transport),
                    version(family)
                )),
            }
        }
        found.into_iter().map(|(holder, socket)| (socket, holder)).collect()
    }

    /// Sorts what is listed by the cgroup that it was made in, and aborts what was made outside if it is to.
    fn judge(&mut self, listed: Vec<Listed>, inside: &HashSet<u64>, hard: bool) {
        let known: HashSet<usize> = listed.iter().map(|(_, holder)| *holder).collect();
        for (socket, holder) in listed {
            let held = &self.held[holder];
            let words = describe(held.pid, &socket);
            match socket.cgroup {
                None => self.report.unjudged.push(words),
                Some(id) if inside.contains(&id) => {}
                Some(_) if hard => match self.namespaces[held.namespace].1.abort(&socket) {
                    Ok(true) => self.report.aborted.push(words),
                    Ok(false) => {}
                    Err(error) => self.report.failed.push(format!("{words}: {error}")),
                },
                Some(_) => self.report.foreign.push(words),
            }
        }
        for (index, held) in self.held.iter().enumerate() {
            if !known.contains(&index) {
                let words = format!("pid {}: {}, neither bound nor connected", held.pid, word(held.list.1));
                self.report.unjudged.push(words);
            }
        }
    }
}

fn describe(pid: u32, socket: &InetSocket) -> String {
    let local = format!("pid {pid}: {} {}", word(socket.transport), socket.local);
    if socket.remote.port() == 0 { local } else { format!("{local} → {}", socket.remote) }
}

fn word(transport: Transport) -> &'static str {
    match transport {
        Transport::Tcp => "tcp",
        Transport::Udp => "udp",
    }
}

fn version(family: Family) -> &'static str {
    match family {
        Family::V4 => "IPv4",
        Family::V6 => "IPv6",
    }
}

/// Descriptors of a process that are sockets, with their inodes.
fn sockets_of(pid: u32) -> io::Result<Vec<(RawFd, u64)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
        let entry = entry?;
        let target = match fs::read_link(entry.path()) {
            // closed meanwhile
            Err(error) if is_gone(&error) => continue,
            target => target?,
        };
        let fd = entry.file_name().to_str().and_then(|name| name.parse().ok());
        found.extend(fd.zip(socket_inode(&target)));
    }
    Ok(found)
}

/// The number in `socket:[N]`.
fn socket_inode(target: &Path) -> Option<u64> {
    target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_sockets_have_their_inode_read() {
        assert_eq!(socket_inode(Path::new("socket:[123]")), Some(123));
        for other in ["pipe:[1]", "socket:[]", "socket:[1", "/tmp/socket:[1]", "anon_inode:[eventpoll]"] {
            assert_eq!(socket_inode(Path::new(other)), None, "{other}");
        }
    }
}
