//! HTTP/2 as nobody means it: resets, frames and headers in floods, streams that say or read nothing. Each time the
//! meter's memory is bounded, and another bottle's requests go on.
use std::io::Write;
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::rig::frames::{
    CANCEL, CONTINUATION, DATA, END_HEADERS, END_STREAM, PING, RST_STREAM, Raw, SETTINGS, frame,
};
use crate::rig::{self, Answer, BOTTLE, OTHER, Rig, SOON, Upstream, config, is_notice, json_answer};
use crate::words::{ASK, JSON, MESSAGES};

const WHOLE: u8 = END_HEADERS | END_STREAM;
/// Most that the meter may grow by, KiB.
const MOST_GROWTH_KIB: usize = 50 * 1024;
/// Longest that a neighbour waits for an answer meanwhile, on a busy machine.
const MOST_WAIT: Duration = Duration::from_secs(1);

/// Resets in all; `ENFORCER_TEST_FULL=1`: a million.
fn resets() -> u32 {
    if std::env::var_os("ENFORCER_TEST_FULL").is_some() { 1_000_000 } else { 100_000 }
}

fn resident_kib(rig: &Rig, key: &str) -> usize {
    rig.status_line(key).trim_end_matches(" kB").parse().unwrap()
}

/// One request of a neighbour's; how long it took.
fn request(neighbour: &mut TcpStream) -> Duration {
    let since = Instant::now();
    neighbour.write_all(rig::post(MESSAGES, ASK).as_bytes()).unwrap();
    assert_eq!(Answer::read(neighbour).unwrap().body, JSON.as_bytes());
    since.elapsed()
}

/// Lets `flood` loose beside a neighbour that works; holds the meter to its memory, and the neighbour's answers to
/// their time.
fn beside_a_neighbour(what: &str, flood: impl FnOnce(&Rig) + Send) {
    let upstream = Upstream::saying(json_answer("200 OK", JSON));
    let rig = Rig::start_by(&["env", "ENFORCER_LOG=error"], config(upstream.address));
    rig.manner(|manner| manner.bottle = OTHER);
    let mut neighbour = rig.connect();
    for _ in 0..50 {
        request(&mut neighbour);
    }
    rig.manner(|manner| manner.bottle = BOTTLE);
    let before = resident_kib(&rig, "VmRSS:");
    let over = AtomicBool::new(false);
    let mut took = std::thread::scope(|scope| {
        let flooding = scope.spawn(|| {
            flood(&rig);
            over.store(true, Ordering::Release);
        });
        let mut took = Vec::new();
        while !over.load(Ordering::Acquire) && !flooding.is_finished() {
            took.push(request(&mut neighbour));
            std::thread::sleep(Duration::from_millis(2));
        }
        flooding.join().unwrap();
        took
    });
    took.sort_unstable();
    let p99 = took[took.len() * 99 / 100];
    let growth = resident_kib(&rig, "VmHWM:").saturating_sub(before);
    eprintln!("{what}: grew by {growth} KiB; a neighbour's {} requests: p99 {p99:?}", took.len());
    assert!(growth < MOST_GROWTH_KIB, "{what}: the meter grew by {growth} KiB");
    assert!(p99 < MOST_WAIT, "{what}: a neighbour waited {p99:?}");
    assert_eq!(rig.ask(&rig::post(MESSAGES, ASK)).status(), 200, "{what}: the bottle itself is served again");
}

/// Says more until the meter closes the connection, which it must.
fn until_closed(raw: &mut Raw, mut say: impl FnMut(&mut Raw) -> bool) {
    let until = Instant::now() + SOON;
    while say(raw) && raw.hear() {
        assert!(Instant::now() < until, "the connection should have been closed by now");
    }
}

#[test]
fn root_streams_that_are_reset_at_once_close_their_connection() {
    beside_a_neighbour("reset at once", |rig| {
        let (mut sent, mut connections) = (0, 0);
        while sent < resets() {
            let mut raw = Raw::begin(rig, &[]);
            connections += 1;
            let mut said = 0;
            until_closed(&mut raw, |raw| {
                said += 100;
                raw.ask(MESSAGES, said - 100..said, WHOLE, true)
            });
            sent += said;
        }
        eprintln!("{sent} resets on {connections} connections");
    });
}

