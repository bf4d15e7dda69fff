//! What passes is not touched, and what is charged is what the provider billed: every way in, every API, every coding.
#![allow(clippy::unwrap_used, reason = "a failed expectation should stop the test where it stands")]
use std::time::Duration;

use serde_json::{Value, json};
use support::agent::{Answer, Ended};
use support::books::{assert_settled, assert_untouched, charged};
use support::clock::wait_until;
use support::encoding::Encoding;
use support::enforcer::Daemon;
use support::provider::{Billed, End, Finish, Framing, Provider, Record, Reply, Script};
use support::stage::{Bottle, Stage};

const SOON: Duration = Duration::from_secs(10);

/// An agent's options for each API, streamed; a JSON answer leaves the last ones out.
const APIS: [(&str, &[&str], &[&str]); 3] = [
    ("messages", &["--provider", "claude"], &["--stream"]),
    ("responses", &["--provider", "codex"], &["--stream"]),
    ("chat", &["--provider", "codex", "--api", "chat"], &["--stream", "--include-usage"]),
];
/// Those of other providers.
const OTHER_APIS: [(&str, &[&str], &[&str]); 3] = [
    ("gemini", &["--provider", "gemini"], &["--stream"]),
    ("invoke", &["--provider", "bedrock"], &["--stream"]),
    ("converse", &["--provider", "bedrock", "--api", "converse"], &["--stream"]),
];
const MODES: [&str; 2] = ["gateway", "connect"];
/// The same in either protocol.
const WAYS: [&[&str]; 4] = [
    &["--mode", "gateway"],
    &["--mode", "connect"],
    &["--mode", "gateway", "--http2"],
    &["--mode", "connect", "--http2"],
];
const ENCODINGS: [Option<&str>; 4] = [None, Some("gzip"), Some("br"), Some("zstd")];

/// One combination.
struct Row {
    name: String,
    args: Vec<String>,
}

fn rows(modes: &[&str]) -> Vec<Row> {
    let mut rows = Vec::new();
    for (api, options, streamed) in APIS {
        for mode in modes {
            for stream in [true, false] {
                for encoding in ENCODINGS {
                    let mut args = [options, &["--mode", mode]].concat();
                    args.extend(if stream { streamed } else { &[] });
                    let coding = encoding.map(|coding| format!("accept-encoding={coding}"));
                    args.extend(coding.iter().flat_map(|coding| ["--header", coding]));
                    let name = format!("{api} {mode} stream={stream} {encoding:?}");
                    rows.push(Row { name, args: args.into_iter().map(str::to_owned).collect() });
                }
            }
        }
    }
    rows
}

/// Every class of token, another bill for each request, and a coding when one is accepted.
fn varied() -> Script {
    Script::by(|asked| {
        let codings = [Encoding::Gzip, Encoding::Brotli, Encoding::Zstd];
        let nth = u64::try_from(asked.index).unwrap();
        Reply {
            input: 100 + nth,
            // only Anthropic bills it apart
            cache_write: if asked.path == "/v1/messages" { 7 } else { 0 },
            cache_read: 1000 + nth,
            // Anthropic does not tell it
            reasoning: if asked.path == "/v1/messages" { 0 } else { 11 },
            deltas: 3 + asked.index % 5,
            // ENCODINGS in their order; the first is none
            encoding: (asked.index % 4).checked_sub(1).map(|coding| codings[coding]),
            ..Reply::default()
        }
    })
}

/// Asks once for each row and holds bytes, flows and sums against the provider's books.
fn prove(stage: &Stage, rows: &[Row]) {
    let bottle = stage.bottle("table", &[]);
    let answers = rows.iter().map(|row| {
        let args: Vec<&str> = row.args.iter().map(String::as_str).collect();
        let asked = stage.ask(&bottle, &args);
        assert_eq!(asked.code, Some(0), "{}: {asked:?}", row.name);
        asked.one().clone()
    });
    let answers: Vec<Answer> = answers.collect();
    // no wait: the end of an answer comes after its settlement
    let flows = stage.flows("table");
    let records = stage.provider.billing_records();
    assert_eq!((flows.len(), records.len()), (rows.len(), rows.len()));
    for (((row, answer), flow), record) in rows.iter().zip(&answers).zip(&flows).zip(&records) {
        assert_untouched(&row.name, answer, record);
        assert_eq!(answer.http2, row.args.iter().any(|arg| arg == "--http2"), "{}: its protocol", row.name);
        assert_settled(&row.name, flow, record);
        let coded = answer.header("content-encoding").map_or("None".to_owned(), |c| format!("Some({c:?})"));
        assert!(row.name.ends_with(&coded), "{}: coded as {coded}", row.name);
    }
    assert_sums(stage, &bottle);
    println!("{} exchanges, {} tokens billed and charged", rows.len(), stage.provider.billed_total().total());
}

