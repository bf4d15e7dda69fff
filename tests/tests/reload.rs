//! Changed settings are taken while everything runs, whole or not at all, and the audit says what is different.
#![allow(clippy::unwrap_used, reason = "a failed expectation should stop the test where it stands")]
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use support::cgroup::TestCgroup;
use support::clock::wait_until;
use support::provider::{Provider, Reply};
use support::stage::{Stage, upstreams};

const SOON: Duration = Duration::from_secs(10);

/// Rows of the audit about settings, oldest first.
fn rows(stage: &Stage) -> Vec<Value> {
    let rows = stage.daemon.json_lines(&["audit"]).into_iter();
    rows.filter(|row| row["action"] == "settings").collect()
}

fn hang_up(stage: &Stage) {
    kill(Pid::from_raw(i32::try_from(stage.daemon.pid()).unwrap()), Signal::SIGHUP).unwrap();
}

#[test]
fn root_a_lower_budget_cuts_and_a_higher_one_waits_for_the_operator() {
    let stage = Stage::new(Reply::default(), "budget: { claude: 1M }\n");
    let bottle = stage.bottle("kept", &[]);
    assert_eq!(stage.ask(&bottle, &["--stream"]).code, Some(0));
    stage.write_settings("budget: { claude: 50 }\n");
    let output = stage.daemon.cli(&["settings", "check", "--apply"]);
    assert_eq!((output.code, output.stdout.as_str()), (Some(0), "budget.claude: 1M → 50\n"), "{output:?}");
    assert_eq!(stage.daemon.bottle("kept")["state"], "cut", "when the command is done");
    let row = rows(&stage).pop().unwrap();
    assert_eq!((row["by"].as_str(), row["detail"].as_str()), (Some("uid:0"), Some("budget.claude: 1M → 50")));

    stage.write_settings("budget: { claude: 2M }\n");
    let output = stage.daemon.cli(&["settings", "check", "--apply"]);
    assert!(output.stderr.contains("kept stays cut although its budget has room again"), "{output:?}");
    assert_eq!(stage.daemon.bottle("kept")["state"], "cut");
    stage.daemon.ok(&["restore", "kept"]);
    assert_eq!(stage.ask(&bottle, &["--stream"]).code, Some(0));
    assert_eq!(stage.daemon.ok(&["settings", "check", "--apply"]), "nothing changed\n");
    assert_eq!(rows(&stage).len(), 2);
}

#[test]
fn root_the_meter_goes_where_the_new_settings_say_and_cgroups_are_awaited() {
    let stage = Stage::new(Reply::default(), "");
    let bottle = stage.bottle("moved", &[]);
    assert_eq!(stage.ask(&bottle, &[]).code, Some(0));
    let other = Provider::start(Reply::default());
    let late = TestCgroup::new("late");
    let hook = "hooks: { cut: [/bin/echo, heard] }\n";
    let awaited = format!("bottles: {{ late: {{ cgroup: \"{}\" }} }}\n", late.path().display());
    let moved = upstreams(&other.http_url());
    stage.daemon.write_settings(&format!("{moved}{hook}{awaited}"));
    hang_up(&stage);
    wait_until(SOON, || rows(&stage).pop()).expect("SIGHUP has the file taken");
    let meter = stage.daemon.meter();
    assert_eq!(stage.ask(&bottle, &[]).code, Some(0));
    assert_eq!((stage.provider.billing_records().len(), other.billing_records().len()), (1, 1));
    let attached = |status: Value| {
        status["bottles"].as_array().unwrap().iter().any(|bottle| bottle["name"] == "late").then_some(())
    };
    wait_until(SOON, || attached(stage.daemon.json(&["status"]))).expect("the cgroup is attached");
    stage.daemon.ok(&["cut", "moved"]);
    let heard = wait_until(SOON, || stage.audit("moved", "hook").pop()).unwrap();
    assert_eq!(heard["detail"], "cut: heard");
    // a meter that starts later works by them too
    meter.kill();
    stage.daemon.ok(&["restore", "moved"]);
    let served = wait_until(SOON, || (stage.ask(&bottle, &[]).code == Some(0)).then_some(()));
    assert!(served.is_some());
    assert_eq!(other.billing_records().len(), 2);
}

#[test]
fn root_a_file_with_anything_wrong_in_it_is_not_taken_at_all() {
    let stage = Stage::new(Reply::default(), "budget: { claude: 1M }\n");
    let bottle = stage.bottle("safe", &[]);
    assert_eq!(stage.ask(&bottle, &[]).code, Some(0));
    let no_pem = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(&no_pem, "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").unwrap();
    let roots = format!("tls: {{ extra_roots: {} }}\n", no_pem.path().display());
    for (settings, words) in [
        ("hold: soon\n", "not a length of time"),
        (
            "listen: \"127.0.0.1:1\"\n",
            "listen cannot change while the daemon runs (from 127.0.0.1:0 to 127.0.0.1:1)",
        ),
        (roots.as_str(), "certificate 1 cannot be read"),
        ("budgets: {}\n", "did you mean \"budget\"?"),
    ] {
        stage.write_settings(&format!("budget: {{ claude: 1 }}\n{settings}"));
        let before = rows(&stage).len();
        let output = stage.daemon.cli(&["settings", "check", "--apply"]);
        assert_eq!(output.code, Some(2), "{output:?}");
        assert!(output.stderr.contains(words), "{words}: {}", output.stderr);
        hang_up(&stage);
        let both = wait_until(SOON, || Some(rows(&stage)).filter(|rows| rows.len() == before + 2));
        let both = both.expect("each is in the audit");
        let by: Vec<_> = both[before..].iter().map(|row| (&row["by"], &row["outcome"])).collect();
        assert_eq!(
            format!("{by:?}"),
            r#"[(String("uid:0"), String("failed")), (String("controller"), String("failed"))]"#
        );
        let status = stage.daemon.bottle("safe");
        assert_eq!(
            (&status["state"], &status["budget"]["claude"]["limit"]),
            (&"open".into(), &1_000_000.into())
        );
    }
    assert_eq!(stage.ask(&bottle, &[]).code, Some(0));
}
