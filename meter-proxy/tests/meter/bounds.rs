//! What is refused before anything is asked of a provider, and how much of it there may be.
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use crate::rig::{Answer, Rig, Upstream, config, json_answer, post};
use crate::words::{ASK, JSON, MESSAGES};

#[test]
fn root_a_peer_of_no_bottle_is_forbidden() {
    let upstream = Upstream::saying(json_answer("200 OK", JSON));
    let rig = Rig::start(config(upstream.address));
    rig.manner(|manner| manner.attached = false);
    assert_eq!(rig.ask(&post(MESSAGES, ASK)).status(), 403);
    assert!(upstream.heads().is_empty());
}

#[test]
fn root_a_peer_of_no_bottle_that_asks_nothing_is_let_go() {
    let rig = Rig::start(config("127.0.0.1:9".parse().unwrap()));
    rig.manner(|manner| manner.attached = false);
    let mut idle: Vec<TcpStream> = (0..80).map(|_| rig.connect()).collect();
    let since = Instant::now();
    for client in &mut idle {
        assert_eq!(client.read(&mut [0]).unwrap_or(0), 0);
    }
    assert!(since.elapsed() < Duration::from_secs(8), "after 5 s at most");
}

#[test]
fn root_bad_requests_get_one_clear_answer() {
    let upstream = Upstream::saying(json_answer("200 OK", JSON));
    let rig = Rig::start(config(upstream.address));
    for (request, status) in [
        ("POST /claude/v1/messages HTTP/1.1\r\nContent-Length: 0\r\n\r\n", 400),
        ("GET /claude/v1/models HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        ("POST /claude/v1%2fmessages HTTP/1.1\r\nHost: m\r\nContent-Length: 0\r\n\r\n", 400),
        ("POST /claude/api/../v1/messages HTTP/1.1\r\nHost: m\r\nContent-Length: 0\r\n\r\n", 400),
        ("CONNECT nonsense HTTP/1.1\r\nHost: nonsense\r\n\r\n", 400),
        ("CONNECT a:0 HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("CONNECT api.anthropic.com:80 HTTP/1.1\r\nHost: a\r\n\r\n", 403),
        ("GET /nobody/x HTTP/1.1\r\nHost: m\r\n\r\n", 404),
        ("GET http://a.test/ HTTP/1.1\r\nHost: b.test\r\n\r\n", 421),
    ] {
        let answer = rig.ask(request);
        assert_eq!(answer.status(), status, "{request}");
        if answer.header("content-length") != Some("0") {
            assert!(
                answer.json()["error"]["message"].as_str().unwrap().starts_with("Enforcer: "),
                "{request}"
            );
        }
    }
    assert!(upstream.heads().is_empty());
}

#[test]
fn root_heads_are_bounded() {
    let rig = Rig::start(config("127.0.0.1:9".parse().unwrap()));
    let many = "X-A: 1\r\n".repeat(200);
    let long = format!("X-A: {}\r\n", "x".repeat(40_000));
    for headers in [many, long] {
        let mut client = rig.connect();
        // The answer may come, and the connection end, before all of it is written.
        drop(write!(client, "GET /claude/v1/models HTTP/1.1\r\nHost: m\r\n{headers}\r\n"));
        assert_eq!(Answer::read_head(&mut client).unwrap().status(), 431);
    }
}
