//! The silent cut as it is found later: by a stream that goes on after it, and by a new controller, whatever its ledger
//! says.
#![allow(clippy::unwrap_used, reason = "a failed expectation should stop the test where it stands")]
use std::net::Ipv4Addr;
use std::time::Duration;

use serde_json::{Value, json};
use support::clock::mono_ns;
use support::provider::Reply;
use support::stage::Stage;
use support::streams::{Stream, assert_nothing_came};

const SOON: Duration = Duration::from_secs(10);
/// How long it is watched that nothing comes.
const WATCHED: Duration = Duration::from_millis(400);

#[test]
fn root_a_stream_that_was_cut_for_five_seconds_goes_on_whole() {
    let stage = Stage::new(Reply::paced(300, 8, Duration::from_millis(10)), "");
    let bottle = stage.bottle("patient", &[]);
    let asking = stage.start_asking(&bottle, &["--stream"]);
    stage.provider.wait_for(|records| records.first().is_some_and(|r| r.billed.output > 200), SOON);
    stage.daemon.ok(&["cut", "patient"]);
    std::thread::sleep(Duration::from_secs(5));
    let restored = mono_ns();
    stage.daemon.ok(&["restore", "patient"]);
    // the far side's retransmission timer has backed off meanwhile
    let asked = asking.ended(Duration::from_secs(25));
    println!("the stream was whole {} ms after the restore", (mono_ns() - restored) / 1_000_000);
    assert_eq!(asked.code, Some(0), "{asked:?}");
    let record = &stage.provider.billing_records()[0];
    assert_eq!(asked.one().body_sha256, record.response_sha256, "not one byte is missing or changed");
    let flow = stage.flows("patient").pop().unwrap();
    let told = ["provenance", "status", "output"].map(|key| flow[key].clone());
    assert_eq!(json!(told), json!(["reported", "completed", 2_400]), "{flow}");
}

/// What a new controller says of a bottle that it found cut.
fn row_of_start(stage: &Stage, bottle: &str) -> Value {
    let mut rows = stage.audit(bottle, "cut").into_iter();
    rows.rfind(|row| row["by"] == "controller").unwrap_or_default()
}

#[test]
fn root_where_ledger_and_kernel_disagree_the_more_closed_wins_and_the_audit_says_so() {
    let mut stage = Stage::new(Reply::default(), "lease: off\n");
    let (told, found) = (stage.bottle("told", &[]), stage.bottle("found", &[]));
    stage.daemon.ok(&["cut", "found"]);
    stage.daemon.stop();
    // the ledger is made to say the opposite of the kernel, of both
    let ledger = rusqlite::Connection::open(stage.daemon.state_dir().join("bot-bottle.db")).unwrap();
    let swap = "UPDATE bottles SET cause_json = CASE name WHEN 'told' THEN \
                (SELECT cause_json FROM bottles WHERE name = 'found') END";
    assert_eq!(ledger.execute(swap, []).unwrap(), 2);
    drop(ledger);
    stage.daemon.restart();
    for (bottle, words) in [(&told, "the kernel let it pass"), (&found, "found cut in the kernel")] {
        let status = stage.daemon.bottle(&bottle.name);
        assert_eq!(status["state"], "cut", "{status}");
        let row = row_of_start(&stage, &bottle.name);
        assert!(row.to_string().contains(words), "{}: {row}", bottle.name);
        let stream = Stream::start(&bottle.cgroup, "udp", Ipv4Addr::LOCALHOST.into());
        assert_nothing_came(&[stream], 0, WATCHED, &bottle.name);
    }
}
