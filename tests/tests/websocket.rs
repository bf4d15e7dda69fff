//! OpenAI Responses over WebSocket, end to end: whichever way it comes, however it ends, the ledger is the bill.
#![allow(clippy::unwrap_used, reason = "a failed expectation should stop the test where it stands")]
use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use support::agent::{Answer, Ended};
use support::clock::wait_until;
use support::network::{PUBLIC4, in_own_network};
use support::process::{self, built};
use support::provider::{Billed, End, Finish, Record, Reply, Script};
use support::stage::Stage;
use tokio_tungstenite::tungstenite::{self, Message};

const SOON: Duration = Duration::from_secs(10);
const WEBSOCKET: [&str; 3] = ["--provider", "codex", "--websocket"];

/// Every class of token, another bill and another end for each request.
fn varied() -> Script {
    Script::by(|asked| {
        let nth = u64::try_from(asked.index).unwrap();
        let finish = if asked.index % 3 == 2 { Finish::Length } else { Finish::Stop };
        Reply {
            input: 100 + nth,
            cache_read: 1000 + nth,
            reasoning: 11,
            deltas: 3 + asked.index % 5,
            finish,
            ..Reply::default()
        }
    })
}

fn classes(row: &Value) -> Billed {
    let figure = |name: &str| row[name].as_u64().unwrap_or_else(|| panic!("no {name} in {row}"));
    Billed {
        input: figure("input"),
        cache_write: figure("cache_write"),
        cache_read: figure("cache_read"),
        output: figure("output"),
        reasoning: figure("reasoning"),
    }
}

/// Holds answers and flows against the provider's books, each against each.
fn assert_billed(answers: &[Answer], flows: &[Value], records: &[Record]) {
    assert_eq!((answers.len(), flows.len()), (records.len(), records.len()));
    for ((answer, flow), record) in answers.iter().zip(flows).zip(records) {
        assert_eq!(answer.ended, Ended::Complete);
        assert_eq!(answer.body_sha256, record.response_sha256, "bytes received are bytes sent");
        assert_eq!(classes(flow), record.billed, "charged is billed: {flow}");
        let shown = json!([flow["provenance"], flow["status"], flow["http_status"], flow["endpoint"]]);
        assert_eq!(shown, json!(["reported", "completed", 101, "/v1/responses"]), "{flow}");
    }
}

#[test]
fn root_responses_of_one_socket_are_metered_by_the_bill() {
    let stage = Stage::over_tls(varied(), "");
    for mode in ["gateway", "connect"] {
        let bottle = stage.bottle(mode, &[]);
        let before = stage.provider.billing_records().len();
        let asked = stage.ask(&bottle, &[&WEBSOCKET[..], &["--mode", mode, "--requests", "12"]].concat());
        assert_eq!(asked.code, Some(0), "{mode}: {asked:?}");
        assert!(asked.answers.iter().all(|answer| answer.connection == 1), "one socket");
        assert_billed(&asked.answers, &stage.flows(mode), &stage.provider.billing_records()[before..]);
    }
    let rows = stage.daemon.json(&["usage"]);
    let sum = rows.as_array().unwrap().iter().fold(Billed::default(), |sum, row| sum.plus(classes(row)));
    assert_eq!(sum, stage.provider.billed_total(), "the ledger is the bill");
}

#[test]
fn root_an_agent_that_knows_of_no_proxy_is_metered_too() {
    in_own_network(|| {
        let stage = Stage::over_tls(varied(), "");
        let bottle = stage.bottle("unaware", &[]);
        let address = SocketAddr::new(PUBLIC4, 443).to_string();
        let ca = stage.daemon.ok(&["ca", "path"]);
        let mut command = Command::new(built("demo-agent"));
        command.env_clear().args(WEBSOCKET).args(["--json", "--requests", "3"]);
        command.args(["--mode", "direct", "--address", &address, "--ca-file", ca.trim()]);
        bottle.cgroup.enter_before_exec(&mut command);
        let output = process::run(&mut command, SOON);
        assert_eq!(output.code, Some(0), "{}\n{}", output.stderr, stage.daemon.logs());
        let answers: Vec<Answer> =
            output.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_billed(&answers, &stage.flows("unaware"), &stage.provider.billing_records());
    });
}

/// The newest flow, once it is settled.
fn last_settled(stage: &Stage, bottle: &str) -> Value {
    let settled = wait_until(SOON, || stage.flows(bottle).pop().filter(|flow| flow["status"] != "open"));
    settled.unwrap_or_else(|| panic!("not settled: {:?}", stage.flows(bottle)))
}

