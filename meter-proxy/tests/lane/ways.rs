//! Every way in, and what is said there: to the byte, in the shape of whose clients listen.
use std::io::{Read, Write};

use meter_proxy::protocol::Refusal;

use crate::rig::{Answer, Rig, budget, curl, post, rest_of};

/// What the agent's user reads of the budget that the rig tells of.
const WORDS: &str = "Enforcer: bottle b1 has used 100417 of 100000 claude tokens (budget of scope agent, owner \
                     implementer, window daily, scope rule nearest). The operator can add tokens or restore the bottle.";

fn anthropic() -> (u16, serde_json::Value) {
    (402, serde_json::json!({"type": "error", "error": {"type": "billing_error", "message": WORDS}}))
}

fn openai() -> (u16, serde_json::Value) {
    let error = serde_json::json!({
        "message": WORDS, "type": "usage_limit_reached", "param": null, "code": null
    });
    (429, serde_json::json!({ "error": error }))
}

fn plain() -> (u16, serde_json::Value) {
    (403, serde_json::json!({"error": {"type": "forbidden", "message": WORDS}}))
}

/// Checks all that an answer says.
fn check(answer: &Answer, (status, body): (u16, serde_json::Value), way: &str) {
    assert_eq!(answer.status(), status, "{way}: {}", answer.head);
    assert_eq!(answer.json(), body, "{way}");
    assert_eq!(answer.header("connection"), Some("close"), "{way}");
    assert_eq!(answer.header("x-should-retry"), Some("false"), "{way}");
    assert_eq!(answer.header("retry-after"), None, "{way}");
    let promo = (status == 429).then_some(WORDS.trim_end_matches('.'));
    assert_eq!(answer.header("x-codex-promo-message"), promo, "{way}");
}

#[test]
fn root_plain_http_is_answered_by_what_it_names() {
    let rig = Rig::start();
    let at = |host: &str, path: &str| {
        format!("POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 2\r\n\r\n{{}}")
    };
    for (request, expected, way) in [
        (post("/claude/v1/messages", "{}"), anthropic(), "the gateway, claude"),
        (post("/codex/v1/responses", "{}"), openai(), "the gateway, codex"),
        (post("/nobody/v1", "{}"), plain(), "the gateway, nobody"),
        (at("m:7080", "http://m:7080/codex/v1/responses"), openai(), "the gateway in absolute form"),
        (at("api.openai.com", "http://api.openai.com/v1/responses"), openai(), "absolute form"),
        (at("example.com", "http://example.com/"), plain(), "absolute form, of nobody"),
        (at("api.anthropic.com", "/v1/messages"), anthropic(), "redirected, claude"),
        (at("chatgpt.com", "/backend-api/codex/responses"), openai(), "redirected, codex"),
        (at("example.com", "/"), plain(), "redirected, nobody's"),
    ] {
        check(&rig.ask(&request), expected, way);
    }
}

#[test]
fn root_a_tunnel_is_accepted_and_answered_inside() {
    let rig = Rig::start();
    for (host, expected) in
        [("api.anthropic.com", anthropic()), ("api.openai.com", openai()), ("x.openai.test", openai())]
    {
        let mut stream = rig.secure(rig.through(&format!("{host}:443")), host);
        write!(stream, "POST /v1/x HTTP/1.1\r\nHost: {host}\r\nContent-Length: 2\r\n\r\n{{}}").unwrap();
        let mut said = Vec::new();
        stream.read_to_end(&mut said).unwrap();
        check(&Answer::read(&mut &said[..]).unwrap(), expected, host);
    }
    for (authority, host, expected) in [
        ("example.com:80", "example.com", plain()),
        ("api.anthropic.com:80", "api.anthropic.com", anthropic()),
        ("192.0.2.1:8080", "192.0.2.1:8080", plain()),
    ] {
        let mut stream = rig.through(authority);
        write!(stream, "GET / HTTP/1.1\r\nHost: {host}\r\n\r\n").unwrap();
        let said = rest_of(&mut stream);
        check(&Answer::read(&mut &said[..]).unwrap(), expected, authority);
    }
}

#[test]
fn root_a_tunnel_in_a_tunnel_is_answered_like_anything_else() {
    let rig = Rig::start();
    let mut stream = rig.through("proxy.test:3128");
    write!(stream, "CONNECT api.openai.com:443 HTTP/1.1\r\nHost: api.openai.com:443\r\n\r\n").unwrap();
    let said = rest_of(&mut stream);
    check(&Answer::read(&mut &said[..]).unwrap(), openai(), "a second CONNECT");
    check(&rig.ask("CONNECT nothing HTTP/1.1\r\nHost: nothing\r\n\r\n"), plain(), "a CONNECT without a port");
}

#[test]
fn root_what_comes_with_a_connect_is_heard() {
    let rig = Rig::start();
    let said = rig.said_to(
        "CONNECT example.com:80 HTTP/1.1\r\nHost: example.com:80\r\n\r\nGET / HTTP/1.1\r\nHost: api.openai.com\r\n\r\n",
    );
    let (accepted, rest) = said.split_once("\r\n\r\n").unwrap();
    assert!(accepted.starts_with("HTTP/1.1 200 OK"), "{accepted}");
    check(&Answer::read(&mut rest.as_bytes()).unwrap(), openai(), "sent ahead");
}

