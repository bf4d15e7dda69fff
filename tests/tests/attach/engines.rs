//! Containers and units by name. The engines are programs of the test's on the daemon's `PATH`; processes and cgroups
//! are real and lie as the engines lay them out.
use std::ffi::OsString;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Instant;

use serde_json::json;
use support::cgroup::{self, TestCgroup};
use support::enforcer::Daemon;
use support::process::Output;
use tempfile::TempDir;

use crate::{Idle, attachings};

const ID: &str = "4f8b0000c0ffee004f8b0000c0ffee004f8b0000c0ffee004f8b0000c0ffee00";
const RESTART: &str = "is started again it gets a new cgroup, which is not guarded";

/// A directory of programs that answer as the test says.
struct Engines(TempDir);

impl Engines {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    /// The program `name` runs this shell script from now on; its arguments are kept, one a line.
    fn says(&self, name: &str, script: &str) {
        let path = self.0.path().join(name);
        let asked = self.asked_file(name);
        let text = format!("#!/bin/sh\nprintf '%s\\n' \"$@\" > {}\n{script}\n", asked.display());
        // written aside, so that it is not busy while it is run
        let new = path.with_extension("new");
        fs::write(&new, text).unwrap();
        fs::set_permissions(&new, Permissions::from_mode(0o755)).unwrap();
        fs::rename(new, path).unwrap();
    }

    /// The program answers with one line.
    fn answers(&self, name: &str, line: &str) {
        self.says(name, &format!("echo '{line}'"));
    }

    fn asked(&self, name: &str) -> Vec<String> {
        let text = fs::read_to_string(self.asked_file(name)).unwrap();
        text.lines().map(str::to_owned).collect()
    }

    fn asked_file(&self, name: &str) -> std::path::PathBuf {
        self.0.path().join(format!("{name}.asked"))
    }

    /// A daemon that finds these programs before all others.
    fn daemon(&self) -> Daemon {
        let mut path = OsString::from(self.0.path());
        path.push(":/usr/local/bin:/usr/bin:/bin");
        Daemon::start_on_path("", Some(path))
    }
}

#[track_caller]
fn assert_refused(output: &Output, code: i32, words: &str) {
    assert_eq!(output.code, Some(code), "{output:#?}");
    assert!(output.stderr.contains(words), "no {words:?} in {output:#?}");
    assert!(output.stderr.lines().count() <= 2, "{output:#?}");
}

#[test]
fn root_a_container_is_attached_by_name_with_all_of_its_cgroup() {
    let engines = Engines::new();
    let daemon = engines.daemon();
    for (engine, directory, inner) in [
        ("docker", format!("docker-{ID}.scope"), None),
        ("docker", format!("docker-{ID}.scope"), Some("init.scope")),
        ("docker", ID.to_owned(), None),
        ("podman", format!("libpod-{ID}.scope"), Some("container")),
        ("podman", format!("libpod-{ID}"), None),
    ] {
        let top = TestCgroup::new("engine");
        let own = top.child(&directory);
        let inner = inner.map(|name| own.child(name));
        let process = Idle::start_in(inner.as_ref().unwrap_or(&own).path());
        engines.answers(engine, &format!("{ID} {}", process.0.id()));
        let output = daemon.cli(&["attach", "box", &format!("--{engine}"), "my-box"]);
        assert_eq!(output.code, Some(0), "{directory}: {output:#?}");
        assert!(output.stderr.contains(RESTART), "{output:#?}");
        assert!(output.stderr.contains("--cgroup-parent"), "{output:#?}");
        let bottle = daemon.bottle("box");
        assert_eq!(bottle["cgroup"], own.path().to_str().unwrap());
        assert_eq!(bottle["pids"], 1);
        let asked = engines.asked(engine);
        assert_eq!((asked[0].as_str(), asked.last().unwrap().as_str()), ("inspect", "my-box"));
        assert_eq!(asked[asked.len() - 2], "--", "a name is never an option: {asked:?}");
        daemon.ok(&["detach", "box"]);
        drop(process);
    }
}

#[test]
fn root_a_unit_is_attached_by_name_and_a_slice_has_no_gap() {
    let engines = Engines::new();
    let daemon = engines.daemon();
    let slice = TestCgroup::new("agents.slice");
    let service = slice.child("one.service");
    let below = |group: &TestCgroup| {
        let path = group.path().strip_prefix(cgroup::mount_point()).unwrap();
        format!("/{}", path.display())
    };
    for (unit, group, gap) in [("one.service", &service, true), ("agents.slice", &slice, false)] {
        let process = Idle::start_in(group.path());
        let answer = format!("LoadState=loaded\\nActiveState=active\\nControlGroup={}", below(group));
        engines.says("systemctl", &format!("printf '{answer}\\n'"));
        let output = daemon.cli(&["attach", "unit", "--unit", unit]);
        assert_eq!(output.code, Some(0), "{output:#?}");
        assert_eq!(output.stderr.contains(RESTART), gap, "{output:#?}");
        assert_eq!(daemon.bottle("unit")["cgroup"], group.path().to_str().unwrap());
        let asked = engines.asked("systemctl");
        assert_eq!((asked[0].as_str(), asked.last().unwrap().as_str()), ("show", unit));
        daemon.ok(&["detach", "unit"]);
        drop(process);
    }
}

