//! The same effect by a firewall's command: a rule that drops what a cgroup sends, put in by a spawned `nft`.
use std::path::Path;
use std::process::Command;

use enforcer::bottle::cgroup;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use crate::support::Bench;
use crate::support::sending::Sending;

const TABLE: &str = "add table inet cut; \
                     add chain inet cut out { type filter hook output priority 0; policy accept; }";

/// The rule's way; the median, nanoseconds.
pub fn by_spawning(bench: &Bench, rounds: usize) -> f64 {
    // found before the mounts are other ones
    let hierarchy = cgroup::mount().unwrap();
    let name = bench.cgroup.strip_prefix(&hierarchy).unwrap().to_str().unwrap().to_owned();
    let rule = format!("add rule inet cut out socket cgroupv2 level 1 \"{name}\" drop");
    println!("compared with: nft '{rule}'");
    let sending = Sending::start(&bench.cgroup);
    // mounts of a thread's own; the network is the benchmark's
    let measured = std::thread::scope(|scope| {
        let inside = scope.spawn(|| {
            mount_where_nft_looks(&hierarchy);
            nft(TABLE);
            sending.measure("cut by a spawned nft", rounds, || nft("flush chain inet cut out"), || nft(&rule))
        });
        inside.join()
    });
    measured.unwrap()
}

/// `nft` looks for cgroups below /sys/fs/cgroup alone, also where version 2 is mounted elsewhere.
fn mount_where_nft_looks(hierarchy: &Path) {
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
    let expected = Path::new("/sys/fs/cgroup");
    if hierarchy != expected {
        mount(Some(hierarchy), expected, none, MsFlags::MS_BIND, none).unwrap();
    }
}

fn nft(words: &str) {
    let status = Command::new("nft").arg(words).status().expect("nft can be started");
    assert!(status.success(), "nft '{words}' failed");
}
