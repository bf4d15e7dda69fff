//! The control API and the commands that show things, as scripts use them: events, rows, tables, variables, refusals.
#![allow(clippy::unwrap_used, reason = "a failed expectation should stop the test where it stands")]
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use support::control::{Events, request};
use support::process::{Output, run};
use support::provider::Reply;
use support::stage::{Bottle, Stage};

const SOON: Duration = Duration::from_secs(10);

#[test]
fn root_events_tell_states_usage_and_audit_as_they_happen() {
    let stage = Stage::new(Reply::default(), "");
    let mut events = Events::follow(&stage.daemon);
    let bottle = stage.bottle("watched", &["--budget", "claude=10k"]);
    events.next("state", |value| value["name"] == "watched" && value["state"] == "open");
    assert_eq!(stage.ask(&bottle, &["--stream"]).code, Some(0));
    let usage = events.next("usage", |value| value["bottle"] == "watched");
    assert_eq!(json!([usage["input"], usage["output"], usage["estimated"]]), json!([25, 40, 0]), "{usage}");
    stage.daemon.ok(&["cut", "watched", "--reason", "seen"]);
    let state = events.next("state", |value| value["state"] == "cut");
    assert_eq!(state["cause"]["reason"], "seen", "{state}");
    assert_eq!(state["usage"]["claude"]["total"], 65, "{state}");
    stage.daemon.ok(&["restore", "watched"]);
    let row = events.next("audit", |value| value["action"] == "restore");
    assert_eq!(
        json!([row["bottle"], row["by"], row["outcome"]]),
        json!(["watched", "uid:0", "done"]),
        "{row}"
    );
}

