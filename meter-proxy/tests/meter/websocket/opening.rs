//! Handshakes: what opens, what is refused, what passes that is not metered.
use std::io::{Read, Write};
use std::net::TcpListener;

use meter_proxy::protocol::{Refusal, ToController, ToMeter, Upstream as Towards};

use super::{ACCEPTED, Pair, UPGRADE, asking, completed, create, created, is_silent, opened, saying};
use crate::rig::{
    Answer, BOTTLE, Rig, config, far, json_answer, loopback_is_open, next_at, nobody_comes, nowhere,
};

pub fn budget() -> Refusal {
    Refusal::Budget {
        bottle: "b1".into(),
        provider: "codex".into(),
        scope: "agent".into(),
        owner: "reviewer".into(),
        limit: 10,
        used: 12,
        reserved: 0,
        window: "daily".into(),
        rule: "nearest".into(),
    }
}

#[test]
fn root_a_handshake_passes_both_ways_and_what_ends_at_a_proxy_does_not() {
    let origin = TcpListener::bind("127.0.0.1:0").unwrap();
    let rig = Rig::start(config(origin.local_addr().unwrap()));
    let mut client = rig.connect();
    let offers = "Sec-WebSocket-Extensions: x-own, permessage-deflate; client_max_window_bits\r\n";
    write!(client, "{UPGRADE}{offers}Proxy-Authorization: Basic x\r\nSec-WebSocket-Protocol: a, b\r\n\r\n")
        .unwrap();
    let mut server = next_at(&origin);
    let asked = Answer::read_head(&mut server).unwrap();
    assert!(asked.head.starts_with("GET /v1/responses?beta=1 HTTP/1.1\r\n"), "{}", asked.head);
    assert_eq!(asked.header("sec-websocket-key"), Some("dGhlIHNhbXBsZSBub25jZQ=="));
    assert_eq!(asked.header("sec-websocket-protocol"), Some("a, b"));
    assert_eq!(asked.header("sec-websocket-extensions"), Some("permessage-deflate; client_max_window_bits"));
    assert_eq!((asked.header("upgrade"), asked.header("connection")), (Some("websocket"), Some("Upgrade")));
    assert_eq!(asked.header("authorization"), Some("Bearer x"));
    assert_eq!(asked.header("proxy-authorization"), None);
    assert!(is_silent(&mut client), "the client's socket opens with the provider's");
    write!(server, "{ACCEPTED}\r\n").unwrap();
    let answer = Answer::read_head(&mut client).unwrap();
    assert_eq!(answer.status(), 101);
    assert_eq!(answer.header("sec-websocket-accept"), Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
    assert_eq!((answer.header("upgrade"), answer.header("x-models-etag")), (Some("websocket"), Some("7")));
    let mut pair = Pair { client, server };
    pair.asks(&asking(&create()));
    pair.answers(&saying(&created("r1")));
    pair.answers(&saying(&completed("r1", 10, 5)));
    assert_eq!(rig.settlement().tokens.total(), 15);
}

#[test]
fn root_by_a_redirect_and_in_a_tunnel_it_is_the_same() {
    let origin = TcpListener::bind("127.0.0.1:0").unwrap();
    let request = UPGRADE.replace("/codex", "").replace("Host: meter", "Host: api.openai.com");
    for way in ["redirect", "CONNECT"] {
        let rig = Rig::start(config(origin.local_addr().unwrap()));
        let mut client = match way {
            "redirect" => rig.secure(rig.redirected(far(443)), "api.openai.com"),
            _ => rig.tunnel("api.openai.com:443", "api.openai.com"),
        };
        write!(client, "{request}\r\n").unwrap();
        let mut server = next_at(&origin);
        Answer::read_head(&mut server).unwrap();
        write!(server, "{ACCEPTED}\r\n").unwrap();
        assert_eq!(Answer::read_head(&mut client).unwrap().status(), 101);
        let (ask, answer) = (asking(&create()), saying(&completed("r1", 10, 5)));
        client.write_all(&ask).unwrap();
        let mut heard = vec![0; ask.len()];
        server.read_exact(&mut heard).unwrap();
        assert_eq!(heard, ask, "{way}");
        server.write_all(&answer).unwrap();
        let mut heard = vec![0; answer.len()];
        client.read_exact(&mut heard).unwrap();
        assert_eq!(heard, answer, "{way}");
        rig.manner(|manner| manner.original = None);
        assert_eq!(rig.settlement().tokens.total(), 15, "{way}");
    }
}

#[test]
fn root_over_budget_nothing_opens_and_the_client_hears_why() {
    let origin = TcpListener::bind("127.0.0.1:0").unwrap();
    let rig = Rig::start(config(origin.local_addr().unwrap()));
    rig.manner(|manner| manner.refusal = Some(budget()));
    let answer = rig.ask(&format!("{UPGRADE}\r\n"));
    assert_eq!(answer.status(), 429);
    assert_eq!(answer.json()["error"]["type"], "usage_limit_reached");
    assert_eq!((answer.header("x-should-retry"), answer.header("retry-after")), (Some("false"), None));
    let message = answer.json()["error"]["message"].as_str().unwrap().to_owned();
    assert_eq!(answer.header("x-codex-promo-message"), message.strip_suffix('.'));
    for word in ["b1", "agent", "reviewer", "12", "10", "daily", "codex"] {
        assert!(message.contains(word), "{word}: {message}");
    }
    nobody_comes(&origin);
    assert_eq!(rig.count(|message| matches!(message, ToController::Reserve(_))), 0);
}

#[test]
fn root_other_websockets_of_metered_hosts_are_refused_and_said_why() {
    let rig = Rig::start(config(nowhere()));
    for (path, host) in [("/codex/v1/realtime", "m"), ("/claude/v1/messages", "m"), ("/codex/v1/models", "m")]
    {
        let answer = rig.ask(
            &UPGRADE
                .replace("/codex/v1/responses?beta=1", path)
                .replace("Host: meter", &format!("Host: {host}"))
                .replace("Version: 13\r\n", "Version: 13\r\n\r\n"),
        );
        assert_eq!(answer.status(), 400, "{path}");
        let message = answer.json()["error"]["message"].as_str().unwrap().to_owned();
        assert!(message.contains("cannot be metered"), "{message}");
    }
}

#[test]
fn root_a_provider_that_declines_answers_itself() {
    let origin = TcpListener::bind("127.0.0.1:0").unwrap();
    let rig = Rig::start(config(origin.local_addr().unwrap()));
    let mut client = rig.connect();
    write!(client, "{UPGRADE}\r\n").unwrap();
    let mut server = next_at(&origin);
    Answer::read_head(&mut server).unwrap();
    server.write_all(json_answer("401 Unauthorized", "{\"error\":1}").as_bytes()).unwrap();
    let answer = Answer::read(&mut client).unwrap();
    assert_eq!((answer.status(), answer.body.as_slice()), (401, b"{\"error\":1}".as_slice()));
    // the connection goes on
    client.write_all(b"GET /nobody HTTP/1.1\r\nHost: m\r\n\r\n").unwrap();
    assert_eq!(Answer::read(&mut client).unwrap().status(), 404);
}

#[test]
fn root_an_extension_that_cannot_be_read_is_not_opened() {
    let origin = TcpListener::bind("127.0.0.1:0").unwrap();
    let rig = Rig::start(config(origin.local_addr().unwrap()));
    for extension in ["Sec-WebSocket-Extensions: x-own\r\n", "Upgrade: h2c\r\n"] {
        let mut client = rig.connect();
        write!(client, "{UPGRADE}\r\n").unwrap();
        let mut server = next_at(&origin);
        Answer::read_head(&mut server).unwrap();
        let accepted = ACCEPTED.replace(
            "Upgrade: websocket\r\n",
            if extension.starts_with('U') { "" } else { "Upgrade: websocket\r\n" },
        );
        write!(server, "{accepted}{extension}\r\n").unwrap();
        assert_eq!(Answer::read(&mut client).unwrap().status(), 502, "{extension}");
        assert_eq!(server.read(&mut [0]).unwrap_or(0), 0);
    }
}

#[test]
fn root_on_other_hosts_whatever_follows_passes_and_ends_with_the_bottle() {
    let origin = TcpListener::bind("127.0.0.1:0").unwrap();
    let there = origin.local_addr().unwrap();
    let absolute = UPGRADE
        .replace("GET /codex", &format!("GET http://{there}"))
        .replace("Host: meter", &format!("Host: {there}"));
    let redirected = UPGRADE.replace("/codex", "").replace("Host: meter", &format!("Host: {there}"));
    for (request, original) in [(absolute, None), (redirected, Some(there))] {
        let rig = Rig::start(loopback_is_open(nowhere()));
        let mut client = match original {
            None => rig.connect(),
            Some(original) => rig.redirected(original),
        };
        write!(client, "{request}Sec-WebSocket-Extensions: x-own\r\n\r\n").unwrap();
        let mut server = next_at(&origin);
        let head = Answer::read_head(&mut server).unwrap();
        assert_eq!(head.header("sec-websocket-extensions"), Some("x-own"));
        write!(server, "{ACCEPTED}Sec-WebSocket-Extensions: x-own\r\n\r\n").unwrap();
        assert_eq!(Answer::read_head(&mut client).unwrap().status(), 101);
        let mut pair = Pair { client, server };
        pair.answers(b"the server speaks first, and no frames at all");
        pair.asks(&[0xff; 100_000]);
        rig.send(&ToMeter::Cut { bottle: BOTTLE, upstream: Towards::Hold });
        rig.manner(|manner| manner.original = None);
        rig.taken_in();
        pair.server.write_all(b"later").unwrap();
        assert!(is_silent(&mut pair.client));
        rig.send(&ToMeter::Open { bottle: BOTTLE });
        pair.client_hears(b"later");
        rig.send(&ToMeter::Cut { bottle: BOTTLE, upstream: Towards::Close });
        assert_eq!(pair.server.read(&mut [0]).unwrap_or(0), 0);
        assert_eq!(pair.client.read(&mut [0]).unwrap_or(0), 0);
    }
}

#[test]
fn root_a_socket_that_asks_nothing_costs_nothing() {
    let (rig, mut pair) = opened();
    pair.asks(&super::close(Some(super::MASK)));
    pair.answers(&super::close(None));
    drop(pair);
    rig.taken_in();
    assert_eq!(rig.count(|message| matches!(message, ToController::Reserve(_) | ToController::Settle(_))), 0);
}
