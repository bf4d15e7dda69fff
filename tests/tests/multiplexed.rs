//! Many answers at once on one connection of HTTP/2, each ending in its own way: each is charged as it was billed.
#![allow(clippy::unwrap_used, reason = "a failed expectation should stop the test where it stands")]
use std::collections::HashMap;
use std::time::Duration;

use serde_json::Value;
use support::agent::{Answer, Ended};
use support::clock::wait_until;
use support::provider::{End, Record, Reply, Script};
use support::stage::Stage;

const SOON: Duration = Duration::from_secs(10);
const MANY: usize = 48;
/// Where the input that is billed begins: each request has its own, which tells them apart in the ledger.
const FIRST_INPUT: u64 = 1_000;

/// Answers that complete, break off, fail, and go on for seconds.
fn mixed() -> Script {
    Script::by(|asked| {
        let input = FIRST_INPUT + u64::try_from(asked.index).unwrap();
        let reply = match asked.index % 4 {
            0 => Reply { deltas: 3 + asked.index % 5, ..Reply::default() },
            1 => Reply { break_after: Some(9), ..Reply::paced(20, 8, Duration::from_millis(2)) },
            2 => Reply::error(529),
            _ => Reply::paced(200, 8, Duration::from_millis(10)),
        };
        Reply { input, ..reply }
    })
}

/// The flows of a bottle once all of them are settled, by their input.
fn settled(stage: &Stage, bottle: &str, many: usize) -> HashMap<u64, Vec<Value>> {
    let all_settled = || {
        let flows = stage.flows(bottle);
        (flows.len() == many && flows.iter().all(|flow| flow["status"] != "open")).then_some(flows)
    };
    let flows = wait_until(SOON, all_settled).unwrap_or_else(|| panic!("{:?}", stage.flows(bottle)));
    let mut by_input: HashMap<u64, Vec<Value>> = HashMap::new();
    for flow in flows {
        by_input.entry(flow["input"].as_u64().unwrap()).or_default().push(flow);
    }
    by_input
}

/// The provider's record of an answer, by the id that it gave it.
fn record_of<'a>(records: &'a [Record], answer: &Answer) -> &'a Record {
    let id = answer.header("request-id").unwrap().trim_start_matches("req_mock");
    &records[id.parse::<usize>().unwrap()]
}

fn prove(provider_by_http2: bool) {
    let script = if provider_by_http2 { mixed().offering_http2() } else { mixed() };
    let stage = Stage::over_tls(script, "");
    let bottle = stage.bottle("mixed", &[]);
    let many = MANY.to_string();
    let options = ["--stream", "--mode", "connect", "--http2", "--together", &many, "--take-back-ms", "700"];
    let asked = stage.ask(&bottle, &options);
    assert_eq!(asked.code, Some(0), "{asked:?}");

    let flows = settled(&stage, "mixed", MANY);
    let records = stage.provider.wait_for(|records| records.iter().all(|record| record.end.is_some()), SOON);
    assert_eq!(records.len(), MANY);
    assert!(records.iter().all(|record| record.http2 == provider_by_http2));
    let mut ends: HashMap<String, usize> = HashMap::new();
    for record in records.iter().filter(|record| record.status == 200) {
        let [flow] = &flows[&record.billed.input][..] else { panic!("settled more than once: {record:?}") };
        let status = flow["status"].as_str().unwrap();
        *ends.entry(status.to_owned()).or_default() += 1;
        let (charged, billed) = (flow["output"].as_u64().unwrap(), record.billed.output);
        match record.end.unwrap() {
            End::Completed => {
                assert_eq!((status, charged), ("completed", billed), "{flow}");
                assert_eq!(flow["provenance"], "reported");
            }
            End::Broken => {
                assert_eq!((status, &flow["provenance"]), ("upstream_broke", &"partial".into()), "{flow}");
                assert!(charged >= billed || provider_by_http2, "charged {charged} of {billed}");
            }
            // what the provider had written when it noticed may be more than what had reached the meter
            End::ClientGone => {
                assert_eq!((status, &flow["provenance"]), ("client_gone", &"partial".into()), "{flow}");
                assert!(charged + 8 * 2 >= billed, "charged {charged} of {billed}");
            }
        }
    }
    println!("{ends:?}");
    let kinds = ["completed", "upstream_broke", "client_gone"].map(|kind| ends[kind]);
    assert!(kinds[0] >= MANY / 4 && kinds[1] == MANY / 4 && kinds[2] > 0, "{ends:?}");
    assert_eq!(flows[&0].len(), MANY / 4, "what failed costs nothing");

    for answer in asked.answers.iter().filter(|answer| answer.status == 200) {
        let record = record_of(&records, answer);
        assert_eq!(answer.ended == Ended::Complete, record.end == Some(End::Completed), "{answer:?}");
        if answer.ended == Ended::Complete {
            assert_eq!(answer.body_sha256, record.response_sha256, "bytes are not touched");
        }
    }
}

