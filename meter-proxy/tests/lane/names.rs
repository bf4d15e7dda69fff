//! DNS as resolvers ask for it.
use std::net::UdpSocket;
use std::time::{Duration, Instant};

use crate::rig::{Rig, SOON};

/// A query for `name` of this kind, by number `id`.
fn query(id: u16, name: &str, kind: u16) -> Vec<u8> {
    let mut bytes = [&id.to_be_bytes()[..], &[1, 0, 0, 1, 0, 0, 0, 0, 0, 0]].concat();
    for label in name.split('.') {
        bytes.push(u8::try_from(label.len()).unwrap());
        bytes.extend(label.as_bytes());
    }
    bytes.push(0);
    bytes.extend([kind.to_be_bytes(), 1u16.to_be_bytes()].concat());
    bytes
}

fn resolver(rig: &Rig) -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(SOON)).unwrap();
    socket.connect(rig.names).unwrap();
    socket
}

fn ask(socket: &UdpSocket, query: &[u8]) -> Vec<u8> {
    socket.send(query).unwrap();
    let mut answer = vec![0; 2_000];
    let length = socket.recv(&mut answer).unwrap();
    answer.truncate(length);
    answer
}

#[test]
fn root_every_name_is_at_the_address_that_leads_to_the_lane() {
    let rig = Rig::start();
    let socket = resolver(&rig);
    let answer = ask(&socket, &query(7, "api.anthropic.com", 1));
    assert_eq!(answer[..12], [0, 7, 0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0]);
    let record = &answer[answer.len() - 16..];
    assert_eq!(record, [0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4, 198, 18, 0, 1], "for no time at all");
    let answer = ask(&socket, &query(8, "api.anthropic.com", 28));
    assert_eq!(answer[..8], [0, 8, 0x81, 0x80, 0, 1, 0, 0], "no such address, and not: no such name");
    let answer = ask(&socket, &query(9, "api.anthropic.com", 16));
    assert_eq!(answer[..4], [0, 9, 0x81, 0x84]);
}

#[test]
fn root_what_is_no_query_is_dropped_and_the_next_one_answered() {
    let rig = Rig::start();
    let socket = resolver(&rig);
    for dropped in [&b""[..], b"x", &[0xff; 600], &[0; 5_000], &query(1, "a.test", 1)[..20]] {
        socket.send(dropped).unwrap();
    }
    assert_eq!(ask(&socket, &query(2, "a.test", 1))[..2], [0, 2], "it alone is answered");
}

#[test]
fn root_a_flood_of_queries_is_answered_in_part() {
    let rig = Rig::start();
    let socket = resolver(&rig);
    let since = Instant::now();
    socket.set_nonblocking(true).unwrap();
    let (mut answered, mut buffer) = (0, [0; 512]);
    while since.elapsed() < Duration::from_secs(2) {
        // What finds no room is a part of the flood that never came.
        drop(socket.send(&query(1, "a.test", 1)));
        answered += u32::from(socket.recv(&mut buffer).is_ok());
    }
    assert!((500..=3_000).contains(&answered), "{answered}");
    // Who asks something else meanwhile is served.
    assert_eq!(rig.ask("GET / HTTP/1.1\r\nHost: api.openai.com\r\n\r\n").status(), 429);
}
