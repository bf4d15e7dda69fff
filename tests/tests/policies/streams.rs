//! A freeze in the middle of a stream: an operator's keeps it for a thaw, a budget's ends it upstream at once.
use std::process::Stdio;
use std::time::Duration;

use serde_json::json;
use support::clock::mono_ns;
use support::process;
use support::provider::{End, Reply};
use support::stage::Stage;

use crate::{SOON, Ticking, events, row};

#[test]
fn root_a_stream_that_was_frozen_for_five_seconds_completes_after_the_thaw() {
    let stage = Stage::new(Reply::paced(300, 8, Duration::from_millis(10)), "");
    let bottle = stage.bottle("patient", &[]);
    let ticking = Ticking::start(&bottle.cgroup);
    let asking = stage.start_asking(&bottle, &["--stream"]);
    stage.provider.wait_for(|records| records.first().is_some_and(|r| r.billed.output > 200), SOON);
    assert_eq!(stage.daemon.ok(&["freeze", "patient", "--reason", "lunch"]), "patient: frozen\n");
    assert!(events(bottle.cgroup.path(), "frozen 1"));
    let status = stage.daemon.bottle("patient");
    let told = ["state", "face"].map(|key| status[key].clone());
    assert_eq!(json!(told), json!(["frozen", "silent"]), "{status}");
    ticking.assert_still();
    std::thread::sleep(Duration::from_secs(5));
    let thawed = mono_ns();
    assert_eq!(stage.daemon.ok(&["thaw", "patient"]), "patient: open\n");
    ticking.assert_ticks();
    // the far side's retransmission timer has backed off meanwhile
    let asked = asking.ended(Duration::from_secs(25));
    println!("the stream was whole {} ms after the thaw", (mono_ns() - thawed) / 1_000_000);
    assert_eq!(asked.code, Some(0), "{asked:?}");
    let record = &stage.provider.billing_records()[0];
    assert_eq!(asked.one().body_sha256, record.response_sha256, "not one byte is missing or changed");
    let flow = stage.flows("patient").pop().unwrap();
    let told = ["provenance", "status", "output"].map(|key| flow[key].clone());
    assert_eq!(json!(told), json!(["reported", "completed", 2_400]), "{flow}");
    for action in ["freeze", "thaw"] {
        let row = row(&stage, "patient", action, 1);
        assert_eq!((row["by"].as_str(), row["outcome"].as_str()), (Some("uid:0"), Some("done")), "{row}");
        println!("{action}: {} us", row["took_us"]);
    }
}

#[test]
fn root_a_budget_s_freeze_closes_upstream_at_once_and_a_restore_thaws() {
    let stage = Stage::new(Reply::paced(20_000, 8, Duration::from_millis(2)), "");
    let bottle = stage.bottle("spent", &["--budget", "claude=600", "--policy", "freeze"]);
    let ticking = Ticking::start(&bottle.cgroup);
    let asking = stage.start_asking(&bottle, &["--stream"]);
    let frozen = stage.daemon.wait_bottle("spent", |bottle| bottle["state"] == "frozen", SOON);
    assert_eq!((&frozen["cause"]["kind"], &frozen["policy"]), (&json!("budget"), &json!("freeze")));
    let record = stage.provider.wait_for(|records| records[0].end.is_some(), SOON).remove(0);
    assert_eq!(record.end, Some(End::ClientGone));
    row(&stage, "spent", "freeze", 1);
    ticking.assert_still();

    // its processes may go on without a network; a thaw takes back no cut of a budget
    let thawed = stage.daemon.cli(&["thaw", "spent"]);
    assert_eq!((thawed.code, thawed.stdout.as_str()), (Some(0), "spent: cut\n"));
    assert!(thawed.stderr.contains("go on without a network"), "{}", thawed.stderr);
    ticking.assert_ticks();
    stage.daemon.ok(&["freeze", "spent"]);
    ticking.assert_still();
    assert_eq!(stage.daemon.cli(&["restore", "spent"]).code, Some(4), "its budget is used up");
    ticking.assert_still();
    stage.daemon.ok(&["restore", "spent", "--add", "claude=10M"]);
    ticking.assert_ticks();
    assert_eq!(stage.daemon.bottle("spent")["state"], "open");
    asking.hang_up();
}

