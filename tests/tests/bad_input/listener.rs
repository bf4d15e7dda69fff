//! The meter's port, spoken to by hand from a process of a bottle or of none: nonsense is answered and goes nowhere.
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use support::cgroup::TestCgroup;
use support::enforcer::Daemon;
use support::process::{self, Output};
use support::provider::{End, Provider, Reply, Script};

use crate::SOON;

/// Peers of no bottle are metered as `host`, so that this process can be the client.
const ALL: &str = "unattached: meter\n";

/// Sends these bytes and reads until the far side closes or is silent for two seconds.
fn exchange(address: &str, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    // the far side may answer and close before it has read all of it
    drop(stream.write_all(bytes));
    let mut answer = Vec::new();
    drop(stream.read_to_end(&mut answer));
    answer
}

/// The status, and the whole answer for the failure's words.
fn answered(address: &str, request: impl AsRef<[u8]>) -> (Option<u16>, String) {
    let text = String::from_utf8_lossy(&exchange(address, request.as_ref())).into_owned();
    (text.split(' ').nth(1).and_then(|status| status.parse().ok()), text)
}

#[track_caller]
fn assert_status(address: &str, request: impl AsRef<[u8]>, wanted: u16) -> String {
    let start: String = String::from_utf8_lossy(request.as_ref()).chars().take(120).collect();
    let (status, text) = answered(address, request);
    assert_eq!(status, Some(wanted), "{start:?}: {text:?}");
    text
}

/// A port that counts who connects: what must not be reached.
fn forbidden_port() -> TcpListener {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    listener
}

#[test]
fn root_connect_to_nonsense_is_refused() {
    let daemon = Daemon::start(ALL);
    let address = daemon.listen_addr();
    let connect =
        |target: &str| format!("CONNECT {target} HTTP/1.1\r\nHost: x:1\r\nConnection: close\r\n\r\n");
    for target in [
        "foo",
        "foo:",
        ":443",
        "foo:0",
        "foo:99999",
        "foo:-1",
        "foo:443x",
        "",
        " ",
        "a b:443",
        "/",
        "*",
        "[::1",
        "[]:443",
        "http://foo:443/",
        "user@foo:443",
        "foo:443/path",
        "..:443",
        "foo..bar:443",
        "0x7f.1:443",
        "2130706433:443",
        "127.1:443",
        "foo\u{e9}:443",
        "foo%2ecom:443",
    ] {
        assert_status(&address, connect(target), 400);
    }
    for target in [
        "127.0.0.1:443".to_owned(),
        "localhost:443".to_owned(),
        "[::1]:443".to_owned(),
        "[::ffff:127.0.0.1]:443".to_owned(),
        "0.0.0.0:443".to_owned(),
        "10.0.0.1:443".to_owned(),
        "192.168.1.1:22".to_owned(),
        "169.254.169.254:80".to_owned(),
        "[fd00::1]:443".to_owned(),
        "[fe80::1]:443".to_owned(),
        address.clone(),
        format!("localhost:{}", address.rsplit(':').next().unwrap()),
        "api.anthropic.com:444".to_owned(),
    ] {
        assert_status(&address, connect(&target), 403);
    }
    let (status, text) = answered(&address, connect(&"x".repeat(64 << 10)));
    assert!(status.is_none_or(|status| (400..500).contains(&status)), "{text:?}");
    assert_eq!(daemon.json(&["usage"]), json!([]));
}

