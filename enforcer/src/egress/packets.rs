//! Who in a cgroup could send past every hook: a packet socket (CAP_NET_RAW) puts frames on the wire by itself, and who
//! rules over a network (CAP_NET_ADMIN) can send below the hooks on sockets: by rules at a device, as a router.
//!
//! Either needs the capability over a network that leads out, one with another device than its loopback. Read from
//! `/proc`; nothing is changed.
use std::fmt;
use std::fs;
use std::io;

use super::owner::{Network, namespace_id};

/// Capabilities as bits of the masks in `/proc`.
const NET_ADMIN: u64 = 1 << 12;
/// As above.
const NET_RAW: u64 = 1 << 13;

/// A process that has the capability, or can get it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Process id.
    pub pid: u32,
    /// Name of its program.
    pub name: String,
    /// Which.
    pub capability: &'static str,
    /// Whether it has it now; else it is root and not kept from getting it by an exec.
    pub has: bool,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = if self.has { "has" } else { "can get" };
        write!(
            f,
            "process {} ({}) {what} {} over a network that leads out",
            self.pid, self.name, self.capability
        )
    }
}

/// The first of these processes that has CAP_NET_ADMIN or can get it, or CAP_NET_RAW where `packets` says that it
/// matters: over one of their networks, or over the controller's where they see its processes and so can name it. One
/// that ended meanwhile has not; one that cannot be read has.
#[must_use]
pub fn holder(pids: &[u32], packets: bool) -> Option<Holder> {
    let unreadable =
        |pid| Holder { pid, name: "unreadable".to_owned(), capability: "CAP_NET_ADMIN", has: true };
    let mut processes = Vec::new();
    for &pid in pids {
        match Process::read(pid) {
            Ok(process) => processes.push(process),
            Err(error) if is_gone(&error) => {}
            Err(_) => return Some(unreadable(pid)),
        }
    }
    let Ok(own) = Process::read(std::process::id()) else { return pids.first().copied().map(unreadable) };
    let mut networks: Vec<Network> = Vec::new();
    for process in processes.iter().filter(|process| process.network.leads_out) {
        if !networks.contains(&process.network) {
            networks.push(process.network.clone());
        }
    }
    processes.iter().find_map(|process| {
        let named = (process.pids == own.pids && own.network.leads_out).then_some(&own.network);
        networks.iter().chain(named).find_map(|network| process.judge(network, packets))
    })
}

/// What is known of one process.
#[derive(Clone, Debug)]
struct Process {
    pid: u32,
    /// Its lines of proc_pid_status(5).
    status: String,
    /// Inode of its user namespace.
    user: u64,
    /// Inode of its PID namespace.
    pids: u64,
    /// Whom its user namespace takes for root, as uid of the controller's; `None` for nobody.
    root: Option<u32>,
    network: Network,
}

impl Process {
    fn read(pid: u32) -> io::Result<Self> {
        Ok(Self {
            pid,
            status: fs::read_to_string(format!("/proc/{pid}/status"))?,
            user: namespace_id(pid, "user")?,
            pids: namespace_id(pid, "pid")?,
            root: root_of(&fs::read_to_string(format!("/proc/{pid}/uid_map"))?),
            network: Network::of_process(pid)?,
        })
    }

    /// Judges it by its status. A line that is missing counts as the worse.
    fn judge(&self, network: &Network, packets: bool) -> Option<Holder> {
        let at = network.owners.iter().position(|namespace| namespace.id == self.user)?;
        let below = at.checked_sub(1).and_then(|below| network.owners.get(below));
        let made_it = below.is_some_and(|below| self.uids().contains(&below.owner_uid));
        let wanted = [(NET_ADMIN, "CAP_NET_ADMIN", true), (NET_RAW, "CAP_NET_RAW", packets)];
        wanted.into_iter().filter(|(.., matters)| *matters).find_map(|(bit, capability, _)| {
            let has = made_it || self.mask("CapPrm:") & bit != 0;
            let may_gain = self.mask("CapBnd:") & bit != 0 && self.field("NoNewPrivs:") != Some("1");
            let name = self.field("Name:").unwrap_or("unnamed").to_owned();
            (has || (self.is_root() && may_gain)).then_some(Holder { pid: self.pid, name, capability, has })
        })
    }

    fn field(&self, key: &str) -> Option<&str> {
        self.status.lines().find_map(|line| line.strip_prefix(key)).map(str::trim)
    }

