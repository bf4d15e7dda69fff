//! What cannot be a bottle, what is not one, and what is asked of one that is not there.
use std::fs;
use std::os::unix::fs::symlink;
use std::process::Command;

use serde_json::{Value, json};
use support::cgroup::{self, TestCgroup};
use support::enforcer::Daemon;
use support::process;

use crate::{NO_DAEMON, REFUSED, SOON, USAGE, ask, assert_refused};

#[track_caller]
fn assert_nothing_attached(daemon: &Daemon) {
    assert_eq!(daemon.json(&["status"])["bottles"], json!([]));
}

#[test]
fn root_what_is_no_cgroup_of_its_own_is_not_attached() {
    let daemon = Daemon::start("");
    let dir = tempfile::tempdir().unwrap();
    let group = TestCgroup::new("bad");
    let at = |path: &std::path::Path| path.to_str().unwrap().to_owned();
    let link = dir.path().join("link");
    symlink(group.path(), &link).unwrap();
    // removed with the group that it is in: it cannot be killed by itself
    let threaded = group.path().join("threaded");
    fs::create_dir(&threaded).unwrap();
    fs::write(threaded.join("cgroup.type"), "threaded").unwrap();
    let mount = cgroup::mount_point();
    let home = cgroup::of_process(daemon.pid()).unwrap();
    let name_in_directory = at(&link);
    for (path, words) in [
        (at(&group.path().join("missing")), "does not exist"),
        (at(dir.path()), "is not a cgroup v2 directory"),
        (at(&group.path().join("cgroup.procs")), "is not a directory"),
        ("/etc/passwd".to_owned(), "is not a directory"),
        (name_in_directory, "is a symbolic link"),
        (at(&threaded), "is of type `threaded`"),
        (at(&mount), "is the root cgroup"),
        (format!("{}/../{}", at(group.path()), "."), "is the root cgroup"),
        (at(&home), "holds the enforcer itself"),
        (at(home.parent().unwrap()), "holds the enforcer itself"),
        ("a/relative/one".to_owned(), "does not exist"),
        (String::new(), ""),
        (format!("/{}", "x".repeat(300)), "too long"),
        (format!("/{}", "x/".repeat(5000)), "too long"),
        ("/a\nb\x1b[31m".to_owned(), "does not exist"),
    ] {
        let output = daemon.cli(&["attach", "b1", "--cgroup", &path]);
        assert_refused(&output, USAGE, words);
    }
    assert_nothing_attached(&daemon);
    assert!(daemon.json_lines(&["audit"]).iter().all(|row| row["action"] != "attach"));
}

#[test]
fn root_the_daemon_and_its_meter_are_in_no_bottle() {
    let daemon = Daemon::start("");
    let meter = daemon.json(&["status"])["daemon"]["meter"]["pid"].to_string();
    for pid in [daemon.pid().to_string(), meter] {
        assert_refused(&daemon.cli(&["attach", "b1", "--pid", &pid]), USAGE, "holds the enforcer itself");
    }
    assert_refused(&daemon.cli(&["attach", "b1", "--pid", "4194305"]), USAGE, "there is no process 4194305");
    assert_refused(&daemon.cli(&["attach", "b1", "--pid", "0"]), USAGE, "process 0");
    for pid in ["-1", "99999999999", "x", ""] {
        assert_refused(&daemon.cli(&["attach", "b1", &format!("--pid={pid}")]), USAGE, "--pid");
    }
    for other in [["--cgroup", "/sys/fs/cgroup/x"], ["--docker", "x"], ["--podman", "x"], ["--unit", "x"]] {
        let both = daemon.cli(&[&["attach", "b1", "--pid", "1"], &other[..]].concat());
        assert_refused(&both, USAGE, "cannot be used with");
    }
    for (engine, what) in [("docker", "container"), ("podman", "container"), ("unit", "unit")] {
        let long = "x".repeat(256);
        for id in ["", "-x", "--help", "a b", "a/b", "../x", "*", "x;reboot", "\x1b[31m", "x\n", &long] {
            let output = daemon.cli(&["attach", "b1", &format!("--{engine}={id}")]);
            assert_refused(&output, USAGE, &format!("is no {what}'s name"));
        }
    }
    assert_refused(&daemon.cli(&["attach", "b1", "--unit", "42"]), USAGE, "a number alone means a job");
    assert_nothing_attached(&daemon);
}