#[test]
fn root_requests_to_where_no_agent_may_go_are_refused() {
    let daemon = Daemon::start(ALL);
    let address = daemon.listen_addr();
    let port = forbidden_port();
    let private = port.local_addr().unwrap();
    for authority in [
        private.to_string(),
        format!("localhost:{}", private.port()),
        format!("[::ffff:127.0.0.1]:{}", private.port()),
        "169.254.169.254".to_owned(),
        "10.0.0.1".to_owned(),
        "192.168.0.1:8080".to_owned(),
        "[::1]:80".to_owned(),
        "0.0.0.0:80".to_owned(),
    ] {
        let request = format!(
            "GET http://{authority}/latest HTTP/1.1\r\nHost: {authority}\r\nConnection: close\r\n\r\n"
        );
        assert_status(&address, request, 403);
    }
    assert!(port.accept().is_err(), "nobody came");
    for (request, status) in [
        ("GET /none/v1/messages HTTP/1.1\r\nHost: x\r\n", 404),
        ("GET / HTTP/1.1\r\nHost: x\r\n", 404),
        ("GET /../etc/passwd HTTP/1.1\r\nHost: x\r\n", 404),
        ("GET /%63laude/v1 HTTP/1.1\r\nHost: x\r\n", 404),
        ("GET //claude/v1 HTTP/1.1\r\nHost: x\r\n", 404),
        ("GET /claude/v1/models HTTP/1.1\r\n", 400),
        ("GET /claude/v1/models HTTP/1.1\r\nHost: a\r\nHost: b\r\n", 400),
        ("GET /claude/v1/models HTTP/1.1\r\nHost: a b\r\n", 400),
        ("GET http://a.test/ HTTP/1.1\r\nHost: b.test\r\n", 421),
        ("GET https://a.test/ HTTP/1.1\r\nHost: a.test\r\n", 400),
    ] {
        assert_status(&address, format!("{request}Connection: close\r\n\r\n"), status);
    }
    assert_eq!(daemon.json(&["usage"]), json!([]));
}

#[test]
fn root_a_path_does_not_leave_its_provider_s_upstream() {
    let provider = Provider::start(Reply::default());
    let upstream = provider.http_url();
    let settings = format!("{ALL}providers: {{ claude: {{ upstream: \"{upstream}/base\" }} }}\n");
    let daemon = Daemon::start(&settings);
    let address = daemon.listen_addr();
    for path in [
        "/claude/../v1/messages",
        "/claude/%2e%2e/v1/messages",
        "/claude/v1/../../v1/messages",
        "/claude/..;/x",
        "/claude/..\\x",
    ] {
        let request =
            format!("POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{{}}");
        let (status, text) = answered(&address, request);
        assert_eq!(status, Some(400), "{path}: {text:?}");
    }
    assert_eq!(provider.records().len(), 0, "{:#?}", provider.records());
}

