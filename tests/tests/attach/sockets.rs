//! Processes that have sockets when their cgroup becomes a bottle: those from outside are found, told and, if asked
//! for, aborted, and no others.
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use support::cgroup::TestCgroup;
use support::enforcer::Daemon;
use support::process::{self, built};
use support::sink::Sink;

use crate::{attachings, join};

/// A `holder`; killed when dropped.
struct Holder {
    child: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Holder {
    /// Outside of every bottle.
    fn start() -> Self {
        let mut command = Command::new(built("holder"));
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (orders, answers) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        Self { child, orders, answers: BufReader::new(answers) }
    }

    fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Gives an order; its answer.
    fn ask(&mut self, order: &str) -> String {
        writeln!(self.orders, "{order}").unwrap();
        let mut answer = String::new();
        self.answers.read_line(&mut answer).unwrap();
        assert!(!answer.is_empty(), "the holder ended at {order:?}");
        answer.trim().to_owned()
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        process::kill(&mut self.child);
    }
}

/// TCP and UDP receivers of both families.
fn sinks() -> [(&'static str, Sink); 4] {
    let (v4, v6) = (IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST));
    [("tcp", Sink::tcp(v4)), ("tcp", Sink::tcp(v6)), ("udp", Sink::udp(v4)), ("udp", Sink::udp(v6))]
}

/// Attaches and gives what was said on stderr.
fn attach(daemon: &Daemon, group: &TestCgroup, options: &[&str]) -> String {
    let path = group.path().to_str().unwrap();
    let output = daemon.cli(&[&["attach", "b1", "--cgroup", path], options].concat());
    assert_eq!(output.code, Some(0), "{output:#?}");
    // the test's processes are root in the host's network, which is said too
    let of_sockets = |line: &&str| !line.contains("has CAP_NET_ADMIN over a network that leads out");
    output.stderr.split_inclusive('\n').filter(of_sockets).collect()
}

#[test]
fn root_sockets_from_outside_are_told_and_aborted_only_when_asked_and_no_others() {
    let daemon = Daemon::start("");
    let group = TestCgroup::new("foreign");
    let sinks = sinks();
    let (mut holder, mut bystander) = (Holder::start(), Holder::start());
    let mut own = Vec::new();
    for (protocol, sink) in &sinks {
        let order = format!("open {protocol} {}", sink.address());
        own.push(holder.ask(&order));
        bystander.ask(&order);
    }
    join(group.path(), holder.pid());
    let nested = group.child("nested");
    for (protocol, sink) in &sinks {
        holder.ask(&format!("open {protocol} {}", sink.address()));
    }
    // made inside as well, though not in the bottle's own directory
    join(nested.path(), holder.pid());
    let inside = holder.ask(&format!("open tcp {}", sinks[0].1.address()));

    let told = attach(&daemon, &group, &[]);
    assert!(told.contains("made outside it and are not governed: 4 (pid"), "{told}");
    assert!(told.contains("; and 1 more)") && told.contains("--hard"), "{told}");
    assert_eq!(told.lines().count(), 1, "and nothing else: {told}");
    let shown = own.iter().zip(&sinks).filter(|(own, (protocol, sink))| {
        told.contains(&format!("pid {}: {protocol} {own} → {}", holder.pid(), sink.address()))
    });
    assert_eq!(shown.count(), 3, "{told}");
    assert!(!told.contains(&inside), "{told}");
    let row = attachings(&daemon, "b1").pop().unwrap();
    assert!(row["detail"].as_str().unwrap().contains("are not governed: 4 (pid"), "{row}");
    for index in 0..4 {
        assert_eq!(holder.ask(&format!("read {index}")), "EAGAIN", "left as it was");
    }

    daemon.ok(&["detach", "b1"]);
    let told = attach(&daemon, &group, &["--hard"]);
    assert!(told.contains("made outside it and are aborted now: 4 (pid"), "{told}");
    let row = attachings(&daemon, "b1").pop().unwrap();
    assert!(row["detail"].as_str().unwrap().contains("are aborted now: 4 (pid"), "{row}");
    for index in 0..4 {
        assert_eq!(holder.ask(&format!("read {index}")), "ECONNABORTED", "made outside: {index}");
    }
    for index in 4..9 {
        assert_eq!(holder.ask(&format!("write {index}")), "4 bytes", "made inside: {index}");
        assert_eq!(holder.ask(&format!("read {index}")), "EAGAIN", "made inside: {index}");
    }
    for index in 0..4 {
        assert_eq!(bystander.ask(&format!("write {index}")), "4 bytes", "not in the bottle: {index}");
        assert_eq!(bystander.ask(&format!("read {index}")), "EAGAIN", "not in the bottle: {index}");
    }
}

#[test]
fn root_sockets_of_every_network_namespace_are_found() {
    let daemon = Daemon::start("");
    let group = TestCgroup::new("namespaces");
    let sink = Sink::tcp(IpAddr::V4(Ipv4Addr::LOCALHOST));
    let (mut server, mut holder) = (Holder::start(), Holder::start());
    server.ask("leave");
    let there = ["127.0.0.1", "::1"].map(|ip| server.ask(&format!("serve {ip}")));
    // one of the host's namespace, taken along into another
    holder.ask(&format!("open tcp {}", sink.address()));
    holder.ask(&format!("follow {}", server.pid()));
    for address in &there {
        holder.ask(&format!("open tcp {address}"));
    }
    join(group.path(), holder.pid());
    holder.ask(&format!("open tcp {}", there[0]));
    let told = attach(&daemon, &group, &["--hard"]);
    assert!(told.contains("made outside it and are aborted now: 3 (pid"), "{told}");
    for index in 0..3 {
        assert_eq!(holder.ask(&format!("read {index}")), "ECONNABORTED", "{index}");
    }
    assert_eq!(holder.ask("write 3"), "4 bytes", "made inside");
    assert_eq!(holder.ask("read 3"), "EAGAIN", "made inside");
}

#[test]
fn root_an_mptcp_connection_is_found_by_the_tcp_connections_that_it_is_made_of() {
    if !std::fs::read_to_string("/proc/sys/net/mptcp/enabled").is_ok_and(|text| text.trim() == "1") {
        return eprintln!("this kernel has no MPTCP: nothing to find");
    }
    let daemon = Daemon::start("");
    let group = TestCgroup::new("mptcp");
    let sink = Sink::tcp(IpAddr::V4(Ipv4Addr::LOCALHOST));
    let mut holder = Holder::start();
    let order = format!("open mptcp {}", sink.address());
    let own = holder.ask(&order);
    join(group.path(), holder.pid());
    holder.ask(&order);
    let told = attach(&daemon, &group, &["--hard"]);
    let words = format!("aborted now: 1 (pid {}: tcp {own} → {})", holder.pid(), sink.address());
    assert!(told.contains(&words) && told.lines().count() == 1, "{told}");
    assert_ne!(holder.ask("read 0"), "EAGAIN", "it is at its end");
    assert_eq!(holder.ask("write 1"), "4 bytes", "made inside");
    assert_eq!(holder.ask("read 1"), "EAGAIN", "made inside");
}

#[test]
fn root_what_no_cgroup_governs_and_what_cannot_be_told_is_said() {
    let daemon = Daemon::start("");
    let group = TestCgroup::new("strange");
    let mut holder = Holder::start();
    let pid = holder.pid();
    for what in ["packet", "raw", "idle"] {
        holder.ask(&format!("open {what}"));
    }
    join(group.path(), pid);
    let told = attach(&daemon, &group, &["--hard"]);
    assert!(
        told.contains(&format!("no cgroup governs: 1 (pid {pid}: a packet socket); they cannot be")),
        "{told}"
    );
    assert!(told.contains("may have been made outside it, which cannot be told: 2 (pid"), "{told}");
    assert!(told.contains(&format!("pid {pid}: a raw socket")), "{told}");
    assert!(told.contains(&format!("pid {pid}: tcp, neither bound nor connected")), "{told}");
    assert_eq!(told.lines().count(), 2, "{told}");
}

#[test]
fn root_what_no_cgroup_governs_keeps_a_bottle_from_being_confined() {
    let daemon = Daemon::start("");
    let group = TestCgroup::new("unconfinable");
    let sink = Sink::tcp(IpAddr::V4(Ipv4Addr::LOCALHOST));
    let mut holder = Holder::start();
    join(group.path(), holder.pid());
    holder.ask("open packet");
    // it may make no other; where no hook is on them, who may is refused before
    holder.ask("lower");
    let path = group.path().to_str().unwrap();
    for mode in ["metered", "allowlist"] {
        let output = daemon.cli(&["attach", "b1", "--cgroup", path, "--egress", mode]);
        assert_eq!(output.code, Some(5), "{output:#?}");
        let why = format!("b1 cannot be confined (egress {mode})");
        let what = format!("pid {}: a packet socket", holder.pid());
        assert!(output.stderr.contains(&why) && output.stderr.contains(&what), "{output:#?}");
        assert!(output.stderr.contains("enforcer run"), "a hint: {output:#?}");
    }
    assert_eq!(daemon.json(&["status"])["bottles"], serde_json::json!([]), "nothing is left of it");
    assert!(attachings(&daemon, "b1").is_empty());
    holder.ask(&format!("open tcp {}", sink.address()));
    assert_eq!(holder.ask("write 1"), "4 bytes", "its hooks are off");
    let told = attach(&daemon, &group, &["--egress", "open"]);
    assert!(told.contains("no cgroup governs"), "it is told: {told}");
}

#[test]
fn root_a_bottle_without_sockets_from_outside_has_nothing_told() {
    let daemon = Daemon::start("");
    let group = TestCgroup::new("clean");
    let sink = Sink::tcp(IpAddr::V4(Ipv4Addr::LOCALHOST));
    let mut holder = Holder::start();
    join(group.path(), holder.pid());
    holder.ask(&format!("open tcp {}", sink.address()));
    assert_eq!(attach(&daemon, &group, &["--hard"]), "");
    assert_eq!(holder.ask("write 0"), "4 bytes");
    let row = attachings(&daemon, "b1").pop().unwrap();
    let detail = row["detail"].as_str().unwrap();
    assert!(detail.starts_with(group.path().to_str().unwrap()) && !detail.contains("outside"), "{detail}");
}
