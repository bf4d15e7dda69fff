//! Who has power over a network namespace: its owning user namespace, and those around that one.
//!
//! A capability of a process counts in the user namespace that the process is in and in those below it (user_namespaces(7)),
//! so one that is root of a user namespace that it made itself has none over the network it came from.
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::fs::MetadataExt as _;

/// Of linux/nsfs.h.
const NS_GET_USERNS: libc::Ioctl = 0xb701;
const NS_GET_PARENT: libc::Ioctl = 0xb702;
const NS_GET_OWNER_UID: libc::Ioctl = 0xb704;

/// A user namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct UserNamespace {
    /// Inode.
    pub(super) id: u64,
    /// Who made it has every capability in it while in the one above.
    pub(super) owner_uid: u32,
}

/// A network namespace that a process is in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Network {
    /// Its owner, and the user namespaces around that one, as far as this process sees them.
    pub(super) owners: Vec<UserNamespace>,
    /// Whether it has any device beside its loopback device, which every one has and none can be rid of.
    pub(super) leads_out: bool,
}

impl Network {
    /// That of a process.
    pub(super) fn of_process(pid: u32) -> io::Result<Self> {
        let devices = fs::read_to_string(format!("/proc/{pid}/net/dev"))?;
        // below two lines of headings
        let leads_out = devices.lines().skip(2).count() > 1;
        let network = File::open(format!("/proc/{pid}/ns/net"))?;
        let mut next = Some(related(&OwnedFd::from(network), NS_GET_USERNS)?);
        let mut owners = Vec::new();
        while let Some(namespace) = next {
            next = match related(&namespace, NS_GET_PARENT) {
                // the first of all, or one that this process does not see beyond
                Err(error) if error.raw_os_error() == Some(libc::EPERM) => None,
                parent => Some(parent?),
            };
            let owner_uid = owner_uid(&namespace)?;
            owners.push(UserNamespace { id: File::from(namespace).metadata()?.ino(), owner_uid });
        }
        Ok(Self { owners, leads_out })
    }
}

/// Inode of one of a process's namespaces.
pub(super) fn namespace_id(pid: u32, kind: &str) -> io::Result<u64> {
    Ok(fs::metadata(format!("/proc/{pid}/ns/{kind}"))?.ino())
}

fn related(namespace: &OwnedFd, request: libc::Ioctl) -> io::Result<OwnedFd> {
    // SAFETY: these requests read no third argument and return a new descriptor or -1.
    let fd = unsafe { libc::ioctl(namespace.as_raw_fd(), request) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn owner_uid(namespace: &OwnedFd) -> io::Result<u32> {
    let mut uid: libc::uid_t = 0;
    // SAFETY: the kernel writes one uid to the word, which outlives the call.
    let result = unsafe { libc::ioctl(namespace.as_raw_fd(), NS_GET_OWNER_UID, &raw mut uid) };
    if result == 0 { Ok(uid) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_network_is_owned_by_a_namespace_that_this_process_sees() {
        let pid = std::process::id();
        let network = Network::of_process(pid).unwrap();
        let user = namespace_id(pid, "user").unwrap();
        assert!(network.owners.iter().any(|namespace| namespace.id == user), "{network:?} {user}");
        assert!(Network::of_process(u32::MAX).is_err());
    }
}
