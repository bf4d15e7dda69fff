//! Hosts as they differ: here one with cgroup v2 alone, as new distributions have it.
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::process::{Child, Stdio};

use serde_json::Value;
use support::clock::wait_until;
use support::enforcer::Daemon;
use support::mounts;
use support::network::in_own_network;
use support::process;
use support::sink::Sink;

use crate::{QUIET, SOON};

/// Where such a host has it.
const MOUNT: &str = "/sys/fs/cgroup";

/// A `run` under way; asked to end when dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        process::stop(&mut self.0, SOON);
    }
}

#[test]
fn root_where_only_cgroup_v2_is_mounted_a_run_is_cut() {
    in_own_network(|| {
        mounts::private(|| {
            mounts::unmount(Path::new(MOUNT));
            mounts::mount_cgroup2(Path::new(MOUNT));
            let kinds: Vec<_> = mounts::mounts().lines().filter_map(kind_of_cgroup).collect();
            assert_eq!(kinds, ["cgroup2"], "there is nothing but v2");
            run_and_cut();
        });
    });
}

/// The type of a mount, by a line of mountinfo, if it is a cgroup hierarchy.
fn kind_of_cgroup(line: &str) -> Option<String> {
    let kind = line.split_once(" - ")?.1.split(' ').next()?;
    kind.starts_with("cgroup").then(|| kind.to_owned())
}

fn run_and_cut() {
    let daemon = Daemon::start("");
    let sink = Sink::udp(IpAddr::V4(Ipv4Addr::LOCALHOST));
    let port = sink.address().port();
    let script = format!("exec 9>/dev/udp/127.0.0.1/{port}; while sleep 0.01; do echo out >&9; done");
    let mut command = daemon.command();
    command.args(["run", "--name", "talker", "--user", "nobody", "--", "bash", "-c", &script]);
    command.current_dir("/").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let running = Running(command.spawn().unwrap());
    wait_until(SOON, || (sink.bytes() > 0).then_some(())).expect("it talks");
    let cgroup = daemon.bottle("talker")["cgroup"].clone();
    assert!(cgroup.as_str().is_some_and(|path| path.starts_with(MOUNT)), "{cgroup}");
    daemon.ok(&["cut", "talker"]);
    std::thread::sleep(QUIET);
    let heard = sink.bytes();
    std::thread::sleep(QUIET);
    assert_eq!(sink.bytes(), heard, "a cut bottle says nothing");
    let dropped = &daemon.bottle("talker")["kernel"]["dropped_packets"];
    assert!(dropped.as_u64() > Some(10), "it goes on trying: {dropped}");
    daemon.ok(&["restore", "talker"]);
    wait_until(SOON, || (sink.bytes() > heard).then_some(())).expect("it is heard again");
    drop(running);
    let gone =
        wait_until(SOON, || (daemon.json(&["status"])["bottles"] == Value::Array(vec![])).then_some(()));
    assert!(gone.is_some(), "the bottle goes with its command");
}
