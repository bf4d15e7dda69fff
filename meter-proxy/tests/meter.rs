//! The built meter, spoken to as its controller, its clients and its upstreams do.
#![allow(clippy::unwrap_used, reason = "tests say what they expect by unwrapping")]
mod rig;

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use meter_proxy::protocol::{Refusal, ToController, ToMeter, Upstream as Towards};
use meter_proxy::tokens::{Ending, Provenance};
use rig::{
    Answer, BOTTLE, OTHER, Rig, SOON, Upstream, chunk, config, json_answer, post, read_chunk, until_closed,
};

const MESSAGES: &str = "/claude/v1/messages";
const ASK: &str = r#"{"model":"claude-x","max_tokens":100,"messages":[{"role":"user","content":"hi"}]}"#;
const ASK_STREAM: &str =
    r#"{"model":"claude-x","max_tokens":100,"stream":true,"messages":[{"role":"user","content":"hi"}]}"#;
const JSON: &str =
    r#"{"type":"message","model":"claude-x","content":[],"usage":{"input_tokens":10,"output_tokens":5}}"#;
const STREAM_HEAD: &str =
    "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
const START: &str = concat!(
    "event: message_start\n",
    r#"data: {"type":"message_start","message":{"model":"claude-x","usage":{"input_tokens":10,"output_tokens":1}}}"#,
    "\n\n"
);
const WORDS: &str = concat!(
    "event: content_block_delta\n",
    r#"data: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"Some words of an answer. "}}"#,
    "\n\n"
);
const DELTA: &str = concat!(
    "event: message_delta\n",
    r#"data: {"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"output_tokens":25}}"#,
    "\n\n"
);
const STOP: &str = "event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n";

fn is_settle(message: &ToController) -> bool {
    matches!(message, ToController::Settle(_))
}

/// An upstream that streams `parts`, one each time the test lets it; then waits to be closed.
fn stepped(parts: &'static [&'static str]) -> (Upstream, mpsc::Sender<()>) {
    let (step, steps) = mpsc::channel();
    let steps = Mutex::new(steps);
    let upstream = Upstream::start(move |stream| {
        stream.write_all(STREAM_HEAD.as_bytes())?;
        for part in parts {
            if steps.lock().unwrap().recv().is_err() {
                return until_closed(stream);
            }
            stream.write_all(chunk(part).as_bytes())?;
        }
        match steps.lock().unwrap().recv() {
            Ok(()) => stream.write_all(b"0\r\n\r\n"),
            Err(_) => until_closed(stream),
        }
    });
    (upstream, step)
}

#[test]
fn root_the_meter_is_nobody_and_stays_it() {
    let mut rig = Rig::start(config("127.0.0.1:9".parse().unwrap()));
    assert_eq!(rig.status_line("Uid:"), "65534\t65534\t65534\t65534");
    assert_eq!(rig.status_line("Gid:"), "65534\t65534\t65534\t65534");
    assert_eq!(rig.status_line("Groups:"), "");
    assert_eq!(rig.status_line("NoNewPrivs:"), "1");
    assert_eq!(u64::from_str_radix(&rig.status_line("CapEff:"), 16).unwrap(), 0);
    assert_eq!(u64::from_str_radix(&rig.status_line("CapPrm:"), 16).unwrap(), 0);
    rig.signal(rustix::process::Signal::TERM);
    std::thread::sleep(Duration::from_millis(100));
    assert!(rig.runs(), "only its controller ends the meter");
}

#[test]
fn root_the_meter_ends_with_its_controller() {
    let (upstream, step) = stepped(&[START, WORDS]);
    let mut rig = Rig::start(config(upstream.address));
    let mut client = rig.connect();
    client.write_all(post(MESSAGES, ASK_STREAM).as_bytes()).unwrap();
    step.send(()).unwrap();
    Answer::read_head(&mut client).unwrap();
    drop(step);
    assert_eq!(rig.leave().code(), Some(1));
    upstream.ended();
}

#[test]
fn root_a_json_answer_arrives_byte_for_byte_and_is_settled_as_reported() {
    let upstream = Upstream::saying(json_answer("200 OK", JSON));
    let rig = Rig::start(config(upstream.address));
    let request = post(&format!("{MESSAGES}?beta=true"), ASK).replace(
        "Host: meter\r\n",
        "Host: meter\r\nAccept-Encoding: gzip\r\nx-api-key: k\r\nProxy-Authorization: Basic x\r\nConnection: x-mine\r\nX-Mine: 1\r\n",
    );
    let answer = rig.ask(&request);
    assert_eq!((answer.status(), answer.body.as_slice()), (200, JSON.as_bytes()));
    let head = upstream.heads().remove(0).to_lowercase();
    assert!(head.starts_with("post /v1/messages?beta=true http/1.1"), "{head}");
    assert!(head.contains(&format!("host: {}\r\n", upstream.address)), "{head}");
    assert!(head.contains("accept-encoding: gzip\r\n") && head.contains("x-api-key: k\r\n"), "{head}");
    assert!(!head.contains("proxy-authorization") && !head.contains("x-mine"), "{head}");
    let settle = rig.settlement();
    assert_eq!((settle.tokens.input, settle.tokens.output), (10, 5));
    assert_eq!((settle.provenance, settle.ending), (Provenance::Reported, Ending::Completed));
    assert_eq!((settle.http_status, settle.model.as_deref()), (Some(200), Some("claude-x")));
    let reserve = rig.reservation();
    assert_eq!((reserve.provider.as_str(), reserve.endpoint.as_str()), ("claude", "/v1/messages"));
    assert_eq!((reserve.bottle, reserve.exchange), (BOTTLE, settle.exchange));
    assert!(reserve.tokens >= 100, "{reserve:?}");
}

