//! Network namespaces of a test's own, and links between them. Nothing can leave the machine from there.
//!
//! A namespace goes with the last descriptor, process and socket in it, a link with either of its ends: there is
//! nothing to clear up, also after a panic.
use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsRawFd as _;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use nix::sched::{CloneFlags, setns, unshare};

use crate::process;

/// An address of the documentation range.
pub const PUBLIC4: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 7));
/// As above.
pub const PUBLIC6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 7));
/// The near end of a [`link`]: private, as a container's.
pub const NEAR4: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 9, 8, 2));
/// As above.
pub const NEAR6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd09, 0x0908, 0, 0, 0, 0, 0, 2));
/// The far end of a [`link`].
pub const FAR4: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 9, 8, 1));
/// As above.
pub const FAR6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd09, 0x0908, 0, 0, 0, 0, 0, 1));
const SOON: Duration = Duration::from_secs(10);

/// Runs a test in a new network namespace with nothing but `lo`, on which the public addresses live too: threads and
/// processes that it starts are born there.
pub fn in_own_network(test: impl FnOnce() + Send) {
    let network = Namespace::new();
    network.enter(|| {
        add_public("lo");
        test();
    });
}

/// A network namespace, kept by this value.
pub struct Namespace {
    handle: File,
}

impl Namespace {
    /// A new one, with nothing but `lo`, which is up.
    #[must_use]
    pub fn new() -> Self {
        on_own_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("this test makes a network namespace: run it as root");
            ip(&["link", "set", "lo", "up"]);
            Self::current()
        })
    }

    /// That of the calling thread.
    #[must_use]
    pub fn current() -> Self {
        Self { handle: File::open("/proc/thread-self/ns/net").expect("a thread has a network namespace") }
    }

    /// That of a process.
    #[must_use]
    pub fn of_process(pid: u32) -> Self {
        Self { handle: File::open(format!("/proc/{pid}/ns/net")).expect("a process of this test runs") }
    }

    /// Does something on a thread of its own in there; sockets, threads and processes that it makes stay there.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        on_own_thread(|| {
            setns(&self.handle, CloneFlags::CLONE_NEWNET).expect("root may enter a namespace");
            work()
        })
    }

    /// A name for it that other processes understand.
    fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), self.handle.as_raw_fd()))
    }
}

impl Default for Namespace {
    fn default() -> Self {
        Self::new()
    }
}

fn on_own_thread<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        scope.spawn(work).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Joins two namespaces by a cable. The near one routes everything over it; in the far one the public addresses live.
pub fn link(near: &Namespace, far: &Namespace) {
    cable((near, "near"), (far, "far"));
    far.enter(|| {
        add(&format!("{FAR4}/24"), "far");
        add(&format!("{FAR6}/64"), "far");
        add_public("lo");
    });
    near.enter(|| {
        add(&format!("{NEAR4}/24"), "near");
        add(&format!("{NEAR6}/64"), "near");
        ip(&["route", "add", "default", "via", &FAR4.to_string()]);
        ip(&["-6", "route", "add", "default", "via", &FAR6.to_string()]);
    });
}

/// A cable with an end in each of two namespaces, called as said there; both are up, without addresses.
pub fn cable((one, here): (&Namespace, &str), (other, there): (&Namespace, &str)) {
    one.enter(|| {
        let path = other.path();
        let path = path.to_str().expect("a path of digits");
        ip(&["link", "add", here, "type", "veth", "peer", "name", there, "netns", path]);
        ip(&["link", "set", here, "up"]);
    });
    other.enter(|| ip(&["link", "set", there, "up"]));
}

fn add_public(interface: &str) {
    add(&format!("{PUBLIC4}/32"), interface);
    add(&format!("{PUBLIC6}/128"), interface);
}

/// Adds an address, which IPv6 may use at once.
fn add(address: &str, interface: &str) {
    let at_once: &[&str] = if address.contains(':') { &["nodad"] } else { &[] };
    ip(&[&["address", "add", address, "dev", interface], at_once].concat());
}

/// Runs ip(8) in the calling thread's namespace. Panics when it fails.
pub fn ip(arguments: &[&str]) {
    let output = process::run(Command::new("ip").args(arguments), SOON);
    assert_eq!(output.code, Some(0), "ip {arguments:?}: {}", output.stderr);
}
