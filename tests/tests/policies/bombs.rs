//! A fork bomb is killed whole, whatever it forks meanwhile.
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;
use support::cgroup::TestCgroup;
use support::clock::wait_until;
use support::process;
use support::provider::Reply;
use support::stage::Stage;

use crate::{SOON, detail, events, row};

/// As many processes are there before it is killed.
const CROWD: usize = 200;
const ROUNDS: usize = 10;
const FULL_ROUNDS: usize = 100;

#[test]
fn root_a_fork_bomb_is_killed_without_a_survivor() {
    let full = std::env::var_os("ENFORCER_TEST_FULL").is_some();
    let stage = Stage::new(Reply::default(), "");
    let mut took_us = Vec::new();
    for round in 0..if full { FULL_ROUNDS } else { ROUNDS } {
        let name = format!("bomb-{round}");
        let bottle = stage.bottle(&name, &[]);
        let mut command = Command::new(process::built("bomb"));
        let mut bomb = bottle.cgroup.spawn(command.stdin(Stdio::null()));
        let crowd = wait_until(SOON, || (bottle.cgroup.pids().len() >= CROWD).then_some(()));
        assert!(crowd.is_some(), "{} processes", bottle.cgroup.pids().len());
        assert_eq!(stage.daemon.ok(&["kill", &name, "--yes"]), format!("{name}: killed\n"));
        assert!(events(bottle.cgroup.path(), "populated 0"));
        assert!(bottle.cgroup.pids().is_empty());
        bomb.wait().unwrap();
        let row = row(&stage, &name, "kill", 1);
        assert!(detail(&row).ends_with("processes ended, 0 survivors"), "{row}");
        took_us.push(row["took_us"].as_u64().unwrap());
        assert_final(&stage, &name);
        stage.daemon.ok(&["detach", &name, "--force"]);
    }
    took_us.sort_unstable();
    println!("{} bombs killed; from order to last process: {took_us:?} us", took_us.len());
}

/// Nothing is to be had of a killed bottle.
fn assert_final(stage: &Stage, name: &str) {
    for words in [["restore", name, "--force"].as_slice(), &["thaw", name], &["freeze", name]] {
        let output = stage.daemon.cli(words);
        assert_eq!(output.code, Some(4), "{output:?}");
        assert!(output.stderr.contains("was killed, which is final"), "{output:?}");
    }
    assert_eq!(stage.daemon.bottle(name)["state"], "killed");
}

#[test]
fn root_a_budget_s_kill_ends_the_bottle_and_the_cgroups_below_it() {
    let stage = Stage::new(Reply::paced(20_000, 8, Duration::from_millis(2)), "shutdown: kill\n");
    let bottle = stage.bottle("doomed", &["--budget", "claude=600"]);
    let below = bottle.cgroup.child("below");
    let mut sleeper = below.spawn(Command::new("sleep").arg("600"));
    let asking = stage.start_asking(&bottle, &["--stream"]);
    let killed = stage.daemon.wait_bottle("doomed", |bottle| bottle["state"] == "killed", SOON);
    assert_eq!(killed["cause"]["kind"], "budget");
    assert_eq!(process::exit_within(&mut sleeper, SOON), Some(None), "a signal ended it");
    let complaint = asking.complaint(SOON);
    println!("the agent said: {complaint}");
    let row = row(&stage, "doomed", "kill", 1);
    assert_eq!((row["by"].as_str(), row["outcome"].as_str()), (Some("controller"), Some("done")), "{row}");
    assert!(TestCgroup::pids(&bottle.cgroup).is_empty() && below.pids().is_empty());
}

/// What `run` made is taken away again, and its name is free.
#[test]
fn root_the_command_of_run_is_killed_with_its_cgroup() {
    let stage = Stage::new(Reply::default(), "");
    for _ in 0..2 {
        let mut command = stage.daemon.command();
        command.args(["run", "--name", "made", "--user", "nobody", "--", "sleep", "600"]);
        let mut run = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
        let made = wait_until(SOON, || {
            let status = stage.daemon.json(&["status"]);
            let bottle = status["bottles"].as_array()?.first()?.clone();
            (bottle["pids"].as_u64() > Some(0)).then_some(bottle)
        });
        let made: Value = made.expect("the bottle of run");
        let cgroup = made["cgroup"].as_str().unwrap();
        assert_eq!(stage.daemon.ok(&["kill", "made", "--yes"]), "made: killed\n");
        assert_eq!(process::exit_within(&mut run, SOON), Some(Some(137)), "as a shell tells a SIGKILL");
        assert!(!std::path::Path::new(cgroup).exists(), "{cgroup}");
    }
}
