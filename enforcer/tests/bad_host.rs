//! What the loader says of a host that cannot do it, or of pins that are not its own: one clear line, and nothing is
//! left behind or lost.
//!
//! Needs root. What a test takes away, it takes away from a thread or a process of its own: a mount, a
//! capability.
#![allow(clippy::unwrap_used, reason = "a test's helper says what it expects by unwrapping")]
mod support;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use aya::maps::{Array, MapData};
use enforcer::error::Failure;
use enforcer::kernel::loader::Loader;
use enforcer::kernel::{Kernel as _, KernelError};
use enforcer_ebpf::ABI_VERSION;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use rustix::thread::{CapabilitySet, capabilities, set_capabilities};
use support::host::{Host, SLOT, no_meter};
use support::sender::{Receiver, Sender};

/// Every map that is pinned.
const MAPS: [&str; 14] = [
    "ALLOW",
    "ASKERS",
    "BOTTLES",
    "CG",
    "COUNTERS",
    "EVENTS",
    "EVENT_STATES",
    "FLOWS",
    "FLOW_COUNTS",
    "HEART",
    "HOMES",
    "LAST_LISTENER",
    "NAMESPACES",
    "ORIGINALS",
];

/// The loader's refusal; it fits one line.
fn refused(instance: &str) -> KernelError {
    let error = Loader::open(Some(instance)).err().unwrap();
    assert!(!error.to_string().contains('\n'), "{error}");
    error
}

/// Runs an action in a thread of its own, whose rights and mounts are its own too.
fn apart<T: Send>(action: impl FnOnce() -> T + Send) -> T {
    let outcome = std::thread::scope(|scope| scope.spawn(action).join());
    outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

#[test]
fn root_a_pinned_map_of_another_shape_is_refused_whichever_it_is() {
    let host = Host::new("shape");
    drop(host.load());
    let files = fs::read_dir(host.pins()).unwrap().map(|entry| entry.unwrap());
    let maps: BTreeSet<String> = files
        .filter(|entry| entry.file_type().unwrap().is_file())
        .map(|entry| entry.file_name().into_string().unwrap())
        .collect();
    assert_eq!(maps, BTreeSet::from(MAPS.map(str::to_owned)));
    let aside = host.pins().join("aside");
    for name in MAPS {
        let path = host.pins().join(name);
        fs::rename(&path, &aside).unwrap();
        Array::<MapData, u32>::create(16, 0).unwrap().pin(&path).unwrap();
        let error = refused(&host.instance);
        let KernelError::Pins { path: named, what } = &error else { panic!("{error}") };
        assert!(*named == path && what.contains("4 byte values, 16 entries"), "{error}");
        fs::remove_file(&path).unwrap();
        fs::rename(&aside, &path).unwrap();
    }
    drop(host.load());
}

#[test]
fn root_pins_of_another_version_are_refused_and_stay() {
    let host = Host::new("version");
    let loader = host.attached(no_meter());
    loader.open(SLOT);
    loader.cut(SLOT);
    drop(loader);
    let version = host.pins().join("abi");
    let own = fs::read_link(&version).unwrap();
    fs::remove_file(&version).unwrap();
    assert!(matches!(refused(&host.instance), KernelError::Pins { .. }), "of no version");
    symlink("2", &version).unwrap();
    let error = refused(&host.instance);
    let said = format!("version 2 of the maps is pinned, this controller has {ABI_VERSION}");
    assert!(error.to_string().contains(&said), "{error}");
    assert!(Failure::from(error).hint.unwrap().contains("--unpin-all"));
    let mut sender = Sender::start(Some(&host.cgroup));
    assert!(!Receiver::new("127.0.0.1").hears(&mut sender), "what was cut stays cut");
    fs::remove_file(&version).unwrap();
    symlink(own, &version).unwrap();
    assert_eq!(host.load().adopted().len(), 1);
}

#[test]
fn root_without_cap_bpf_nothing_is_loaded_and_nothing_is_left() {
    let host = Host::new("capability");
    // in a process of its own: what the kernel can do is found out once in each
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["open_without_cap_bpf", "--exact", "--ignored", "--nocapture"]);
    let output = child.env(INSTANCE, &host.instance).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(said.contains("Operation not permitted") && said.contains("CAP_BPF"), "{said}");
    assert!(!host.pins().exists());
}

/// Names the pins to the process without the capability.
const INSTANCE: &str = "ENFORCER_TEST_INSTANCE";

#[test]
#[ignore = "not a test: the program that a test runs without CAP_BPF"]
fn open_without_cap_bpf() {
    let mut rights = capabilities(None).unwrap();
    let lost = CapabilitySet::BPF | CapabilitySet::SYS_ADMIN;
    rights.effective.remove(lost);
    rights.permitted.remove(lost);
    set_capabilities(None, rights).unwrap();
    let KernelError::Unsupported { what, hint } = refused(&std::env::var(INSTANCE).unwrap()) else {
        panic!("another error")
    };
    eprintln!("{what} ({hint})");
}

#[test]
fn root_where_bpffs_is_not_mounted_it_is_mounted_or_said_to_be_missing() {
    let host = Host::new("bpffs");
    let error = apart(|| {
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();
        while is_bpffs() {
            umount2("/sys/fs/bpf", MntFlags::MNT_DETACH).unwrap();
        }
        drop(Loader::open(Some(&host.instance)).unwrap());
        assert!(is_bpffs(), "it has been mounted");

        mount(Some("none"), "/sys/fs", Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
        refused(&host.instance)
    });
    let KernelError::Unsupported { what, hint } = &error else { panic!("{error}") };
    assert!(what.contains("cannot mount the bpf file system at /sys/fs/bpf"), "{what}");
    assert!(hint.contains("mount -t bpf bpf /sys/fs/bpf"), "{hint}");
    assert!(!host.pins().exists(), "the host's own mount was not touched");
}

fn is_bpffs() -> bool {
    statfs(Path::new("/sys/fs/bpf")).unwrap().filesystem_type() == BPF_FS_MAGIC
}
