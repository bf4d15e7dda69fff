//! How fast the processes of a bottle are frozen and killed: a hundred of them, most asleep and some busy.
//!
//! As root, with the built programs. From the controller's receipt of the order to the last process that stands still,
//! or is gone, as the audit has it. Prints figures and judges none; needs no harness.
#![allow(clippy::unwrap_used, reason = "a benchmark that cannot go on has nothing to report")]
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use support::cgroup::TestCgroup;
use support::clock::wait_until;
use support::process;
use support::provider::Reply;
use support::stage::Stage;

const ROUNDS: usize = 50;
const ASLEEP: usize = 96;
const BUSY: usize = 4;
const SOON: Duration = Duration::from_secs(10);

fn main() {
    let stage = Stage::new(Reply::default(), "");
    let (mut frozen, mut thawed, mut killed) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let name = format!("crowd-{round}");
        let bottle = stage.bottle(&name, &[]);
        let mut crowd = crowd(&bottle.cgroup);
        stage.daemon.ok(&["freeze", &name]);
        stage.daemon.ok(&["thaw", &name]);
        stage.daemon.ok(&["kill", &name, "--yes"]);
        crowd.iter_mut().for_each(process::kill);
        assert!(bottle.cgroup.pids().is_empty());
        frozen.push(took(&stage, &name, "freeze"));
        thawed.push(took(&stage, &name, "thaw"));
        killed.push(took(&stage, &name, "kill"));
        stage.daemon.ok(&["detach", &name, "--force"]);
    }
    let crowd = ASLEEP + BUSY;
    report(&format!("freeze of {crowd} processes: order received to all of them still"), frozen);
    report(&format!("thaw of {crowd} processes: order received to recorded, open and going on"), thawed);
    report(&format!("kill of {crowd} processes: order received to none left"), killed);
}

fn crowd(cgroup: &TestCgroup) -> Vec<Child> {
    let start = |program: &str, arguments: &[&str]| {
        let mut command = Command::new(program);
        cgroup.spawn(command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()))
    };
    let asleep = (0..ASLEEP).map(|_| start("sleep", &["600"]));
    let busy = (0..BUSY).map(|_| start("sh", &["-c", "while :; do :; done"]));
    asleep.chain(busy).collect()
}

/// Microseconds, from the bottle's last row of this kind.
fn took(stage: &Stage, bottle: &str, action: &str) -> u64 {
    let row = wait_until(SOON, || stage.audit(bottle, action).pop()).expect("it is audited");
    assert_eq!(row["outcome"], "done", "{row}");
    row["took_us"].as_u64().unwrap()
}

/// Prints median and 99th percentile.
fn report(what: &str, mut rounds: Vec<u64>) {
    rounds.sort_unstable();
    let at = |percent: usize| Duration::from_micros(rounds[(rounds.len() - 1) * percent / 100]);
    println!("{what}: median {:?}, p99 {:?}, n {}", at(50), at(99), rounds.len());
}
