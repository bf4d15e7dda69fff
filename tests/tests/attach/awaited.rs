//! `cgroup:` in the settings: attached when it is there, again when it was made anew, and not against the operator.
use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;
use support::cgroup::TestCgroup;
use support::clock::wait_until;
use support::enforcer::Daemon;
use support::process;
use support::sink::Sink;

use crate::{SOON, attachings};

/// How soon a cgroup that appears is to be guarded.
const AT_ONCE: Duration = Duration::from_secs(1);

fn settings(bottle: &str, path: &Path) -> String {
    format!("budget: {{ claude: 1000 }}\nbottles:\n  {bottle}: {{ cgroup: \"{}\" }}\n", path.display())
}

fn find(daemon: &Daemon, name: &str) -> Option<Value> {
    let status = daemon.json(&["status"]);
    status["bottles"].as_array().unwrap().iter().find(|bottle| bottle["name"] == name).cloned()
}

/// The bottle, once it is attached and there; panics when that takes longer than it may.
#[track_caller]
fn attached(daemon: &Daemon, name: &str) -> Value {
    let there = || find(daemon, name).filter(|bottle| bottle["state"] != "gone");
    wait_until(AT_ONCE, there).unwrap_or_else(|| panic!("{name} is not attached: {}", daemon.logs()))
}

/// A cgroup made by its path, as an engine does it; its maker has to remove it before its parent goes.
fn make(path: &Path) -> TestCgroup {
    let parent = path.parent().unwrap();
    fs::create_dir_all(parent).unwrap();
    TestCgroup::at(path)
}

fn audit(daemon: &Daemon, name: &str, outcome: &str) -> usize {
    attachings(daemon, name).iter().filter(|row| row["outcome"] == outcome).count()
}

#[test]
fn root_a_cgroup_that_appears_is_guarded_before_anything_joins_it() {
    let top = TestCgroup::new("awaited");
    let path = top.path().join("agent");
    let daemon = Daemon::start(&settings("agent", &path));
    assert_eq!(find(&daemon, "agent"), None);
    let start = Instant::now();
    let group = make(&path);
    let bottle = attached(&daemon, "agent");
    eprintln!("attached and seen after {:?}", start.elapsed());
    assert_eq!(bottle["cgroup"], path.to_str().unwrap());
    assert_eq!(bottle["budget"]["claude"]["limit"], 1000);
    assert_eq!(attachings(&daemon, "agent")[0]["by"], "controller");

    let sink = Sink::udp(IpAddr::V4(Ipv4Addr::LOCALHOST));
    let address = sink.address().to_string();
    let send = |group: &TestCgroup| {
        let mut command = std::process::Command::new(process::built("sender"));
        command.args(["udp", &address, "--for-ms", "200"]);
        let output = process::run(group.enter_before_exec(&mut command), SOON);
        serde_json::from_str::<Value>(&output.stdout).unwrap()["sent"].as_u64().unwrap()
    };
    let sent = send(&group);
    let counted = daemon.bottle("agent")["kernel"]["passed_packets"].as_u64().unwrap();
    assert!(sent > 0 && counted >= sent, "each of {sent} packets passed the guard, which counted {counted}");

    // made anew: the same name, another cgroup, another guard
    drop(group);
    let group = make(&path);
    let again = wait_until(AT_ONCE, || (audit(&daemon, "agent", "done") == 2).then_some(()));
    assert!(again.is_some(), "{}", daemon.logs());
    assert_eq!(attached(&daemon, "agent")["kernel"]["passed_packets"], 0);
    daemon.ok(&["cut", "agent"]);
    assert_eq!(send(&group), 0, "the new guard holds");
}

#[test]
fn root_a_cgroup_below_directories_that_come_later_and_one_that_is_there_already() {
    let top = TestCgroup::new("deep");
    let path = top.path().join("a/b/c");
    let mut daemon = Daemon::start(&settings("deep", &path));
    for round in 1..=3 {
        let group = make(&path);
        let done = || (audit(&daemon, "deep", "done") == round).then_some(());
        assert!(wait_until(AT_ONCE, done).is_some(), "round {round}: {}", daemon.logs());
        assert_eq!(attached(&daemon, "deep")["pids"], 0);
        drop(group);
        for level in ["a/b", "a"] {
            fs::remove_dir(top.path().join(level)).unwrap();
        }
    }
    daemon.stop();
    let _group = make(&path);
    daemon.restart();
    assert_eq!(daemon.bottle("deep")["state"], "open", "there when the daemon serves");
    let done = audit(&daemon, "deep", "done");
    daemon.restart();
    assert_eq!(daemon.bottle("deep")["state"], "open");
    assert_eq!(audit(&daemon, "deep", "done"), done, "taken over, not attached again");
}

