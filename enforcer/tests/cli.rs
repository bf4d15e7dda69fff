//! The built binary without a daemon: bad input, exit codes, and what needs nobody's answer.
#![allow(clippy::unwrap_used, reason = "a test says what it expects by unwrapping")]
use std::path::Path;
use std::process::{Command, Output};

use tempfile::TempDir;

/// Runs the binary with a socket that nobody serves.
fn enforcer(home: &TempDir, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_enforcer"))
        .args(arguments)
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .env("ENFORCER_SOCKET", home.path().join("none.sock"))
        .current_dir(home.path())
        .output()
        .unwrap()
}

#[track_caller]
fn assert_fails(arguments: &[&str], code: i32, words: &str) {
    let output = enforcer(&TempDir::new().unwrap(), arguments);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {stderr}");
    assert!(stderr.contains(words), "{arguments:?}: {stderr}");
    assert!(output.stdout.is_empty(), "{arguments:?}: stdout is for answers");
}

#[test]
fn wrong_usage_is_told_and_ends_with_2() {
    assert_fails(&[], 2, "requires a subcommand");
    assert_fails(&["explode"], 2, "unrecognized subcommand");
    assert_fails(&["run"], 2, "CMD");
    assert_fails(&["run", "claude"], 2, "unexpected argument");
    assert_fails(&["attach", "b1"], 2, "--cgroup");
    assert_fails(&["attach", "b1", "--pid", "1", "--cgroup", "/x"], 2, "cannot be used with");
    assert_fails(&["cut"], 2, "--all");
    assert_fails(&["cut", "b1", "--all"], 2, "cannot be used with");
    assert_fails(&["cut", "b1", "--silent", "--answered"], 2, "cannot be used with");
    assert_fails(&["usage", "--since", "yesterday"], 2, "time ago");
}

#[test]
fn bad_names_are_told_and_end_with_2() {
    let long = "x".repeat(300);
    for name in ["", "..", "a/b", "a b", "a\nb", "\u{1b}[31m", "host", long.as_str()] {
        assert_fails(&["attach", name, "--pid", "1"], 2, "name");
        assert_fails(&["run", "--name", name, "--", "true"], 2, "name");
    }
}

#[test]
fn bad_budgets_are_told_and_end_with_2() {
    for (budget, words) in [
        ("claude", "PROVIDER=TOKENS"),
        ("claude=abc", "not a number of tokens"),
        ("claude=", "not a number of tokens"),
        ("claude=-5", "negative"),
        ("claude=1.5M", "whole"),
        ("claude=99999999999999999999", "more tokens"),
        ("=5", "name"),
    ] {
        assert_fails(&["run", "--budget", budget, "--", "true"], 2, words);
        assert_fails(&["restore", "b1", "--add", budget], 2, words);
    }
    assert_fails(&["restore", "b1", "--add", "claude=1", "--add", "claude=2"], 2, "given twice");
    for (arguments, words) in [
        (&["set", "world", "claude=1"][..], "is no scope"),
        (&["set", "bottle:", "claude=1"], "a name has 1 to"),
        (&["set", "agent:../x", "claude=1"], "a name is made of"),
        (&["set", "global", "claude"], "PROVIDER=TOKENS"),
        (&["set", "global", "claude=1", "--window", "yearly"], "possible values"),
        (&["add", "global", "claude=-1"], "negative"),
        (&["clear", "global", "claude=1"], "a name is made of"),
    ] {
        assert_fails(&[&["budget"], arguments].concat(), 2, words);
    }
}

#[test]
fn what_comes_later_says_so() {
    assert_fails(&["ca", "rotate"], 2, "not yet in this version");
}

#[test]
fn what_is_for_good_asks_and_what_the_daemon_reads_is_its_own() {
    assert_fails(&["kill", "b1"], 4, "there is no terminal to ask at");
    assert_fails(&["settings", "check", "--apply", "x.yml"], 2, "leave the name out");
    assert_fails(
        &["attach", "b1", "--pid", "1", "--policy", "shoot"],
        2,
        "[possible values: cutoff, freeze, kill]",
    );
}

#[test]
fn without_a_daemon_a_question_ends_with_3_and_a_hint() {
    for arguments in [
        &["status"][..],
        &["status", "b1", "--json"],
        &["attach", "b1", "--pid", "1"],
        &["detach", "b1"],
        &["cut", "b1", "--answered", "--hard"],
        &["cut", "--all", "--reason", "x"],
        &["restore", "b1"],
        &["budget", "list", "--json"],
        &["budget", "set", "bottle:b1", "claude=5", "--window", "daily"],
        &["budget", "add", "agent:a", "claude=500k"],
        &["budget", "clear", "global", "claude"],
        &["usage", "--by", "day"],
        &["usage", "--flows", "--json"],
        &["audit"],
        &["env", "b1"],
        &["top"],
    ] {
        assert_fails(arguments, 3, "enforcer: no daemon answers on");
        assert_fails(arguments, 3, "  hint: ");
    }
}

