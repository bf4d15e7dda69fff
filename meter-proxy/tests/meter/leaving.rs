//! Clients that leave early: what they are charged.
use std::io::Write;
use std::net::Shutdown;
use std::sync::{Mutex, mpsc};
use std::time::{Duration, Instant};

use meter_proxy::protocol::{ToController, ToMeter};
use meter_proxy::tokens::{Ending, Provenance};

use crate::rig::{Answer, Deaf, Rig, Upstream, chunk, config, json_answer, post, read_chunk};
use crate::words::{
    ASK, ASK_STREAM, Begun, DELTA, JSON, JSON_HEAD, MESSAGES, PARTS, START, STOP, WORDS, begun, stepped,
};

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
    let Begun { rig, client, step, upstream: _upstream } = begun(MESSAGES, ASK_STREAM, &[START, DELTA, STOP]);
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
/// The same of Responses and of Anthropic's Messages, where more could follow.
const ITEM_DONE: &str = "data: {\"type\":\"response.output_item.done\",\"item\":{}}\n\n";
const COMPLETED: &str = concat!(
    r#"data: {"type":"response.completed","response":{"usage":{"input_tokens":7,"output_tokens":900}}}"#,
    "\n\n"
);
const BLOCK_STOP: &str = "data: {\"type\":\"content_block_stop\",\"index\":0}\n\n";
const LAST_DELTA: &str = concat!(
    r#"data: {"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"input_tokens":7,"output_tokens":900}}"#,
    "\n\n",
    r#"data: {"type":"message_stop"}"#,
    "\n\n"
);

#[test]
fn root_a_client_that_leaves_when_all_text_is_there_is_still_charged_what_is_reported() {
    for (path, parts) in [
        ("/codex/v1/chat/completions", &[FINISH, FIGURES]),
        ("/codex/v1/responses", &[ITEM_DONE, COMPLETED]),
        (MESSAGES, &[BLOCK_STOP, LAST_DELTA]),
    ] {
        let Begun { rig, client, step, upstream: _upstream } = begun(path, r#"{"stream":true}"#, parts);
        drop(client);
        std::thread::sleep(Duration::from_millis(50));
        step.send(()).unwrap();
        let settle = rig.settlement();
        assert_eq!((settle.tokens.total(), settle.provenance), (907, Provenance::Reported), "{path}");
    }
}

/// Another block of the answer begins.
const BLOCK_START: &str = "data: {\"type\":\"content_block_start\",\"index\":1}\n\n";

#[test]
fn root_a_client_that_leaves_between_two_blocks_closes_upstream_when_the_next_begins() {
    let Begun { rig, client, step, upstream: _upstream } =
        begun(MESSAGES, ASK_STREAM, &[BLOCK_STOP, BLOCK_START]);
    drop(client);
    std::thread::sleep(Duration::from_millis(50));
    step.send(()).unwrap();
    let left = Instant::now();
    assert_eq!(rig.settlement().ending, Ending::ClientGone);
    assert!(left.elapsed() < Duration::from_secs(1), "{:?}", left.elapsed());
}

/// The beginning of a stream, and the first words of its answer.
const SILENT: &str = "data: {\"type\":\"response.created\",\"response\":{\"id\":\"r\"}}\n\n";
const FIRST_WORDS: &str = "data: {\"type\":\"response.output_text.delta\",\"delta\":\"Hi\"}\n\n";
const CHAT_ROLE: &str = "data: {\"choices\":[{\"delta\":{\"role\":\"assistant\"}}]}\n\n";
const CHAT_WORDS: &str = "data: {\"choices\":[{\"delta\":{\"content\":\"Hi\"}}]}\n\n";

#[test]
fn root_a_client_that_leaves_after_a_silence_is_charged_for_what_it_was_not_shown() {
    for (path, parts) in [
        ("/codex/v1/chat/completions", &[CHAT_ROLE, CHAT_WORDS]),
        ("/codex/v1/responses", &[SILENT, FIRST_WORDS]),
    ] {
        let Begun { rig, mut client, step, upstream: _upstream } = begun(path, r#"{"stream":true}"#, parts);
        std::thread::sleep(Duration::from_secs(3));
        step.send(()).unwrap();
        read_chunk(&mut client).unwrap();
        drop(client);
        let settle = rig.settlement();
        assert_eq!((settle.ending, settle.provenance), (Ending::ClientGone, Provenance::Estimated), "{path}");
        assert!((300..1_500).contains(&settle.tokens.output), "{path}: {settle:?}");
        let told = |message: &ToController| matches!(message, ToController::Progress(counts) if counts.iter().any(|(_, tokens)| tokens.output > 100));
        assert_eq!(rig.count(told), 0, "{path}: no agent is cut for a guess");
    }
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
