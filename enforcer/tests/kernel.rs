//! The kernel plane against the real kernel: processes in real cgroups send over loopback, and are cut.
//!
//! Needs root. Every test has cgroups and pins of its own and removes them, also after a panic.
#![allow(clippy::unwrap_used, reason = "a test's helper says what it expects by unwrapping")]
mod support;

use std::fs;
use std::io::Read as _;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::Path;
use std::time::Duration;

use aya::maps::{Array, MapData};
use aya::programs::{CgroupSkb, CgroupSkbAttachType};
use enforcer::bottle::cgroup::{self, Cgroup, CgroupError};
use enforcer::kernel::loader::unpin_all;
use enforcer::kernel::probe::probes;
use enforcer::kernel::{Guard, Kernel as _, KernelError};
use support::eventually;
use support::host::{Host, LISTENER, SLOT, guard, no_meter, retry};
use support::sender::{ARRIVAL, Receiver, Sender};

#[test]
fn root_a_cut_stops_udp_at_once_and_open_lets_it_pass() {
    let host = Host::new("udp");
    let loader = host.attached(no_meter());
    let mut sender = Sender::start(Some(&host.cgroup));
    for ip in ["127.0.0.1", "[::1]"] {
        let receiver = Receiver::new(ip);
        loader.open(SLOT);
        assert!(receiver.hears(&mut sender), "{ip}: open");
        loader.cut(SLOT);
        assert!(!loader.is_open(SLOT));
        for _ in 0..3 {
            assert!(!receiver.hears(&mut sender), "{ip}: cut");
        }
        loader.open(SLOT);
        assert!(receiver.hears(&mut sender), "{ip}: open again");
    }
    let counters = loader.counters(SLOT).unwrap();
    assert!(counters.passed_packets >= 4 && counters.dropped_packets >= 6, "{counters:?}");
}

#[test]
fn root_packets_of_a_cut_bottle_are_counted() {
    let host = Host::new("counters");
    let loader = host.attached(no_meter());
    loader.open(SLOT);
    let mut sender = Sender::start(Some(&host.cgroup));
    let inside = sender.order("bind 127.0.0.1:0");
    let receiver = Receiver::new("127.0.0.1");
    // connected: it sends without an address, so that its packets get as far as the hook on packets
    assert_eq!(sender.order(&format!("towards {}", receiver.0.local_addr().unwrap())), "ok");
    assert_eq!(sender.order("send"), "ok");
    receiver.0.recv(&mut [0; 8]).unwrap();
    loader.cut(SLOT);
    assert_eq!(sender.order("send"), "PermissionDenied");
    receiver.0.send_to(b"x", inside).unwrap();
    let counters = loader.counters(SLOT).unwrap();
    // a datagram of one byte under 28 bytes of headers, one out and one in
    assert_eq!((counters.dropped_packets, counters.dropped_bytes), (2, 58), "{counters:?}");
    assert!(receiver.0.recv(&mut [0; 8]).is_err());
}