/// While it stood still nobody would have read an answer; from now on somebody does.
#[test]
fn root_whom_a_budget_froze_hears_why_once_it_is_thawed() {
    let stage = Stage::new(Reply::paced(20_000, 8, Duration::from_millis(2)), "");
    let bottle = stage.bottle("told", &["--budget", "claude=600", "--policy", "freeze"]);
    let ticking = Ticking::start(&bottle.cgroup);
    let asking = stage.start_asking(&bottle, &["--stream"]);
    let frozen = stage.daemon.wait_bottle("told", |bottle| bottle["state"] == "frozen", SOON);
    assert_eq!(frozen["face"], "silent");
    row(&stage, "told", "freeze", 1);
    // an operator's freeze over it changes nothing of that
    stage.daemon.ok(&["freeze", "told", "--reason", "lunch"]);

    let thawed = stage.daemon.cli(&["thaw", "told"]);
    assert_eq!((thawed.code, thawed.stdout.as_str()), (Some(0), "told: cut\n"));
    let way = "enforcer restore told opens it, or says what that takes";
    assert!(thawed.stderr.contains("of 600 claude tokens used") && thawed.stderr.contains(way), "{thawed:?}");
    let takes = stage.daemon.cli(&["restore", "told"]);
    assert!(takes.code == Some(4) && takes.stderr.contains("restore told --add claude=TOKENS"), "{takes:?}");
    assert_eq!(stage.daemon.bottle("told")["face"], "answered");
    ticking.assert_ticks();
    println!("its stream: {}", asking.complaint(SOON));
    let asked = stage.ask(&bottle, &["--stream"]);
    assert!(asked.one().refusal().is_some_and(|why| why.contains("of 600 claude tokens")), "{asked:?}");
    assert_eq!(stage.provider.records().len(), 1, "the provider saw no further request");

    stage.daemon.ok(&["restore", "told", "--add", "claude=10M"]);
    assert_eq!(stage.daemon.bottle("told")["state"], "open");
}

#[test]
fn root_a_thaw_below_a_frozen_bottle_says_so() {
    let stage = Stage::new(Reply::default(), "");
    let outer = stage.bottle("outer", &[]);
    let inner = outer.cgroup.child("inner");
    let path = inner.path().display().to_string();
    stage.daemon.ok(&["attach", "inner", "--cgroup", &path]);
    let ticking = Ticking::start(&inner);
    for name in ["outer", "inner"] {
        stage.daemon.ok(&["freeze", name]);
    }
    let thawed = stage.daemon.cli(&["thaw", "inner"]);
    assert_eq!((thawed.code, thawed.stdout.as_str()), (Some(0), "inner: frozen\n"));
    assert!(thawed.stderr.contains("a bottle around it is frozen (by uid:0)"), "{thawed:?}");
    ticking.assert_still();
    stage.daemon.ok(&["thaw", "outer"]);
    ticking.assert_ticks();
    stage.daemon.ok(&["detach", "inner"]);
}