fn assert_sums(stage: &Stage, bottle: &Bottle) {
    let rows = stage.daemon.json(&["usage"]);
    let sum = rows.as_array().unwrap().iter().fold(Billed::default(), |sum, row| sum.plus(charged(row)));
    assert_eq!(sum, stage.provider.billed_total(), "the ledger is the bill");
    let usage = &stage.daemon.bottle(&bottle.name)["usage"];
    let totals: u64 = ["claude", "codex"].iter().map(|of| usage[of]["total"].as_u64().unwrap()).sum();
    assert_eq!(totals, sum.total(), "status says the same: {usage}");
}

#[test]
fn root_gateway_to_a_plain_upstream_is_metered_by_the_bill() {
    prove(&Stage::new(varied(), ""), &rows(&MODES[..1]));
}

#[test]
fn root_either_protocol_to_an_http2_upstream_is_metered_by_the_bill() {
    let stage = Stage::over_tls(varied().offering_http2(), "");
    let mut all = rows(&MODES);
    let by_http2 = rows(&MODES).into_iter().map(|row| Row {
        name: format!("HTTP/2 {}", row.name),
        args: row.args.into_iter().chain(["--http2".to_owned()]).collect(),
    });
    all.extend(by_http2);
    prove(&stage, &all);
    assert!(stage.provider.records().iter().all(|record| record.http2), "the provider is reached by HTTP/2");
}

#[test]
fn root_http2_to_an_http1_upstream_is_metered_by_the_bill() {
    let stage = Stage::new(varied(), "");
    let mut all = rows(&MODES);
    all.iter_mut().for_each(|row| row.args.push("--http2".to_owned()));
    prove(&stage, &all);
}

#[test]
fn root_gateway_and_connect_to_a_tls_upstream_are_metered_by_the_bill() {
    let stage = Stage::over_tls(varied(), "");
    prove(&stage, &rows(&MODES));
    let records = stage.provider.records();
    assert!(records.iter().all(|record| record.tls && !record.http2), "the provider is reached over TLS");
}

#[test]
fn root_odd_framing_passes_untouched_and_is_read() {
    let odd = [
        Framing { crlf: true, ..Framing::default() },
        Framing { comments: true, tight: true, ..Framing::default() },
        Framing { bom: true, split_bytes: Some(1), ..Framing::default() },
        Framing { crlf: true, split_bytes: Some(7), ..Framing::default() },
        Framing { swap_length: true, ..Framing::default() },
    ];
    let replies = odd.map(|framing| Reply { framing, deltas: 3, ..Reply::default() });
    let stage = Stage::new(Script::by(move |asked| replies[asked.index % replies.len()].clone()), "");
    let mut table = Vec::new();
    for (api, options, streamed) in APIS {
        for framing in odd {
            let args = [options, streamed].concat();
            let args = args.into_iter().map(str::to_owned).collect();
            table.push(Row { name: format!("{api} {framing:?} None"), args });
        }
    }
    prove(&stage, &table);
}

#[test]
fn root_requests_pass_untouched() {
    let stage = Stage::new(Reply::default(), "");
    let bottle = stage.bottle("sent", &[]);
    for (api, options, streamed) in APIS {
        let args = [options, streamed, &["--prompt-bytes", "300000"]].concat();
        assert_eq!(stage.ask(&bottle, &args).code, Some(0), "{api}");
        let base = format!("{}{}", stage.provider.http_url(), if api == "messages" { "" } else { "/v1" });
        let direct = stage.ask(&bottle, &[&args[..], &["--base-url", &base]].concat());
        assert_eq!(direct.code, Some(0), "{direct:?}");
        let records = stage.provider.billing_records();
        let [metered, direct] = &records[records.len() - 2..] else { panic!("two requests") };
        assert_eq!(metered.request_sha256, direct.request_sha256, "{api}: the body");
        let own = |record: &Record| {
            let headers = record.headers.iter().filter(|(name, _)| name != "host");
            headers.cloned().collect::<std::collections::BTreeSet<_>>()
        };
        assert_eq!(own(metered), own(direct), "{api}: the headers");
    }
}

