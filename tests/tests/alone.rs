//! A cut stands by itself: whoever of the controller, the meter and the lane is stopped, dead or hostile, nothing of the
//! bottle comes out, from the cut to the restore.
//!
//! `ENFORCER_TEST_FULL=1` cuts and restores 300 times instead of 40.
#![allow(clippy::unwrap_used, reason = "a failed expectation should stop the test where it stands")]
use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use support::cgroup::TestCgroup;
use support::clock::wait_until;
use support::enforcer::Daemon;
use support::process::{Seen, Stopped, built, copy_program};
use support::provider::Reply;
use support::rounds;
use support::sink::Sink;
use support::stage::Stage;
use support::streams::{Stream, assert_flowing, assert_nothing_came, settled};
use tempfile::TempDir;

const SOON: Duration = Duration::from_secs(10);
/// How long it is watched that nothing comes.
const WATCHED: Duration = Duration::from_millis(400);
/// The same in one of many flips.
const GLANCE: Duration = Duration::from_millis(100);

#[test]
fn root_a_cut_needs_none_of_our_processes_alive() {
    let mut stage = Stage::new(Reply::default(), "lease: off\n");
    let bottle = stage.bottle("alone", &[]);
    let inner = bottle.cgroup.child("inner");
    let innermost = inner.child("innermost");
    for face in ["--silent", "--answered"] {
        let streams = Stream::every(&[&bottle.cgroup, &innermost]);
        assert_flowing(&streams);
        // stopped before the cut: it asks nothing of them
        let helpers = [stage.daemon.meter(), stage.daemon.lane().unwrap()];
        let stopped = helpers.each_ref().map(|helper| Stopped::now(helper.pid()));
        stage.daemon.ok(&["cut", "alone", face]);
        let cut = settled();
        let nothing_came =
            |when: &str| assert_nothing_came(&streams, cut, WATCHED, &format!("{face}, {when}"));
        nothing_came("meter and lane stopped");
        {
            let _daemon = Stopped::now(stage.daemon.pid());
            nothing_came("the controller stopped too");
        }
        drop(stopped);
        nothing_came("all going on");
        for helper in &helpers {
            helper.kill();
        }
        nothing_came("meter and lane killed");
        stage.daemon.kill9();
        nothing_came("the controller killed");
        stage.daemon.restart();
        nothing_came("a new controller");
        stage.daemon.ok(&["restore", "alone"]);
    }
}

#[test]
fn root_a_stopped_or_dead_meter_lets_nothing_through() {
    let stage = Stage::new(Reply::default(), "");
    let bottle = stage.bottle("walled", &[]);
    assert_eq!(stage.ask(&bottle, &["--stream"]).code, Some(0));
    let before = stage.provider.records().len();
    {
        let _stopped = Stopped::now(stage.daemon.meter().pid());
        // it is accepted by the kernel, and nobody reads it
        let asking = stage.start_asking(&bottle, &["--stream"]);
        stage.daemon.ok(&["cut", "walled"]);
        let cut = stage.daemon.bottle("walled");
        assert_eq!(cut["state"], "cut", "{cut}");
        std::thread::sleep(WATCHED);
        assert_eq!(stage.provider.records().len(), before, "nothing passed a stopped meter");
        let complaint = stage.start_asking(&bottle, &["--stream"]).complaint(SOON);
        assert!(complaint.contains("Operation not permitted"), "{complaint}");
        asking.hang_up();
    }
    std::thread::sleep(WATCHED);
    assert_eq!(stage.provider.records().len(), before, "what waited in its queue is refused");
}

/// A controller whose meter can be replaced by other programs.
struct Replaceable {
    /// Taken down first: its own program lies in the directory.
    daemon: Daemon,
    programs: TempDir,
}

impl Replaceable {
    fn start() -> Self {
        let programs = tempfile::tempdir().unwrap();
        for name in ["enforcer", "meter-proxy"] {
            copy_program(&built(name), &programs.path().join(name));
        }
        let daemon = Daemon::start_from(programs.path(), "lease: off\n");
        Self { daemon, programs }
    }

    /// Puts a program in the meter's place and ends the meter: this one is started from now on.
    fn replace(&self, program: &Path) {
        let waiting = self.programs.path().join("waiting");
        copy_program(program, &waiting);
        fs::rename(waiting, self.programs.path().join("meter-proxy")).unwrap();
        if let Some(pid) = self.meter()["pid"].as_u64() {
            Seen::now(u32::try_from(pid).unwrap()).unwrap().kill();
        }
    }

    fn meter(&self) -> Value {
        self.daemon.json(&["status"])["daemon"]["meter"].clone()
    }

    fn flip(&self, streams: &[Stream], meter: &str) {
        let rounds = rounds(10, 75);
        for round in 0..rounds {
            assert_flowing(streams);
            self.daemon.ok(&["cut", "flipped"]);
            assert_nothing_came(streams, settled(), GLANCE, &format!("flip {round}, {meter}"));
            self.daemon.ok(&["restore", "flipped"]);
        }
        println!("{meter}: {rounds} flips, {} senders, 0 bytes", streams.len());
    }
}

#[test]
fn root_flips_let_nothing_through_whatever_becomes_of_the_meter() {
    let stage = Replaceable::start();
    let cgroup = TestCgroup::new("flipped");
    let inner = cgroup.child("inner");
    let innermost = inner.child("innermost");
    stage.daemon.attach("flipped", cgroup.path(), &[]);
    let mut streams = Stream::every(&[&innermost]);
    stage.flip(&streams, "a meter that serves");
    {
        let _stopped = Stopped::now(stage.daemon.meter().pid());
        stage.flip(&streams, "a meter that stands still");
    }
    let listen = stage.daemon.listen_addr().parse().unwrap();
    let nothing = stage.programs.path().join("nothing");
    fs::write(&nothing, "#!/bin/false\n").unwrap();
    fs::set_permissions(&nothing, fs::Permissions::from_mode(0o755)).unwrap();
    stage.replace(&nothing);
    wait_until(SOON, || (stage.meter()["state"] != "serving").then_some(())).expect("it is dead");
    stage.flip(&streams, "no meter");
    // it passes on whatever it is told not to
    let far = Sink::tcp(Ipv4Addr::LOCALHOST.into());
    fs::write(stage.programs.path().join("upstream"), far.address().to_string()).unwrap();
    stage.replace(&built("hostile-meter"));
    wait_until(SOON, || (stage.meter()["state"] == "serving").then_some(())).expect("it is served");
    streams.push(Stream::through(&innermost, "tcp", listen, far));
    stage.flip(&streams, "a hostile meter");
}
