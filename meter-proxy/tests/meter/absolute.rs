//! Requests in absolute form: a forward proxy without TLS.
use crate::rig::{Rig, Upstream, config, json_answer, post};
use crate::words::{ASK, JSON, MESSAGES};

#[test]
fn root_absolute_requests_are_metered_by_their_host() {
    let upstream = Upstream::saying(json_answer("200 OK", JSON));
    let rig = Rig::start(config(upstream.address));
    let absolute = post(MESSAGES, ASK)
        .replace("/claude/v1/messages", "http://api.anthropic.com/v1/messages")
        .replace("Host: meter", "Host: api.anthropic.com");
    assert_eq!(rig.ask(&absolute).body, JSON.as_bytes());
    assert_eq!(rig.settlement().tokens.output, 5);
    let own = rig.address;
    let gateway = post(MESSAGES, ASK)
        .replace("/claude", &format!("http://{own}/claude"))
        .replace("Host: meter", &format!("Host: {own}"));
    assert_eq!(rig.ask(&gateway).body, JSON.as_bytes());
    assert!(upstream.heads().iter().all(|head| head.starts_with("POST /v1/messages ")));
}

#[test]
fn root_the_upstream_itself_is_metered_by_every_way_in() {
    let upstream = Upstream::saying(json_answer("200 OK", JSON));
    let there = upstream.address;
    let mut settings = config(there);
    settings.allow_private = vec!["127.0.0.0/8".into()];
    let rig = Rig::start(settings);
    let absolute = post("/v1/messages", ASK)
        .replace("POST ", &format!("POST http://{there}"))
        .replace("Host: meter", &format!("Host: {there}"));
    assert_eq!(rig.ask(&absolute).body, JSON.as_bytes());
    assert_eq!(rig.settlement().tokens.output, 5);
    assert_eq!(rig.ask(&format!("CONNECT {there} HTTP/1.1\r\nHost: {there}\r\n\r\n")).status(), 403);
}