#[test]
fn root_a_chat_stream_is_asked_for_its_usage_and_the_client_does_not_see_that() {
    let stage = Stage::new(Reply::default(), "");
    let bottle = stage.bottle("chat", &[]);
    // answers differ by their number alone: this provider's first is what the other's first is
    let unasked = Provider::start(Reply::default());
    let base = format!("{}/v1", unasked.http_url());
    let chat = ["--provider", "codex", "--api", "chat", "--stream", "--header", "accept-encoding=gzip"];
    let direct = stage.ask(&bottle, &[&chat[..], &["--base-url", &base]].concat());
    let asked = stage.ask(&bottle, &chat);
    let (answer, direct) = (asked.one(), direct.one());
    assert_eq!((&answer.ended, &answer.usage), (&Ended::Complete, &None), "the client did not ask for it");
    assert_eq!((answer.body_bytes, &answer.body_sha256), (direct.body_bytes, &direct.body_sha256));
    let record = &stage.provider.billing_records()[0];
    assert_settled("chat", &stage.flows("chat")[0], record);
    assert_eq!(record.header("accept-encoding"), Some("identity"), "such an answer alone can be changed");
    let length = record.header("content-length").unwrap();
    assert_eq!(length.parse(), Ok(record.request_bytes));
    assert_eq!(stage.audit("chat", "meter"), Vec::<Value>::new());
}

#[test]
fn root_a_provider_that_is_not_to_be_asked_is_estimated_and_said_so() {
    let provider = Provider::start(Reply::default());
    let settings = format!(
        "providers: {{ codex: {{ upstream: \"{}\", include_usage: false }} }}\n",
        provider.http_url()
    );
    let stage = Stage { daemon: Daemon::start(&settings), provider };
    let bottle = stage.bottle("chat", &[]);
    let asked = stage.ask(&bottle, &["--provider", "codex", "--api", "chat", "--stream"]);
    let record = &stage.provider.billing_records()[0];
    assert_untouched("chat", asked.one(), record);
    assert_eq!(asked.one().usage, None);
    let flow = &stage.flows("chat")[0];
    assert_eq!(flow["provenance"], "estimated", "{flow}");
    assert!(flow["output"].as_u64().unwrap() >= record.billed.output, "the safe side: {flow}");
    assert!(wait_until(SOON, || stage.audit("chat", "meter").pop()).is_some(), "the audit says so");
}

#[test]
fn root_a_server_that_does_not_know_the_question_is_named_in_the_audit() {
    let stage = Stage::new(Reply::error(400), "");
    let bottle = stage.bottle("old", &[]);
    let asked = stage.ask(&bottle, &["--provider", "codex", "--api", "chat", "--stream"]);
    assert_eq!(asked.one().status, 400, "its word passes: {asked:?}");
    let row = wait_until(SOON, || stage.audit("old", "meter").pop()).expect("a row of the audit");
    assert!(row["detail"].as_str().unwrap().contains("set providers.codex.include_usage to false"), "{row}");
}

#[test]
fn root_errors_of_the_provider_pass_and_charge_nothing() {
    let statuses = [429, 500, 529];
    let replies = statuses.map(Reply::error);
    let stage = Stage::new(Script::by(move |asked| replies[asked.index % replies.len()].clone()), "");
    let bottle = stage.bottle("errors", &[]);
    for (_, options, streamed) in APIS {
        for status in statuses {
            let asked = stage.ask(&bottle, &[options, streamed].concat());
            let answer = asked.one();
            let record = stage.provider.billing_records().pop().unwrap();
            assert_eq!(answer.status, status, "{asked:?}");
            assert_untouched(&format!("{status}"), answer, &record);
        }
    }
    let flows = stage.flows("errors");
    assert_eq!(flows.len(), 9);
    for flow in &flows {
        assert_eq!((&flow["total"], &flow["status"]), (&json!(0), &json!("upstream_error")), "{flow}");
    }
}