#[test]
fn root_what_breaks_is_charged_for_what_was_sent() {
    let reply = Reply::paced(500, 8, Duration::from_millis(5));
    let broken = Reply { break_after: Some(30), ..reply.clone() };
    let refused = Reply::error(429);
    let stage = Stage::over_tls(Script::sequence(vec![refused, broken, reply]), "");
    let bottle = stage.bottle("broken", &[]);
    let asked = stage.ask(&bottle, &WEBSOCKET);
    assert_eq!((asked.code, asked.one().status), (Some(3), 429), "{asked:?}");
    assert_eq!(last_settled(&stage, "broken")["total"], 0);

    let asked = stage.ask(&bottle, &WEBSOCKET);
    assert!(matches!(asked.one().ended, Ended::Broken(_)), "{asked:?}");
    let flow = last_settled(&stage, "broken");
    let record = stage.provider.billing_records().pop().unwrap();
    assert_eq!((record.end, &flow["status"]), (Some(End::Broken), &json!("upstream_broke")));
    assert!(flow["output"].as_u64().unwrap() >= record.billed.output, "{flow}");

    let asking = stage.start_asking(&bottle, &WEBSOCKET);
    stage.provider.wait_for(|records| records.len() == 3 && records[2].billed.output > 80, SOON);
    asking.hang_up();
    let left = support::clock::mono_ns();
    let record = stage.provider.wait_for(|records| records[2].end.is_some(), SOON).remove(2);
    let after_ms = record.ended_ns.unwrap().saturating_sub(left) / 1_000_000;
    assert!(record.end == Some(End::ClientGone) && after_ms <= 500, "{after_ms} ms: {:?}", record.end);
    let flow = last_settled(&stage, "broken");
    assert_eq!((&flow["status"], &flow["provenance"]), (&json!("client_gone"), &json!("estimated")));
    assert!(flow["output"].as_u64().unwrap() >= record.billed.output - 8 * 2, "{flow}");
}

#[test]
fn root_a_crossing_inside_a_response_closes_upstream_and_the_next_request_hears_why() {
    let stage = Stage::over_tls(Reply::paced(4_000, 8, Duration::from_millis(5)), "budget: { codex: 400 }\n");
    let bottle = stage.bottle("keen", &[]);
    let asked = stage.ask(&bottle, &WEBSOCKET);
    assert!(matches!(asked.one().ended, Ended::Broken(_)), "{asked:?}");
    let cut = stage.daemon.wait_bottle("keen", |bottle| bottle["state"] == "cut", SOON);
    assert_eq!(cut["cause"]["kind"], "budget");
    let record = stage.provider.wait_for(|records| records[0].end.is_some(), SOON).remove(0);
    assert!(record.billed.output < 4_000, "{record:?}");
    assert_eq!(last_settled(&stage, "keen")["status"], "cut");
    // the refusal lane
    let asked = stage.ask(&bottle, &WEBSOCKET);
    assert_eq!((asked.code, asked.one().status), (Some(3), 429), "{asked:?}");
    assert!(asked.one().error.as_deref().unwrap().contains("keen"), "{asked:?}");
    // the meter, whose gate refuses though the bottle is open
    stage.daemon.ok(&["restore", "keen", "--force"]);
    let asked = stage.ask(&bottle, &WEBSOCKET);
    assert_eq!((asked.code, asked.one().status), (Some(3), 429), "{asked:?}");
    let why = asked.one().error.clone().unwrap();
    for word in ["bottle keen", "400 codex tokens", "scope global", "window total"] {
        assert!(why.contains(word), "{word}: {why}");
    }
    assert_eq!(stage.provider.records().len(), 1, "nothing more reaches the provider");
}

/// An agent in no bottle, which nobody can cut: only the gate refuses.
fn ask_as_host(stage: &Stage, args: &[&str]) -> (Option<i32>, Vec<Answer>) {
    let listen = stage.daemon.json(&["status"])["daemon"]["meter"]["listen"].as_str().unwrap().to_owned();
    let mut command = Command::new(built("demo-agent"));
    command.env_clear().env("OPENAI_BASE_URL", format!("http://{listen}/codex/v1"));
    command.args(["--provider", "codex", "--json"]).args(args);
    let output = process::run(&mut command, SOON);
    (output.code, output.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect())
}

