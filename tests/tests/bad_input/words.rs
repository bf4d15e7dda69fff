//! Words that would steer a terminal: they are kept for scripts, and harmless on a screen.
use std::process::Command;

use support::cgroup::TestCgroup;
use support::enforcer::Daemon;
use support::process::{self, Output};

use crate::SOON;

/// Clears the screen, sets the clipboard, rings, overwrites the line, reverses the direction of the text.
const HOSTILE: &str = "\x1b[2Jgone\x1b]52;c;ZXZpbA==\x07\rb1: open\nb1: open\u{9b}31m\u{202e}";

#[test]
fn root_a_hostile_reason_steers_no_terminal() {
    let daemon = Daemon::start("");
    let group = TestCgroup::new("words");
    daemon.attach("b1", group.path(), &["--agent", "implementer"]);
    assert_harmless(&daemon.cli(&["cut", "b1", "--reason", HOSTILE]));
    for arguments in [&["status"][..], &["status", "b1"], &["audit"], &["usage"], &["env", "b1"]] {
        assert_harmless(&daemon.cli(arguments));
    }
    let status = daemon.ok(&["status"]);
    assert_eq!(
        status.lines().filter(|line| line.starts_with("b1: ")).count(),
        1,
        "no line is forged: {status}"
    );
    assert_eq!(daemon.bottle("b1")["cause"]["reason"], HOSTILE, "the exact words are there for a script");
    for arguments in [&["status", "--json"][..], &["audit", "--json"]] {
        let text = daemon.ok(arguments);
        assert!(!text.chars().any(|c| c.is_control() && c != '\n'), "JSON escapes them: {text:?}");
    }
    for name in ["\x1b[31mred", "b1\r\n", "\u{202e}b1"] {
        let output = daemon.cli(&["cut", name]);
        assert_eq!(output.code, Some(2), "{output:?}");
        assert_harmless(&output);
    }
}

#[test]
fn root_the_dashboard_draws_no_hostile_word() {
    let daemon = Daemon::start("");
    let group = TestCgroup::new("dashboard");
    daemon.attach("b1", group.path(), &[]);
    drop(daemon.ok(&["cut", "b1", "--reason", HOSTILE]));
    let dir = tempfile::tempdir().unwrap();
    let typed = dir.path().join("typed");
    // a terminal of its own; `q` leaves the dashboard
    let line =
        format!("{} --state-dir {} top", process::built("enforcer").display(), daemon.state_dir().display());
    let mut script = Command::new("sh");
    script.arg("-c").arg("(sleep 1.5; printf q) | script -qec \"stty cols 200 rows 40; $0\" \"$1\"");
    let shown = process::run(script.arg(line).arg(&typed).env("TERM", "xterm"), SOON);
    let shown = shown.stdout;
    assert!(shown.contains("b1"), "the dashboard was drawn: {shown:?}");
    for words in ["]52;", "\x07", "\u{9b}", "\u{202e}"] {
        let at = shown.find(words).filter(|&at| words != "]52;" || shown[..at].ends_with('\x1b'));
        assert!(at.is_none(), "{words:?} in {shown:?}");
    }
}

/// Nothing on either output but text and line ends.
#[track_caller]
fn assert_harmless(output: &Output) {
    let said = format!("{}{}", output.stdout, output.stderr);
    let hostile = |c: char| (c.is_control() && c != '\n') || matches!(c, '\u{202e}' | '\u{9b}');
    assert!(!said.chars().any(hostile), "{said:?}");
}