#[test]
fn root_a_stream_arrives_byte_for_byte_and_its_end_waits_for_the_ledger() {
    let (upstream, step) = stepped(&[START, WORDS, DELTA, STOP]);
    let rig = Rig::start(config(upstream.address));
    rig.manner(|manner| manner.settles = false);
    let mut client = rig.connect();
    client.write_all(post(MESSAGES, ASK_STREAM).as_bytes()).unwrap();
    (0..4).for_each(|_| step.send(()).unwrap());
    assert_eq!(Answer::read_head(&mut client).unwrap().status(), 200);
    let mut got = Vec::new();
    while got.len() < START.len() + WORDS.len() {
        got.extend(read_chunk(&mut client).unwrap().unwrap());
    }
    let settle = rig.settlement();
    assert_eq!((settle.tokens.input, settle.tokens.output), (10, 25));
    client.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    assert!(client.read(&mut [0]).is_err(), "nothing of the end may arrive before it is settled");
    rig.send(&ToMeter::Settled { exchange: settle.exchange });
    step.send(()).unwrap();
    client.set_read_timeout(Some(SOON)).unwrap();
    while let Some(more) = read_chunk(&mut client).unwrap() {
        got.extend(more);
    }
    assert_eq!(String::from_utf8(got).unwrap(), [START, WORDS, DELTA, STOP].concat());
    assert!(rig.count(|message| matches!(message, ToController::Progress { .. })) > 0);
}

#[test]
fn root_what_is_not_durable_in_time_is_not_delivered() {
    for (body, answer) in [(ASK, json_answer("200 OK", JSON)), (ASK_STREAM, full_stream())] {
        let upstream = Upstream::saying(answer);
        let mut settings = config(upstream.address);
        settings.settle_timeout_ms = 100;
        let rig = Rig::start(settings);
        rig.manner(|manner| manner.settles = false);
        let mut client = rig.connect();
        client.write_all(post(MESSAGES, body).as_bytes()).unwrap();
        let mut got = Vec::new();
        // How it breaks is the kernel's choice: an end or a reset.
        drop(client.read_to_end(&mut got));
        let got = String::from_utf8(got).unwrap();
        assert!(!got.contains("output_tokens\":5") && !got.contains("message_delta"), "{got}");
        assert!(!got.ends_with("0\r\n\r\n"), "{got}");
        rig.settlement();
    }
}

fn full_stream() -> String {
    let chunks: String = [START, WORDS, DELTA, STOP].map(chunk).concat();
    format!("{STREAM_HEAD}{chunks}0\r\n\r\n")
}

#[test]
fn root_an_answer_without_a_body_is_settled_too() {
    let upstream = Upstream::saying("HTTP/1.1 500 Oh\r\ncontent-length: 0\r\n\r\n");
    let rig = Rig::start(config(upstream.address));
    assert_eq!(rig.ask(&post(MESSAGES, ASK)).status(), 500);
    assert_eq!(rig.settlement().ending, Ending::UpstreamError);

    let mut settings = config(upstream.address);
    settings.settle_timeout_ms = 100;
    let rig = Rig::start(settings);
    rig.manner(|manner| manner.settles = false);
    let answer = rig.ask(&post(MESSAGES, ASK));
    assert_eq!(answer.status(), 402, "what is not durable is not delivered");
    assert!(answer.json()["error"]["message"].as_str().unwrap().contains("recorded"));
}

#[test]
fn root_refusals_come_in_the_shape_of_the_provider() {
    let upstream = Upstream::saying(json_answer("200 OK", JSON));
    let rig = Rig::start(config(upstream.address));
    rig.manner(|manner| {
        manner.refusal = Some(Refusal::Budget {
            bottle: "b1".into(),
            provider: "claude".into(),
            scope: "bottle".into(),
            owner: "b1".into(),
            limit: 10,
            used: 11,
            reserved: 0,
            window: "total".into(),
        });
    });
    let claude = rig.ask(&post(MESSAGES, ASK));
    assert_eq!((claude.status(), claude.header("x-should-retry")), (402, Some("false")));
    assert_eq!(claude.json()["error"]["type"], "billing_error");
    let codex = rig.ask(&post("/codex/v1/responses", "{}"));
    assert_eq!((codex.status(), codex.header("x-should-retry")), (429, Some("false")));
    assert_eq!(codex.json()["error"]["type"], "usage_limit_reached");
    assert!(codex.header("x-codex-promo-message").unwrap().contains("11 of 10"));
    assert_eq!(codex.header("retry-after"), None);
    assert!(upstream.heads().is_empty(), "nothing refused may leave");
    assert_eq!(rig.count(is_settle), 0);
}

#[test]
fn root_a_peer_of_no_bottle_is_forbidden() {
    let upstream = Upstream::saying(json_answer("200 OK", JSON));
    let rig = Rig::start(config(upstream.address));
    rig.manner(|manner| manner.attached = false);
    assert_eq!(rig.ask(&post(MESSAGES, ASK)).status(), 403);
    assert!(upstream.heads().is_empty());
}

#[test]
fn root_a_peer_of_no_bottle_that_asks_nothing_is_let_go() {
    let rig = Rig::start(config("127.0.0.1:9".parse().unwrap()));
    rig.manner(|manner| manner.attached = false);
    let mut idle: Vec<TcpStream> = (0..80).map(|_| rig.connect()).collect();
    let since = Instant::now();
    for client in &mut idle {
        assert_eq!(client.read(&mut [0]).unwrap_or(0), 0);
    }
    assert!(since.elapsed() < Duration::from_secs(8), "after 5 s at most");
}