#[test]
fn root_what_an_operator_detached_stays_so_until_it_is_made_anew() {
    let top = TestCgroup::new("detached");
    let path = top.path().join("agent");
    let daemon = Daemon::start(&settings("agent", &path));
    let group = make(&path);
    attached(&daemon, "agent");
    let output = daemon.cli(&["detach", "agent"]);
    let words = format!("agent stays detached until {} is made anew", path.display());
    assert!(output.code == Some(0) && output.stderr.contains(&words), "{output:#?}");
    let came_back = wait_until(Duration::from_millis(2_500), || find(&daemon, "agent"));
    assert_eq!(came_back, None);
    drop(group);
    let _group = make(&path);
    attached(&daemon, "agent");
}

#[test]
fn root_a_cut_outlives_the_cgroup_that_is_made_anew() {
    let top = TestCgroup::new("kept");
    let path = top.path().join("agent");
    let mut daemon = Daemon::start(&settings("agent", &path));
    let group = make(&path);
    attached(&daemon, "agent");
    daemon.ok(&["cut", "agent", "--reason", "loops"]);
    let still_cut = |daemon: &Daemon, attachments: usize| {
        let again = wait_until(AT_ONCE, || (audit(daemon, "agent", "done") == attachments).then_some(()));
        assert!(again.is_some(), "{}", daemon.logs());
        let bottle = attached(daemon, "agent");
        assert_eq!((&bottle["state"], &bottle["cause"]["reason"]), (&"cut".into(), &"loops".into()));
    };
    drop(group);
    let group = make(&path);
    still_cut(&daemon, 2);
    daemon.stop();
    drop(group);
    let _group = make(&path);
    daemon.restart();
    still_cut(&daemon, 3);
    daemon.ok(&["restore", "agent"]);
    assert_eq!(daemon.bottle("agent")["state"], "open");
}

#[test]
fn root_a_refusal_is_told_once_and_tried_again_when_something_changed() {
    let top = TestCgroup::new("refused");
    let path = top.path().join("agent");
    let daemon = Daemon::start(&settings("agent", &path));
    let elsewhere = top.child("elsewhere");
    daemon.attach("agent", elsewhere.path(), &[]);
    let _group = make(&path);
    let told = wait_until(AT_ONCE, || {
        attachings(&daemon, "agent").into_iter().find(|row| row["outcome"] == "failed")
    });
    let told = told.unwrap_or_else(|| panic!("{}", daemon.logs()));
    assert!(told["detail"].as_str().unwrap().contains("a bottle named agent is attached already"), "{told}");
    let again =
        wait_until(Duration::from_millis(2_500), || (audit(&daemon, "agent", "failed") > 1).then_some(()));
    assert_eq!(again, None, "told once");
    daemon.ok(&["detach", "agent"]);
    let bottle = wait_until(3 * AT_ONCE, || find(&daemon, "agent"));
    assert_eq!(bottle.unwrap()["cgroup"], path.to_str().unwrap());
}

#[test]
fn root_a_cgroup_that_cannot_be_guarded_is_told_and_its_successor_guarded() {
    let top = TestCgroup::new("threaded");
    let path = top.path().join("agent");
    fs::create_dir(&path).unwrap();
    fs::write(path.join("cgroup.type"), "threaded").unwrap();
    let daemon = Daemon::start(&settings("agent", &path));
    let told = attachings(&daemon, "agent").pop().unwrap();
    assert_eq!(told["outcome"], "failed");
    assert!(told["detail"].as_str().unwrap().contains("is of type `threaded`"), "{told}");
    assert_eq!(find(&daemon, "agent"), None);
    fs::remove_dir(&path).unwrap();
    let _group = make(&path);
    attached(&daemon, "agent");
}
