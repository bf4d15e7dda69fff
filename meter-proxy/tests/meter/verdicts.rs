//! Cut, held, opened, detached: what becomes of what is under way.
use std::io::{Read, Write};
use std::time::{Duration, Instant};

use meter_proxy::protocol::{Refusal, ToController, ToMeter, Upstream as Towards};
use meter_proxy::tokens::{Ending, Provenance};

use crate::rig::{
    Answer, BOTTLE, Rig, SOON, Upstream, chunk, config, json_answer, post, read_chunk, until_closed,
};
use crate::words::{
    ASK, ASK_STREAM, Begun, DELTA, MESSAGES, START, STOP, STREAM_HEAD, WORDS, begun, is_settle, stepped,
};

#[test]
fn root_a_cut_closes_upstream_at_once() {
    let Begun { rig, mut client, step, upstream } = begun(MESSAGES, ASK_STREAM, &[START, WORDS]);
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
    rig.heard(|message| matches!(message, ToController::Progress(counts) if counts.iter().any(|(_, tokens)| tokens.output > 1_000)));
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

const CREATED: &str = "event: response.created\ndata: {\"type\":\"response.created\",\"response\":{}}\n\n";

/// An event in two chunks.
const HALVES: [&str; 2] = [
    "event: response.output_text.delta\ndata: {\"type\":\"response.output_text.delta\",",
    "\"delta\":\"Some words of an answer.\"}\n\n",
];

fn stopped() -> Refusal {
    Refusal::Budget {
        bottle: "host".into(),
        provider: "codex".into(),
        scope: "global".into(),
        owner: "global".into(),
        limit: 10,
        used: 12,
        reserved: 0,
        window: "total".into(),
        rule: "nearest".into(),
    }
}

#[test]
fn root_a_stream_that_may_not_go_on_ends_with_the_reason_between_two_events() {
    let (upstream, step) = stepped(&[CREATED, HALVES[0], HALVES[1], HALVES[0]]);
    let rig = Rig::start(config(upstream.address));
    let mut client = rig.connect();
    client
        .write_all(post("/codex/v1/responses", r#"{"model":"m","stream":true,"input":"x"}"#).as_bytes())
        .unwrap();
    (0..2).for_each(|_| step.send(()).unwrap());
    Answer::read_head(&mut client).unwrap();
    let mut got = String::new();
    while got.len() < CREATED.len() + HALVES[0].len() {
        got.push_str(std::str::from_utf8(&read_chunk(&mut client).unwrap().unwrap()).unwrap());
    }
    rig.send(&ToMeter::Refused { exchange: rig.reservation().exchange, refusal: stopped() });
    client.set_read_timeout(Some(Duration::from_millis(150))).unwrap();
    assert!(client.read(&mut [0]).is_err(), "the event under way ends first");
    client.set_read_timeout(Some(SOON)).unwrap();
    step.send(()).unwrap();
    while let Some(more) = read_chunk(&mut client).unwrap() {
        got.push_str(std::str::from_utf8(&more).unwrap());
    }
    drop(step);
    upstream.ended();
    let reason = got.strip_prefix(&[CREATED, HALVES[0], HALVES[1]].concat()).unwrap();
    let data = reason.strip_prefix("event: response.failed\ndata: ").unwrap().strip_suffix("\n\n").unwrap();
    let event: serde_json::Value = serde_json::from_str(data).unwrap();
    assert_eq!(
        (&event["type"], &event["response"]["error"]["code"]),
        (&"response.failed".into(), &"invalid_prompt".into())
    );
    let message = event["response"]["error"]["message"].as_str().unwrap();
    assert!(message.contains("12 of 10 codex tokens") && message.contains("scope global"), "{message}");
    let settle = rig.settlement();
    assert_eq!((settle.ending, settle.provenance), (Ending::Cut, Provenance::Estimated));
}

#[test]
fn root_an_answer_that_takes_no_last_event_is_broken_off() {
    let Begun { rig, mut client, step, upstream } = begun(MESSAGES, ASK_STREAM, &[START, WORDS]);
    rig.send(&ToMeter::Refused { exchange: rig.reservation().exchange, refusal: stopped() });
    drop(step);
    upstream.ended();
    assert_eq!(rig.settlement().ending, Ending::Cut);
    let mut rest = Vec::new();
    drop(client.read_to_end(&mut rest));
    assert!(!rest.ends_with(b"0\r\n\r\n"), "no end is made up");
}