#[test]
fn root_bad_requests_get_one_clear_answer() {
    let upstream = Upstream::saying(json_answer("200 OK", JSON));
    let rig = Rig::start(config(upstream.address));
    let upgrade =
        "GET /codex/v1/responses HTTP/1.1\r\nHost: m\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n";
    for (request, status) in [
        ("POST /claude/v1/messages HTTP/1.1\r\nContent-Length: 0\r\n\r\n", 400),
        ("GET /claude/v1/models HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        ("POST /claude/v1%2fmessages HTTP/1.1\r\nHost: m\r\nContent-Length: 0\r\n\r\n", 400),
        ("POST /claude/api/../v1/messages HTTP/1.1\r\nHost: m\r\nContent-Length: 0\r\n\r\n", 400),
        ("CONNECT nonsense HTTP/1.1\r\nHost: nonsense\r\n\r\n", 400),
        ("CONNECT a:0 HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("CONNECT api.anthropic.com:80 HTTP/1.1\r\nHost: a\r\n\r\n", 403),
        ("GET /nobody/x HTTP/1.1\r\nHost: m\r\n\r\n", 404),
        ("GET http://a.test/ HTTP/1.1\r\nHost: b.test\r\n\r\n", 421),
        (upgrade, 426),
    ] {
        let answer = rig.ask(request);
        assert_eq!(answer.status(), status, "{request}");
        if answer.header("content-length") != Some("0") {
            assert!(
                answer.json()["error"]["message"].as_str().unwrap().starts_with("Enforcer: "),
                "{request}"
            );
        }
    }
    assert!(upstream.heads().is_empty());
}

#[test]
fn root_heads_are_bounded() {
    let rig = Rig::start(config("127.0.0.1:9".parse().unwrap()));
    let many = "X-A: 1\r\n".repeat(200);
    let long = format!("X-A: {}\r\n", "x".repeat(40_000));
    for headers in [many, long] {
        let mut client = rig.connect();
        // The answer may come, and the connection end, before all of it is written.
        drop(write!(client, "GET /claude/v1/models HTTP/1.1\r\nHost: m\r\n{headers}\r\n"));
        assert_eq!(Answer::read_head(&mut client).unwrap().status(), 431);
    }
}

#[test]
fn root_trailers_pass() {
    let ends = format!("{}{}0\r\nx-sum: 7\r\n\r\n", chunk(START), chunk(STOP));
    let head = STREAM_HEAD.replace("\r\n\r\n", "\r\ntrailer: x-sum\r\n\r\n");
    let upstream = Upstream::saying(format!("{head}{ends}"));
    let rig = Rig::start(config(upstream.address));
    let mut client = rig.connect();
    let request = post(MESSAGES, ASK_STREAM)
        .replace("Host: meter", "Host: meter\r\nTE: trailers\r\nConnection: TE, close");
    client.write_all(request.as_bytes()).unwrap();
    let mut got = String::new();
    client.read_to_string(&mut got).unwrap();
    assert!(got.ends_with("0\r\nx-sum: 7\r\n\r\n"), "{got}");
}

#[test]
fn root_the_meter_does_not_start_as_root_or_without_a_controller() {
    for (uid, words) in [("0", "does not run as root"), ("65534", "the meter ends")] {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_meter-proxy"));
        let command = command.args(["--uid", uid, "--gid", "65534"]).stdin(std::process::Stdio::null());
        let output = command.output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains(words), "{said}");
    }
}

#[test]
fn root_absolute_requests_are_metered_by_their_host() {
    let upstream = Upstream::saying(json_answer("200 OK", JSON));
    let rig = Rig::start(config(upstream.address));
    let absolute = post(MESSAGES, ASK)
        .replace("/claude/v1/messages", "http://api.anthropic.com/v1/messages")
        .replace("Host: meter", "Host: api.anthropic.com");
    assert_eq!(rig.ask(&absolute).body, JSON.as_bytes());
    assert_eq!(rig.settlement().tokens.output, 5);
    let own = rig.address;
    let gateway = post(MESSAGES, ASK)
        .replace("/claude", &format!("http://{own}/claude"))
        .replace("Host: meter", &format!("Host: {own}"));
    assert_eq!(rig.ask(&gateway).body, JSON.as_bytes());
    assert!(upstream.heads().iter().all(|head| head.starts_with("POST /v1/messages ")));
}

#[test]
fn root_the_upstream_itself_is_metered_by_every_way_in() {
    let upstream = Upstream::saying(json_answer("200 OK", JSON));
    let there = upstream.address;
    let mut settings = config(there);
    settings.allow_private = vec!["127.0.0.0/8".into()];
    let rig = Rig::start(settings);
    let absolute = post("/v1/messages", ASK)
        .replace("POST ", &format!("POST http://{there}"))
        .replace("Host: meter", &format!("Host: {there}"));
    assert_eq!(rig.ask(&absolute).body, JSON.as_bytes());
    assert_eq!(rig.settlement().tokens.output, 5);
    assert_eq!(rig.ask(&format!("CONNECT {there} HTTP/1.1\r\nHost: {there}\r\n\r\n")).status(), 403);
}

#[test]
fn root_an_upstream_that_is_down_costs_nothing() {
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let rig = Rig::start(config(nobody));
    let answer = rig.ask(&post(MESSAGES, ASK));
    assert_eq!((answer.status(), answer.header("x-should-retry")), (502, None));
    assert_eq!(answer.json()["error"]["type"], "api_error");
    let settle = rig.settlement();
    assert_eq!((settle.ending, settle.tokens.total()), (Ending::Unsent, 0));
}

#[test]
fn root_private_addresses_are_not_reached_unless_allowed() {
    let upstream = Upstream::saying(json_answer("200 OK", "{}"));
    let there = upstream.address;
    let elsewhere: std::net::SocketAddr = "127.0.0.1:9".parse().unwrap();
    let strict = Rig::start(config(elsewhere));
    for target in [
        format!("{there}"),
        format!("localhost:{}", there.port()),
        format!("[::ffff:127.0.0.1]:{}", there.port()),
        format!("[64:ff9b::7f00:1]:{}", there.port()),
        "169.254.169.254:80".to_owned(),
        format!("{}", strict.address),
    ] {
        let answer = strict.ask(&format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n"));
        assert_eq!(answer.status(), 403, "{target}");
    }
    let plain = format!("GET http://{there}/x HTTP/1.1\r\nHost: {there}\r\n\r\n");
    assert_eq!(strict.ask(&plain).status(), 403);
    assert!(upstream.heads().is_empty());

    let mut open = config(elsewhere);
    open.allow_private = vec!["127.0.0.0/8".into()];
    let open = Rig::start(open);
    assert_eq!(open.ask(&plain).body, b"{}");
    let mut tunnel = open.connect();
    write!(tunnel, "CONNECT {there} HTTP/1.1\r\nHost: {there}\r\n\r\n").unwrap();
    assert_eq!(Answer::read_head(&mut tunnel).unwrap().status(), 200);
    tunnel.write_all(b"GET /spliced HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    assert_eq!(Answer::read(&mut tunnel).unwrap().body, b"{}");
    let own = open.address;
    assert_eq!(open.ask(&format!("CONNECT {own} HTTP/1.1\r\nHost: {own}\r\n\r\n")).status(), 403);
    open.send(&ToMeter::Cut { bottle: BOTTLE, upstream: Towards::Close });
    assert_eq!(tunnel.read(&mut [0]).unwrap_or(0), 0, "a spliced tunnel ends with the cut");
    assert_eq!(open.count(|message| matches!(message, ToController::Reserve(_))), 0);
}

#[test]
fn root_a_tunnel_to_a_metered_name_is_opened_and_metered() {
    let upstream = Upstream::saying(json_answer("200 OK", JSON));
    let rig = Rig::start(config(upstream.address));
    let request = post("/v1/messages", ASK).replace("Host: meter", "Host: api.anthropic.com");
    for _ in 0..2 {
        let mut tunnel = rig.tunnel("api.anthropic.com:443", "api.anthropic.com");
        tunnel.write_all(request.as_bytes()).unwrap();
        assert_eq!(Answer::read(&mut tunnel).unwrap().body, JSON.as_bytes());
    }
    assert_eq!(rig.count(|message| matches!(message, ToController::Sign { .. })), 1);
    assert_eq!(rig.count(is_settle), 2);

    let mut tunnel = rig.tunnel("api.anthropic.com:443", "api.anthropic.com");
    tunnel
        .write_all(post("/v1/messages", ASK).replace("Host: meter", "Host: example.com").as_bytes())
        .unwrap();
    let fronted = Answer::read(&mut tunnel).unwrap();
    assert_eq!((fronted.status(), &fronted.json()["type"]), (421, &"error".into()));
    assert_eq!(upstream.heads().len(), 2);

    rig.manner(|manner| {
        manner.refusal = Some(Refusal::Cut { bottle: "b1".into(), cause: "the operator".into() });
    });
    let mut tunnel = rig.tunnel("api.anthropic.com:443", "api.anthropic.com");
    tunnel.write_all(request.as_bytes()).unwrap();
    assert_eq!(Answer::read(&mut tunnel).unwrap().status(), 402, "a refused bottle hears it inside TLS");
}

#[test]
fn root_a_stream_of_responses_passes_through_a_tunnel() {
    const CREATED: &str = "event: response.created\ndata: {\"type\":\"response.created\",\"response\":{\"id\":\"r1\",\"model\":\"gpt-x\"}}\n\n";
    const COMPLETED: &str = "event: response.completed\ndata: {\"type\":\"response.completed\",\"response\":{\"id\":\"r1\",\"model\":\"gpt-x\",\"usage\":{\"input_tokens\":30,\"input_tokens_details\":{\"cached_tokens\":20},\"output_tokens\":9}}}\n\n";
    let chunks = [CREATED, COMPLETED].map(chunk).concat();
    let upstream = Upstream::saying(format!("{STREAM_HEAD}{chunks}0\r\n\r\n"));
    let rig = Rig::start(config(upstream.address));
    let mut tunnel = rig.tunnel("api.openai.com:443", "api.openai.com");
    let request = post("/v1/responses", r#"{"model":"gpt-x","stream":true,"input":"hi"}"#);
    tunnel.write_all(request.replace("Host: meter", "Host: api.openai.com").as_bytes()).unwrap();
    let answer = Answer::read(&mut tunnel).unwrap();
    assert_eq!(String::from_utf8(answer.body).unwrap(), [CREATED, COMPLETED].concat());
    let settle = rig.settlement();
    assert_eq!((settle.tokens.input, settle.tokens.cache_read, settle.tokens.output), (10, 20, 9));
    assert_eq!((settle.provenance, rig.reservation().provider.as_str()), (Provenance::Reported, "codex"));
}

#[test]
fn root_a_tunnel_elsewhere_may_not_mean_a_metered_name() {
    let [.., high, low] = std::process::id().to_be_bytes();
    let target = format!("127.77.{high}.{low}:443");
    let there = TcpListener::bind(&target).unwrap();
    there.set_nonblocking(false).unwrap();
    let mut settings = config("127.0.0.1:9".parse().unwrap());
    settings.allow_private = vec!["127.0.0.0/8".into()];
    let rig = Rig::start(settings);

    let mut honest = rig.tunnel(&target, "example.com");
    let (mut origin, _) = there.accept().unwrap();
    honest.conn.complete_io(&mut WriteOnly(&mut honest.sock)).unwrap_err();
    let mut record = [0; 5];
    origin.read_exact(&mut record).unwrap();
    assert_eq!(record[0], 0x16, "another name passes untouched");

    let mut fronting = rig.tunnel(&target, "api.anthropic.com");
    let (mut origin, _) = there.accept().unwrap();
    fronting.flush().unwrap_err();
    assert_eq!(origin.read(&mut record).unwrap_or(0), 0, "nothing of it may arrive");
    let is_notice = |message: &ToController| matches!(message, ToController::Notice(_));
    let ToController::Notice(notice) = rig.heard(is_notice) else { unreachable!() };
    assert!(notice.detail.contains("api.anthropic.com, which is metered"), "{}", notice.detail);

    for _ in 0..3 {
        rig.tunnel(&target, "api.anthropic.com").flush().unwrap_err();
        let mut unread = rig.tunnel(&target, "example.com").sock;
        unread.write_all(&[0x16, 3, 1, 0, 4, 9, 9, 9, 9]).unwrap();
        // How it is closed is the kernel's choice: an end or a reset.
        drop(unread.read_to_end(&mut Vec::new()));
    }
    rig.taken_in();
    assert_eq!(rig.count(is_notice), 1, "told once, and failed tunnels are not told");
}

#[test]
fn root_the_first_message_of_a_tunnel_waits_while_the_bottle_is_held() {
    let [.., high, low] = std::process::id().to_be_bytes();
    let target = format!("127.78.{high}.{low}:443");
    let there = TcpListener::bind(&target).unwrap();
    let mut settings = config("127.0.0.1:9".parse().unwrap());
    settings.allow_private = vec!["127.0.0.0/8".into()];
    let rig = Rig::start(settings);
    let mut tunnel = rig.tunnel(&target, "example.com");
    let (mut origin, _) = there.accept().unwrap();
    rig.send(&ToMeter::Cut { bottle: BOTTLE, upstream: Towards::Hold });
    rig.taken_in();
    tunnel.conn.complete_io(&mut WriteOnly(&mut tunnel.sock)).unwrap_err();
    origin.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    assert!(origin.read(&mut [0]).is_err(), "nothing passes while the bottle is held");
    rig.send(&ToMeter::Open { bottle: BOTTLE });
    origin.set_read_timeout(Some(SOON)).unwrap();
    assert_eq!(origin.read(&mut [0]).unwrap(), 1);
}

/// Writes to the stream, and reads nothing.
struct WriteOnly<'a>(&'a mut TcpStream);

impl Read for WriteOnly<'_> {
    fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
        Err(std::io::ErrorKind::UnexpectedEof.into())
    }
}

impl Write for WriteOnly<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.0.flush()
    }
}

