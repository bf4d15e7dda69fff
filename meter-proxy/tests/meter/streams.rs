//! Answers on their way: byte for byte, and their end only when it is durable.
use std::io::{Read, Write};
use std::time::Duration;

use meter_proxy::protocol::{ToController, ToMeter};
use meter_proxy::tokens::{Ending, Provenance};

use crate::rig::{Answer, Rig, SOON, Upstream, chunk, config, json_answer, post, read_chunk};
use crate::words::{
    ASK, ASK_STREAM, DELTA, JSON, JSON_HEAD, MESSAGES, PARTS, START, STOP, STREAM_HEAD, WORDS, stepped,
};

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
    assert!(rig.count(|message| matches!(message, ToController::Progress(_))) > 0);
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