#[test]
fn root_on_an_open_socket_the_gates_refusal_is_a_message() {
    // the second answer crosses
    let stage =
        Stage::new(Reply { input: 60, ..Reply::default() }, "unattached: meter\nbudget: { codex: 150 }\n");
    let (code, answers) = ask_as_host(&stage, &["--websocket", "--requests", "0"]);
    let statuses: Vec<u16> = answers.iter().map(|answer| answer.status).collect();
    assert_eq!((code, statuses.as_slice()), (Some(3), &[200, 200, 429][..]), "{answers:?}");
    assert!(answers.iter().all(|answer| answer.connection == 1));
    assert!(answers[2].error.as_deref().unwrap().contains("200 of 150 codex tokens"), "{answers:?}");
    assert_eq!(stage.provider.records().len(), 2);
}

#[test]
fn root_in_the_middle_of_an_answer_the_gates_refusal_is_its_end() {
    for form in ["--websocket", "--stream"] {
        let reply = Reply::paced(4_000, 8, Duration::from_millis(5));
        let stage = Stage::new(reply, "unattached: meter\nbudget: { codex: 300 }\n");
        let (_, answers) = ask_as_host(&stage, &[form]);
        let [answer] = &answers[..] else { panic!("{form}: {answers:?}") };
        assert_eq!(answer.ended, Ended::Complete, "{form}: {answer:?}");
        let why = answer.error.as_deref().unwrap_or_else(|| panic!("{form}: {answer:?}"));
        assert!(why.contains("of 300 codex tokens"), "{form}: {why}");
        let record = stage.provider.wait_for(|records| records[0].end.is_some(), SOON).remove(0);
        assert_eq!(record.end, Some(End::ClientGone), "{form}");
        assert!(record.billed.output < 4_000, "{form}: {record:?}");
        let flow = last_settled(&stage, "host");
        assert_eq!(flow["status"], "cut", "{form}: {flow}");
        // asked again, it hears the same and nothing reaches the provider
        let (code, _) = ask_as_host(&stage, &[form]);
        assert_eq!((code, stage.provider.records().len()), (Some(3), 1), "{form}");
    }
}

#[test]
fn root_lanes_of_one_socket_are_metered_by_the_bill() {
    const LANES: usize = 8;
    const EACH: usize = 5;
    let script = Script::by(|asked| Reply {
        input: 10 + u64::try_from(asked.index).unwrap(),
        deltas: 20,
        pace: Duration::from_millis(1 + asked.index as u64 % 4),
        ..Reply::default()
    });
    let stage = Stage::new(script, "unattached: meter\n");
    let listen = stage.daemon.json(&["status"])["daemon"]["meter"]["listen"].as_str().unwrap().to_owned();
    let stream = TcpStream::connect(&listen).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    let (mut socket, _) = tungstenite::client(format!("ws://{listen}/codex/v1/responses"), stream).unwrap();
    for n in 0..LANES * EACH {
        let mut create = json!({"type": "response.create", "model": "gpt-mock-1", "input": "x"});
        // the last lane is the one without a name
        if n % LANES < LANES - 1 {
            create["stream_id"] = json!(format!("lane-{}", n % LANES));
        }
        socket.send(Message::text(create.to_string())).unwrap();
    }
    let mut told: BTreeMap<String, u64> = BTreeMap::new();
    let mut interleaved = 0;
    let mut last_lane = Value::Null;
    while told.len() < LANES * EACH {
        let event: Value = serde_json::from_str(socket.read().unwrap().to_text().unwrap()).unwrap();
        interleaved += usize::from(event["stream_id"] != last_lane);
        last_lane = event["stream_id"].clone();
        if event["type"] == "response.completed" {
            let usage = &event["response"]["usage"];
            let id = event["response"]["id"].as_str().unwrap().to_owned();
            told.insert(id, usage["total_tokens"].as_u64().unwrap());
        }
    }
    assert!(interleaved > 2 * LANES * EACH, "lanes go on side by side: {interleaved}");
    socket.close(None).unwrap();
    let flows = stage.flows("host");
    assert_eq!(flows.len(), LANES * EACH);
    let mut charged: Vec<u64> = flows.iter().map(|flow| flow["total"].as_u64().unwrap()).collect();
    let mut told: Vec<u64> = told.into_values().collect();
    charged.sort_unstable();
    told.sort_unstable();
    assert_eq!(charged, told);
    assert_eq!(charged.iter().sum::<u64>(), stage.provider.billed_total().total(), "the ledger is the bill");
    assert!(flows.iter().all(|flow| flow["provenance"] == "reported"));
}
