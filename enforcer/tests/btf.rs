//! A kernel without its own type information (BTF) guards bottles all the same.
//!
//! Needs root. The types are hidden in a mount namespace of the test's own; the host's are not touched.
#![allow(clippy::unwrap_used, reason = "a test's helper says what it expects by unwrapping")]
mod support;

use std::path::Path;

use enforcer::kernel::Kernel as _;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use support::host::{Host, SLOT, guard, no_meter};
use support::sender::{Receiver, Sender};

/// Where the kernel shows its types.
const TYPES: &str = "/sys/kernel/btf";

#[test]
fn root_a_bottle_is_guarded_without_the_kernel_s_types() {
    without_types(|| {
        assert!(!Path::new(TYPES).join("vmlinux").exists());
        let host = Host::new("btf");
        let loader = host.opened(guard(no_meter()));
        let mut sender = Sender::start(Some(&host.cgroup));
        let receiver = Receiver::new("127.0.0.1");
        assert!(receiver.hears(&mut sender), "open");
        loader.cut(SLOT);
        assert!(!receiver.hears(&mut sender), "cut");
        drop(loader);
        assert!(host.load().adopted()[0].cut.is_some(), "adopted without them too");
    });
}

/// Runs a test on a thread for which the directory of the types is empty.
fn without_types(test: impl FnOnce() + Send) {
    let outcome = std::thread::scope(|scope| {
        let inside = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNS).expect("this test makes a mount namespace: run it as root");
            let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
            mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();
            if Path::new(TYPES).exists() {
                mount(Some("tmpfs"), TYPES, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
            }
            test();
        });
        inside.join()
    });
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}
