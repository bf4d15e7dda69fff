//! Requests that are longer than anybody reads: the client hears its answer all the same.
use std::io::{ErrorKind, Write};
use std::time::{Duration, Instant};

use crate::rig::{Answer, Rig};

const MIB: usize = 1024 * 1024;

fn head(length: usize, more: &str) -> String {
    format!("POST /claude/v1/messages HTTP/1.1\r\nHost: m\r\n{more}Content-Length: {length}\r\n\r\n")
}

#[test]
fn root_a_client_that_sends_all_before_it_reads_hears_the_answer() {
    let rig = Rig::start();
    for length in [100_000, 8 * MIB, 24 * MIB] {
        let mut stream = rig.connect();
        stream.write_all(head(length, "").as_bytes()).unwrap();
        stream.write_all(&vec![b'x'; length]).unwrap();
        assert_eq!(Answer::read(&mut stream).unwrap().status(), 402, "{length}");
    }
    let mut stream = rig.secure(rig.connect(), "api.openai.com");
    stream.write_all(head(24 * MIB, "").as_bytes()).unwrap();
    stream.write_all(&vec![b'x'; 24 * MIB]).unwrap();
    assert_eq!(Answer::read(&mut stream).unwrap().status(), 429);
}

#[test]
fn root_a_client_that_waits_to_be_asked_for_its_body_is_not() {
    let rig = Rig::start();
    let mut stream = rig.connect();
    stream.write_all(head(4 * MIB, "Expect: 100-continue\r\n").as_bytes()).unwrap();
    let since = Instant::now();
    assert_eq!(Answer::read(&mut stream).unwrap().status(), 402);
    assert!(since.elapsed() < Duration::from_secs(1), "at once");
}

#[test]
fn root_a_body_that_does_not_end_is_not_waited_for() {
    let rig = Rig::start();
    let mut stream = rig.connect();
    let since = Instant::now();
    stream.write_all(head(1_000, "").as_bytes()).unwrap();
    assert_eq!(Answer::read(&mut stream).unwrap().status(), 402);
    let took = since.elapsed();
    assert!(Duration::from_secs(4) < took && took < Duration::from_secs(7), "{took:?}");
}

#[test]
fn root_a_client_that_never_stops_sending_is_ended() {
    let rig = Rig::start();
    let mut stream = rig.connect();
    stream.write_all(head(1_000_000_000, "").as_bytes()).unwrap();
    let since = Instant::now();
    let error = loop {
        if let Err(error) = stream.write_all(&[b'x'; 64 * 1024]) {
            break error;
        }
        assert!(since.elapsed() < Duration::from_secs(12), "it should have been ended");
    };
    assert!(matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset), "{error}");
}
