//! Network namespaces of a test's own, with nothing but `lo`, on which public addresses live too.
//!
//! Nothing can leave the machine from there, and what passes the meter by arrives all the same: at the test.
use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};

use enforcer::escape::network;
use nix::sched::{CloneFlags, setns, unshare};

/// A public address, here on `lo`.
pub const PUBLIC4: Ipv4Addr = network::PUBLIC4;
/// As above.
pub const PUBLIC6: Ipv6Addr = network::PUBLIC6;
/// A private address, here on `lo`.
pub const PRIVATE4: Ipv4Addr = Ipv4Addr::new(10, 9, 8, 7);

/// Runs a test in a new network namespace. Sockets and processes that it makes are born there; the namespace goes
/// with the last of them.
pub fn in_own_network(test: impl FnOnce() + Send) {
    let outcome = std::thread::scope(|scope| {
        let inside = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("this test makes a network namespace: run it as root");
            set_up().expect("lo can be set up");
            test();
        });
        inside.join()
    });
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}

/// Another network namespace, beside the test's.
pub struct Network(File);

impl Network {
    /// A new one.
    pub fn new() -> Self {
        let made = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("this test makes a network namespace: run it as root");
            set_up().expect("lo can be set up");
            File::open("/proc/thread-self/ns/net").expect("a thread has a namespace")
        });
        Self(made.join().expect("it is made"))
    }

    /// The one that a process is in.
    pub fn of(pid: u32) -> Self {
        Self(File::open(format!("/proc/{pid}/ns/net")).expect("a process has a namespace"))
    }

    /// Runs an action in it. Sockets and processes made there stay there.
    pub fn inside<T: Send>(&self, action: impl FnOnce() -> T + Send) -> T {
        let outcome = std::thread::scope(|scope| {
            let inside = scope.spawn(|| {
                setns(&self.0, CloneFlags::CLONE_NEWNET).expect("root may enter it");
                action()
            });
            inside.join()
        });
        outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

/// Switches `lo` on in the namespace of the calling thread, with the addresses above on it.
pub fn set_up() -> io::Result<()> {
    network::set_up()?;
    network::add_ip4("lo:2", PRIVATE4)
}
