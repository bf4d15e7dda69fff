//! What no provider should answer: it passes as it came, is charged on the safe side, and costs no memory.
use std::io::{Read, Write};
use std::time::Duration;

use meter_proxy::tokens::{Ending, Provenance};

use crate::rig::{Answer, Rig, Upstream, chunk, config, json_answer, post, read_chunk};
use crate::words::{ASK, ASK_STREAM, DELTA, JSON, MESSAGES, START, STOP, STREAM_HEAD, WORDS};

const EVENTS: &str = "text/event-stream";
const DOCUMENT: &str = "application/json";

fn answer(kind: &str, coding: &str, body: &[u8]) -> Vec<u8> {
    let length = body.len();
    let coding = if coding.is_empty() { String::new() } else { format!("content-encoding: {coding}\r\n") };
    let head = format!("HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\n{coding}content-length: {length}\r\n\r\n");
    [head.as_bytes(), body].concat()
}

#[test]
fn root_what_cannot_be_read_passes_untouched_and_is_never_free() {
    let stream = [START, WORDS, DELTA, STOP].concat().into_bytes();
    let strange = |figures: &str| format!(r#"{{"content":[],"usage":{figures}}}"#).into_bytes();
    let table: [(&str, &str, &str, Vec<u8>); 14] = [
        ("NULs", EVENTS, "", vec![0; 70_000]),
        ("NULs", DOCUMENT, "", vec![0; 70_000]),
        ("no UTF-8", EVENTS, "", [b"data: {\"type\":\"\xff\xfe\"}\n\n", &[0xc0; 900][..]].concat()),
        ("no UTF-8", DOCUMENT, "", b"{\"usage\":{\"input_tokens\":\xff}}".to_vec()),
        ("half of a stream", EVENTS, "", stream[..stream.len() / 2].to_vec()),
        ("half a document", DOCUMENT, "", JSON.as_bytes()[..40].to_vec()),
        ("not coded", EVENTS, "gzip", stream.clone()),
        ("a coding that nobody knows", EVENTS, "secret", stream.clone()),
        ("a coding that is not said", EVENTS, "", zstd::encode_all(&stream[..], 1).unwrap()),
        ("half of its coding", EVENTS, "zstd", zstd::encode_all(&stream[..], 1).unwrap()[..60].to_vec()),
        ("another type", "image/png", "", b"\x89PNG\r\n".to_vec()),
        ("negative counts", DOCUMENT, "", strange(r#"{"input_tokens":-5,"output_tokens":-1}"#)),
        (
            "counts that overflow",
            DOCUMENT,
            "",
            strange(r#"{"input_tokens":18446744073709551616,"output_tokens":1}"#),
        ),
        ("usage of another type", DOCUMENT, "", strange(r#"["input_tokens"]"#)),
    ];
    for (what, kind, coding, body) in table {
        let upstream = Upstream::saying(answer(kind, coding, &body));
        let rig = Rig::start(config(upstream.address));
        let ask = if kind == EVENTS { ASK_STREAM } else { ASK };
        assert_eq!(rig.ask(&post(MESSAGES, ask)).body, body, "{what}, {kind}");
        let settle = rig.settlement();
        assert_ne!(settle.provenance, Provenance::Reported, "{what}, {kind}: {settle:?}");
        assert!(settle.tokens.input > 0, "{what}, {kind}: {settle:?}");
        assert!(settle.tokens.total() < 1_000_000, "{what}, {kind}: {settle:?}");
        assert_eq!(rig.ask(&post(MESSAGES, ask)).body, body, "{what}, {kind}: and the meter goes on");
    }
}

/// Bytes of one line, written in pieces of a mebibyte.
const LINE_MIB: usize = 1024;
/// What the meter may grow by for it, KiB: the longest event that is kept, and what is under way.
const MOST_GROWTH_KIB: usize = 24 * 1024;

#[test]
fn root_a_line_of_a_gigabyte_passes_in_bounded_memory() {
    let upstream = Upstream::start(|stream| {
        stream.write_all(format!("{STREAM_HEAD}{}", chunk(START)).as_bytes())?;
        stream.write_all(format!("{:x}\r\ndata: ", 6 + LINE_MIB * (1 << 20)).as_bytes())?;
        let piece = vec![b'x'; 1 << 20];
        for _ in 0..LINE_MIB {
            stream.write_all(&piece)?;
        }
        write!(stream, "\r\n{}{}0\r\n\r\n", chunk("\n\n"), chunk(&[DELTA, STOP].concat()))
    });
    let rig = Rig::start(config(upstream.address));
    let memory_kib = |key: &str| rig.status_line(key).trim_end_matches(" kB").parse::<usize>().unwrap();
    let before = memory_kib("VmRSS:");
    let mut client = rig.connect();
    client.write_all(post(MESSAGES, ASK_STREAM).as_bytes()).unwrap();
    Answer::read_head(&mut client).unwrap();
    let (mut passed, mut last) = (0, Vec::new());
    while let Some(more) = read_chunk(&mut client).unwrap() {
        passed += more.len();
        last = more;
    }
    assert_eq!(passed, START.len() + 6 + LINE_MIB * (1 << 20) + 2 + DELTA.len() + STOP.len());
    assert!(last.ends_with(STOP.as_bytes()));
    let settle = rig.settlement();
    assert_eq!((settle.tokens.input, settle.tokens.output), (10, 25), "what follows is read: {settle:?}");
    let growth = memory_kib("VmHWM:").saturating_sub(before);
    assert!(growth < MOST_GROWTH_KIB, "the meter grew by {growth} KiB");
}

#[test]
fn root_a_head_without_an_end_breaks_off_and_is_charged() {
    let upstream = Upstream::start(|stream| {
        stream.write_all(b"HTTP/1.1 200 OK\r\n")?;
        // the meter hangs up in between
        (0..1_000_000).try_for_each(|number| write!(stream, "x-{number}: y\r\n"))
    });
    let rig = Rig::start(config(upstream.address));
    assert_eq!(rig.ask(&post(MESSAGES, ASK)).status(), 502);
    assert!(upstream.ended() < Duration::from_secs(5));
    let settle = rig.settlement();
    assert_eq!((settle.ending, settle.provenance), (Ending::UpstreamBroke, Provenance::Estimated));
    assert!(settle.tokens.output >= 100, "it may have been generated: {settle:?}");
}

#[test]
fn root_chunks_that_are_none_break_the_answer_off() {
    let wrong = ["zz\r\n", "ffffffffffffffffff\r\n", "-1\r\n", "5\r\nabcdefgh\r\n"];
    for chunk_head in wrong {
        let upstream = Upstream::saying(format!("{STREAM_HEAD}{}{chunk_head}", chunk(START)));
        let rig = Rig::start(config(upstream.address));
        let mut client = rig.connect();
        client.write_all(post(MESSAGES, ASK_STREAM).as_bytes()).unwrap();
        assert!(Answer::read(&mut client).is_err(), "{chunk_head:?}: not to be taken for a good end");
        let settle = rig.settlement();
        assert_eq!((settle.ending, settle.tokens.input), (Ending::UpstreamBroke, 10), "{chunk_head:?}");
    }
}

#[test]
fn root_what_follows_an_answer_is_no_answer_to_the_next_request() {
    let twice = json_answer("200 OK", JSON) + &json_answer("200 OK", r#"{"smuggled":true}"#);
    let upstream = Upstream::saying(twice);
    let rig = Rig::start(config(upstream.address));
    let mut client = rig.connect();
    for _ in 0..5 {
        client.write_all(post(MESSAGES, ASK).as_bytes()).unwrap();
        assert_eq!(Answer::read(&mut client).unwrap().body, JSON.as_bytes());
    }
}

#[test]
fn root_early_hints_are_left_out_and_a_head_alone_is_answered_by_one() {
    let hints = "HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n".to_owned();
    let upstream = Upstream::saying(hints + &json_answer("200 OK", JSON));
    let rig = Rig::start(config(upstream.address));
    assert_eq!(rig.ask(&post(MESSAGES, ASK)).body, JSON.as_bytes());
    assert_eq!(rig.settlement().tokens.output, 5);

    let bare = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 96\r\n\r\n";
    let upstream = Upstream::saying(bare);
    let rig = Rig::start(config(upstream.address));
    for path in [MESSAGES, "/claude/v1/models"] {
        let mut client = rig.connect();
        let request = format!("HEAD {path} HTTP/1.1\r\nHost: meter\r\nConnection: close\r\n\r\n");
        client.write_all(request.as_bytes()).unwrap();
        let mut whole = Vec::new();
        client.read_to_end(&mut whole).unwrap();
        let whole = String::from_utf8(whole).unwrap();
        assert!(whole.starts_with("HTTP/1.1 200 OK\r\n") && whole.ends_with("\r\n\r\n"), "{path}: {whole}");
        assert!(whole.contains("content-length: 96"), "{path}: {whole}");
    }
    assert!(rig.settlements(2).iter().all(|settle| settle.tokens.total() == 0));
}