#[test]
fn root_an_upstream_by_tls_is_trusted_by_the_extra_roots_alone() {
    let key = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let (certificate, signing) = (key.cert.der().clone(), key.signing_key.serialize_der());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ServerConfig::builder_with_provider(provider);
    let builder = builder.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
    let tls = Arc::new(builder.with_single_cert(vec![certificate], signing.try_into().unwrap()).unwrap());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let session = rustls::ServerConnection::new(Arc::clone(&tls)).unwrap();
            let mut stream = rustls::StreamOwned::new(session, stream.unwrap());
            // A client that trusts nobody here ends the handshake.
            if Answer::read_head(&mut stream).is_ok() {
                stream.write_all(json_answer("200 OK", JSON).as_bytes()).unwrap();
            }
        }
    });
    let mut settings = config("127.0.0.1:9".parse().unwrap());
    settings.providers[0].upstream = Some(format!("https://localhost:{port}"));
    let strict = Rig::start(settings.clone());
    assert_eq!(strict.ask(&post(MESSAGES, "")).status(), 502);
    assert_eq!(strict.settlement().ending, Ending::Unsent);
    settings.extra_roots_pem = key.cert.pem();
    let trusting = Rig::start(settings);
    assert_eq!(trusting.ask(&post(MESSAGES, "")).body, JSON.as_bytes());
    assert_eq!(trusting.settlement().tokens.output, 5);
}

