//! A freeze with a snapshot: only when it was taken are the processes ended.
use std::fs;
use std::time::Duration;

use support::clock::wait_until;
use support::provider::Reply;
use support::stage::Stage;

use crate::{SOON, Script, Ticking, detail, events, row};

fn stage(script: &Script) -> Stage {
    let path = script.path();
    let settings = format!(
        "bottles:\n  boxed: {{ shutdown: freeze, snapshot: [{}, \"{{bottle}}\", \"{{cgroup}}\"] }}\n",
        path.display()
    );
    Stage::new(Reply::default(), &settings)
}

#[test]
fn root_a_snapshot_that_fails_ends_nobody_and_one_that_succeeds_ends_all() {
    let script = Script::new("echo no room; exit 3");
    let stage = stage(&script);
    let bottle = stage.bottle("boxed", &[]);
    let mut ticking = Ticking::start(&bottle.cgroup);
    stage.daemon.ok(&["freeze", "boxed"]);
    let failed = row(&stage, "boxed", "snapshot", 1);
    assert_eq!(failed["outcome"], "failed", "{failed}");
    assert!(detail(&failed).ends_with("exit status: 3; it said: no room"), "{failed}");
    ticking.assert_still();
    assert_eq!(stage.daemon.bottle("boxed")["state"], "frozen");

    // it is taken of processes that are there and stand still
    let (seen, about) = (script.beside("seen"), script.beside("about"));
    script.becomes(&format!(
        "grep -q 'frozen 1' \"$2/cgroup.events\" && cp \"$2/cgroup.procs\" {} && echo \"$1\" > {}",
        seen.display(),
        about.display()
    ));
    stage.daemon.ok(&["freeze", "boxed"]);
    let ended = row(&stage, "boxed", "snapshot", 3);
    assert!(detail(&ended).contains("0 survivors after the snapshot"), "{ended}");
    assert!(ticking.ended());
    assert!(!fs::read_to_string(&seen).unwrap().is_empty());
    assert_eq!(fs::read_to_string(&about).unwrap(), "boxed\n");
    let status = stage.daemon.bottle("boxed");
    assert_eq!((&status["state"], status["pids"].as_u64()), (&"frozen".into(), Some(0)), "{status}");

    // what is started there anew goes on after a thaw
    stage.daemon.ok(&["thaw", "boxed"]);
    Ticking::start(&bottle.cgroup);
    assert_eq!(stage.daemon.bottle("boxed")["state"], "open");
}

#[test]
fn root_a_thaw_and_a_kill_do_not_wait_for_a_snapshot_that_hangs() {
    let script = Script::new("sleep 1000");
    let stage = stage(&script);
    let bottle = stage.bottle("boxed", &[]);
    let mut ticking = Ticking::start(&bottle.cgroup);
    stage.daemon.ok(&["freeze", "boxed"]);
    stage.daemon.ok(&["thaw", "boxed"]);
    ticking.assert_ticks();
    assert!(detail(&row(&stage, "boxed", "snapshot", 1)).contains("interrupted by a newer order"));
    stage.daemon.ok(&["freeze", "boxed"]);
    ticking.assert_still();
    let began = std::time::Instant::now();
    stage.daemon.ok(&["kill", "boxed", "--yes"]);
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    assert!(ticking.ended());
    assert!(events(bottle.cgroup.path(), "populated 0"));
    row(&stage, "boxed", "snapshot", 2);
    let gone = wait_until(SOON, || (!is_running("sleep\u{0}1000")).then_some(()));
    assert!(gone.is_some(), "the snapshot's program is left");
}

/// Whether a process with this command line is below this test's daemon; other tests use other words.
fn is_running(command_line: &str) -> bool {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let lines = processes.filter_map(|entry| fs::read(entry.path().join("cmdline")).ok());
    lines.into_iter().any(|line| String::from_utf8_lossy(&line).starts_with(command_line))
}
