//! A network namespace of a test's own: nothing but `lo`, on which a public address lives too.
//!
//! Nothing can leave the machine from there. The namespace goes with the last process and thread in it.
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::process::Command;
use std::time::Duration;

use nix::sched::{CloneFlags, unshare};

use crate::process;

/// An address of the documentation range.
pub const PUBLIC4: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 7));
/// As above.
pub const PUBLIC6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 7));
const SOON: Duration = Duration::from_secs(10);

/// Runs a test in a new network namespace: threads and processes that it starts are born there.
pub fn in_own_network(test: impl FnOnce() + Send) {
    let outcome = std::thread::scope(|scope| {
        let inside = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("this test makes a network namespace: run it as root");
            ip(&["link", "set", "lo", "up"]);
            for address in [format!("{PUBLIC4}/32"), format!("{PUBLIC6}/128")] {
                ip(&["address", "add", &address, "dev", "lo"]);
            }
            test();
        });
        inside.join()
    });
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}

/// Runs `ip` in the network namespace of this thread; it must succeed.
pub fn ip(arguments: &[&str]) {
    let output = process::run(Command::new("ip").args(arguments), SOON);
    assert_eq!(output.code, Some(0), "ip {arguments:?}: {}", output.stderr);
}
