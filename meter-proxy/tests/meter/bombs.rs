//! Answers that are far longer once they are decoded: passed on as they are, and read in bounded memory.
use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::rig::{Answer, OTHER, Rig, Upstream, config, json_answer, post};
use crate::words::{ASK, JSON, MESSAGES};

/// What an answer unpacks to: so much that whoever keeps it is seen.
const UNPACKED_BYTES: usize = 64 * 1024 * 1024;
/// The largest window of a coding, and what decoding may take beside it, KiB.
const MOST_GROWTH_KIB: usize = 2 * 16 * 1024;

fn coded(coding: &str) -> Vec<u8> {
    let bytes = vec![b' '; UNPACKED_BYTES];
    match coding {
        "gzip" => {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(&bytes).unwrap();
            encoder.finish().unwrap()
        }
        "br" => {
            let mut coded = Vec::new();
            brotli::CompressorWriter::new(&mut coded, 4096, 1, 24).write_all(&bytes).unwrap();
            coded
        }
        _ => zstd::encode_all(&bytes[..], 1).unwrap(),
    }
}

#[test]
fn root_a_bomb_is_passed_on_and_does_not_go_off() {
    for coding in ["gzip", "br", "zstd"] {
        let bomb = coded(coding);
        let length = bomb.len();
        let head = format!(
            "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-encoding: {coding}\r\ncontent-length: {length}\r\n\r\n"
        );
        let upstream = Upstream::saying([head.as_bytes(), &bomb].concat());
        let rig = Rig::start(config(upstream.address));
        let memory_kib = |key: &str| rig.status_line(key).trim_end_matches(" kB").parse::<usize>().unwrap();
        let before = memory_kib("VmRSS:");
        assert_eq!(rig.ask(&post(MESSAGES, ASK)).body, bomb, "{coding}");
        let growth = memory_kib("VmHWM:").saturating_sub(before);
        eprintln!("{coding}: {length} bytes stand for {UNPACKED_BYTES}; grew by {growth} KiB");
        assert!(growth < MOST_GROWTH_KIB, "{coding}: the meter grew by {growth} KiB");
        assert_ne!(rig.settlement().tokens.total(), 0);
    }
}

/// Requests that are short, decoded as long as is read, and leave decoded.
const REQUESTS: usize = 40;
const REQUEST_BYTES: usize = 15 * 1024 * 1024;
/// What a bottle's requests may take at the gate, and as much again three times while some of them are decoded, KiB.
const MOST_OF_REQUESTS_KIB: usize = 4 * 64 * 1024;

#[test]
fn root_requests_that_leave_decoded_are_bounded_by_what_they_decode_to() {
    let upstream = Upstream::saying(json_answer("200 OK", JSON));
    let rig = Rig::start(config(upstream.address));
    rig.manner(|manner| manner.permits = false);
    let memory_kib = |key: &str| rig.status_line(key).trim_end_matches(" kB").parse::<usize>().unwrap();
    let before = memory_kib("VmRSS:");
    let body = format!(r#"{{"stream":true,"x":"{}"}}"#, " ".repeat(REQUEST_BYTES));
    let bomb = zstd::encode_all(body.as_bytes(), 1).unwrap();
    let head = format!(
        "POST /codex/v1/chat/completions HTTP/1.1\r\nHost: meter\r\ncontent-encoding: zstd\r\ncontent-length: {}\r\n\r\n",
        bomb.len()
    );
    let clients: Vec<_> = (0..REQUESTS)
        .map(|_| {
            let mut client = rig.connect();
            client.write_all(&[head.as_bytes(), &bomb].concat()).unwrap();
            client
        })
        .collect();
    rig.reservation();
    std::thread::sleep(std::time::Duration::from_secs(3));
    let growth = memory_kib("VmHWM:").saturating_sub(before);
    eprintln!(
        "{REQUESTS} requests of {} bytes stand for {REQUEST_BYTES} each; grew by {growth} KiB",
        bomb.len()
    );
    assert!(growth < MOST_OF_REQUESTS_KIB, "the meter grew by {growth} KiB");
    drop(clients);
}

/// Agents that send bombs, one after the other.
const BOMBERS: usize = 16;

#[test]
fn root_who_decodes_bombs_does_not_keep_the_neighbours_waiting() {
    let upstream = Upstream::saying(json_answer("200 OK", JSON));
    let rig = Rig::start(config(upstream.address));
    let body = format!(r#"{{"input":"{}"}}"#, " ".repeat(REQUEST_BYTES));
    let bomb = zstd::encode_all(body.as_bytes(), 1).unwrap();
    let head = format!(
        "POST /codex/v1/responses HTTP/1.1\r\nHost: meter\r\ncontent-encoding: zstd\r\ncontent-length: {}\r\n\r\n",
        bomb.len()
    );
    let bomb = [head.as_bytes(), &bomb].concat();
    let (stop, bombs) = (AtomicBool::new(false), std::sync::atomic::AtomicUsize::new(0));
    let mut clients: Vec<_> = (0..BOMBERS).map(|_| rig.connect()).collect();
    clients.iter_mut().for_each(|client| client.write_all(&bomb).unwrap());
    // identified as it comes, so not before the others are
    rig.reservation();
    rig.manner(|manner| manner.bottle = OTHER);
    let mut neighbour = rig.connect();
    let mut took = Vec::new();
    std::thread::scope(|scope| {
        for mut client in clients {
            let (stop, bomb, bombs) = (&stop, &bomb, &bombs);
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    assert_eq!(Answer::read(&mut client).unwrap().status(), 200);
                    bombs.fetch_add(1, Ordering::Relaxed);
                    client.write_all(bomb).unwrap();
                }
            });
        }
        for _ in 0..30 {
            let since = Instant::now();
            neighbour.write_all(post(MESSAGES, ASK).as_bytes()).unwrap();
            assert_eq!(Answer::read(&mut neighbour).unwrap().status(), 200);
            took.push(since.elapsed());
            std::thread::sleep(Duration::from_millis(20));
        }
        stop.store(true, Ordering::Relaxed);
    });
    took.sort_unstable();
    // a second, where each bomb has a thread that serves connections
    assert!(took[15] < Duration::from_millis(250), "the median is {:?}", took[15]);
    println!("{} bombs; a neighbour waited {:?}, at most {:?}", bombs.into_inner(), took[15], took[29]);
}