#[test]
fn root_streams_that_are_reset_once_they_are_looked_at_close_their_connection() {
    beside_a_neighbour("reset after a while", |rig| {
        let (mut raw, mut sent) = (Raw::begin(rig, &[]), 0);
        // without an end of the body, so that nothing is asked for yet
        until_closed(&mut raw, |raw| {
            sent += 1;
            raw.ask(MESSAGES, sent - 1..sent, END_HEADERS, false);
            std::thread::sleep(Duration::from_millis(2));
            raw.say(&frame(RST_STREAM, 0, 2 * sent - 1, &CANCEL))
        });
        assert!(sent >= 128, "and not after {sent} already");
    });
}

#[test]
fn root_headers_without_end_close_their_connection() {
    beside_a_neighbour("CONTINUATION", |rig| {
        for piece in [vec![0x40, 1, b'a', 1, b'b'], vec![]] {
            let mut raw = Raw::begin(rig, &[]);
            raw.ask(MESSAGES, 0..1, END_STREAM, false);
            let more = frame(CONTINUATION, 0, 1, &piece.repeat(3_000)).repeat(16);
            until_closed(&mut raw, |raw| raw.say(&more));
        }
    });
}

#[test]
fn root_data_in_tiny_frames_is_bounded() {
    beside_a_neighbour("tiny DATA", |rig| {
        // a byte at a time, which is read
        let mut raw = Raw::begin(rig, &[]);
        raw.ask(MESSAGES, 0..1, END_HEADERS, false);
        let many = frame(DATA, 0, 1, b"x").repeat(1_000);
        for _ in 0..200 {
            raw.say(&many);
            raw.hear();
        }
        // and none at a time
        let mut raw = Raw::begin(rig, &[]);
        raw.ask(MESSAGES, 0..1, END_HEADERS, false);
        let many = frame(DATA, 0, 1, b"").repeat(1_000);
        until_closed(&mut raw, |raw| raw.say(&many));
    });
}

#[test]
fn root_pings_and_settings_whose_answers_are_not_read_are_bounded() {
    beside_a_neighbour("PING and SETTINGS", |rig| {
        for one in [frame(PING, 0, 0, &[7; 8]), frame(SETTINGS, 0, 0, &[0, 4, 0, 1, 0, 0])] {
            let mut raw = Raw::begin(rig, &[]);
            let many = one.repeat(1_000);
            // until the meter takes no more: its answers stand in the way
            let mut rounds = 0;
            while rounds < 2_000 && raw.say(&many) {
                rounds += 1;
            }
            assert!(rounds < 2_000, "the meter should have stopped to read");
        }
    });
}

#[test]
fn root_streams_that_say_nothing_are_bounded_by_their_bottle() {
    beside_a_neighbour("silent streams", |rig| {
        let mut all: Vec<Raw> = (0..40).map(|_| Raw::begin(rig, &[])).collect();
        for raw in &mut all {
            raw.ask(MESSAGES, 0..128, END_HEADERS, false);
        }
        rig.heard(|message| is_notice(message, "b1 has as many requests under way as it may"));
        std::thread::sleep(Duration::from_millis(500));
        for raw in &mut all {
            raw.hear();
        }
    });
}

#[test]
fn root_answers_that_are_not_read_are_bounded() {
    const ANSWER_BYTES: usize = 1024 * 1024;
    let body = format!(r#"{{"filling":"{}"}}"#, "x".repeat(ANSWER_BYTES));
    let upstream = Upstream::saying(json_answer("200 OK", &body));
    let rig = Rig::start(config(upstream.address));
    let before = resident_kib(&rig, "VmRSS:");
    // no window for any stream: RFC 9113, 6.5.2
    let mut all: Vec<Raw> = (0..4).map(|_| Raw::begin(&rig, &[0, 4, 0, 0, 0, 0])).collect();
    for raw in &mut all {
        raw.ask(MESSAGES, 0..100, WHOLE, false);
    }
    let until = Instant::now() + Duration::from_secs(10);
    while upstream.heads().len() < 400 {
        assert!(Instant::now() < until, "{} were asked", upstream.heads().len());
        std::thread::sleep(Duration::from_millis(10));
    }
    std::thread::sleep(Duration::from_millis(500));
    let growth = resident_kib(&rig, "VmHWM:").saturating_sub(before);
    eprintln!("400 answers of 1 MiB that are not read: grew by {growth} KiB");
    assert!(growth < MOST_GROWTH_KIB, "the meter grew by {growth} KiB");
}