#[test]
fn root_a_websocket_that_cannot_be_metered_is_refused() {
    let provider = Provider::start(Reply::default());
    let upstream = provider.http_url();
    let daemon = Daemon::start(&format!("{ALL}providers: {{ codex: {{ upstream: \"{upstream}\" }} }}\n"));
    for upgrade in ["websocket", "WebSocket", "foo, websocket"] {
        let request = format!(
            "GET /codex/v1/realtime HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: {upgrade}\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        );
        assert_status(&daemon.listen_addr(), request, 400);
    }
    assert_eq!(provider.records().len(), 0);
}

#[test]
fn root_garbage_and_half_requests_stop_nobody_else() {
    let provider = Provider::start(Reply::default());
    let upstream = provider.http_url();
    let daemon = Daemon::start(&format!("{ALL}providers: {{ claude: {{ upstream: \"{upstream}\" }} }}\n"));
    let address = daemon.listen_addr();
    let meter = daemon.meter();
    let mut kept = Vec::new();
    for half in [
        "",
        "POST /claude/v1/mess",
        "POST /claude/v1/messages HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{",
    ] {
        for _ in 0..50 {
            let mut stream = TcpStream::connect(&address).unwrap();
            stream.write_all(half.as_bytes()).unwrap();
            kept.push(stream);
        }
    }
    let post = "POST /claude/v1/messages HTTP/1.1\r\nHost: x\r\n";
    for garbage in [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
        b"\0".repeat(100_000),
        vec![b'A'; 200_000],
        b"GET /claude/v1 HTTP/9.9\r\nHost: x\r\n\r\n".to_vec(),
        format!("GET /claude/v1 HTTP/1.1\r\nHost: x\r\n{}\r\n", "X-A: b\r\n".repeat(2_000)).into_bytes(),
        format!("GET /claude/{} HTTP/1.1\r\nHost: x\r\n\r\n", "x".repeat(64 << 10)).into_bytes(),
        format!("{post}Content-Length: 5\r\nContent-Length: 6\r\n\r\n{{}}").into_bytes(),
        format!("{post}Content-Length: -1\r\n\r\n{{}}").into_bytes(),
        format!("{post}Content-Length: 99999999999999999999\r\n\r\n{{}}").into_bytes(),
        format!("{post}Transfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\nZZ\r\n").into_bytes(),
        format!("{post}Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n").into_bytes(),
        format!("{post}X-A: a\r\n\x01: b\r\n\r\n").into_bytes(),
        format!("{post}X-A : a\r\n\r\n").into_bytes(),
    ] {
        let start = String::from_utf8_lossy(&garbage[..garbage.len().min(90)]).into_owned();
        let (status, text) = answered(&address, garbage);
        assert!(status.is_none_or(|status| (400..=505).contains(&status)), "{start:?}: {text:?}");
    }
    assert_eq!(provider.billing_records().len(), 0, "{:#?}", provider.records());
    let whole = format!(
        "{post}Content-Length: 50\r\nConnection: close\r\n\r\n{:<50}",
        r#"{"model": "m", "max_tokens": 5, "messages": []}"#
    );
    assert_status(&address, whole, 200);
    assert!(meter.is_alive(), "it is still the same meter");
    drop(kept);
    let log = daemon.logs();
    assert!(!log.contains("panicked"), "{log}");
}

#[test]
fn root_a_peer_of_no_bottle_is_refused() {
    let provider = Provider::start(Reply::default());
    let daemon =
        Daemon::start(&format!("providers: {{ claude: {{ upstream: \"{}\" }} }}\n", provider.http_url()));
    let address = daemon.listen_addr();
    for request in [
        "POST /claude/v1/messages HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}",
        "CONNECT api.anthropic.com:443 HTTP/1.1\r\nHost: api.anthropic.com:443\r\n\r\n",
        "CONNECT example.com:443 HTTP/1.1\r\nHost: example.com:443\r\n\r\n",
        "GET http://example.com/ HTTP/1.1\r\nHost: example.com\r\n\r\n",
        "GET / HTTP/1.1\r\n\r\n",
    ] {
        let text = assert_status(&address, request, 403);
        assert!(text.to_lowercase().contains("bottle"), "it says why: {text}");
    }
    assert_eq!(provider.records().len(), 0);
    assert_eq!(daemon.json(&["usage"]), json!([]));
}

#[test]
fn root_a_provider_that_cannot_be_reached_is_a_502_in_its_shape_and_costs_nothing() {
    // bound and never listening on: connections to it are refused
    let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let untrusted = Provider::start(Reply::default());
    let settings = format!(
        "{ALL}providers:\n  claude: {{ upstream: \"http://{gone}\" }}\n  codex: {{ upstream: \"{}\" }}\n",
        untrusted.https_url()
    );
    let daemon = Daemon::start(&settings);
    let group = TestCgroup::new("unreachable");
    daemon.attach("b1", group.path(), &["--budget", "claude=100k", "--budget", "codex=100k"]);
    for provider in ["claude", "codex"] {
        let answer = answer_of(&agent(&daemon, &group, &["--provider", provider, "--json"]));
        assert_eq!(answer["status"], 502, "{answer}");
        assert!(answer["error"].as_str().unwrap().contains("did not answer"), "{provider}: {answer}");
    }
    let body = r#"{"model": "m", "max_tokens": 5, "messages": []}"#;
    for (path, kind) in [("/claude/v1/messages", "api_error"), ("/codex/v1/chat/completions", "server_error")]
    {
        let length = body.len();
        let request = format!(
            "POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
        );
        let text = assert_status(&daemon.listen_addr(), request, 502);
        let document: Value = serde_json::from_str(text.split_once("\r\n\r\n").unwrap().1).unwrap();
        assert_eq!(document["error"]["type"], kind, "{document}");
        assert_eq!(document["type"] == "error", path.starts_with("/claude"), "{document}");
    }
    assert_eq!(untrusted.billing_records().len(), 0, "no request leaves over TLS that is not trusted");
    let bottle = daemon.wait_bottle("b1", |bottle| bottle["budget"]["claude"]["reserved"] == 0, SOON);
    for provider in ["claude", "codex"] {
        assert_eq!(bottle["budget"][provider]["used"], 0, "{bottle:#}");
        assert_eq!(bottle["budget"][provider]["reserved"], 0, "{bottle:#}");
    }
}

#[test]
fn root_a_hundred_megabytes_are_streamed_and_not_kept() {
    const BODY_BYTES: usize = 100 << 20;
    const MOST_RSS_KIB: u64 = 100 << 10;
    let provider = Provider::start(Script::always(Reply::default()).forgetting_bodies());
    let daemon =
        Daemon::start(&format!("providers: {{ claude: {{ upstream: \"{}\" }} }}\n", provider.http_url()));
    let group = TestCgroup::new("large");
    daemon.attach("b1", group.path(), &[]);
    let pid = daemon.json(&["status"])["daemon"]["meter"]["pid"].to_string();
    let (done, most) = (AtomicBool::new(false), AtomicU64::new(0));
    let output = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                most.fetch_max(rss_kib(&pid), Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        let output = agent(&daemon, &group, &["--json", "--prompt-bytes", &BODY_BYTES.to_string()]);
        done.store(true, Ordering::Relaxed);
        output
    });
    assert_eq!(answer_of(&output)["status"], 200, "{}", output.stderr);
    let records = provider.billing_records();
    assert_eq!((records.len(), records[0].end), (1, Some(End::Completed)));
    let most = most.into_inner();
    assert!(most > 0 && most < MOST_RSS_KIB, "the meter had {most} KiB");
}

