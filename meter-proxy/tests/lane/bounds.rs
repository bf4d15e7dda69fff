//! Bounds: of connections, of a bottle's, of time, of memory.
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use meter_proxy::protocol::ToLane;

use crate::rig::frames::{self, END_HEADERS, END_STREAM, HEADERS, PING, Raw};
use crate::rig::{BOTTLE, OTHER, Rig, SOON, budget, is_why, post};

const MAX_OF_ONE_BOTTLE: usize = 64;
const MAX_CONNECTIONS: usize = 1_024;
/// The flag of a PING that answers one, RFC 9113, 6.7.
const ACK: u8 = 1;
/// A field of HTTP/2 whose value is 7,000 bytes long: RFC 7541, 5.1 and 6.2.2.
const LONG_FIELD: [&[u8]; 2] = [&[0, 1, b'x', 0x7f, 0xd9, 0x35], &[b'v'; 7_000]];

/// Waits until the lane closes.
fn ended(stream: &mut TcpStream) {
    // Reset or not: it is over.
    drop(stream.read(&mut [0; 16]).inspect(|read| assert_eq!(*read, 0)));
}

#[test]
fn root_a_bottle_s_connections_are_bounded_and_its_neighbour_is_answered() {
    let rig = Rig::start();
    let _held: Vec<_> = (0..MAX_OF_ONE_BOTTLE).map(|_| rig.through("example.com:443")).collect();
    assert_eq!(rig.said_to(&post("/claude/v1/messages", "{}")), "", "one too many");
    rig.manner(|manner| manner.bottle = Some(OTHER));
    assert_eq!(rig.ask(&post("/claude/v1/messages", "{}")).status(), 402);
    rig.manner(|manner| manner.bottle = Some(BOTTLE));
    rig.send(&ToLane::Opened { bottle: BOTTLE });
    assert_eq!(rig.ask(&post("/claude/v1/messages", "{}")).status(), 402);
}

#[test]
fn root_a_slow_client_s_time_is_up_and_nobody_waits_for_it() {
    let rig = Rig::start();
    let since = Instant::now();
    let mut slow: Vec<TcpStream> = ["", "P", "POST /claude HTTP/1.1\r\n", "\u{16}\u{3}\u{1}"]
        .into_iter()
        .map(|begun| {
            let mut stream = rig.connect();
            stream.write_all(begun.as_bytes()).unwrap();
            stream.set_read_timeout(Some(2 * SOON)).unwrap();
            stream
        })
        .collect();
    assert_eq!(rig.ask(&post("/codex/v1/responses", "{}")).status(), 429);
    assert!(since.elapsed() < Duration::from_secs(1));
    for stream in &mut slow {
        drop(stream.read_to_end(&mut Vec::new()));
        assert!(since.elapsed() < Duration::from_secs(12), "{:?}", since.elapsed());
    }
}

#[test]
fn root_a_flood_of_connections_leaves_nothing_behind() {
    let rig = Rig::start();
    rig.ask(&post("/claude/v1/messages", "{}"));
    let (descriptors, before_kib) = (rig.descriptors(), memory_kib(&rig));
    for round in 0..4 {
        let asked = rig.count(is_why);
        let flood = open(&rig, 1_500);
        rig.asked(asked + flood.len());
        rig.manner(|manner| manner.bottle = Some(OTHER));
        assert_eq!(rig.ask(&post("/claude/v1/messages", "{}")).status(), 402, "{round}");
        rig.manner(|manner| manner.bottle = Some(BOTTLE));
    }
    closed_down_to(&rig, descriptors);
    let grown_kib = memory_kib(&rig).saturating_sub(before_kib);
    assert!(grown_kib < 32 * 1024, "{grown_kib} KiB");
}

#[test]
fn root_all_connections_are_bounded_and_the_rest_wait_their_turn() {
    let rig = Rig::start();
    let descriptors = rig.descriptors();
    rig.manner(|manner| manner.answers = false);
    let flood = open(&rig, MAX_CONNECTIONS + 100);
    rig.asked(MAX_CONNECTIONS);
    assert!(rig.descriptors() <= descriptors + MAX_CONNECTIONS);
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(rig.count(is_why), MAX_CONNECTIONS, "nobody is asked about before there is a place");
    rig.asked(flood.len());
    closed_down_to(&rig, descriptors);
}

