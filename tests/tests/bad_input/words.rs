//! Words that would steer a terminal: they are kept for scripts, and harmless on a screen.
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::Command;

use serde_json::json;
use support::cgroup::TestCgroup;
use support::enforcer::Daemon;
use support::process::{self, Output};
use support::provider::{Provider, Reply};

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

#[test]
fn root_a_hostile_model_path_or_cgroup_steers_no_terminal() {
    let provider = Provider::start(Reply::default());
    let upstream = provider.http_url();
    let daemon = Daemon::start(&format!(
        "unattached: meter\nproviders: {{ claude: {{ upstream: \"{upstream}\" }} }}\n"
    ));
    let group = TestCgroup::new("steer\x1b[2J\u{202e}");
    assert_harmless(&daemon.cli(&["attach", "b1", "--cgroup", group.path().to_str().unwrap()]));
    let body = json!({"model": format!("=1+1,\"{HOSTILE}"), "max_tokens": 5, "messages": []}).to_string();
    for path in ["/claude/v1/messages", "/claude/v1/\u{202e}odd\u{9b}31m"] {
        let mut stream = TcpStream::connect(daemon.listen_addr()).unwrap();
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all((head + &body).as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 "), "{answer:?}");
    }
    for arguments in [
        &["usage"][..],
        &["usage", "--by", "model"],
        &["usage", "--flows"],
        &["usage", "--csv"],
        &["usage", "--flows", "--csv"],
        &["usage", "--flows", "--json"],
        &["status"],
        &["status", "--json"],
        &["audit"],
        &["audit", "--json"],
    ] {
        let output = daemon.cli(arguments);
        assert_eq!(output.code, Some(0), "{arguments:?}: {output:?}");
        assert_harmless(&output);
    }
    assert!(daemon.ok(&["usage", "--by", "model"]).contains("gone"), "the model is told");
    let csv = daemon.ok(&["usage", "--csv"]);
    assert_eq!(csv.lines().count(), 3, "a row is a line: {csv:?}");
    assert!(!csv.contains(",=1") && !csv.contains("\"=1"), "no spreadsheet takes it for a formula: {csv:?}");
    assert!(!daemon.logs().chars().any(|c| c == '\x1b'), "nor does the log: {:?}", daemon.logs());
}

/// Nothing on either output but text and line ends.
#[track_caller]
fn assert_harmless(output: &Output) {
    let said = format!("{}{}", output.stdout, output.stderr);
    let hostile = |c: char| (c.is_control() && c != '\n') || matches!(c, '\u{202e}' | '\u{9b}');
    assert!(!said.chars().any(hostile), "{said:?}");
}