    fn mask(&self, key: &str) -> u64 {
        self.field(key).and_then(|mask| u64::from_str_radix(mask, 16).ok()).unwrap_or(u64::MAX)
    }

    fn uids(&self) -> Vec<u32> {
        let uids = self.field("Uid:").unwrap_or_default();
        uids.split_whitespace().filter_map(|uid| uid.parse().ok()).collect()
    }

    fn is_root(&self) -> bool {
        self.field("Uid:").is_none() || self.root.is_some_and(|root| self.uids().contains(&root))
    }
}

/// Whom a `uid_map` of user_namespaces(7) takes for 0.
fn root_of(map: &str) -> Option<u32> {
    map.lines().find_map(|line| {
        let mut fields = line.split_whitespace();
        (fields.next() == Some("0")).then(|| fields.next()?.parse().ok()).flatten()
    })
}

fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH)
}

#[cfg(test)]
mod tests {
    use super::super::owner::UserNamespace;
    use super::*;

    const ALL: u64 = 0x1ff_ffff_ffff;
    /// A user namespace below the first, made by uid 1000, which owns the network.
    const BELOW: u64 = 2;

    fn process(user: u64, uid: u32, permitted: u64, bounding: u64, no_new_privs: u8) -> Process {
        let owners = [(BELOW, 1000), (1, 0)].map(|(id, owner_uid)| UserNamespace { id, owner_uid });
        Process {
            pid: 7,
            status: format!(
                "Name:\tagent\nUid:\t{uid}\t{uid}\t{uid}\nCapPrm:\t{permitted:016x}\nCapBnd:\t{bounding:016x}\n\
                 NoNewPrivs:\t{no_new_privs}\n"
            ),
            user,
            pids: 1,
            root: Some(if user == BELOW { 1000 } else { 0 }),
            network: Network { owners: owners.into(), leads_out: true },
        }
    }

    fn judged(process: &Process, packets: bool) -> Option<(&'static str, bool)> {
        process.judge(&process.network, packets).map(|holder| (holder.capability, holder.has))
    }

    #[test]
    fn whoever_has_a_capability_or_is_root_and_can_get_it_is_found() {
        const ADMIN: &str = "CAP_NET_ADMIN";
        const BOTH: u64 = NET_ADMIN | NET_RAW;
        for (uid, permitted, bounding, no_new_privs, found) in [
            (65534, 0, ALL, 0, None),
            (65534, 0, 0, 0, None),
            (65534, NET_RAW, ALL, 1, Some(("CAP_NET_RAW", true))),
            (65534, NET_ADMIN, ALL, 1, Some((ADMIN, true))),
            (0, ALL, ALL, 1, Some((ADMIN, true))),
            (0, ALL & !BOTH, ALL & !BOTH, 0, None),
            (0, 0, ALL, 0, Some((ADMIN, false))),
            (0, 0, ALL, 1, None),
            (0, 0, ALL & !BOTH, 0, None),
        ] {
            let process = process(1, uid, permitted, bounding, no_new_privs);
            assert_eq!(judged(&process, true), found, "{uid} {permitted:x} {bounding:x} {no_new_privs}");
        }
        let raw = process(1, 65534, NET_RAW, ALL, 1);
        assert_eq!(judged(&raw, false), None, "packet sockets are refused otherwise");
        let unknown = Process { status: String::new(), ..raw };
        assert_eq!(judged(&unknown, true), Some((ADMIN, true)), "what is not known is the worse");
    }

    #[test]
    fn a_capability_counts_where_it_is_held_and_below() {
        assert!(judged(&process(BELOW, 1000, ALL, ALL, 0), true).is_some());
        assert!(judged(&process(BELOW, 1000, 0, ALL, 0), true).is_some(), "root there can get it");
        assert!(judged(&process(1, 1000, 0, 0, 1), true).is_some(), "who made it has every one in it");
        assert!(judged(&process(1, 65534, 0, 0, 1), true).is_none());
        assert!(
            judged(&process(3, 65534, ALL, ALL, 0), true).is_none(),
            "in one beside or below, it has none"
        );
    }

    #[test]
    fn root_of_a_user_namespace_is_found_in_its_map() {
        assert_eq!(root_of("         0          0 4294967295\n"), Some(0));
        assert_eq!(root_of("1 100000 65536\n0 1000 1\n"), Some(1000));
        assert_eq!(root_of("1000 1000 1\n"), None);
        assert_eq!(holder(&[u32::MAX], true), None);
    }
}
