//! The lease: bottles lose their way out by themselves when the controller is silent for too long, and not before.
#![allow(clippy::unwrap_used, reason = "a failed expectation should stop the test where it stands")]
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use serde_json::{Value, json};
use support::clock::{mono_ns, wait_until};
use support::process::Stopped;
use support::provider::Reply;
use support::sink::Sink;
use support::stage::{Bottle, Sending, Stage};

const LEASE: Duration = Duration::from_secs(1);
/// Between two heartbeats there is a tenth of a second, and the kernel's coarse clock ticks every few milliseconds; a
/// busy machine beats later, never earlier.
const BEAT: Duration = Duration::from_millis(100);
const TICKS: Duration = Duration::from_millis(20);
/// A machine under other tests' load may let the controller wait this long.
const SLACK: Duration = Duration::from_millis(300);
const SOON: Duration = Duration::from_secs(10);

fn stage() -> (Stage, Bottle) {
    let stage = Stage::new(Reply::default(), "lease: 1s");
    let bottle = stage.bottle("leased", &[]);
    (stage, bottle)
}

/// What the controller says of its own silence; rows that name a bottle tell what was dropped in it.
fn lease_rows(stage: &Stage) -> Vec<Value> {
    let rows = stage.daemon.json_lines(&["audit"]).into_iter();
    rows.filter(|row| row["action"] == "lease" && row["bottle"].is_null()).collect()
}

/// The bottle sends while `event` happens; when the last datagram before the silence came in, after the event began,
/// and what the sender was told.
fn sending_through(bottle: &Bottle, for_ms: u64, event: impl FnOnce()) -> (Duration, Value) {
    let sink = Sink::udp(IpAddr::V4(Ipv4Addr::LOCALHOST));
    let sending = Sending::start(Some(&bottle.cgroup), "udp", sink.address(), for_ms);
    wait_until(SOON, || (sink.bytes() > 0).then_some(())).expect("an open bottle sends");
    let began = mono_ns();
    event();
    let figures = sending.figures();
    let receipts = sink.receipts();
    let gap = receipts.windows(2).find(|pair| pair[1].at_ns - pair[0].at_ns > 200_000_000);
    let last = gap.map_or(receipts.last().unwrap().at_ns, |pair| pair[0].at_ns);
    (Duration::from_nanos(last - began), figures)
}

fn assert_ran_out_in_time(passed_for: Duration) {
    assert!(passed_for <= LEASE + TICKS, "open for {passed_for:?} after the last heartbeat");
    assert!(passed_for >= LEASE - BEAT - SLACK, "closed after {passed_for:?} already");
}

#[test]
fn root_a_killed_controller_closes_its_bottles_at_the_limit_and_a_new_one_opens_them() {
    let (mut stage, bottle) = stage();
    assert_eq!(stage.daemon.json(&["status"])["daemon"]["kernel"]["lease_s"], 1);
    let (passed_for, figures) = sending_through(&bottle, 2_500, || stage.daemon.kill9());
    assert_ran_out_in_time(passed_for);
    assert!(figures["errors"]["EPERM"].as_u64().unwrap() > 0, "calls are refused at once: {figures}");

    stage.daemon.restart();
    let (_, figures) = sending_through(&bottle, 300, || {});
    assert_eq!(figures["errors"], json!({}), "the new controller's heart beats");
    let rows = lease_rows(&stage);
    assert_eq!(rows.len(), 1, "{rows:#?}");
    assert_eq!(rows[0]["outcome"], "failed");
    assert!(rows[0]["detail"].as_str().unwrap().starts_with("no controller ran for "), "{rows:#?}");
}

#[test]
fn root_a_controller_that_stands_still_keeps_its_bottles_below_the_limit_and_none_above_it() {
    let (stage, bottle) = stage();
    let pid = stage.daemon.pid();
    let (_, figures) = sending_through(&bottle, 1_500, || {
        let _stopped = Stopped::now(pid);
        std::thread::sleep(LEASE - BEAT - SLACK);
    });
    assert_eq!(figures["errors"], json!({}), "still below the limit");
    assert_eq!(lease_rows(&stage), Vec::<Value>::new());

    let (passed_for, figures) = sending_through(&bottle, 3_500, || {
        let _stopped = Stopped::now(pid);
        std::thread::sleep(2 * LEASE);
    });
    assert_ran_out_in_time(passed_for);
    assert!(figures["errors"]["EPERM"].as_u64().unwrap() > 0, "{figures}");
    let came_back = figures["last_ok_ns"].as_u64() > figures["last_error_ns"].as_u64();
    assert!(came_back, "the next heartbeat opens them: {figures}");
    let rows = lease_rows(&stage);
    assert_eq!(rows.len(), 1, "{rows:#?}");
    assert!(rows[0]["detail"].as_str().unwrap().starts_with("the controller was held up for "), "{rows:#?}");
}

#[test]
fn root_a_ledger_that_does_not_answer_closes_the_gate_and_no_bottle() {
    let (stage, bottle) = stage();
    assert_eq!(stage.ask(&bottle, &["--stream"]).code, Some(0));
    let ledger = rusqlite::Connection::open(stage.daemon.state_dir().join("bot-bottle.db")).unwrap();
    ledger.execute_batch("BEGIN EXCLUSIVE").unwrap();
    let waiting = stage.start_asking(&bottle, &["--stream"]);
    let (_, figures) = sending_through(&bottle, 3_000, || {});
    assert_eq!(figures["errors"], json!({}), "three leases long, and the disk was not waited for");
    ledger.execute_batch("ROLLBACK").unwrap();
    let asked = waiting.ended(SOON);
    assert_eq!(asked.code, Some(0), "a bounded wait: {asked:?}");
    assert_eq!(lease_rows(&stage), Vec::<Value>::new());
}
