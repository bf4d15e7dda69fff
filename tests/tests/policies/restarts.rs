//! What was decided for processes outlives the controller, and is done again by the next.
use std::fs;

use support::provider::Reply;
use support::stage::Stage;

use crate::{Ticking, detail, row};

#[test]
fn root_frozen_stays_frozen_and_killed_stays_killed_over_a_crash() {
    let mut stage = Stage::new(Reply::default(), "");
    let (cold, gone) = (stage.bottle("cold", &[]), stage.bottle("gone", &[]));
    let ticking = Ticking::start(&cold.cgroup);
    stage.daemon.ok(&["freeze", "cold"]);
    stage.daemon.ok(&["kill", "gone", "--yes"]);
    stage.daemon.kill9();
    ticking.assert_still();
    // as if the freeze had not come about, and somebody had come into the killed bottle
    fs::write(cold.cgroup.path().join("cgroup.freeze"), "0").unwrap();
    let mut late = Ticking::start(&gone.cgroup);
    stage.daemon.restart();
    assert!(detail(&row(&stage, "cold", "freeze", 2)).starts_with("taken over at start: "));
    ticking.assert_still();
    assert!(late.ended(), "the kill is done again");
    assert_eq!(stage.daemon.bottle("cold")["state"], "frozen");
    assert_eq!(stage.daemon.bottle("gone")["state"], "killed");
    assert_eq!(stage.daemon.cli(&["restore", "gone", "--force"]).code, Some(4));
    stage.daemon.ok(&["thaw", "cold"]);
    ticking.assert_ticks();
    assert_eq!(stage.daemon.bottle("cold")["state"], "open");
}

#[test]
fn root_a_freeze_that_was_never_recorded_is_found() {
    let mut stage = Stage::new(Reply::default(), "lease: off\n");
    let bottle = stage.bottle("found", &[]);
    let ticking = Ticking::start(&bottle.cgroup);
    stage.daemon.ok(&["freeze", "found"]);
    stage.daemon.stop();
    let ledger = rusqlite::Connection::open(stage.daemon.state_dir().join("bot-bottle.db")).unwrap();
    assert_eq!(ledger.execute("UPDATE bottles SET cause_json = NULL", []).unwrap(), 1);
    drop(ledger);
    stage.daemon.restart();
    ticking.assert_still();
    assert_eq!(stage.daemon.bottle("found")["state"], "frozen");
    stage.daemon.ok(&["restore", "found"]);
    ticking.assert_ticks();
}

#[test]
fn root_unpinning_thaws_nobody_and_the_next_daemon_can() {
    let mut stage = Stage::new(Reply::default(), "");
    let bottle = stage.bottle("kept", &[]);
    let ticking = Ticking::start(&bottle.cgroup);
    stage.daemon.ok(&["freeze", "kept"]);
    stage.daemon.stop();
    stage.daemon.ok(&["daemon", "--unpin-all"]);
    ticking.assert_still();
    stage.daemon.restart();
    assert_eq!(stage.daemon.bottle("kept")["state"], "frozen");
    stage.daemon.ok(&["thaw", "kept"]);
    ticking.assert_ticks();
}

#[test]
fn root_a_thaw_that_was_recorded_and_not_done_is_told_and_can_be_done_again() {
    let mut stage = Stage::new(Reply::default(), "");
    let bottle = stage.bottle("still", &[]);
    let ticking = Ticking::start(&bottle.cgroup);
    stage.daemon.kill9();
    fs::write(bottle.cgroup.path().join("cgroup.freeze"), "1").unwrap();
    stage.daemon.restart();
    let told = row(&stage, "still", "warn", 1);
    assert_eq!(told["outcome"], "failed", "{told}");
    assert!(detail(&told).contains("stand still and nothing recorded has them do so"), "{told}");
    ticking.assert_still();
    stage.daemon.ok(&["freeze", "still"]);
    stage.daemon.ok(&["thaw", "still"]);
    ticking.assert_ticks();
    assert_eq!(stage.daemon.bottle("still")["state"], "open");
}
