//! How fast a whole daemon cuts: by the operator's command, and by a budget that a stream crosses.
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
use support::stage::{Stage, mono_of};

const COMMANDS: usize = 200;
const CROSSINGS: usize = 100;
const SOON: Duration = Duration::from_secs(10);

fn main() {
    by_command();
    by_budget();
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

/// From the meter's word that crosses a budget to the end of the connection at the provider. The audit's instants are
/// whole milliseconds: the figures are up to one too long.
fn by_budget() {
    let stage = Stage::new(Reply::paced(5_000, 8, Duration::from_millis(2)), "");
    let figures = (0..CROSSINGS).map(|round| {
        let bottle = stage.bottle(&format!("crossing-{round}"), &["--budget", "claude=300"]);
        let asking = stage.start_asking(&bottle, &["--stream"]);
        let ended = || stage.provider.records().get(round).and_then(|record| record.ended_ns);
        let ended = wait_until(SOON, ended).expect("the crossing closes upstream");
        assert_eq!(stage.provider.records()[round].end, Some(End::ClientGone));
        let row = wait_until(SOON, || stage.audit(&bottle.name, "cut").pop()).expect("a cut is audited");
        let decided = mono_of(&row["at"]) - 1_000_000 - row["took_us"].as_u64().unwrap() * 1_000;
        asking.hang_up();
        ended.saturating_sub(decided)
    });
    report("cut by a budget: the crossing to upstream closed, as the provider sees it", figures.collect());
}

/// Prints median and 99th percentile.
fn report(what: &str, mut rounds: Vec<u64>) {
    rounds.sort_unstable();
    let at = |percent: usize| Duration::from_nanos(rounds[(rounds.len() - 1) * percent / 100]);
    println!("{what}: median {:?}, p99 {:?}, n {}", at(50), at(99), rounds.len());
}