#[test]
fn root_a_finish_at_the_limit_is_reported_and_a_failure_inside_a_200_is_partial() {
    let finishes = [Finish::Length, Finish::Failed];
    let replies = finishes.map(|finish| Reply { finish, ..Reply::default() });
    let stage = Stage::new(Script::by(move |asked| replies[asked.index % 2].clone()), "");
    let bottle = stage.bottle("finish", &[]);
    for (api, options, streamed) in APIS {
        for finish in finishes {
            let asked = stage.ask(&bottle, &[options, streamed].concat());
            let record = stage.provider.billing_records().pop().unwrap();
            assert_untouched(&format!("{api} {finish:?}"), asked.one(), &record);
            let flow = stage.flows("finish").pop().unwrap();
            if finish == Finish::Length {
                assert_settled(api, &flow, &record);
            } else {
                assert!(flow["total"].as_u64().unwrap() >= record.billed.total(), "{api}: {flow} {record:?}");
            }
        }
    }
}

/// The newest flow, once it is settled: an answer that breaks does not wait for that.
fn last_settled(stage: &Stage, bottle: &str) -> Value {
    let settled = wait_until(SOON, || stage.flows(bottle).pop().filter(|flow| flow["status"] != "open"));
    settled.unwrap_or_else(|| panic!("not settled: {:?}", stage.flows(bottle)))
}

#[test]
fn root_the_reason_of_a_provider_that_breaks_off_arrives() {
    // every event, an error the last of them, and then no end of the body
    let reply = Reply { finish: Finish::Failed, break_after: Some(1_000), ..Reply::default() };
    let stage = Stage::over_tls(reply, "");
    let bottle = stage.bottle("reason", &[]);
    for (api, options, streamed) in APIS {
        for way in WAYS {
            let asked = stage.ask(&bottle, &[options, streamed, way].concat());
            let answer = asked.one();
            let record = stage.provider.billing_records().pop().unwrap();
            assert!(answer.error.is_some(), "{api} {way:?}: {asked:?}");
            assert_eq!(
                answer.body_sha256, record.response_sha256,
                "{api} {way:?}: all that was sent arrived"
            );
            let charged = last_settled(&stage, "reason")["output"].as_u64().unwrap();
            assert!(charged >= record.billed.output, "{api} {way:?}: {charged}");
        }
    }
}

#[test]
fn root_a_stream_that_the_provider_breaks_is_partial_and_seen_as_broken() {
    // the last deltas are missing, and the usage with them
    let reply =
        Reply { break_after: Some(9), pace: Duration::from_millis(2), deltas: 20, ..Reply::default() };
    let stage = Stage::over_tls(reply, "");
    let bottle = stage.bottle("broken", &[]);
    for (api, options, streamed) in APIS {
        for way in WAYS {
            let asked = stage.ask(&bottle, &[options, streamed, way].concat());
            let what = format!("{api} {way:?}");
            assert_eq!(asked.code, Some(4), "{what}: {asked:?}");
            let answer = asked.one();
            assert!(matches!(answer.ended, Ended::Broken(_)), "{what}: {answer:?}");
            let record = stage.provider.billing_records().pop().unwrap();
            assert_eq!(record.end, Some(End::Broken));
            assert_eq!(answer.body_sha256, record.response_sha256, "{what}: all that was sent arrived");
            let flow = last_settled(&stage, "broken");
            assert_eq!(flow["status"], "upstream_broke", "{what}: {flow}");
            // Anthropic states the input at the start; the others have said nothing when they break
            let word = if api == "messages" { "partial" } else { "estimated" };
            assert_eq!(flow["provenance"], word, "{what}: {flow}");
            let (charged, sent) = (flow["output"].as_u64().unwrap(), record.billed.output);
            assert!(charged >= sent, "{what}: charged {charged} output tokens, {sent} were sent: {flow}");
        }
    }
}