#[test]
fn a_settings_file_is_checked_with_its_place() {
    let home = TempDir::new().unwrap();
    std::fs::write(home.path().join("good.yml"), "budget:\n  claude: 5000\n").unwrap();
    std::fs::write(home.path().join("bad.yml"), "budget:\n  claude: 5000\nshutdwn: cutoff\n").unwrap();
    let good = enforcer(&home, &["settings", "check", "good.yml"]);
    assert_eq!((good.status.code(), good.stdout.as_slice()), (Some(0), &b"good.yml: good\n"[..]), "{good:?}");
    let bad = enforcer(&home, &["settings", "check", "bad.yml"]);
    let stderr = String::from_utf8(bad.stderr).unwrap();
    assert_eq!(bad.status.code(), Some(2), "{stderr}");
    assert!(stderr.contains("bad.yml:3:1") && stderr.contains("shutdown"), "{stderr}");
    let none = enforcer(&home, &["settings", "check", "none.yml"]);
    assert_eq!(none.status.code(), Some(2));
    let beyond = "budget:\n  claude: 5000\nagents:\n  a: { budget: { claude: 7000 } }\n";
    std::fs::write(home.path().join("beyond.yml"), beyond).unwrap();
    let beyond = enforcer(&home, &["settings", "check", "beyond.yml"]);
    let stderr = String::from_utf8(beyond.stderr).unwrap();
    assert_eq!(beyond.status.code(), Some(0), "it is allowed: {stderr}");
    assert!(stderr.contains("enforcer: warning: claude: the global budget of 5000 tokens total"), "{stderr}");
}

#[test]
fn a_name_on_the_command_line_does_not_reach_the_terminal_raw() {
    let home = TempDir::new().unwrap();
    let name = "a\u{202e}b\u{1b}]52;c;eA==\u{7}";
    for arguments in [["settings", "check", name], ["status", "--json", name]] {
        let output = enforcer(&home, &arguments);
        assert_eq!(output.status.code(), Some(2));
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(stderr.contains("a\u{fffd}b"), "{stderr}");
        assert!(!stderr.contains(['\u{202e}', '\u{1b}', '\u{7}']), "{stderr}");
    }
}

#[test]
fn doctor_reports_every_check_as_one_document() {
    let home = TempDir::new().unwrap();
    let state = home.path().join("state").display().to_string();
    let output = enforcer(&home, &["--state-dir", &state, "doctor", "--json"]);
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let checks = report["checks"].as_array().unwrap();
    let find = |name: &str| checks.iter().find(|check| check["name"] == name).unwrap();
    assert_eq!(find("daemon")["ok"], false);
    assert_eq!(find("daemon")["required"], false);
    assert_eq!(find("state directory")["ok"], true, "{report}");
    assert_eq!(output.status.code(), Some(if report["ok"] == true { 0 } else { 5 }));
}

#[test]
fn doctor_fails_with_5_where_something_required_is_missing() {
    let home = TempDir::new().unwrap();
    std::fs::write(home.path().join("state"), "no directory").unwrap();
    let state = home.path().join("state").display().to_string();
    let output = enforcer(&home, &["--state-dir", &state, "doctor"]);
    let stdout = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(5), "{stdout}");
    assert!(stdout.contains("FAIL  state directory"), "{stdout}");
}

#[test]
fn completions_and_pages_are_written() {
    let home = TempDir::new().unwrap();
    let script = enforcer(&home, &["completions", "bash"]);
    assert!(script.status.success() && String::from_utf8_lossy(&script.stdout).contains("_enforcer"));
    let pages = home.path().join("man");
    assert_eq!(enforcer(&home, &["man", "man"]).status.code(), Some(1), "the directory is not there");
    std::fs::create_dir(&pages).unwrap();
    assert!(enforcer(&home, &["man", "man"]).status.success());
    assert!(Path::exists(&pages.join("enforcer.1")) && Path::exists(&pages.join("enforcer-run.1")));
}

#[test]
fn a_reader_that_has_seen_enough_is_no_failure() {
    let script = format!(
        "{} completions bash | head -c 1 >/dev/null; exit \"${{PIPESTATUS[0]}}\"",
        env!("CARGO_BIN_EXE_enforcer")
    );
    let output = Command::new("bash").args(["-c", &script]).output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
}

#[test]
fn help_is_there_for_every_command() {
    let home = TempDir::new().unwrap();
    for verb in [
        "daemon",
        "run",
        "attach",
        "detach",
        "status",
        "cut",
        "restore",
        "freeze",
        "thaw",
        "kill",
        "budget",
        "usage",
        "audit",
        "top",
        "env",
        "ca",
        "doctor",
        "settings",
        "completions",
        "man",
    ] {
        let output = enforcer(&home, &[verb, "--help"]);
        assert!(output.status.success(), "{verb}: {output:?}");
    }
}