#[test]
fn root_a_name_and_a_cgroup_have_one_bottle() {
    let daemon = Daemon::start("");
    let [one, two] = ["one", "two"].map(TestCgroup::new);
    let path = |group: &TestCgroup| group.path().to_str().unwrap().to_owned();
    daemon.attach("b1", one.path(), &[]);
    assert_refused(&daemon.cli(&["attach", "b1", "--cgroup", &path(&two)]), USAGE, "b1");
    assert_refused(&daemon.cli(&["run", "--user", "nobody", "--name", "b1", "--", "true"]), USAGE, "b1");
    assert_refused(&daemon.cli(&["attach", "b2", "--cgroup", &path(&one)]), USAGE, "attached");
    assert_refused(
        &daemon.cli(&["attach", "b2", "--cgroup", &path(&two), "--parent", "none"]),
        USAGE,
        "none",
    );
    assert_refused(&daemon.cli(&["attach", "b2", "--cgroup", &path(&two), "--parent", "b2"]), USAGE, "b2");
    let status = daemon.json(&["status"]);
    let bottles: Vec<&Value> = status["bottles"].as_array().unwrap().iter().map(|b| &b["name"]).collect();
    assert_eq!(bottles, ["b1"]);
    // the refused ones can be attached afterwards: nothing of them stayed
    daemon.attach("b2", two.path(), &[]);
}

#[test]
fn root_what_is_not_there_is_not_changed() {
    let daemon = Daemon::start("");
    for arguments in [
        &["status", "none"][..],
        &["status", "none", "--json"],
        &["cut", "none"],
        &["restore", "none"],
        &["restore", "none", "--force", "--add", "claude=5"],
        &["detach", "none"],
        &["detach", "none", "--force"],
        &["env", "none"],
    ] {
        assert_refused(&daemon.cli(arguments), USAGE, "there is no bottle none");
    }
    assert!(
        daemon.json_lines(&["audit"]).iter().all(|row| row["outcome"] != "done" || row["bottle"].is_null())
    );
}

#[test]
fn root_budgets_that_are_none_are_refused() {
    let daemon = Daemon::start("");
    let group = TestCgroup::new("budgets");
    let path = group.path().to_str().unwrap();
    for (budget, words) in [
        ("claude=abc", "not a number of tokens"),
        ("claude=-5", "negative"),
        ("claude=99999999999999999999", "more tokens"),
        ("claude=18446744073709551615", "more tokens"),
        ("claude=9223372036854775808", "more tokens"),
        ("claude=9223372036854775807k", "more tokens"),
        ("claude", "PROVIDER=TOKENS"),
        ("claude=", "not a number of tokens"),
        ("clade=5", "clade"),
        ("=5", "name"),
        ("", "PROVIDER=TOKENS"),
        ("claude=5\x1b[31m", "not a number of tokens"),
    ] {
        let option = format!("--budget={budget}");
        assert_refused(&daemon.cli(&["attach", "b1", "--cgroup", path, &option]), USAGE, words);
        assert_refused(&daemon.cli(&["run", "--user", "nobody", &option, "--", "true"]), USAGE, words);
    }
    let twice = ["attach", "b1", "--cgroup", path, "--budget", "claude=1", "--budget", "claude=2"];
    assert_refused(&daemon.cli(&twice), USAGE, "claude is given twice");
    assert_nothing_attached(&daemon);

    daemon.attach("b1", group.path(), &["--budget", "claude=9223372036854775807"]);
    drop(daemon.ok(&["cut", "b1"]));
    assert_refused(&daemon.cli(&["restore", "b1", "--add", "clade=5"]), USAGE, "clade");
    assert_eq!(daemon.bottle("b1")["state"], "cut", "a refused restore opens nothing");
}

