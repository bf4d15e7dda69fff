//! The self-test of `doctor`: it closes what is promised, and it can fail: where no bottle is guarded, every attempt
//! gets out and is seen to. And `doctor` leaves nothing behind, however it ends.
//!
//! Needs root. Each plays in a network of its own, on a cgroup of its own.
#![allow(clippy::unwrap_used, reason = "a test's helper says what it expects by unwrapping")]
#[path = "support/program.rs"]
mod program;

use std::fs;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use enforcer::bottle::cgroup;
use enforcer::escape::attempts::{ATTEMPTS, Evidence};
use enforcer::escape::sender::Word;
use enforcer::escape::stage::{Stage, in_own_network};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

/// What the hooks on a cgroup cannot close, as the table says.
const NOT_PROMISED: [&str; 4] = [
    "TCP :443 by a socket from before",
    "TCP :443 in a frame",
    "a socket to the hypervisor",
    "a socket to a network card",
];

#[test]
fn root_without_a_guard_every_attempt_gets_out() {
    let outcomes = in_own_network(|| {
        let stage = Stage::set(Path::new(env!("CARGO_BIN_EXE_enforcer")))?;
        let all =
            ATTEMPTS.iter().flat_map(|attempt| attempt.families.iter().map(move |&family| (attempt, family)));
        all.map(|(attempt, family)| Ok((attempt, family, stage.attempt(attempt, family)?)))
            .collect::<Result<Vec<_>, _>>()
    });
    for (attempt, family, outcome) in outcomes.unwrap() {
        let name = attempt.name;
        match (&outcome.word, attempt.evidence) {
            (Word::Missing(why), _) => println!("not offered by this kernel: {name} {family:?}: {why}"),
            (word, Evidence::Grant) => assert_eq!(*word, Word::Granted, "{name} {family:?}"),
            (_, Evidence::Arrival) => {
                assert!(outcome.heard.elsewhere > 0, "{name} {family:?}: {outcome:?}");
                assert_eq!(outcome.heard.at_meter, 0, "{name} {family:?}: {outcome:?}");
            }
        }
    }
}

/// `enforcer doctor` with a state directory of its own.
fn doctor(home: &TempDir, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_enforcer"));
    command.arg("--state-dir").arg(home.path().join("state")).arg("doctor").args(arguments);
    command
}

fn document(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

#[test]
fn root_every_way_out_is_closed_but_those_that_are_named() {
    let home = TempDir::new().unwrap();
    let output = doctor(&home, &["--json"]).output().unwrap();
    let report = document(&output);
    assert_eq!(output.status.code(), Some(0), "{report:#}");
    let escapes = report["escapes"].as_array().unwrap();
    for bottle in ["open", "metered", "cut"] {
        for attempt in ["TCP :443", "QUIC", "TCP :443 by io_uring", "taking the meter's port"] {
            for family in ["ip4", "ip6"] {
                let is_it = |escape: &&Value| {
                    escape["attempt"] == attempt && escape["family"] == family && escape["bottle"] == bottle
                };
                let found = escapes.iter().find(is_it);
                assert!(found.is_some_and(|escape| escape["tried"] == true), "{bottle} {attempt} {family}");
            }
        }
    }
    for escape in escapes {
        let promised = !NOT_PROMISED.contains(&escape["attempt"].as_str().unwrap());
        assert_eq!(escape["promised"], promised, "{escape}");
        assert!(escape["closed"] == true || !promised, "{escape}");
    }
    // where programs on socket creation fire, a locked bottle gets no packet socket
    let lsm = report["checks"].as_array().unwrap().iter().find(|check| check["name"] == "LSM").unwrap();
    let is_frame =
        |escape: &&Value| escape["attempt"] == "TCP :443 in a frame" && escape["bottle"] == "metered";
    assert_eq!(escapes.iter().find(is_frame).unwrap()["closed"], lsm["ok"], "{lsm}");
}

#[test]
fn root_without_root_there_is_a_clear_word_and_nothing_is_tried() {
    let home = TempDir::new().unwrap();
    let binary = program::copy_into(home.path());
    fs::set_permissions(home.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let as_nobody = ["--reuid", "65534", "--regid", "65534", "--clear-groups"];
    let output =
        Command::new("setpriv").args(as_nobody).arg(&binary).args(["doctor", "--json"]).output().unwrap();
    let report = document(&output);
    assert_eq!(output.status.code(), Some(5), "{report:#}");
    let checks = report["checks"].as_array().unwrap();
    let find = |name: &str| checks.iter().find(|check| check["name"] == name).unwrap();
    assert_eq!(find("root")["detail"], "not root");
    assert_eq!(find("escape self-test")["detail"], "not tried: something required is missing");
    assert_eq!(report["escapes"].as_array().unwrap().len(), 0);
}

/// A `doctor` that has made its bottle.
fn started(home: &TempDir) -> (Child, [PathBuf; 2]) {
    let child = doctor(home, &[]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let name = format!("enforcer-doctor-{}", child.id());
    let made = [Path::new("/sys/fs/bpf").join(&name), cgroup::mount().unwrap().join(&name)];
    let end = Instant::now() + Duration::from_secs(20);
    while !made.iter().all(|path| path.exists()) {
        assert!(Instant::now() < end, "{made:?} are not made");
        std::thread::sleep(Duration::from_millis(1));
    }
    (child, made)
}

fn send(child: &Child, signal: Signal) {
    kill(Pid::from_raw(child.id().try_into().unwrap()), signal).unwrap();
}

#[test]
fn root_asked_to_end_it_removes_what_it_made_first() {
    let home = TempDir::new().unwrap();
    let (mut child, made) = started(&home);
    send(&child, Signal::SIGTERM);
    assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGTERM));
    assert!(made.iter().all(|path| !path.exists()), "{made:?}");
}

#[test]
fn root_what_a_killed_one_left_is_removed_by_the_next() {
    let home = TempDir::new().unwrap();
    let (mut child, made) = started(&home);
    send(&child, Signal::SIGKILL);
    child.wait().unwrap();
    assert!(made.iter().all(|path| path.exists()), "{made:?}");
    let next = doctor(&home, &[]).output().unwrap();
    assert!(made.iter().all(|path| !path.exists()), "{made:?} {next:?}");
}

#[test]
fn root_the_sender_sends_nothing_outside_of_a_network_of_the_self_test() {
    let home = TempDir::new().unwrap();
    // its own cgroup: it joins where it is
    let own = cgroup::path_of(std::process::id()).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_enforcer"));
    command.args(["probe-sender", "--attempt", "QUIC", "--family", "ip4", "--meter-port", "1", "--cgroup"]);
    let output = command.arg(own).current_dir(home.path()).stdin(Stdio::null()).output().unwrap();
    assert!(!output.status.success(), "{output:?}");
    assert_eq!(output.stdout, b"\"Ready\"\n");
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.contains("so nothing is sent"), "{stderr}");
    let help = Command::new(env!("CARGO_BIN_EXE_enforcer")).arg("--help").output().unwrap();
    assert!(!String::from_utf8(help.stdout).unwrap().contains("probe-sender"), "it is for us alone");
}