#[test]
fn root_a_freeze_and_a_thaw_leave_a_budget_s_cut_as_it_was() {
    let stage = Stage::new(Reply::default(), "budget: { claude: 60 }\n");
    let bottle = stage.bottle("spent", &[]);
    drop(stage.ask(&bottle, &["--stream"]));
    let cut = stage.daemon.wait_bottle("spent", |bottle| bottle["face"] == "answered", SOON);
    stage.daemon.ok(&["freeze", "spent"]);
    assert_eq!(stage.daemon.bottle("spent")["face"], "silent");
    assert_eq!(stage.daemon.ok(&["thaw", "spent"]), "spent: cut\n");
    assert_eq!(stage.daemon.bottle("spent")["cause"], cut["cause"]);
    let asked = stage.ask(&bottle, &["--stream"]);
    assert!(asked.one().refusal().is_some_and(|why| why.contains("60 claude tokens")), "{asked:?}");
    stage.daemon.ok(&["budget", "add", "global", "claude=1M"]);
    assert_eq!(stage.daemon.bottle("spent")["state"], "open", "more tokens open it, as without the freeze");
    assert_eq!(stage.ask(&bottle, &["--stream"]).code, Some(0));
}

/// Nothing but the budget and the freeze closes it, and both are ended.
#[test]
fn root_a_thaw_beside_more_tokens_opens() {
    let stage = Stage::new(Reply::default(), "budget: { claude: 1M }\n");
    let bottle = stage.bottle("both", &[]);
    assert_eq!(stage.ask(&bottle, &["--stream"]).code, Some(0));
    for round in 0..20 {
        stage.daemon.ok(&["budget", "set", "global", "claude=1"]);
        stage.daemon.ok(&["freeze", "both"]);
        let mut orders = [["thaw", "both"].as_slice(), &["budget", "add", "global", "claude=1M"]];
        if round % 2 == 0 {
            orders.reverse();
        }
        let mut operators = orders.map(|words| {
            let mut command = stage.daemon.command();
            command.args(words).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
        });
        for operator in &mut operators {
            assert_eq!(process::exit_within(operator, SOON), Some(Some(0)), "round {round}");
        }
        let status = stage.daemon.bottle("both");
        assert_eq!(status["state"], "open", "round {round}: {status}");
    }
}

/// Whatever the order in which they come, what the daemon says is what the kernel does, and each is audited.
#[test]
fn root_operators_who_act_at_once_leave_one_state() {
    let stage = Stage::new(Reply::default(), "");
    let bottle = stage.bottle("busy", &[]);
    let ticking = Ticking::start(&bottle.cgroup);
    for round in 0..5 {
        let verbs = ["freeze", "thaw", "restore", "cut", "freeze", "thaw"];
        let mut operators: Vec<_> = verbs
            .map(|verb| {
                let mut command = stage.daemon.command();
                command.args([verb, "busy"]).stdout(Stdio::null()).stderr(Stdio::null());
                command.spawn().unwrap()
            })
            .into();
        for operator in &mut operators {
            assert!(process::exit_within(operator, SOON).flatten().is_some(), "round {round}");
        }
        let frozen = stage.daemon.bottle("busy")["state"] == "frozen";
        assert_eq!(events(bottle.cgroup.path(), "frozen 1"), frozen, "round {round}");
    }
    assert_eq!(stage.audit("busy", "freeze").len(), 10, "each freeze is done");
    stage.daemon.ok(&["restore", "busy"]);
    ticking.assert_ticks();
}

#[test]
fn root_what_cannot_be_held_is_refused_and_a_detach_leaves_nobody_frozen() {
    let stage = Stage::new(Reply::default(), "");
    let bottle = stage.bottle("still", &[]);
    let ticking = Ticking::start(&bottle.cgroup);
    for (words, code, said) in [
        (["thaw", "still"], 4, "still is not frozen"),
        (["freeze", "nobody"], 2, "there is no bottle nobody"),
        (["kill", "still"], 4, "no terminal to ask at"),
        (["detach", "still"], 4, "still is cut"),
    ] {
        if words[0] == "detach" {
            stage.daemon.ok(&["freeze", "still"]);
        }
        let output = stage.daemon.cli(&words);
        assert_eq!(output.code, Some(code), "{output:?}");
        assert!(output.stderr.contains(said), "{words:?}: {}", output.stderr);
    }
    ticking.assert_still();
    stage.daemon.ok(&["detach", "still", "--force"]);
    ticking.assert_ticks();
}