#[test]
fn root_clients_that_hang_up_early_are_no_trouble() {
    let provider = Provider::start(Reply::paced(50, 8, Duration::from_millis(20)));
    let daemon = Daemon::start(&format!(
        "{ALL}providers: {{ claude: {{ upstream: \"{}\" }} }}\n",
        provider.http_url()
    ));
    let address = daemon.listen_addr();
    let body = r#"{"model": "m", "max_tokens": 5, "stream": true, "messages": []}"#;
    let request = format!(
        "POST /claude/v1/messages HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    for how in [Shutdown::Both, Shutdown::Write] {
        let mut stream = TcpStream::connect(&address).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut first = [0; 64];
        let read = stream.read(&mut first).unwrap();
        assert!(read > 0);
        stream.shutdown(how).unwrap();
    }
    provider
        .wait_for(|records| records.len() == 2 && records.iter().all(|record| record.end.is_some()), SOON);
    let flows = support::clock::wait_until(SOON, || {
        let flows = daemon.json(&["usage", "--flows"]);
        let ended = flows.as_array().unwrap().iter().filter(|flow| !flow["ended"].is_null()).count();
        (ended == 2).then_some(flows)
    });
    let flows = flows.expect("both are settled");
    for flow in flows.as_array().unwrap() {
        assert_ne!(flow["total"], 0, "what was seen is charged: {flow}");
    }
}

/// One request of an agent in the bottle, through the gateway.
fn agent(daemon: &Daemon, group: &TestCgroup, arguments: &[&str]) -> Output {
    let base = format!("http://{}", daemon.listen_addr());
    let mut agent = Command::new(process::built("demo-agent"));
    agent
        .env("ANTHROPIC_BASE_URL", format!("{base}/claude"))
        .env("OPENAI_BASE_URL", format!("{base}/codex/v1"));
    process::run(group.enter_before_exec(agent.args(arguments)), Duration::from_secs(40))
}

fn answer_of(output: &Output) -> Value {
    serde_json::from_str(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"))
}

/// Resident memory of a process.
fn rss_kib(pid: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
    line.split_whitespace().next().and_then(|kib| kib.parse().ok()).unwrap_or(0)
}