#[test]
fn root_an_open_connection_stops_and_goes_on() {
    for ip in ["127.0.0.1", "[::1]"] {
        let host = Host::new("tcp");
        let loader = host.attached(no_meter());
        loader.open(SLOT);
        let listener = TcpListener::bind(format!("{ip}:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let mut sender = Sender::start(Some(&host.cgroup));
        sender.order(&format!("connect {address}"));
        let (mut stream, _) = listener.accept().unwrap();
        assert_eq!(sender.order("write"), "ok");
        stream.read_exact(&mut [0]).unwrap();

        loader.cut(SLOT);
        assert_eq!(sender.order("write"), "ok", "it is queued: a cut resets nothing");
        stream.set_read_timeout(Some(ARRIVAL)).unwrap();
        assert!(stream.read(&mut [0]).is_err(), "{ip}: a byte passed after the cut");
        let mut second = Sender::start(Some(&host.cgroup));
        assert_eq!(second.order(&format!("connect {address}")), "PermissionDenied", "it does not hang");

        loader.open(SLOT);
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream.read_exact(&mut [0]).unwrap();
    }
}

#[test]
fn root_a_cut_stops_what_arrives_too() {
    let host = Host::new("ingress");
    let loader = host.attached(no_meter());
    loader.open(SLOT);
    let mut sender = Sender::start(Some(&host.cgroup));
    let inside = sender.order("bind 127.0.0.1:0");
    let outside = UdpSocket::bind("127.0.0.1:0").unwrap();
    outside.send_to(b"x", &inside).unwrap();
    assert_eq!(sender.order("receive"), "ok");
    loader.cut(SLOT);
    outside.send_to(b"x", &inside).unwrap();
    assert_eq!(sender.order("receive"), "WouldBlock");
    loader.open(SLOT);
    outside.send_to(b"x", &inside).unwrap();
    assert_eq!(sender.order("receive"), "ok");
}

#[test]
fn root_nested_cgroups_are_covered_and_outsiders_are_not() {
    let host = Host::new("nested");
    let child = host.cgroup.join("child");
    let grandchild = child.join("grandchild");
    let loader = host.attached(no_meter());
    drop(Cgroup::create(&child).unwrap());
    drop(Cgroup::create(&grandchild).unwrap());
    let mut nested = Sender::start(Some(&grandchild));
    let mut outsider = Sender::start(None);
    let receiver = Receiver::new("127.0.0.1");
    loader.open(SLOT);
    assert!(receiver.hears(&mut nested) && receiver.hears(&mut outsider));
    loader.cut(SLOT);
    assert!(!receiver.hears(&mut nested));
    assert!(receiver.hears(&mut outsider));
}

#[test]
fn root_nothing_passes_before_the_first_open() {
    let host = Host::new("early");
    let loader = host.attached(no_meter());
    let mut sender = Sender::start(Some(&host.cgroup));
    let receiver = Receiver::new("127.0.0.1");
    assert!(!loader.is_open(SLOT));
    assert!(!receiver.hears(&mut sender));
    loader.open(SLOT);
    assert!(receiver.hears(&mut sender));
}

#[test]
fn root_detach_leaves_nothing_and_the_cgroup_can_be_attached_again() {
    let host = Host::new("detach");
    let loader = host.attached(no_meter());
    let mut sender = Sender::start(Some(&host.cgroup));
    let receiver = Receiver::new("127.0.0.1");
    assert!(!receiver.hears(&mut sender));
    loader.detach("b", SLOT).unwrap();
    assert!(receiver.hears(&mut sender), "nothing governs it any more");
    assert_eq!(fs::read_dir(host.pins().join("bottles")).unwrap().count(), 0);

    let second = Guard { slot: 2, generation: 1, ..guard(no_meter()) };
    loader.attach("again", &host.cgroup(), second).unwrap();
    loader.open(SLOT);
    assert!(!receiver.hears(&mut sender), "its former slot says nothing of it");
    loader.open(2);
    assert!(receiver.hears(&mut sender));
    drop(loader);
    assert_eq!(unpin_all(Some(&host.instance)).unwrap(), 1);
    assert!(!host.pins().exists());
}

#[test]
fn root_attaching_twice_is_refused_and_changes_nothing() {
    let host = Host::new("twice");
    let loader = host.attached(no_meter());
    loader.open(SLOT);
    let second = Guard { slot: 2, ..guard(no_meter()) };
    let refused = loader.attach("other", &host.cgroup(), second);
    assert!(matches!(refused, Err(KernelError::AlreadyAttached(path)) if path == host.cgroup));
    assert!(!host.pins().join("bottles/other").exists());
    assert!(loader.is_open(SLOT));
}

#[test]
fn root_a_failed_attachment_leaves_nothing() {
    let host = Host::new("half");
    let loader = host.load();
    let inner = host.cgroup.join("inner");
    let cgroup = Cgroup::create(&inner).unwrap();
    // the first hook can be attached below this, the second cannot
    attach_exclusively(&host.pins().join("progs/enforcer_ingress"), &host.cgroup());
    let refused = loader.attach("b", &cgroup, guard(no_meter())).unwrap_err();
    assert!(
        matches!(&refused, KernelError::Unsupported { hint, .. } if hint.contains("exclusively")),
        "{refused:?}"
    );
    assert_eq!(fs::read_dir(host.pins().join("bottles")).unwrap().count(), 0);
    let mut sender = Sender::start(Some(&inner));
    assert!(Receiver::new("127.0.0.1").hears(&mut sender), "the first hook is gone again");
}

#[test]
fn root_what_cannot_be_attached_is_refused_whole() {
    let host = Host::new("refused");
    let loader = host.load();
    let long_name = "n".repeat(300);
    loader.attach(&long_name, &host.cgroup(), guard(no_meter())).unwrap_err();
    loader.attach("b", &host.cgroup(), Guard { slot: 0, ..guard(no_meter()) }).unwrap_err();
    loader
        .attach("b", &host.cgroup(), Guard { slot: enforcer_ebpf::SLOTS, ..guard(no_meter()) })
        .unwrap_err();
    assert_eq!(fs::read_dir(host.pins().join("bottles")).unwrap().count(), 0);
    let mut sender = Sender::start(Some(&host.cgroup));
    assert!(Receiver::new("127.0.0.1").hears(&mut sender));
    let nowhere = guard("0.0.0.0:80".parse().unwrap());
    assert!(matches!(loader.attach("b", &host.cgroup(), nowhere), Err(KernelError::Unsupported { .. })));
    loader.attach("b", &host.cgroup(), guard(no_meter())).unwrap();
}

#[test]
fn root_a_connection_to_the_meter_is_known_while_it_lives() {
    for ip in ["127.0.0.1", "[::1]", "[::ffff:127.0.0.1]"] {
        let host = Host::new("flow");
        let listener = TcpListener::bind(format!("{ip}:0")).unwrap();
        let meter = listener.local_addr().unwrap();
        let loader = host.attached(meter);
        loader.open(SLOT);
        let mut sender = Sender::start(Some(&host.cgroup));
        let mut outsider = Sender::start(None);

        let peer: SocketAddr = sender.order(&format!("connect {meter}")).parse().unwrap();
        let (stream, seen) = listener.accept().unwrap();
        assert_eq!(seen, peer);
        let flow = loader.flow(seen, stream.local_addr().unwrap(), LISTENER).unwrap();
        assert_eq!((flow.slot, flow.generation, flow.cgroup_id), (SLOT, 7, host.cgroup().id()));
        assert_eq!(flow.original_port, u32::from(meter.port()));
        assert_eq!(loader.flow(seen, meter, LISTENER + 1), None, "another listener's connection");

        outsider.order(&format!("connect {meter}"));
        let (_other, seen_other) = listener.accept().unwrap();
        assert_eq!(loader.flow(seen_other, meter, LISTENER), None, "an outsider is nobody's");

        sender.order("close");
        drop(stream);
        eventually(|| loader.flow(peer, meter, LISTENER).is_none());

        let peer: SocketAddr = sender.order(&format!("connect {meter}")).parse().unwrap();
        loader.detach("b", SLOT).unwrap();
        assert_eq!(loader.flow(peer, meter, LISTENER), None, "its bottle has gone");
    }
}

#[test]
fn root_the_innermost_bottle_owns_a_connection() {
    let host = Host::new("inner");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let meter = listener.local_addr().unwrap();
    let loader = host.attached(meter);
    loader.open(SLOT);
    let inner = host.cgroup.join("inner");
    let cgroup = Cgroup::create(&inner).unwrap();
    loader.attach("inner", &cgroup, Guard { slot: 2, generation: 9, ..guard(meter) }).unwrap();
    loader.open(2);
    let mut sender = Sender::start(Some(&inner));
    let peer: SocketAddr = sender.order(&format!("connect {meter}")).parse().unwrap();
    let flow = loader.flow(peer, meter, LISTENER).unwrap();
    assert_eq!((flow.slot, flow.generation), (2, 9));
    let receiver = Receiver::new("127.0.0.1");
    loader.cut(SLOT);
    assert!(!receiver.hears(&mut sender), "the outer bottle's cut covers the inner one");
    loader.open(SLOT);
    loader.cut(2);
    assert!(!receiver.hears(&mut sender));
}

#[test]
fn root_a_bottle_can_hold_only_so_many_connections() {
    let host = Host::new("quota");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let meter = listener.local_addr().unwrap();
    let loader = host.attached(meter);
    loader.open(SLOT);
    let counts = host.pins().join("FLOW_COUNTS");
    let counts =
        || Array::<_, u64>::try_from(aya::maps::Map::Array(MapData::from_pin(&counts).unwrap())).unwrap();
    let mut sender = Sender::start(Some(&host.cgroup));
    sender.order(&format!("connect {meter}"));
    assert_eq!(counts().get(&SLOT, 0).unwrap(), 1);
    sender.order("close");
    drop(listener.accept().unwrap());
    eventually(|| counts().get(&SLOT, 0).unwrap() == 0);

    counts().set(SLOT, u64::from(enforcer_ebpf::FLOWS_PER_BOTTLE), 0).unwrap();
    assert_eq!(sender.order(&format!("connect {meter}")), "PermissionDenied", "one too many");
    counts().set(SLOT, 0, 0).unwrap();
    sender.order(&format!("connect {meter}")).parse::<SocketAddr>().unwrap();
}

#[test]
fn root_cgroups_are_checked_and_list_their_processes() {
    let host = Host::new("cgroup");
    let cgroup = host.cgroup();
    assert!(!cgroup.populated().unwrap() && cgroup.exists() && cgroup.pids().unwrap().is_empty());
    assert!(matches!(Cgroup::create(&host.cgroup), Err(CgroupError::Exists(_))));
    assert!(matches!(Cgroup::open(&host.cgroup.join("cgroup.procs")), Err(CgroupError::NotDirectory(_))));
    let child = host.cgroup.join("child");
    drop(Cgroup::create(&child).unwrap());
    {
        let sender = Sender::start(Some(&child));
        let pid = sender.pid();
        assert_eq!(cgroup.pids().unwrap(), [pid]);
        assert!(cgroup.populated().unwrap() && cgroup.contains(pid) && !cgroup.contains(std::process::id()));
        assert_eq!(Cgroup::of_pid(pid).unwrap().path(), child);
        assert!(matches!(host.cgroup().remove(), Err(CgroupError::Busy(_))));
        assert!(child.exists(), "nothing is removed of a busy one");
    }
    fs::write(child.join("cgroup.type"), "threaded").unwrap();
    assert!(matches!(Cgroup::open(&child), Err(CgroupError::Threaded { .. })));
    let same_path = host.cgroup();
    retry(|| host.cgroup().remove()).unwrap();
    assert!(!same_path.exists() && same_path.pids().unwrap().is_empty());
    drop(Cgroup::create(&host.cgroup).unwrap());
    assert!(!same_path.exists(), "another directory of the same name");
}

#[test]
fn root_every_probe_succeeds_here_and_leaves_nothing() {
    assert!(nix::unistd::geteuid().is_root(), "this test loads kernel programs: run it as root");
    for probe in probes() {
        assert!(probe.ok || !probe.required, "{probe:?}");
    }
    let name = format!("enforcer-doctor-{}", std::process::id());
    assert!(!Path::new("/sys/fs/bpf").join(&name).exists());
    assert!(!cgroup::mount().unwrap().join(&name).exists());
}

/// Attaches a pinned ingress program the old way, which lets nobody attach to the cgroups below.
fn attach_exclusively(program: &Path, cgroup: &Cgroup) {
    let program = CgroupSkb::from_pin(program, CgroupSkbAttachType::Ingress).unwrap();
    let words = [cgroup.as_fd().as_raw_fd(), program.fd().unwrap().as_fd().as_raw_fd(), 0, 0];
    let prog_attach = 8;
    // SAFETY: BPF_PROG_ATTACH reads four words: cgroup, program, attach type, flags.
    let result = unsafe { libc::syscall(libc::SYS_bpf, prog_attach, words.as_ptr(), size_of_val(&words)) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}