#[test]
fn root_what_an_engine_cannot_name_is_not_attached() {
    let engines = Engines::new();
    let daemon = engines.daemon();
    let elsewhere = TestCgroup::new("elsewhere");
    let process = Idle::start_in(elsewhere.path());
    let pid = process.0.id();
    let docker = |script: &str| {
        engines.says("docker", script);
        daemon.cli(&["attach", "box", "--docker", "my-box"])
    };
    let gone = format!("echo {ID} 4194305");
    for (script, code, words) in [
        (format!("echo {ID} 0").as_str(), 2, "container my-box is not running"),
        ("echo 'Error: No such container: my-box' >&2; exit 1", 2, "docker knows no container my-box"),
        ("echo 'error: no such object: my-box' >&2; exit 1", 2, "docker knows no container my-box"),
        ("printf '\\033[31mCannot connect\\n' >&2; exit 1", 5, "docker failed: \u{fffd}[31mCannot connect"),
        ("exit 3", 5, "docker failed: it did not say why"),
        ("exit 0", 5, "an answer that cannot be read"),
        ("yes", 5, "an answer that cannot be read"),
        ("printf '\\377\\n'", 5, "an answer that cannot be read"),
        (format!("echo {ID} {pid}; echo {ID} {pid}").as_str(), 5, "an answer that cannot be read"),
        (format!("echo {ID} {pid}").as_str(), 2, "container my-box has no cgroup (v2) of its own"),
        (gone.as_str(), 2, "there is no process 4194305"),
    ] {
        assert_refused(&docker(script), code, words);
    }
    for (answer, code, words) in [
        (
            "LoadState=not-found\\nActiveState=inactive\\nControlGroup=",
            2,
            "systemctl knows no unit x.service",
        ),
        ("LoadState=loaded\\nActiveState=inactive\\nControlGroup=", 2, "unit x.service is not running"),
        ("LoadState=loaded\\nActiveState=active\\nControlGroup=", 2, "has no cgroup (v2) of its own"),
        ("LoadState=loaded\\nActiveState=active\\nControlGroup=/no/such", 2, "has no cgroup (v2) of its own"),
        ("LoadState=loaded\\nActiveState=active\\nControlGroup=/", 2, "is the root cgroup"),
        ("LoadState=loaded\\nActiveState=active\\nControlGroup=/a/../b", 5, "an answer that cannot be read"),
        ("nonsense", 5, "an answer that cannot be read"),
    ] {
        engines.says("systemctl", &format!("printf '{answer}\\n'"));
        assert_refused(&daemon.cli(&["attach", "box", "--unit", "x.service"]), code, words);
    }
    let home = cgroup::of_process(daemon.pid()).unwrap();
    let below = home.strip_prefix(cgroup::mount_point()).unwrap().parent().unwrap();
    let answer = format!("LoadState=loaded\\nActiveState=active\\nControlGroup=/{}", below.display());
    engines.says("systemctl", &format!("printf '{answer}\\n'"));
    let own = daemon.cli(&["attach", "box", "--unit", "enforcer.service"]);
    assert_refused(&own, 2, "holds the enforcer itself");
    assert_eq!(daemon.json(&["status"])["bottles"], json!([]));
    assert!(attachings(&daemon, "box").is_empty());
}

#[test]
fn root_an_engine_that_is_not_there_or_never_answers_is_named() {
    let engines = Engines::new();
    // this directory alone, in which there is no podman
    let daemon = Daemon::start_on_path("", Some(OsString::from(engines.0.path())));
    assert_refused(&daemon.cli(&["attach", "box", "--podman", "x"]), 5, "podman is not installed");
    engines.says("docker", "echo $$ > $0.pid; /bin/sleep 321 & wait");
    let start = Instant::now();
    assert_refused(&daemon.cli(&["attach", "box", "--docker", "x"]), 5, "docker did not answer within 10 s");
    assert!(start.elapsed().as_secs() < 15, "{:?}", start.elapsed());
    let group = fs::read_to_string(engines.0.path().join("docker.pid")).unwrap();
    assert!(!Path::new("/proc").join(group.trim()).exists(), "it was ended");
    let left = fs::read_dir("/proc").unwrap().flatten().filter(|entry| {
        fs::read(entry.path().join("cmdline")).is_ok_and(|words| words == b"/bin/sleep\x00321\x00")
    });
    assert_eq!(left.count(), 0, "and what it had started");
}
