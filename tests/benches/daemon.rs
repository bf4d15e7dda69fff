//! How fast a whole daemon cuts: by the operator's command, and by a budget that a stream crosses; and how soon the agent
//! that was cut hears why when it asks again.
//!
//! Run by `cargo xtask bench cut`, as root, with the built programs and the mock provider. Prints figures and judges
//! none; needs no harness.
#![allow(clippy::unwrap_used, reason = "a benchmark that cannot go on has nothing to report")]
use std::net::{IpAddr, Ipv4Addr};
use std::process::{Command, Stdio};
use std::time::Duration;

use support::clock::{mono_ns, wait_until};
use support::process;
use support::provider::{End, Reply};
use support::sink::Sink;
use support::stage::{Bottle, Stage, mono_of};

const COMMANDS: usize = 200;
const CROSSINGS: usize = 100;
const RETRIES: usize = 200;
const SOON: Duration = Duration::from_secs(10);

fn main() {
    by_command();
    by_budget();
    retry();
}

/// From the start of `enforcer cut` to the last datagram that came out of the bottle.
fn by_command() {
    let stage = Stage::new(Reply::default(), "");
    let bottle = stage.bottle("commanded", &[]);
    let sink = Sink::udp(IpAddr::V4(Ipv4Addr::LOCALHOST));
    let mut command = Command::new(process::built("sender"));
    command.args(["udp", &sink.address().to_string(), "--pps", "10000"]);
    let mut sender = bottle.cgroup.spawn(command.stdout(Stdio::null()));
    let (mut last, mut whole) = (Vec::new(), Vec::new());
    for _ in 0..COMMANDS {
        let opened = mono_ns();
        wait_until(SOON, || (sink.bytes_since(opened) > 0).then_some(())).expect("it flows");
        let start = mono_ns();
        stage.daemon.ok(&["cut", "commanded"]);
        whole.push(mono_ns() - start);
        std::thread::sleep(Duration::from_millis(20));
        last.push(sink.receipts().last().unwrap().at_ns.saturating_sub(start));
        stage.daemon.ok(&["restore", "commanded"]);
    }
    process::kill(&mut sender);
    println!(
        "the command: enforcer --state-dir DIR cut NAME, spawned, while the bottle sends 10,000 a second"
    );
    report("cut by command: start of the command to the last datagram out", last);
    report("cut by command: start of the command to its end (recorded)", whole);
}

/// From the meter's word that crosses a budget to the end of the connection at the provider, and from the request that
/// the agent makes next to the end of the lane's answer. The audit's instants are whole milliseconds: the first figures
/// are up to one too long.
fn by_budget() {
    println!("the agent: demo-agent --json --stream, whose answer crosses; and once more");
    let stage = Stage::new(Reply::paced(5_000, 8, Duration::from_millis(2)), "");
    let (mut closed, mut told) = (Vec::new(), Vec::new());
    for round in 0..CROSSINGS {
        let bottle = stage.bottle(&format!("crossing-{round}"), &["--budget", "claude=300"]);
        let asking = stage.start_asking(&bottle, &["--stream"]);
        let ended = || stage.provider.records().get(round).and_then(|record| record.ended_ns);
        let ended = wait_until(SOON, ended).expect("the crossing closes upstream");
        assert_eq!(stage.provider.records()[round].end, Some(End::ClientGone));
        asking.hang_up();
        told.push(refused_after(&stage, &bottle, &["--stream"]));
        let row = wait_until(SOON, || stage.audit(&bottle.name, "cut").pop()).expect("a cut is audited");
        let decided = mono_of(&row["at"]) - 1_000_000 - row["took_us"].as_u64().unwrap() * 1_000;
        closed.push(ended.saturating_sub(decided));
    }
    report("cut by a budget: the crossing to upstream closed, as the provider sees it", closed);
    report("cut by a budget: the agent's next request to the end of the lane's answer", told);
}

/// The same from a bottle that has been cut for a while, by each way: the first asks over plain HTTP, the other over TLS
/// that the lane ends.
fn retry() {
    let stage = Stage::over_tls(Reply::default(), "");
    let bottle = stage.bottle("retrying", &[]);
    stage.daemon.ok(&["cut", "retrying", "--answered"]);
    for mode in ["gateway", "connect"] {
        let answers = (0..RETRIES).map(|_| refused_after(&stage, &bottle, &["--mode", mode]));
        report(
            &format!("cut, demo-agent --json --mode {mode}: a request to the end of the lane's answer"),
            answers.collect(),
        );
    }
}

/// How long an agent waited for a refusal, from before it connected.
fn refused_after(stage: &Stage, bottle: &Bottle, args: &[&str]) -> u64 {
    let asked = stage.ask(bottle, args);
    let answer = asked.one();
    assert!(answer.refusal().is_some(), "{asked:?}");
    answer.last_ns - answer.asked_ns
}

/// Prints median and 99th percentile.
fn report(what: &str, mut rounds: Vec<u64>) {
    rounds.sort_unstable();
    let at = |percent: usize| Duration::from_nanos(rounds[(rounds.len() - 1) * percent / 100]);
    println!("{what}: median {:?}, p99 {:?}, n {}", at(50), at(99), rounds.len());
}
