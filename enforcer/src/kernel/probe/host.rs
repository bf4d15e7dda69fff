//! What the host must have before there can be a bottle at all.
use std::fs;
use std::io::{self, ErrorKind};
use std::net::UdpSocket;
use std::os::fd::AsFd as _;
use std::path::Path;

use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, IterableMap as _, MapData};
use enforcer_ebpf::{AllowKey, AllowPorts, Bottle, SLOTS};
use nix::sched::{CloneFlags, unshare};

use super::super::table::Table;
use super::super::{namespace_cookie, pins, shapes};
use super::{Failure, Outcome, failure, inside};
use crate::bottle::cgroup;
use crate::bottle::seccomp::Filter;

/// CAP_NET_ADMIN and CAP_BPF, bits of `CapEff`.
const NEEDED_CAPABILITIES: u64 = 1 << 12 | 1 << 39;
/// `BPF_F_NO_PREALLOC`, which the kernel asks of every prefix trie.
const NO_PREALLOC: u32 = 1;

pub(super) fn privileges() -> Outcome {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = line.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    let root = nix::unistd::geteuid().is_root();
    if root && effective & NEEDED_CAPABILITIES == NEEDED_CAPABILITIES {
        return Ok("root, with CAP_BPF and CAP_NET_ADMIN".to_owned());
    }
    let what = if root { "root without CAP_BPF or CAP_NET_ADMIN" } else { "not root" };
    Err(Failure { what: what.to_owned(), hint: Some("run it with sudo, on the host itself".to_owned()) })
}

pub(super) fn cgroup_mount() -> Outcome {
    Ok(format!("mounted at {}", cgroup::mount()?.display()))
}

pub(super) fn bpffs() -> Outcome {
    pins::mount_bpffs()?;
    Ok(format!("mounted at {}", pins::BPFFS))
}

pub(super) fn btf() -> Outcome {
    let path = "/sys/kernel/btf/vmlinux";
    if Path::new(path).exists() {
        return Ok(path.to_owned());
    }
    let hint = "a kernel built with CONFIG_DEBUG_INFO_BTF gives better messages, and can have LSM programs";
    Err(Failure { what: format!("{path} is missing"), hint: Some(hint.to_owned()) })
}

/// Whether programs are compiled: interpreted ones are some ten times slower.
pub(super) fn jit() -> Outcome {
    let path = "/proc/sys/net/core/bpf_jit_enable";
    match fs::read_to_string(path) {
        // a kernel built to compile always has no such switch
        Err(error) if error.kind() == ErrorKind::NotFound => Ok("always on".to_owned()),
        Ok(switch) if switch.trim() == "0" => Err(Failure {
            what: format!("{path} is 0: the programs are interpreted"),
            hint: Some("sysctl net.core.bpf_jit_enable=1".to_owned()),
        }),
        switch => Ok(format!("{path} is {}", switch?.trim())),
    }
}

/// Whether the kernel keeps things from root. `programs` says what it makes of ours.
pub(super) fn lockdown() -> Outcome {
    match fs::read_to_string("/sys/kernel/security/lockdown") {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            Ok("not there, or securityfs is not mounted".to_owned())
        }
        modes => lockdown_mode(&modes?),
    }
}

/// The mode in brackets, as in `none [integrity] confidentiality`.
fn lockdown_mode(modes: &str) -> Outcome {
    let chosen = modes.split('[').nth(1).and_then(|rest| rest.split(']').next()).unwrap_or("unknown");
    if chosen == "confidentiality" {
        return Err(failure("confidentiality: programs may not read the kernel's memory"));
    }
    Ok(chosen.to_owned())
}

/// Makes the table of bottles, maps it, and flips a verdict in it.
pub(super) fn mmapable_arrays() -> Outcome {
    const SLOT: u32 = 1;
    let array = Array::<MapData, Bottle>::create(SLOTS, shapes::MMAPABLE)
        .map_err(|error| failure(error.to_string()))?;
    let table = Table::map(array.map().fd().as_fd())?;
    table.open(SLOT);
    let seen = array.get(&SLOT, 0).map_err(|error| failure(error.to_string()))?;
    if seen.flags == 0 {
        return Err(failure("a store into the mapped table does not reach the map"));
    }
    Ok("a verdict is one store".to_owned())
}

/// Makes an allow-list and looks an address up that a wide and a narrow entry cover.
pub(super) fn prefix_tries() -> Outcome {
    let refused = |error: aya::maps::MapError| failure(error.to_string());
    let mut trie = LpmTrie::<MapData, AllowKey, AllowPorts>::create(2, NO_PREALLOC).map_err(refused)?;
    let key = |prefix, ip| Key::new(prefix, AllowKey { slot: 1, ip });
    for (prefix, ip, count) in [(64, [7, 0, 0, 0], 1), (160, [7, 0, 0, 9], 2)] {
        let ports = AllowPorts { count, ..AllowPorts::default() };
        trie.insert(&key(prefix, ip), ports, 0).map_err(refused)?;
    }
    for (ip, expected) in [([7, 0, 0, 9], 2), ([7, 0, 0, 8], 1)] {
        if trie.get(&key(160, ip), 0).map_err(refused)?.count != expected {
            return Err(failure("the longest prefix does not win"));
        }
    }
    Ok("an allow-list's longest prefix wins".to_owned())
}

/// Makes a network namespace and tells it from this one.
pub(super) fn namespaces() -> Outcome {
    let cookie = || namespace_cookie(UdpSocket::bind("0.0.0.0:0")?.as_fd());
    let other = || -> io::Result<u64> {
        unshare(CloneFlags::CLONE_NEWNET)?;
        cookie()
    };
    let there = std::thread::scope(|scope| {
        scope.spawn(other).join().unwrap_or_else(|_| Err(io::Error::other("the thread failed")))
    })?;
    if there == cookie()? {
        return Err(failure("two network namespaces have one cookie"));
    }
    Ok("each has a cookie of its own".to_owned())
}

/// Has a process put on the filter of `run` and try what it forbids.
pub(super) fn filter() -> Outcome {
    let filter = Filter::build().map_err(|error| failure(error.to_string()))?;
    let tries = || {
        filter.apply()?;
        // SAFETY: socket(2) touches no memory.
        let socket = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW, 0) };
        let errno = io::Error::last_os_error().raw_os_error();
        if socket < 0 && errno == Some(libc::EAFNOSUPPORT) { Ok(()) } else { Err(ErrorKind::Other.into()) }
    };
    if inside::ended_well(inside::fork(tries)?)? {
        return Ok("`run` refuses the sockets that the hooks do not see".to_owned());
    }
    let hint = "a kernel with CONFIG_SECCOMP_FILTER is needed for `run`; `attach` works without";
    Err(Failure {
        what: "the filter of `run` is refused, or refuses nothing".to_owned(),
        hint: Some(hint.to_owned()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lockdown_mode_is_the_one_in_brackets() {
        for (modes, ok) in [
            ("[none] integrity confidentiality\n", true),
            ("none [integrity] confidentiality\n", true),
            ("none integrity [confidentiality]\n", false),
            ("", true),
        ] {
            assert_eq!(lockdown_mode(modes).is_ok(), ok, "{modes}");
        }
        assert!(lockdown_mode("none [integrity] x").is_ok_and(|mode| mode == "integrity"));
    }
}
