//! What the kernel drops is told: to whoever follows the events, and in the audit, within bounds.
#![allow(clippy::unwrap_used, reason = "a failed expectation should stop the test where it stands")]
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use serde_json::{Value, json};
use support::clock::wait_until;
use support::control::Events;
use support::provider::Reply;
use support::sink::Sink;
use support::stage::{Sending, Stage};

const SOON: Duration = Duration::from_secs(10);

/// Rows that tell of drops for this cause, by its words.
fn rows(stage: &Stage, action: &str, words: &str) -> Vec<Value> {
    let has = |row: &Value| row["detail"].as_str().is_some_and(|detail| detail.contains(words));
    stage.audit("dropping", action).into_iter().filter(has).collect()
}

#[test]
fn root_drops_are_told_with_where_they_went_and_a_row_stands_for_many() {
    let stage = Stage::new(Reply::default(), "");
    let bottle = stage.bottle("dropping", &[]);
    let mut events = Events::follow(&stage.daemon);
    let sink = Sink::udp(IpAddr::V4(Ipv4Addr::LOCALHOST));
    stage.daemon.ok(&["cut", "dropping", "--reason", "watched"]);
    let figures = Sending::start(Some(&bottle.cgroup), "udp", sink.address(), 2_500).figures();
    let refused = figures["errors"]["EPERM"].as_u64().unwrap();

    let first = events.next("drop", |drop| drop["bottle"] == "dropping");
    let told = ["cause", "protocol", "address", "port", "suppressed"].map(|key| first[key].clone());
    assert_eq!(json!(told), json!(["cut", "udp", "127.0.0.1", sink.address().port(), 0]), "{first}");
    assert!(first["pid"].as_u64().is_some() && first["at"].as_str().is_some(), "{first}");
    let second = events.next("drop", |drop| drop["suppressed"].as_u64() > Some(0));
    assert!(second["suppressed"].as_u64().unwrap() < refused, "{second} of {refused}");

    let row = wait_until(SOON, || rows(&stage, "refuse", "the bottle is cut").pop()).unwrap();
    let detail = format!("udp of process {} to {} refused: the bottle is cut", first["pid"], sink.address());
    assert_eq!(json!([row["detail"], row["by"]]), json!([detail, "controller"]), "{row}");
    assert_eq!(row["cause"]["reason"], "watched", "a drop says why: {row}");
    assert_eq!(rows(&stage, "refuse", "the bottle is cut").len(), 1, "{refused} drops in less than a span");
    let printed = stage.daemon.ok(&["audit"]);
    assert!(printed.lines().any(|line| line.contains(&detail) && line.contains("watched")), "{printed}");
}

#[test]
fn root_what_a_rule_drops_and_what_the_lease_drops_is_told_apart() {
    let mut stage = Stage::new(Reply::default(), "lease: 1s\n");
    let bottle = stage.bottle("dropping", &["--egress", "allowlist"]);
    let mut events = Events::follow(&stage.daemon);
    let sink = Sink::udp(IpAddr::V4(Ipv4Addr::LOCALHOST));
    drop(Sending::start(Some(&bottle.cgroup), "udp", sink.address(), 100).figures());
    let told = events.next("drop", |drop| drop["bottle"] == "dropping");
    let told = ["cause", "protocol", "address", "port"].map(|key| told[key].clone());
    assert_eq!(json!(told), json!(["rule", "udp", "127.0.0.1", sink.address().port()]));
    assert!(wait_until(SOON, || rows(&stage, "refuse", "the rules do not").pop()).is_some());

    // told when there is a controller again: the kernel kept it
    let sending = Sending::start(Some(&bottle.cgroup), "udp", sink.address(), 2_000);
    stage.daemon.kill9();
    drop(sending.figures());
    let restarted = jiff::Timestamp::now();
    stage.daemon.restart();
    let row = wait_until(SOON, || rows(&stage, "lease", "longer than the lease").pop()).unwrap();
    let at: jiff::Timestamp = row["at"].as_str().unwrap().parse().unwrap();
    assert!(at >= restarted, "the row is written by the new controller: {row}");
    assert_eq!(rows(&stage, "lease", "longer than the lease").len(), 1, "one a span");
}