#[test]
fn root_a_client_that_hangs_up_closes_upstream_and_is_charged() {
    let reply = Reply::paced(500, 8, Duration::from_millis(10));
    let stage = Stage::over_tls(reply, "");
    let bottle = stage.bottle("gone", &[]);
    for (api, options, streamed) in APIS.into_iter().chain(OTHER_APIS) {
        for way in WAYS {
            let before = stage.provider.records().len();
            let asking = stage.start_asking(&bottle, &[options, streamed, way].concat());
            let flowing = |records: &[Record]| records.get(before).is_some_and(|r| r.billed.output > 80);
            stage.provider.wait_for(flowing, SOON);
            let left = support::clock::mono_ns();
            asking.hang_up();
            let ended = |records: &[Record]| records[before].end.is_some();
            let record = stage.provider.wait_for(ended, SOON).remove(before);
            assert_eq!(record.end, Some(End::ClientGone));
            let after_ms = record.ended_ns.unwrap().saturating_sub(left) / 1_000_000;
            println!("{api} {way:?}: upstream closed {after_ms} ms after the client left");
            assert!(after_ms <= 500, "{api} {way:?}: {after_ms} ms");
            let flow = last_settled(&stage, "gone");
            assert_eq!(flow["status"], "client_gone", "{api} {way:?}: {flow}");
            assert_ne!(flow["provenance"], "reported", "{api} {way:?}: {flow}");
            // what the mock had written when it noticed may be more than what had reached the meter
            let charged = flow["output"].as_u64().unwrap();
            let reached = record.billed.output - 8 * 2;
            assert!(charged >= reached, "{api} {way:?}: charged {charged}, {reached} had reached the meter");
        }
    }
}

#[test]
fn root_reasoning_is_charged_to_who_takes_the_words_and_does_not_wait_for_the_figures() {
    // a hundred tokens of reasoning a second, then words
    let thought = Duration::from_secs(3);
    let reply =
        Reply { reasoning: 300, head_delay: thought, ..Reply::paced(500, 1, Duration::from_millis(10)) };
    let stage = Stage::over_tls(reply, "");
    let bottle = stage.bottle("hasty", &[]);
    for (api, options, streamed) in APIS {
        let before = stage.provider.records().len();
        let asking = stage.start_asking(&bottle, &[options, streamed].concat());
        stage.provider.wait_for(|records| records.get(before).is_some_and(|r| r.billed.output > 310), SOON);
        asking.hang_up();
        let record = stage.provider.wait_for(|records| records[before].end.is_some(), SOON).remove(before);
        let flow = last_settled(&stage, "hasty");
        assert_ne!(flow["provenance"], "reported", "{api}: {flow}");
        let charged = flow["output"].as_u64().unwrap();
        // Anthropic's first event tells of it
        assert!(charged >= record.billed.output, "{api}: charged {charged} of {}", record.billed.output);
        assert!(charged <= 4 * record.billed.output, "{api}: charged {charged} of {}", record.billed.output);
    }
}

#[test]
fn root_an_answer_without_usage_is_estimated_and_the_audit_says_so() {
    let stage = Stage::new(Reply { omit_usage: true, ..Reply::default() }, "");
    let bottle = stage.bottle("silent", &[]);
    let mut alarms = 0;
    for (api, options, streamed) in APIS {
        for form in [streamed, &[]] {
            let asked = stage.ask(&bottle, &[options, form].concat());
            let what = format!("{api} {form:?}");
            assert_eq!(asked.code, Some(0), "{what}: {asked:?}");
            let record = stage.provider.billing_records().pop().unwrap();
            assert_untouched(&what, asked.one(), &record);
            let flow = stage.flows("silent").pop().unwrap();
            assert_eq!(flow["provenance"], "estimated", "{what}: {flow}");
            assert_eq!(flow["estimated"], flow["total"], "{what}: {flow}");
            let (charged, billed) = (flow["output"].as_u64().unwrap(), record.billed.output);
            assert!(charged >= billed, "{what}: charged {charged} of {billed}: {flow}");
            alarms += 1;
            let rows =
                wait_until(SOON, || Some(stage.audit("silent", "meter")).filter(|rows| rows.len() == alarms));
            let row = rows.unwrap_or_else(|| panic!("{what}: {:?}", stage.audit("silent", "meter")));
            assert!(row[alarms - 1]["detail"].as_str().unwrap().contains("usage"), "{what}: {row:?}");
        }
    }
}