#[test]
fn root_many_requests_of_long_heads_whose_bodies_never_come_take_little_room() {
    let rig = Rig::start();
    rig.ask(&post("/claude/v1/messages", "{}"));
    let before_kib = memory_kib(&rig);
    let head = frames::post(&rig.address.to_string(), "/claude/v1/messages");
    let head = [head, LONG_FIELD.concat().repeat(2)].concat();
    let requests: Vec<u8> =
        (0..128).flat_map(|number| frames::frame(HEADERS, END_HEADERS, 2 * number + 1, &head)).collect();
    let mut held: Vec<_> = (0..MAX_OF_ONE_BOTTLE).map(|_| Raw::begin(&rig, &[])).collect();
    assert!(held.iter_mut().all(|raw| raw.say(&requests)));
    std::thread::sleep(Duration::from_secs(1));
    let grown_kib = memory_kib(&rig).saturating_sub(before_kib);
    assert!(grown_kib < 32 * 1024, "{grown_kib} KiB");
}

#[test]
fn root_a_connection_of_http_2_ends_soon_after_its_answer_whatever_its_client_does() {
    let rig = Rig::start();
    let since = Instant::now();
    let mut raw = Raw::begin(&rig, &[]);
    assert!(raw.ask("/claude/v1/messages", 0..1, END_HEADERS | END_STREAM, false));
    // it is asked whether it has heard that this is the end, and does not say
    while raw.hear() {
        assert!(since.elapsed() < Duration::from_secs(5));
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn root_no_client_fills_the_log() {
    let log = tempfile::NamedTempFile::new().unwrap();
    let rig = Rig::start_telling(log.reopen().unwrap());
    let mut raw = Raw::begin(&rig, &[]);
    let to_what_was_not_asked = frames::frame(PING, ACK, 0, &[0; 8]);
    assert!(raw.say(&to_what_was_not_asked.repeat(1_000)));
    assert!(raw.ask("/claude/v1/messages", 0..1, END_HEADERS | END_STREAM, false));
    while raw.hear() {
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(std::fs::read_to_string(log.path()).unwrap(), "");
}

/// So many connections that have begun to say something.
fn open(rig: &Rig, times: usize) -> Vec<TcpStream> {
    let begun = |_| {
        let mut stream = rig.connect();
        stream.write_all(b"POST / HTTP/1.1\r\nHost: ").unwrap();
        stream
    };
    (0..times).map(begun).collect()
}

/// Waits until the lane has no more open than this.
fn closed_down_to(rig: &Rig, descriptors: usize) {
    let until = Instant::now() + 2 * SOON;
    while rig.descriptors() > descriptors {
        assert!(Instant::now() < until, "{} descriptors, {descriptors} before", rig.descriptors());
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Memory that the lane has in use.
fn memory_kib(rig: &Rig) -> u64 {
    rig.status_line("VmRSS:").trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn root_sockets_come_and_go() {
    let rig = Rig::start();
    let (v4, v6) = (TcpListener::bind("127.0.0.1:0").unwrap(), TcpListener::bind("[::1]:0").unwrap());
    let queries = UdpSocket::bind("127.0.0.1:0").unwrap();
    let descriptors = rig.descriptors();
    rig.send_with(&ToLane::Listen { id: 9 }, &[queries.as_fd(), v6.as_fd(), v4.as_fd()]);
    for listener in [&v4, &v6] {
        let mut stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        stream.write_all(post("/claude/v1/messages", "{}").as_bytes()).unwrap();
        let mut said = String::new();
        stream.read_to_string(&mut said).unwrap();
        assert!(said.contains(&budget().to_string()), "{said}");
        let (local, peer) = (stream.peer_addr().unwrap(), stream.local_addr().unwrap());
        rig.heard(|message| {
            matches!(message, meter_proxy::protocol::LaneToController::Why { peer: p, local: l, listener: 9, .. }
                if (*p, *l) == (peer, local))
        });
    }
    let listening: Vec<_> = [&v4, &v6].map(|listener| listener.local_addr().unwrap()).into();
    drop((v4, v6, queries));
    rig.send(&ToLane::Unlisten { id: 9 });
    rig.send(&ToLane::Unlisten { id: 12 });
    closed_down_to(&rig, descriptors);
    for address in listening {
        assert!(TcpStream::connect(address).is_err(), "{address}");
    }
    let mut still = rig.connect();
    still.write_all(post("/nobody", "{}").as_bytes()).unwrap();
    assert!(matches!(still.read(&mut [0; 1]), Ok(1)), "the others are served");
    ended_soon(&mut still);
}

/// Reads to the end.
fn ended_soon(stream: &mut TcpStream) {
    while matches!(stream.read(&mut [0; 1_024]), Ok(1..)) {}
    ended(stream);
}