#[test]
fn root_free_endpoints_and_every_method_are_refused_too() {
    let rig = Rig::start();
    for request in [
        "GET /v1/models HTTP/1.1\r\nHost: api.anthropic.com\r\n\r\n",
        "POST /api/event_logging/batch HTTP/1.1\r\nHost: api.anthropic.com\r\nContent-Length: 0\r\n\r\n",
        "POST /v1/messages/count_tokens HTTP/1.1\r\nHost: api.anthropic.com\r\nContent-Length: 0\r\n\r\n",
        "DELETE /v1/files/1 HTTP/1.1\r\nHost: api.anthropic.com\r\n\r\n",
        "OPTIONS * HTTP/1.1\r\nHost: api.anthropic.com\r\n\r\n",
        "GET / HTTP/1.0\r\nHost: api.anthropic.com\r\n\r\n",
    ] {
        check(&rig.ask(request), anthropic(), request);
    }
    let head = rig.said_to("HEAD / HTTP/1.1\r\nHost: api.anthropic.com\r\n\r\n");
    assert!(head.starts_with("HTTP/1.1 402 ") && head.ends_with("\r\n\r\n"), "no body: {head}");
    assert!(head.contains("connection: close\r\n"), "{head}");
}

#[test]
fn root_codex_asking_for_a_web_socket_is_told_in_its_own_shape() {
    let rig = Rig::start();
    for (host, path) in [("api.openai.com", "/v1/responses"), ("chatgpt.com", "/backend-api/codex/responses")]
    {
        let mut stream = rig.secure(rig.connect(), host);
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
        .unwrap();
        let mut said = Vec::new();
        stream.read_to_end(&mut said).unwrap();
        check(&Answer::read(&mut &said[..]).unwrap(), openai(), path);
    }
}

#[test]
fn root_an_operator_s_words_are_passed_on_and_made_harmless() {
    let rig = Rig::start();
    let cause = "by uid 0: loops\u{1b}[2J on tests".to_owned();
    rig.manner(|manner| manner.refusal = Refusal::Cut { bottle: "b1".into(), cause });
    let answer = rig.ask(&post("/claude/v1/messages", "{}"));
    let words = "Enforcer: bottle b1 is cut: by uid 0: loops\u{fffd}[2J on tests.";
    assert_eq!((answer.status(), &answer.json()["error"]["message"]), (402, &words.into()));
    let answer = rig.ask(&post("/codex/v1/responses", "{}"));
    assert_eq!(
        answer.header("x-codex-promo-message"),
        Some("Enforcer: bottle b1 is cut: by uid 0: loops?[2J on tests")
    );
}

#[test]
fn root_each_connection_is_asked_about_and_answered_once() {
    let rig = Rig::start();
    let twice = format!("{0}{0}", post("/claude/v1/messages", "{}"));
    let said = rig.said_to(&twice);
    assert_eq!(said.matches("HTTP/1.1 ").count(), 1, "{said}");
    rig.ask(&post("/claude/v1/messages", "{}"));
    assert_eq!(rig.count(crate::rig::is_why), 2);
    assert!(budget().to_string().starts_with(&WORDS[..40]), "the rig tells of what is checked here");
}

#[test]
fn root_who_is_of_no_cut_bottle_hears_nothing() {
    let rig = Rig::start();
    rig.manner(|manner| manner.bottle = None);
    assert_eq!(rig.said_to(&post("/claude/v1/messages", "{}")), "");
    rig.manner(|manner| manner.answers = false);
    assert_eq!(rig.said_to(&post("/claude/v1/messages", "{}")), "", "nobody says why");
}

#[test]
fn root_who_speaks_http2_alone_is_answered_by_it() {
    let rig = Rig::start();
    let common = ["--http2-prior-knowledge", "--data", "{}", "--write-out", " %{http_version} %{http_code}"];
    for (path, expected) in [("claude/v1/messages", anthropic()), ("codex/v1/responses", openai())] {
        let url = format!("http://{}/{path}", rig.address);
        let Some(printed) = curl(rig.root_pem(), &[&common[..], &[url.as_str()]].concat()) else { return };
        assert_eq!(printed, format!("{} 2 {}", expected.1, expected.0));
    }
}

#[test]
fn root_what_is_no_request_is_not_taken_for_one() {
    let rig = Rig::start();
    for words in ["SSH-2.0-OpenSSH_9.9\r\n", "PRI * HTTP/1.1\r\n\r\n", "\0\0\0"] {
        assert_eq!(rig.said_to(words), "", "{words:?}");
    }
    let malformed = rig.said_to("GET / HTTP/1.1\r\nno header\r\n\r\n");
    assert!(malformed.starts_with("HTTP/1.1 400 "), "{malformed}");
}
