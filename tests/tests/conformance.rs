//! The conformance table: a row an endpoint × framing × ending, each asked through the meter. The ledger is the bill.
#![allow(clippy::unwrap_used, reason = "a failed expectation should stop the test where it stands")]
use std::time::Duration;

use serde_json::Value;
use support::agent::{Answer, Ended};
use support::books::{assert_settled, assert_untouched, charged};
use support::clock::wait_until;
use support::provider::{Billed, Record, Reply, Script};
use support::stage::{Bottle, Stage};

const SOON: Duration = Duration::from_secs(10);

/// One way of asking: its name, the agent's options, whether it streams events that may be framed oddly.
struct Endpoint {
    name: &'static str,
    options: &'static [&'static str],
    events: bool,
}

const fn endpoint(name: &'static str, options: &'static [&'static str], events: bool) -> Endpoint {
    Endpoint { name, options, events }
}

const ENDPOINTS: [Endpoint; 17] = [
    endpoint("messages", &["--provider", "claude"], false),
    endpoint("messages, streamed", &["--provider", "claude", "--stream"], true),
    endpoint("chat", &["--provider", "codex", "--api", "chat"], false),
    endpoint(
        "chat, streamed",
        &["--provider", "codex", "--api", "chat", "--stream", "--include-usage"],
        true,
    ),
    endpoint("responses", &["--provider", "codex"], false),
    endpoint("responses, streamed", &["--provider", "codex", "--stream"], true),
    endpoint("compaction", &["--provider", "codex", "--api", "compact"], false),
    // input is all that they bill
    endpoint("embeddings", &["--provider", "codex", "--api", "embeddings"], false),
    endpoint("Claude at Google", &["--provider", "gemini", "--api", "raw-predict"], false),
    endpoint(
        "Claude at Google, streamed",
        &["--provider", "gemini", "--api", "raw-predict", "--stream"],
        true,
    ),
    endpoint("gemini", &["--provider", "gemini"], false),
    endpoint("gemini, events", &["--provider", "gemini", "--stream"], true),
    endpoint("gemini, array", &["--provider", "gemini", "--api", "generate-array", "--stream"], false),
    endpoint("invoke", &["--provider", "bedrock"], false),
    endpoint("invoke, streamed", &["--provider", "bedrock", "--stream"], false),
    endpoint("converse", &["--provider", "bedrock", "--api", "converse"], false),
    endpoint("converse, streamed", &["--provider", "bedrock", "--api", "converse", "--stream"], false),
];

/// What the agent's headers ask the provider for, and whether it is about events alone.
const FRAMINGS: [(&str, &[&str], bool); 12] = [
    ("plain", &[], false),
    ("gzip", &["x-mock-encoding=gzip", "accept-encoding=gzip"], false),
    ("gzip, a member a piece", &["x-mock-encoding=gzip-members", "accept-encoding=gzip"], false),
    ("deflate", &["x-mock-encoding=deflate", "accept-encoding=deflate", "x-mock-framing=split=5"], false),
    ("br in pieces", &["x-mock-encoding=br", "accept-encoding=br", "x-mock-framing=split=3"], false),
    ("zstd", &["x-mock-encoding=zstd", "accept-encoding=zstd"], false),
    ("byte by byte", &["x-mock-framing=split=1"], false),
    ("the other length", &["x-mock-framing=swap-length"], false),
    ("CRLF and a BOM", &["x-mock-framing=crlf,bom,split=7"], true),
    ("comments, no space", &["x-mock-framing=comments,tight"], true),
    ("a CR alone", &["x-mock-framing=cr,split=2"], true),
    ("two lines of data", &["x-mock-framing=lines,crlf"], true),
];

/// How an answer ends.
#[derive(Clone, Copy, PartialEq)]
enum Ending {
    /// With its figures.
    Told,
    /// Well, but without its figures.
    Silent,
    /// In an error that the provider tells.
    Failed,
    /// In the middle.
    Broken,
    /// In the middle, as if it were the end.
    Early,
}

const ENDINGS: [(&str, &[&str], Ending); 6] = [
    ("stop", &[], Ending::Told),
    ("length", &["x-mock-finish=length"], Ending::Told),
    ("no usage", &["x-mock-omit-usage=true"], Ending::Silent),
    ("failed", &["x-mock-finish=failed"], Ending::Failed),
    ("broken", &["x-mock-break-after=6"], Ending::Broken),
    ("early", &["x-mock-stop-after=6"], Ending::Early),
];

/// One row: what it is called, the agent's arguments, how it ends.
struct Row {
    name: String,
    args: Vec<String>,
    ending: Ending,
}

fn rows() -> Vec<Row> {
    let mut rows = Vec::new();
    for endpoint in &ENDPOINTS {
        let framings = FRAMINGS.iter().filter(|(.., events_alone)| endpoint.events || !events_alone);
        for (framing, framed, _) in framings {
            // other endings than the usual one are told once: what is decoded is the same
            let endings = if *framing == "plain" { &ENDINGS[..] } else { &ENDINGS[..1] };
            for (end, ended, ending) in endings {
                let streamed = endpoint.options.contains(&"--stream");
                if *ending == Ending::Failed && !streamed {
                    continue;
                }
                let headers = framed.iter().chain(*ended).flat_map(|header| ["--header", header]);
                let args = endpoint.options.iter().copied().chain(headers).map(str::to_owned).collect();
                let name = format!("{} × {framing} × {end}", endpoint.name);
                rows.push(Row { name, args, ending: *ending });
            }
        }
    }
    rows
}

/// All classes that the endpoint tells.
fn reply(path: &str) -> Reply {
    let all = Reply { input: 101, cache_read: 1_003, cache_write: 17, deltas: 6, ..Reply::default() };
    match path {
        "/v1/embeddings" => Reply { cache_read: 0, cache_write: 0, deltas: 0, ..all },
        _ if path.starts_with("/v1/chat") || path.starts_with("/v1/responses") => {
            Reply { reasoning: 29, ..all }
        }
        _ if path.ends_with("enerateContent") => Reply { cache_write: 0, reasoning: 29, ..all },
        _ => all,
    }
}

fn replies() -> Script {
    Script::by(|asked| reply(&asked.path))
}

struct Asked {
    answer: Answer,
    record: Record,
    flow: Value,
}

/// Asks as the row says, the `nth` time in this bottle.
fn ask(stage: &Stage, bottle: &Bottle, row: &Row, nth: usize) -> Asked {
    let args: Vec<&str> = row.args.iter().map(String::as_str).collect();
    let asked = stage.ask(bottle, &args);
    let record = stage.provider.billing_records().pop().unwrap();
    let settled = || {
        Some(stage.flows(&bottle.name))
            .filter(|flows| flows.len() == nth && flows[nth - 1]["status"] != "open")
    };
    let flows = wait_until(SOON, settled).unwrap_or_else(|| panic!("{}: not settled", row.name));
    Asked { answer: asked.one().clone(), record, flow: flows[nth - 1].clone() }
}

fn check(row: &Row, asked: &Asked) {
    let Asked { answer, record, flow } = asked;
    let what = row.name.as_str();
    let (charge, bill) = (charged(flow), record.billed);
    // reasoning that took no time leaves no trace
    let shown = bill.output - bill.reasoning;
    match row.ending {
        Ending::Told => {
            assert_untouched(what, answer, record);
            assert_settled(what, flow, record);
            let is_told = !record.path.starts_with("/v1/chat") && !record.path.starts_with("/v1/responses");
            assert_eq!(flow["cache_write_5m"], if is_told { bill.cache_write } else { 0 }, "{what}: {flow}");
        }
        Ending::Silent => {
            assert_untouched(what, answer, record);
            assert_eq!(flow["provenance"], "estimated", "{what}: {flow}");
            assert!(charge.output >= shown, "{what}: {flow}");
        }
        // Responses tell the figures of a failure
        Ending::Failed => {
            assert_untouched(what, answer, record);
            assert!(charge.output >= shown, "{what}: {flow} {bill:?}");
        }
        Ending::Broken | Ending::Early => {
            let seems_broken = matches!(answer.ended, Ended::Broken(_));
            assert_eq!(seems_broken, row.ending == Ending::Broken, "{what}: {answer:?}");
            assert_eq!(answer.body_sha256, record.response_sha256, "{what}: all that was sent arrived");
            // half a document is one that cannot be read; of a stream its last event is missing
            let is_judged_whole =
                row.ending == Ending::Early && !row.args.iter().any(|arg| arg == "--stream");
            let status = if is_judged_whole { "completed" } else { "upstream_broke" };
            assert_eq!(flow["status"], status, "{what}: {flow}");
            // a JSON answer of `invoke` tells its figures in its head
            let was_told = record.path.ends_with("/invoke");
            assert_eq!(flow["provenance"] == "reported", was_told, "{what}: {flow}");
            assert!(charge.output >= shown, "{what}: {flow} {bill:?}");
        }
    }
}

#[test]
fn root_every_endpoint_framing_and_ending_is_charged_as_billed() {
    let stage = Stage::over_tls(replies(), "");
    // apart, because the audit takes only so many notices of one bottle
    let bottles = [stage.bottle("table", &[]), stage.bottle("silent", &[])];
    let mut asked_of = [0; 2];
    let rows = rows();
    let (mut told, mut billed) = (Billed::default(), Billed::default());
    for row in &rows {
        let which = usize::from(row.ending == Ending::Silent);
        asked_of[which] += 1;
        let asked = ask(&stage, &bottles[which], row, asked_of[which]);
        check(row, &asked);
        if row.ending == Ending::Told {
            told = told.plus(charged(&asked.flow));
            billed = billed.plus(asked.record.billed);
        }
    }
    assert_eq!(told, billed, "the ledger is the bill");
    let alarms = stage.audit("silent", "meter").into_iter();
    let said = alarms.filter(|row| row["detail"].as_str().unwrap().contains("without usage")).count();
    assert_eq!(said, asked_of[1], "each answer without usage is in the audit");
    println!("{} rows, {} tokens billed and charged", rows.len(), billed.total());
}

#[test]
fn root_gemini_and_bedrock_are_refused_in_their_own_words() {
    let stage = Stage::new(replies(), "");
    for (provider, status) in [("gemini", 400), ("bedrock", 402)] {
        let bottle = stage.bottle(provider, &["--budget", &format!("{provider}=5")]);
        // whether its answer still gets to it is a race with the cut
        drop(stage.ask(&bottle, &["--provider", provider]));
        let has_crossed =
            |bottle: &Value| bottle["usage"][provider]["flows"] == 1 && bottle["state"] == "cut";
        stage.daemon.wait_bottle(provider, has_crossed, SOON);
        let refused = stage.ask(&bottle, &["--provider", provider, "--stream"]);
        let answer = refused.one();
        assert_eq!(answer.status, status, "one that is not asked again: {refused:?}");
        assert!(answer.error.as_ref().unwrap().contains(&format!("of 5 {provider} tokens")), "{refused:?}");
        assert_eq!(answer.header("x-amzn-errortype").is_some(), provider == "bedrock");
    }
    assert_eq!(stage.provider.billing_records().len(), 2, "what is refused does not leave");
}