#[test]
fn root_free_endpoints_need_no_permit_but_an_open_bottle() {
    let upstream = Upstream::saying(json_answer("200 OK", "{}"));
    let rig = Rig::start(config(upstream.address));
    let models = "GET /claude/v1/models HTTP/1.1\r\nHost: m\r\n\r\n";
    assert_eq!(rig.ask(models).status(), 200);
    assert_eq!(rig.count(|message| matches!(message, ToController::Reserve(_))), 0);
    let mut client = rig.connect();
    client.write_all(models.as_bytes()).unwrap();
    assert_eq!(Answer::read(&mut client).unwrap().status(), 200);
    rig.send(&ToMeter::Cut { bottle: BOTTLE, upstream: Towards::Close });
    rig.taken_in();
    client.write_all(models.as_bytes()).unwrap();
    assert_eq!(Answer::read(&mut client).unwrap().status(), 402);
    rig.send(&ToMeter::Open { bottle: BOTTLE });
    rig.taken_in();
    client.write_all(models.as_bytes()).unwrap();
    let again = Answer::read(&mut client).unwrap();
    assert_eq!(again.status(), 200, "an idle connection serves the next request after a restore");
}

#[test]
fn root_an_unlisted_endpoint_passes_is_tailed_and_noticed_once() {
    let upstream = Upstream::saying(json_answer("200 OK", JSON));
    let rig = Rig::start(config(upstream.address));
    for _ in 0..2 {
        assert_eq!(rig.ask(&post("/claude/v9/surprise", ASK)).body, JSON.as_bytes());
    }
    assert_eq!(rig.reservation().tokens, 0);
    assert_eq!(rig.count(is_settle), 2);
    let is_notice = |message: &ToController| matches!(message, ToController::Notice(notice) if notice.detail.contains("/v9/surprise"));
    rig.heard(is_notice);
    assert_eq!(rig.count(is_notice), 1);
}

#[test]
fn root_an_offer_of_another_protocol_is_not_taken_up() {
    let upstream = Upstream::saying(json_answer("200 OK", JSON));
    let rig = Rig::start(config(upstream.address));
    let offer = "Host: meter\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: x";
    assert_eq!(rig.ask(&post(MESSAGES, ASK).replace("Host: meter", offer)).body, JSON.as_bytes());
    assert!(!upstream.heads()[0].to_lowercase().contains("upgrade"));
}

#[test]
fn root_a_long_path_is_told_in_short_and_harmless() {
    let upstream = Upstream::saying(json_answer("200 OK", JSON));
    let rig = Rig::start(config(upstream.address));
    let path = format!("/claude/v9/\u{202e}{}", "x".repeat(8_000));
    rig.ask(&post(&path, ASK));
    let told = rig.reservation().endpoint;
    assert!(told.chars().count() == 256 && !told.contains('\u{202e}'), "{told}");
}

#[test]
fn root_trailers_of_requests_are_not_forwarded() {
    let (tell, told) = mpsc::channel();
    let tell = Mutex::new(tell);
    let upstream = Upstream::start(move |stream| {
        let mut got = Vec::new();
        while !got.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte)?;
            got.push(byte[0]);
        }
        tell.lock().unwrap().send(String::from_utf8(got).unwrap()).unwrap();
        stream.write_all(json_answer("200 OK", "{}").as_bytes())
    });
    let rig = Rig::start(config(upstream.address));
    let request = "POST /claude/v9/x HTTP/1.1\r\nHost: m\r\nTransfer-Encoding: chunked\r\nTrailer: x-sum\r\n\r\n3\r\nabc\r\n0\r\nx-sum: 7\r\n\r\n";
    assert_eq!(rig.ask(request).status(), 200);
    assert_eq!(told.recv().unwrap(), "3\r\nabc\r\n0\r\n\r\n");
    assert!(!upstream.heads()[0].to_lowercase().contains("trailer"));
}

