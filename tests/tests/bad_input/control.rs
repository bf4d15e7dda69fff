//! The control socket, spoken to by hand: what is no request of its API is refused in JSON and changes nothing.
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use serde_json::{Value, json};
use support::enforcer::Daemon;

/// Sends these bytes, reads until the far side closes or is silent for two seconds; the status and the body.
fn exchange(daemon: &Daemon, bytes: &[u8]) -> (Option<u16>, String) {
    let mut stream = UnixStream::connect(daemon.socket()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    // the far side may answer and close before it has read all of it
    drop(stream.write_all(bytes));
    let mut answer = Vec::new();
    drop(stream.read_to_end(&mut answer));
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok());
    (status, answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default())
}

fn request(daemon: &Daemon, method: &str, path: &str, body: &str) -> (Option<u16>, Value) {
    let head = format!("{method} {path} HTTP/1.1\r\nHost: enforcer\r\nConnection: close\r\n");
    let text = format!("{head}Content-Length: {}\r\n\r\n{body}", body.len());
    let (status, body) = exchange(daemon, text.as_bytes());
    (status, serde_json::from_str(&body).unwrap_or_else(|_| panic!("{method} {path}: {status:?} {body:?}")))
}

#[test]
fn root_what_is_no_request_of_the_api_is_refused_in_json() {
    let daemon = Daemon::start("");
    let long = "x".repeat(300);
    let deep = "[".repeat(20_000);
    let huge = format!("{{\"name\": \"{}\"}}", "x".repeat(1 << 20));
    for (method, path, body, status) in [
        ("POST", "/v1/bottles", "", 400),
        ("POST", "/v1/bottles", "{", 400),
        ("POST", "/v1/bottles", "[]", 400),
        ("POST", "/v1/bottles", "null", 400),
        ("POST", "/v1/bottles", deep.as_str(), 400),
        ("POST", "/v1/bottles", r#"{"name": 5}"#, 400),
        ("POST", "/v1/bottles", r#"{"name": "b1"}"#, 400),
        ("POST", "/v1/bottles", r#"{"name": "b1", "cgroup": "/x", "pid": 1}"#, 400),
        ("POST", "/v1/bottles", r#"{"name": "b1", "docker": "x", "pid": 1}"#, 400),
        ("POST", "/v1/bottles", r#"{"name": "b1", "docker": "x", "podman": "x"}"#, 400),
        ("POST", "/v1/bottles", r#"{"name": "b1", "unit": "x", "create": true}"#, 400),
        ("POST", "/v1/bottles", r#"{"name": "b1", "unit": "-x"}"#, 400),
        ("POST", "/v1/bottles", r#"{"name": "b1", "pid": -1}"#, 400),
        ("POST", "/v1/bottles", r#"{"name": "../x", "create": true}"#, 400),
        ("POST", "/v1/bottles", r#"{"name": "b1\u0000", "create": true}"#, 400),
        ("POST", "/v1/bottles", r#"{"name": "b1", "create": true, "agent": "\u001b[31m"}"#, 400),
        ("POST", "/v1/bottles", r#"{"name": "b1", "create": true, "colour": "red"}"#, 400),
        ("POST", "/v1/bottles", r#"{"name": "b1", "create": true, "policy": "explode"}"#, 400),
        ("POST", "/v1/bottles", r#"{"name": "b1", "create": true, "egress": "none"}"#, 400),
        ("POST", "/v1/bottles", r#"{"name": "b1", "create": true, "budget": {"claude": -1}}"#, 400),
        ("POST", "/v1/bottles", r#"{"name": "b1", "create": true, "budget": {"clade": 1}}"#, 400),
        (
            "POST",
            "/v1/bottles",
            r#"{"name": "b1", "create": true, "budget": {"claude": 18446744073709551615}}"#,
            400,
        ),
        ("POST", "/v1/bottles", huge.as_str(), 413),
        ("POST", "/v1/bottles/none/cut", "", 404),
        ("POST", "/v1/bottles/none/cut", r#"{"face": "rude"}"#, 400),
        ("POST", "/v1/bottles/none/explode", "", 404),
        ("POST", "/v1/bottles/none/freeze", "", 404),
        ("POST", "/v1/bottles/none/thaw", r#"{"reason": "x"}"#, 400),
        ("POST", "/v1/settings/reload", r#"{"file": "/etc/shadow"}"#, 400),
        ("DELETE", "/v1/bottles/none", "", 404),
        ("DELETE", "/v1/bottles/none?force=perhaps", "", 400),
        ("GET", "/v1/bottles/none", "", 404),
        ("GET", "/v1/bottles/..", "", 400),
        ("GET", "/v1/bottles/%2e%2e", "", 400),
        ("GET", &format!("/v1/bottles/{long}"), "", 400),
        ("PUT", "/v1/bottles", "", 404),
        ("DELETE", "/v1/status", "", 404),
        ("GET", "/", "", 404),
        ("GET", "/v2/status", "", 404),
        ("GET", "/v1/usage?colour=red", "", 400),
        ("GET", "/v1/usage?since=x", "", 400),
        ("GET", "/v1/audit?limit=-1", "", 400),
        ("GET", "/v1/audit?after=x", "", 400),
        ("PUT", "/v1/budgets/global", "{}", 404),
        ("PUT", "/v1/budgets/global/claude", "{}", 400),
        ("PUT", "/v1/budgets/global/claude", r#"{"tokens": 9223372036854775808}"#, 400),
        ("PUT", "/v1/budgets/global/claude", r#"{"tokens": 1, "window": "yearly"}"#, 400),
        ("PUT", "/v1/budgets/global/cluade", r#"{"tokens": 1}"#, 400),
        ("PUT", "/v1/budgets/bottle:../claude", r#"{"tokens": 1}"#, 400),
        ("PUT", "/v1/budgets/launch:b1/claude", r#"{"tokens": 1}"#, 400),
        ("POST", "/v1/budgets/global/claude", r#"{"tokens": 1}"#, 400),
        ("DELETE", "/v1/budgets/global/claude", "", 400),
    ] {
        let (found, document) = request(&daemon, method, path, body);
        let start: String = body.chars().take(80).collect();
        assert_eq!(found, Some(status), "{method} {path} {start}: {document}");
        assert!(
            document["error"].as_str().is_some_and(|words| !words.is_empty()),
            "{method} {path}: {document}"
        );
        assert!(document["exit_code"].as_u64().is_some_and(|code| code > 0), "{method} {path}: {document}");
    }
    assert_eq!(request(&daemon, "GET", "/v1/bottles", "").1, json!([]));
}

#[test]
fn root_garbage_and_half_requests_stop_nobody_else() {
    let daemon = Daemon::start("");
    let head = b"POST /v1/bottles HTTP/1.1\r\nHost: x\r\n";
    let half = [head.as_slice(), b"Content-Length: 100\r\n\r\n{"].concat();
    let mut kept: Vec<_> = Vec::new();
    for bytes in [b"POST /v1/bott".as_slice(), &half, b"", b"GET /v1/status HTTP/1.1\r\n"] {
        for _ in 0..20 {
            let mut stream = UnixStream::connect(daemon.socket()).unwrap();
            stream.write_all(bytes).unwrap();
            kept.push(stream);
        }
    }
    for garbage in [
        b"\0\xff\x16\x03\x01garbage\r\n\r\n".as_slice(),
        b"GET /v1/status HTTP/9.9\r\n\r\n",
        b"GET  HTTP/1.1\r\n\r\n",
        &[b'A'; 200_000],
        b"POST /v1/bottles HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n{}",
        b"POST /v1/bottles HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n{}",
        b"POST /v1/bottles HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n",
    ] {
        let (status, _) = exchange(&daemon, garbage);
        assert!(status.is_none_or(|status| status >= 400), "{status:?}");
    }
    assert_eq!(daemon.json(&["status"])["bottles"], json!([]), "others are answered meanwhile");
    drop(kept);
}