#[test]
fn root_the_api_answers_raw_requests_as_the_command_line_shows() {
    let stage = Stage::new(Reply::default(), "");
    let bottle = stage.bottle("raw", &[]);
    let (status, bottles) = request(&stage.daemon, "GET", "/v1/bottles", "");
    assert_eq!((status, &bottles[0]["name"], bottles.as_array().unwrap().len()), (200, &json!("raw"), 1));
    let (status, one) = request(&stage.daemon, "GET", "/v1/bottles/raw", "");
    assert_eq!((status, &one), (200, &stage.daemon.json(&["status", "raw"])));
    // among others a bottle is shown without its chain
    let mut among_others = one.clone();
    let chain = among_others.as_object_mut().unwrap().remove("chain").unwrap();
    assert_eq!(among_others, stage.daemon.bottle("raw"));
    let scopes = ["claude", "codex"].map(|provider| [0, 1].map(|nth| chain[provider][nth]["scope"].clone()));
    assert_eq!(json!(scopes), json!([["bottle", "global"], ["bottle", "global"]]), "{chain}");
    assert_eq!(one["cgroup"], bottle.cgroup.path().to_str().unwrap());

    let (status, cut) = request(&stage.daemon, "POST", "/v1/bottles/raw/cut", r#"{"reason": "by hand"}"#);
    assert_eq!((status, &cut["cause"]["reason"]), (200, &json!("by hand")), "{cut}");
    let (status, open) = request(&stage.daemon, "POST", "/v1/bottles/raw/restore", "");
    assert_eq!((status, &open["state"]), (200, &json!("open")), "{open}");

    let problems = [
        ("GET", "/v1/bottles/nobody", "", 404),
        ("GET", "/v1/nothing", "", 404),
        ("POST", "/v1/bottles/raw/cut", "{", 400),
        ("POST", "/v1/bottles/raw/cut", r#"{"reson": "x"}"#, 400),
        ("POST", "/v1/bottles", r#"{"name": "raw", "cgroup": "/sys/fs"}"#, 400),
        ("POST", "/v1/bottles/raw/thaw", "", 403),
        ("DELETE", "/v1/bottles/nobody", "", 404),
    ];
    for (method, path, body, expected) in problems {
        let (status, problem) = request(&stage.daemon, method, path, body);
        assert_eq!(status, expected, "{method} {path}: {problem}");
        assert!(
            problem["error"].as_str().is_some_and(|words| !words.is_empty()),
            "{method} {path}: {problem}"
        );
    }
    assert_eq!(stage.daemon.bottle("raw")["state"], "open", "none of them did anything");
    let (status, _) = request(&stage.daemon, "DELETE", "/v1/bottles/raw", "");
    assert_eq!((status, stage.daemon.json(&["status"])["bottles"].clone()), (204, json!([])));
}

/// `enforcer` as a process of the bottle, or of a cgroup in it.
fn from_inside(stage: &Stage, cgroup: &support::cgroup::TestCgroup, args: &[&str]) -> Output {
    run(cgroup.enter_before_exec(stage.daemon.command().args(args)), SOON)
}

#[test]
fn root_who_sits_in_a_bottle_is_refused_by_the_control_socket() {
    let stage = Stage::new(Reply::default(), "");
    let bottle = stage.bottle("prisoner", &[]);
    let nested = bottle.cgroup.child("nested");
    stage.daemon.ok(&["cut", "prisoner"]);
    let orders: [&[&str]; 4] =
        [&["status"], &["restore", "prisoner"], &["detach", "prisoner", "--force"], &["usage"]];
    for cgroup in [&bottle.cgroup, &nested] {
        for order in orders {
            let refused = from_inside(&stage, cgroup, order);
            assert_eq!(refused.code, Some(4), "{order:?}: {refused:?}");
            assert!(refused.stderr.contains("sits in a bottle"), "{order:?}: {refused:?}");
        }
    }
    assert_eq!(stage.daemon.bottle("prisoner")["state"], "cut", "seen from outside");
}

/// A stage with usage of two bottles, two providers and an agent.
fn spent() -> (Stage, [Bottle; 2]) {
    let stage = Stage::new(Reply { cache_read: 100, ..Reply::default() }, "");
    let bottles = [stage.bottle("b1", &["--agent", "writer"]), stage.bottle("b2", &[])];
    for bottle in &bottles {
        for provider in ["claude", "codex"] {
            assert_eq!(stage.ask(bottle, &["--stream", "--provider", provider]).code, Some(0));
        }
    }
    assert_eq!(stage.ask(&bottles[0], &[]).code, Some(0));
    (stage, bottles)
}

/// `(key, flows, total)` of every row, sorted.
fn grouped(stage: &Stage, by: &str) -> Value {
    let rows = stage.daemon.json(&["usage", "--by", by]);
    let mut rows: Vec<Value> =
        rows.as_array().unwrap().iter().map(|row| json!([row[by], row["flows"], row["total"]])).collect();
    rows.sort_by_key(Value::to_string);
    json!(rows)
}

#[test]
fn root_usage_is_grouped_filtered_and_exported() {
    let (stage, _bottles) = spent();
    assert_eq!(grouped(&stage, "bottle"), json!([["b1", 3, 495], ["b2", 2, 330]]));
    assert_eq!(grouped(&stage, "provider"), json!([["claude", 3, 495], ["codex", 2, 330]]));
    assert_eq!(grouped(&stage, "model"), json!([["claude-mock-1", 3, 495], ["gpt-mock-1", 2, 330]]));
    assert_eq!(grouped(&stage, "agent"), json!([["writer", 3, 495], [null, 2, 330]]));
    let days = grouped(&stage, "day");
    let flows: u64 = days.as_array().unwrap().iter().map(|day| day[1].as_u64().unwrap()).sum();
    assert_eq!(flows, 5, "{days}");

    let filtered = stage.daemon.json(&["usage", "--bottle", "b1", "--provider", "claude"]);
    assert_eq!(json!([filtered[0]["flows"], filtered[1]]), json!([2, null]), "{filtered}");
    assert_eq!(stage.daemon.json(&["usage", "--agent", "writer", "--by", "agent"])[0]["flows"], 3);
    assert_eq!(stage.daemon.json(&["usage", "--since", "1h", "--by", "bottle"]).as_array().unwrap().len(), 2);
    assert_eq!(stage.daemon.json(&["usage", "--since", "2100-01-01"]), json!([]));

    let csv = stage.daemon.ok(&["usage", "--csv"]);
    let lines: Vec<&str> = csv.lines().collect();
    let heading = "bottle,agent,provider,model,day,flows,input,cache_write,cache_read,output,reasoning,total,estimated,\
                   governs";
    assert_eq!((lines[0], lines.len()), (heading, 5), "{csv}");
    assert!(lines.contains(&"b1,writer,claude,claude-mock-1,,2,50,0,200,80,0,330,0,"), "{csv}");
    let table = stage.daemon.ok(&["usage", "--flows", "--bottle", "b2"]);
    assert_eq!(table.lines().count(), 3, "{table}");
    assert!(table.contains("/v1/responses") && table.contains("reported"), "{table}");
}

#[test]
fn root_audit_rows_have_the_contracts_keys() {
    let (stage, _bottles) = spent();
    stage.daemon.ok(&["cut", "b1", "--reason", "a \u{1b}]52;c;x\u{7} reason"]);
    stage.daemon.ok(&["restore", "b1"]);
    let rows = stage.daemon.json_lines(&["audit"]);
    let keys = ["action", "at", "bottle", "by", "cause", "detail", "id", "outcome", "took_us"];
    for row in &rows {
        assert_eq!(row.as_object().unwrap().keys().collect::<Vec<_>>(), keys, "{row}");
    }
    let ids: Vec<i64> = rows.iter().map(|row| row["id"].as_i64().unwrap()).collect();
    assert!(ids.is_sorted(), "{ids:?}");
    let actions: Vec<&str> = rows.iter().map(|row| row["action"].as_str().unwrap()).collect();
    assert_eq!(actions, ["attach", "attach", "cut", "restore"]);
    for told in [stage.daemon.ok(&["audit"]), stage.daemon.ok(&["status"])] {
        assert!(!told.contains(['\u{1b}', '\u{7}']), "no terminal escapes: {told:?}");
    }
}

#[test]
fn root_env_is_what_each_shell_reads_back() {
    let stage = Stage::new(Reply::default(), "");
    let _bottle = stage.bottle("shell", &[]);
    let meter = format!("http://{}", stage.daemon.listen_addr());
    let sh = stage.daemon.ok(&["env", "shell", "--shell", "sh"]);
    let script =
        format!("{sh}printf '%s %s %s' \"$ANTHROPIC_BASE_URL\" \"$OPENAI_BASE_URL\" \"$HTTPS_PROXY\"");
    let read = run(Command::new("sh").env_clear().args(["-c", &script]), SOON);
    assert_eq!(read.stdout, format!("{meter}/claude {meter}/codex/v1 {meter}"), "{read:?}");
    let names = |text: &str, before: &str, after: char| -> Vec<String> {
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        let lines = lines.map(|line| line.strip_prefix(before).unwrap());
        lines.map(|line| line.split(after).next().unwrap().to_owned()).collect()
    };
    let of_sh = names(&sh, "export ", '=');
    assert_eq!(names(&stage.daemon.ok(&["env", "shell", "--shell", "fish"]), "set -gx ", ' '), of_sh);
    let dotenv = stage.daemon.ok(&["env", "shell", "--shell", "dotenv"]);
    assert_eq!(names(&dotenv, "", '='), of_sh);
    let ca = stage.daemon.ok(&["ca", "path"]);
    let named = dotenv.lines().find_map(|line| line.strip_prefix("NODE_EXTRA_CA_CERTS=")).unwrap();
    assert_eq!(named, ca.trim_end());
    for file in stage.daemon.environment("shell").into_iter().filter(|(_, value)| value.starts_with('/')) {
        let text = std::fs::read_to_string(&file.1).unwrap();
        assert!(text.contains("BEGIN CERTIFICATE") && !text.contains("PRIVATE KEY"), "{file:?}");
    }
    let unknown = stage.daemon.cli(&["env", "nobody"]);
    assert_eq!(unknown.code, Some(2), "{unknown:?}");
}

#[test]
fn root_doctor_finds_nothing_wrong_here() {
    let stage = Stage::new(Reply::default(), "");
    let report = stage.daemon.json(&["doctor"]);
    assert_eq!(report["ok"], true, "{report:#}");
    let text = stage.daemon.ok(&["doctor"]);
    let checks = report["checks"].as_array().unwrap();
    assert!(checks.len() >= 5, "{report:#}");
    for check in checks {
        assert!(text.contains(check["name"].as_str().unwrap()), "{text}");
    }
}
