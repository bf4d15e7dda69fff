//! A freeze with a snapshot: only when it was taken are the processes ended.
use std::fs;
use std::time::Duration;

use support::cgroup::TestCgroup;
use support::clock::wait_until;
use support::enforcer::Daemon;
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

/// The engine is a program of the test's on the daemon's `PATH`; processes and cgroup are real.
#[test]
fn root_a_container_is_kept_by_its_own_engine_before_its_processes_end() {
    let id = "5f8b0000c0ffee004f8b0000c0ffee004f8b0000c0ffee004f8b0000c0ffee00";
    let top = TestCgroup::new("engine");
    let own = top.child(&format!("docker-{id}.scope"));
    let mut ticking = Ticking::start(&own);
    let docker = Script::new("");
    let (events, asked) = (own.path().join("cgroup.events"), docker.beside("asked"));
    docker.becomes(&format!(
        "case $1 in inspect) echo '{id} {pid}';; commit) grep -q 'frozen 1' {events} && echo \"$*\" > {asked} && \
         echo sha256:abc;; *) exit 1;; esac",
        pid = ticking.child.id(),
        events = events.display(),
        asked = asked.display()
    ));
    fs::rename(docker.path(), docker.beside("docker")).unwrap();
    let mut path = docker.beside("").into_os_string();
    path.push(":/usr/bin:/bin");
    let settings = "bottles: { box: { snapshot: engine }, plain: { snapshot: engine } }\n";
    let daemon = Daemon::start_on_path(settings, Some(path));
    daemon.ok(&["attach", "box", "--docker", "my-box"]);
    daemon.ok(&["freeze", "box"]);
    assert!(ticking.ended());
    let commit = fs::read_to_string(&asked).unwrap();
    assert!(commit.starts_with(&format!("commit --pause=false {id} enforcer-snapshot:box-2")), "{commit}");
    let taken = |bottle: &str| {
        let rows = daemon.json_lines(&["audit"]).into_iter();
        rows.filter(|row| row["bottle"] == bottle && row["action"] == "snapshot").collect::<Vec<_>>()
    };
    let rows = wait_until(SOON, || Some(taken("box")).filter(|rows| rows.len() == 2)).unwrap();
    assert!(detail(&rows[0]).ends_with(": sha256:abc"), "{}", rows[0]);
    assert!(detail(&rows[1]).contains("1 process ended") || detail(&rows[1]).contains("processes ended"));

    let plain = TestCgroup::new("plain");
    let sleeping = Ticking::start(&plain);
    daemon.attach("plain", plain.path(), &[]);
    daemon.ok(&["freeze", "plain"]);
    let rows = wait_until(SOON, || Some(taken("plain")).filter(|rows| rows.len() == 1)).unwrap();
    assert!(detail(&rows[0]).contains("attached by no engine"), "{}", rows[0]);
    sleeping.assert_still();
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