#[test]
fn root_a_background_response_is_refused() {
    let upstream = Upstream::saying(json_answer("200 OK", JSON));
    let rig = Rig::start(config(upstream.address));
    let zipped =
        post("/codex/v1/responses", "{}").replace("Host: meter", "Host: meter\r\nContent-Encoding: secret");
    for request in [post("/codex/v1/responses", r#"{"background":true,"input":"hi"}"#), zipped] {
        let answer = rig.ask(&request);
        assert_eq!((answer.status(), answer.header("x-should-retry")), (400, Some("false")));
        let error = &answer.json()["error"];
        assert_eq!(error["type"], "invalid_request_error");
        assert!(error["message"].as_str().unwrap().contains("background"), "{error}");
    }
    assert!(upstream.heads().is_empty());
    let large = format!(r#"{{"input":"{}"}}"#, "x ".repeat(3 * 1024 * 1024));
    assert_eq!(rig.ask(&post("/codex/v1/responses", &large)).status(), 200, "long ones are read whole");
}

#[test]
fn root_an_encoded_path_is_metered_as_what_it_means() {
    let upstream = Upstream::saying(json_answer("200 OK", JSON));
    let rig = Rig::start(config(upstream.address));
    assert_eq!(rig.ask(&post("/claude/v1/%6dessages", ASK)).body, JSON.as_bytes());
    assert!(rig.reservation().tokens >= 100);
    assert!(upstream.heads()[0].starts_with("POST /v1/%6dessages "), "what passes is untouched");
}

#[test]
fn root_a_client_that_hangs_up_closes_upstream_and_is_charged() {
    let (upstream, step) = stepped(&[START, WORDS]);
    let rig = Rig::start(config(upstream.address));
    let mut client = rig.connect();
    client.write_all(post(MESSAGES, ASK_STREAM).as_bytes()).unwrap();
    step.send(()).unwrap();
    step.send(()).unwrap();
    Answer::read_head(&mut client).unwrap();
    read_chunk(&mut client).unwrap();
    client.shutdown(Shutdown::Both).unwrap();
    drop((client, step));
    assert!(upstream.ended() < Duration::from_secs(1));
    let settle = rig.settlement();
    assert_eq!((settle.ending, settle.provenance), (Ending::ClientGone, Provenance::Partial));
    assert!(settle.tokens.input == 10 && settle.tokens.output >= 1, "{settle:?}");
}

#[test]
fn root_a_client_that_leaves_at_the_gate_withdraws() {
    let upstream = Upstream::saying(json_answer("200 OK", JSON));
    let rig = Rig::start(config(upstream.address));
    rig.manner(|manner| manner.permits = false);
    let mut client = rig.connect();
    client.write_all(post(MESSAGES, ASK).as_bytes()).unwrap();
    let reserve = rig.reservation();
    drop(client);
    rig.heard(|message| *message == ToController::Withdraw { exchange: reserve.exchange });
    rig.send(&ToMeter::Permit { exchange: reserve.exchange });
    assert_eq!(rig.settlement().ending, Ending::Unsent);
    assert!(upstream.heads().is_empty());
}

#[test]
fn root_a_client_that_leaves_before_there_is_a_connection_pays_nothing() {
    let full = rig::Deaf::listen();
    let rig = Rig::start(config(full.address));
    let mut client = rig.connect();
    client.write_all(post(MESSAGES, ASK).as_bytes()).unwrap();
    rig.reservation();
    std::thread::sleep(Duration::from_millis(100));
    drop(client);
    let settle = rig.settlement();
    assert_eq!((settle.ending, settle.tokens.total()), (Ending::Unsent, 0));
}

#[test]
fn root_a_client_that_leaves_at_the_end_is_still_charged_what_is_reported() {
    let (upstream, step) = stepped(&[START, DELTA, STOP]);
    let rig = Rig::start(config(upstream.address));
    let mut client = rig.connect();
    client.write_all(post(MESSAGES, ASK_STREAM).as_bytes()).unwrap();
    step.send(()).unwrap();
    Answer::read_head(&mut client).unwrap();
    read_chunk(&mut client).unwrap();
    step.send(()).unwrap();
    rig.heard(|message| matches!(message, ToController::Progress { tokens, .. } if tokens.output == 25));
    drop(client);
    std::thread::sleep(Duration::from_millis(50));
    step.send(()).unwrap();
    let settle = rig.settlement();
    assert_eq!((settle.tokens.output, settle.provenance), (25, Provenance::Reported));
}

/// A JSON answer in chunks: most of it first, then a little, then its end with the usage.
const PARTS: [&str; 3] = [
    r#"{"type":"message","model":"claude-x","content":["#,
    r#""w"],"#,
    r#""usage":{"input_tokens":10,"output_tokens":5}}"#,
];
const JSON_HEAD: &str =
    "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n";

#[test]
fn root_a_client_that_leaves_a_document_is_charged_what_is_reported() {
    let (step, steps) = mpsc::channel::<()>();
    let steps = Mutex::new(steps);
    let upstream = Upstream::start(move |stream| {
        write!(stream, "{JSON_HEAD}{}{}", chunk(PARTS[0]), chunk(&format!("{:9000}", "")))?;
        steps.lock().unwrap().recv().unwrap();
        write!(stream, "{}{}0\r\n\r\n", chunk(PARTS[1]), chunk(PARTS[2]))
    });
    let rig = Rig::start(config(upstream.address));
    let mut client = rig.connect();
    client.write_all(post(MESSAGES, ASK).as_bytes()).unwrap();
    Answer::read_head(&mut client).unwrap();
    read_chunk(&mut client).unwrap();
    drop(client);
    std::thread::sleep(Duration::from_millis(50));
    step.send(()).unwrap();
    let settle = rig.settlement();
    assert_eq!((settle.tokens.output, settle.provenance), (5, Provenance::Reported));
}

#[test]
fn root_the_end_of_a_document_waits_for_the_ledger_also_with_trailers() {
    let head = JSON_HEAD.replace("\r\n\r\n", "\r\ntrailer: x-sum\r\n\r\n");
    let body = PARTS.map(chunk).concat();
    let padding = " ".repeat(9_000);
    let upstream = Upstream::saying(format!("{head}{}{body}0\r\nx-sum: 7\r\n\r\n", chunk(&padding)));
    let rig = Rig::start(config(upstream.address));
    rig.manner(|manner| manner.settles = false);
    let mut client = rig.connect();
    let request =
        post(MESSAGES, ASK).replace("Host: meter", "Host: meter\r\nTE: trailers\r\nConnection: TE, close");
    client.write_all(request.as_bytes()).unwrap();
    let settle = rig.settlement();
    Answer::read_head(&mut client).unwrap();
    client.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    let mut early = Vec::new();
    client.read_to_end(&mut early).unwrap_err();
    let early = String::from_utf8(early).unwrap();
    assert!(!early.contains("model"), "nothing of the end may arrive before it is settled: {early}");
    client.set_read_timeout(Some(SOON)).unwrap();
    rig.send(&ToMeter::Settled { exchange: settle.exchange });
    let mut all = early;
    client.read_to_string(&mut all).unwrap();
    assert!(all.ends_with("0\r\nx-sum: 7\r\n\r\n"));
    let (mut wire, mut got) = (all.as_bytes(), Vec::new());
    while let Some(more) = read_chunk(&mut wire).unwrap() {
        got.extend(more);
    }
    assert_eq!(String::from_utf8(got).unwrap(), padding + &PARTS.concat());
}

#[test]
fn root_an_upstream_that_breaks_is_passed_on_as_a_break() {
    let upstream = Upstream::start(|stream| {
        stream.write_all(format!("{STREAM_HEAD}{}{}", chunk(START), chunk(WORDS)).as_bytes())?;
        Err(std::io::ErrorKind::BrokenPipe.into())
    });
    let rig = Rig::start(config(upstream.address));
    let mut client = rig.connect();
    client.write_all(post(MESSAGES, ASK_STREAM).as_bytes()).unwrap();
    assert!(Answer::read(&mut client).is_err(), "a broken stream must not end well");
    let settle = rig.settlement();
    assert_eq!((settle.ending, settle.provenance), (Ending::UpstreamBroke, Provenance::Partial));
}

#[test]
fn root_a_cut_closes_upstream_at_once() {
    let (upstream, step) = stepped(&[START, WORDS]);
    let rig = Rig::start(config(upstream.address));
    let mut client = rig.connect();
    client.write_all(post(MESSAGES, ASK_STREAM).as_bytes()).unwrap();
    step.send(()).unwrap();
    Answer::read_head(&mut client).unwrap();
    read_chunk(&mut client).unwrap();
    drop(step);
    rig.send(&ToMeter::Cut { bottle: BOTTLE, upstream: Towards::Close });
    assert!(upstream.ended() < Duration::from_millis(500));
    assert_eq!(rig.settlement().ending, Ending::Cut);
    let mut rest = Vec::new();
    // An end or a reset, by the kernel's choice; no last chunk in any case.
    drop(client.read_to_end(&mut rest));
    assert!(!rest.ends_with(b"0\r\n\r\n"));
}

#[test]
fn root_a_cut_before_the_answer_charges_the_reservation() {
    let upstream = Upstream::start(until_closed);
    let rig = Rig::start(config(upstream.address));
    let mut client = rig.connect();
    client.write_all(post(MESSAGES, ASK).as_bytes()).unwrap();
    while upstream.heads().is_empty() {
        std::thread::yield_now();
    }
    rig.send(&ToMeter::Cut { bottle: BOTTLE, upstream: Towards::Close });
    assert!(upstream.ended() < Duration::from_millis(500));
    let settle = rig.settlement();
    assert_eq!((settle.ending, settle.provenance), (Ending::Cut, Provenance::Estimated));
    assert_eq!(settle.tokens.total(), rig.reservation().tokens);
}

#[test]
fn root_a_held_tunnel_goes_on_after_a_restore() {
    let echo = TcpListener::bind("127.0.0.1:0").unwrap();
    let there = echo.local_addr().unwrap();
    let mut settings = config("127.0.0.1:9".parse().unwrap());
    settings.allow_private = vec!["127.0.0.0/8".into()];
    let rig = Rig::start(settings);
    let mut tunnel = rig.connect();
    write!(tunnel, "CONNECT {there} HTTP/1.1\r\nHost: {there}\r\n\r\n").unwrap();
    assert_eq!(Answer::read_head(&mut tunnel).unwrap().status(), 200);
    let (mut origin, _) = echo.accept().unwrap();
    rig.send(&ToMeter::Cut { bottle: BOTTLE, upstream: Towards::Hold });
    rig.taken_in();
    tunnel.write_all(b"x").unwrap();
    origin.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    assert!(origin.read(&mut [0]).is_err(), "nothing passes while the bottle is held");
    rig.send(&ToMeter::Open { bottle: BOTTLE });
    origin.set_read_timeout(Some(SOON)).unwrap();
    assert_eq!(origin.read(&mut [0]).unwrap(), 1);
}

#[test]
fn root_a_cut_closes_upstream_also_while_the_client_reads_nothing() {
    let upstream = Upstream::start(|stream| {
        stream.write_all(STREAM_HEAD.as_bytes())?;
        loop {
            stream.write_all(chunk(&WORDS.repeat(100)).as_bytes())?;
        }
    });
    let rig = Rig::start(config(upstream.address));
    let mut client = rig.connect();
    client.write_all(post(MESSAGES, ASK_STREAM).as_bytes()).unwrap();
    rig.heard(|message| matches!(message, ToController::Progress { tokens, .. } if tokens.output > 1_000));
    std::thread::sleep(Duration::from_millis(300));
    rig.send(&ToMeter::Cut { bottle: BOTTLE, upstream: Towards::Close });
    assert!(upstream.ended() < Duration::from_millis(500));
    assert_eq!(rig.settlement().ending, Ending::Cut);
}

#[test]
fn root_a_held_stream_goes_on_after_a_restore() {
    let (upstream, step) = stepped(&[START, WORDS, DELTA, STOP]);
    let rig = Rig::start(config(upstream.address));
    let mut client = rig.connect();
    client.write_all(post(MESSAGES, ASK_STREAM).as_bytes()).unwrap();
    step.send(()).unwrap();
    Answer::read_head(&mut client).unwrap();
    let mut got = read_chunk(&mut client).unwrap().unwrap();
    rig.send(&ToMeter::Cut { bottle: BOTTLE, upstream: Towards::Hold });
    rig.taken_in();
    (0..4).for_each(|_| step.send(()).unwrap());
    client.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    assert!(client.read(&mut [0]).is_err(), "nothing passes while the bottle is held");
    assert_eq!(rig.count(is_settle), 0);
    client.set_read_timeout(Some(SOON)).unwrap();
    rig.send(&ToMeter::Open { bottle: BOTTLE });
    while let Some(more) = read_chunk(&mut client).unwrap() {
        got.extend(more);
    }
    assert_eq!(String::from_utf8(got).unwrap(), [START, WORDS, DELTA, STOP].concat());
    assert_eq!(rig.settlement().ending, Ending::Completed);
}

#[test]
fn root_a_hold_that_runs_out_closes() {
    let (upstream, step) = stepped(&[START]);
    let mut settings = config(upstream.address);
    settings.hold_ms = 200;
    let rig = Rig::start(settings);
    let mut client = rig.connect();
    client.write_all(post(MESSAGES, ASK_STREAM).as_bytes()).unwrap();
    step.send(()).unwrap();
    Answer::read_head(&mut client).unwrap();
    read_chunk(&mut client).unwrap();
    drop(step);
    rig.send(&ToMeter::Cut { bottle: BOTTLE, upstream: Towards::Hold });
    let since = Instant::now();
    upstream.ended();
    assert!(since.elapsed() >= Duration::from_millis(190));
    assert_eq!(rig.settlement().ending, Ending::Cut);
}

#[test]
fn root_a_detached_bottle_loses_its_connections() {
    let upstream = Upstream::saying(json_answer("200 OK", "{}"));
    let rig = Rig::start(config(upstream.address));
    let mut client = rig.connect();
    client.write_all(b"GET /claude/v1/models HTTP/1.1\r\nHost: m\r\n\r\n").unwrap();
    assert_eq!(Answer::read(&mut client).unwrap().status(), 200);
    rig.send(&ToMeter::Detached { bottle: BOTTLE });
    assert_eq!(client.read(&mut [0]).unwrap_or(0), 0);
}

#[test]
fn root_a_large_upload_is_streamed_in_bounded_memory() {
    const MIB: usize = 1024 * 1024;
    let upstream = Upstream::saying(json_answer("200 OK", JSON));
    let rig = Rig::start(config(upstream.address));
    let mut client = rig.connect();
    let head = post(MESSAGES, "").replace("Content-Length: 0", &format!("Content-Length: {}", 100 * MIB));
    client.write_all(head.as_bytes()).unwrap();
    let piece = vec![b'x'; MIB];
    (0..100).for_each(|_| client.write_all(&piece).unwrap());
    assert_eq!(Answer::read(&mut client).unwrap().status(), 200);
    assert_eq!(upstream.body_bytes(), 100 * MIB);
    let peak_kib: usize = rig.status_line("VmHWM:").trim_end_matches(" kB").parse().unwrap();
    assert!(peak_kib < 64 * 1024, "the meter used {peak_kib} KiB");
}

#[test]
fn root_an_upload_waits_for_its_permit() {
    const BYTES: usize = 6 * 1024 * 1024;
    let upstream = Upstream::saying(json_answer("200 OK", JSON));
    let rig = Rig::start(config(upstream.address));
    rig.manner(|manner| manner.permits = false);
    let mut client = rig.connect();
    let head = post(MESSAGES, "").replace("Content-Length: 0", &format!("Content-Length: {BYTES}"));
    let mut uploading = client.try_clone().unwrap();
    let upload = std::thread::spawn(move || {
        uploading.write_all(head.as_bytes())?;
        uploading.write_all(&vec![b'x'; BYTES])
    });
    let reserve = rig.reservation();
    std::thread::sleep(Duration::from_millis(200));
    assert!(upstream.heads().is_empty() && upstream.body_bytes() == 0, "nothing leaves before the permit");
    rig.send(&ToMeter::Permit { exchange: reserve.exchange });
    assert_eq!(Answer::read(&mut client).unwrap().body, JSON.as_bytes());
    upload.join().unwrap().unwrap();
    assert_eq!(upstream.body_bytes(), BYTES);
}

#[test]
fn root_bottles_share_no_connection_to_upstream() {
    let accepted = Arc::new(Mutex::new(Vec::new()));
    let kept = Arc::clone(&accepted);
    let upstream = Upstream::start(move |stream: &mut TcpStream| {
        kept.lock().unwrap().push(stream.peer_addr().unwrap());
        stream.write_all(json_answer("200 OK", JSON).as_bytes())
    });
    let rig = Rig::start(config(upstream.address));
    for bottle in [BOTTLE, OTHER, BOTTLE, OTHER] {
        rig.manner(|manner| manner.bottle = bottle);
        assert_eq!(rig.ask(&post(MESSAGES, ASK)).status(), 200);
        rig.heard(|message| matches!(message, ToController::Reserve(reserve) if reserve.bottle == bottle));
    }
    let peers = accepted.lock().unwrap().clone();
    assert!(peers[0] == peers[2] && peers[1] == peers[3] && peers[0] != peers[1], "{peers:?}");

    rig.send(&ToMeter::Cut { bottle: BOTTLE, upstream: Towards::Close });
    rig.taken_in();
    assert_eq!(rig.ask(&post(MESSAGES, ASK)).status(), 200, "the other bottle is not cut");
    rig.manner(|manner| manner.bottle = BOTTLE);
    assert_eq!(rig.ask(&post(MESSAGES, ASK)).status(), 402);
}

#[test]
fn root_an_expectation_is_met_by_the_meter() {
    let upstream = Upstream::saying(json_answer("200 OK", JSON));
    let rig = Rig::start(config(upstream.address));
    let mut client = rig.connect();
    let request = post(MESSAGES, ASK).replace("Host: meter", "Host: meter\r\nExpect: 100-continue");
    let (head, body) = request.split_at(request.find("\r\n\r\n").unwrap() + 4);
    client.write_all(head.as_bytes()).unwrap();
    assert_eq!(Answer::read_head(&mut client).unwrap().status(), 100);
    client.write_all(body.as_bytes()).unwrap();
    assert_eq!(Answer::read(&mut client).unwrap().body, JSON.as_bytes());
    assert!(!upstream.heads()[0].to_lowercase().contains("expect"));
}

#[test]
fn root_many_requests_share_a_connection_to_upstream() {
    let accepted = Arc::new(Mutex::new(Vec::new()));
    let kept = Arc::clone(&accepted);
    let upstream = Upstream::start(move |stream: &mut TcpStream| {
        kept.lock().unwrap().push(stream.peer_addr().unwrap());
        stream.write_all(json_answer("200 OK", JSON).as_bytes())
    });
    let rig = Rig::start(config(upstream.address));
    for _ in 0..3 {
        assert_eq!(rig.ask(&post(MESSAGES, ASK)).status(), 200);
    }
    let peers = accepted.lock().unwrap();
    assert!(peers.len() == 3 && peers.iter().all(|peer| *peer == peers[0]), "{peers:?}");
}