#[test]
fn names_that_are_none_are_refused() {
    let long = "x".repeat(300);
    for name in
        ["", ".", "..", "../x", "a/b", "a b", "a\nb", "\x1b[31m", "-x", "host", "global", "b\u{202e}", &long]
    {
        for arguments in [
            &["attach", "--pid=1", "--", name][..],
            &["run", &format!("--name={name}"), "--", "true"],
            &["attach", "b1", "--pid=1", &format!("--agent={name}")],
            &["attach", "b1", "--pid=1", &format!("--parent={name}")],
            &["detach", "--", name],
            &["cut", "--", name],
            &["restore", "--", name],
            &["env", "--", name],
            &["status", "--", name],
        ] {
            assert_refused(&ask(&[&["--socket", "/nonexistent/c.sock"], arguments].concat()), USAGE, "name");
        }
    }
}

#[test]
fn what_comes_later_says_so_and_does_nothing() {
    assert_refused(&ask(&["--socket", "/nonexistent/c.sock", "ca", "rotate"]), USAGE, "not yet");
}

#[test]
fn without_a_daemon_every_verb_says_so() {
    for arguments in [
        &["status", "--json"][..],
        &["attach", "b1", "--pid", "1"],
        &["detach", "b1"],
        &["cut", "--all"],
        &["restore", "b1"],
        &["usage", "--json"],
        &["audit", "--json"],
        &["env", "b1"],
    ] {
        assert_refused(
            &ask(&[&["--socket", "/nonexistent/c.sock"], arguments].concat()),
            NO_DAEMON,
            "no daemon answers on /nonexistent/c.sock",
        );
    }
}

#[test]
fn root_an_empty_ledger_answers_and_nonsense_is_refused() {
    let daemon = Daemon::start("");
    assert_eq!(daemon.json(&["usage"]), json!([]));
    assert_eq!(daemon.json(&["usage", "--flows"]), json!([]));
    assert_eq!(daemon.ok(&["usage", "--csv"]).lines().count(), 1, "a heading alone");
    drop(daemon.ok(&["usage", "--bottle", "never-seen"]));
    drop(daemon.json_lines(&["audit"]));
    drop(daemon.ok(&["audit"]));
    for (arguments, words) in [
        (&["usage", "--since", "nonsense"][..], "time ago"),
        (&["usage", "--since=-90m"], "--since"),
        (&["usage", "--since", "2026-13-45"], "time ago"),
        (&["usage", "--by", "colour"], "colour"),
        (&["usage", "--csv", "--json"], "cannot be used with"),
        (&["usage", "--bottle", "a/b"], "name"),
    ] {
        assert_refused(&daemon.cli(arguments), USAGE, words);
    }
}

#[test]
fn root_a_command_that_cannot_run_leaves_no_bottle() {
    let daemon = Daemon::start("");
    for (arguments, code, words) in [
        (&["run", "--", "/no/such/program"][..], 125, "/no/such/program"),
        (&["run", "--", "/etc/passwd"], 125, "/etc/passwd"),
        (&["run", "--user", "no-such-user", "--", "true"], USAGE, "no-such-user"),
        (&["run", "--workdir", "/no/such/dir", "--", "true"], 125, "/no/such/dir"),
        (&["run", "--name", "..", "--", "true"], USAGE, "name"),
    ] {
        let output = daemon.cli(arguments);
        assert_eq!((output.code, output.stdout.as_str()), (Some(code), ""), "{arguments:?}: {output:?}");
        assert!(output.stderr.contains(words), "{arguments:?}: {output:?}");
        assert_nothing_attached(&daemon);
    }
    let bottles = cgroup::of_process(daemon.pid()).unwrap().with_file_name("bottles");
    let made = fs::read_dir(bottles).unwrap().flatten().filter(|entry| entry.file_type().unwrap().is_dir());
    assert_eq!(made.count(), 0, "no cgroup of a bottle stays");
}

#[test]
fn root_a_process_in_a_bottle_may_not_ask() {
    let daemon = Daemon::start("");
    let group = TestCgroup::new("inside");
    daemon.attach("b1", group.path(), &[]);
    for arguments in [&["status", "--json"][..], &["detach", "b1", "--force"], &["cut", "b1"]] {
        let mut command: Command = daemon.command();
        let output = process::run(group.enter_before_exec(command.args(arguments)), SOON);
        assert_refused(&output, REFUSED, "sits in a bottle");
    }
    assert_eq!(daemon.bottle("b1")["state"], "open");
}