#[test]
fn root_many_streams_at_once_are_each_charged_as_billed() {
    prove(true);
}

#[test]
fn root_many_streams_at_once_to_an_http1_upstream_are_each_charged_as_billed() {
    prove(false);
}

#[test]
fn root_a_crossing_cuts_every_stream_and_what_was_billed_is_charged() {
    let script = Script::by(|asked| {
        let input = 10 + u64::try_from(asked.index).unwrap();
        Reply { input, ..Reply::paced(2_000, 8, Duration::from_millis(5)) }
    });
    let stage = Stage::over_tls(script.offering_http2(), "");
    let bottle = stage.bottle("crossed", &["--budget", "claude=20000"]);
    let options = ["--stream", "--mode", "connect", "--http2", "--together", "12"];
    let asking = stage.start_asking(&bottle, &options);
    stage.daemon.wait_bottle("crossed", |bottle| bottle["state"] == "cut", SOON);
    let records = stage.provider.wait_for(|records| records.iter().all(|record| record.end.is_some()), SOON);
    assert_eq!(stage.provider.open_streams(), 0);
    let asked = asking.ended(SOON);
    assert!(asked.answers.iter().all(|answer| answer.ended != Ended::Complete), "{asked:?}");
    let flows = settled(&stage, "crossed", records.len());
    for record in &records {
        assert_eq!(record.end, Some(End::ClientGone));
        let [flow] = &flows[&record.billed.input][..] else { panic!("settled more than once: {record:?}") };
        assert_eq!((&flow["status"], &flow["provenance"]), (&"cut".into(), &"partial".into()), "{flow}");
    }
}

#[test]
fn root_streams_that_were_cut_silently_for_seconds_go_on_whole() {
    let script = Script::from(Reply::paced(300, 8, Duration::from_millis(10)));
    let stage = Stage::over_tls(script.offering_http2(), "");
    let bottle = stage.bottle("patient2", &[]);
    let options = ["--stream", "--mode", "connect", "--http2", "--together", "8"];
    let asking = stage.start_asking(&bottle, &options);
    let all_flow = |records: &[Record]| records.len() == 8 && records.iter().all(|r| r.billed.output > 200);
    stage.provider.wait_for(all_flow, SOON);
    stage.daemon.ok(&["cut", "patient2"]);
    std::thread::sleep(Duration::from_secs(3));
    stage.daemon.ok(&["restore", "patient2"]);
    // the far side's retransmission timer has backed off meanwhile
    let asked = asking.ended(Duration::from_secs(25));
    assert_eq!((asked.code, asked.answers.len()), (Some(0), 8), "{asked:?}");
    let records = stage.provider.billing_records();
    for answer in &asked.answers {
        assert_eq!(answer.ended, Ended::Complete);
        assert_eq!(
            answer.body_sha256,
            record_of(&records, answer).response_sha256,
            "not one byte is missing"
        );
    }
    for flow in stage.flows("patient2") {
        assert_eq!((&flow["status"], &flow["output"]), (&"completed".into(), &2_400.into()), "{flow}");
    }
}
