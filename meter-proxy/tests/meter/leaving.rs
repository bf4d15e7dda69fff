//! Clients that leave early: what they are charged.
use std::io::Write;
use std::net::Shutdown;
use std::sync::{Mutex, mpsc};
use std::time::Duration;

use meter_proxy::protocol::{ToController, ToMeter};
use meter_proxy::tokens::{Ending, Provenance};

use crate::rig::{Answer, Deaf, Rig, Upstream, chunk, config, json_answer, post, read_chunk};
use crate::words::{ASK, ASK_STREAM, DELTA, JSON, JSON_HEAD, MESSAGES, PARTS, START, STOP, WORDS, stepped};

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
    let full = Deaf::listen();
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
    rig.heard(|message| matches!(message, ToController::Progress(counts) if counts.iter().any(|(_, tokens)| tokens.output == 25)));
    drop(client);
    std::thread::sleep(Duration::from_millis(50));
    step.send(()).unwrap();
    let settle = rig.settlement();
    assert_eq!((settle.tokens.output, settle.provenance), (25, Provenance::Reported));
}

/// The end of a chat, and what follows it.
const FINISH: &str = "data: {\"choices\":[{\"delta\":{\"content\":\"x\"},\"finish_reason\":\"stop\"}]}\n\n";
const FIGURES: &str = "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":7,\"completion_tokens\":900}}\n\n";

#[test]
fn root_a_client_that_leaves_a_chat_before_its_figures_is_still_charged_what_is_reported() {
    let (upstream, step) = stepped(&[FINISH, FIGURES]);
    let rig = Rig::start(config(upstream.address));
    let mut client = rig.connect();
    client.write_all(post("/codex/v1/chat/completions", r#"{"stream":true}"#).as_bytes()).unwrap();
    step.send(()).unwrap();
    Answer::read_head(&mut client).unwrap();
    read_chunk(&mut client).unwrap();
    drop(client);
    std::thread::sleep(Duration::from_millis(50));
    step.send(()).unwrap();
    let settle = rig.settlement();
    assert_eq!((settle.tokens.total(), settle.provenance), (907, Provenance::Reported));
}

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
