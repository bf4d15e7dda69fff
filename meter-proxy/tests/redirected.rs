//! The built meter, met by clients that believe they speak to somebody else.
#![allow(clippy::unwrap_used, reason = "tests say what they expect by unwrapping")]
mod rig;

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use meter_proxy::protocol::{Config, ToController, ToMeter, Upstream as Towards};
use rig::{Answer, BOTTLE, Rig, SOON, Upstream, client_tls, config, json_answer, post};

const ASK: &str = r#"{"model":"claude-x","max_tokens":100,"messages":[{"role":"user","content":"hi"}]}"#;
const JSON: &str =
    r#"{"type":"message","model":"claude-x","content":[],"usage":{"input_tokens":10,"output_tokens":5}}"#;
/// The alert "access denied", fatal: RFC 8446, 6.
const ACCESS_DENIED: [u8; 7] = [0x15, 3, 3, 0, 2, 2, 49];
/// The extension `encrypted_client_hello`.
const ECH: u16 = 0xfe0d;

/// A configuration in which loopback addresses may be reached, and nothing is known of any.
fn loopback_is_open(upstream: SocketAddr) -> Config {
    let mut settings = config(upstream);
    settings.allow_private = vec!["127.0.0.0/8".into()];
    settings
}

/// A configuration in which `localhost` is metered at its own address, and other loopback addresses are not.
fn localhost_is_metered() -> Config {
    let mut settings = loopback_is_open(nowhere());
    settings.providers[0].hosts = vec!["localhost".into()];
    settings.providers[0].upstream = None;
    settings
}

/// An address of a test network, RFC 5737; nothing may ever be sent there.
fn far(port: u16) -> SocketAddr {
    SocketAddr::new("203.0.113.7".parse().unwrap(), port)
}

fn nowhere() -> SocketAddr {
    "127.0.0.1:9".parse().unwrap()
}

/// What a TLS client that asks for `name` sends first.
fn hello(name: &str, named: bool) -> Vec<u8> {
    let mut tls = (*client_tls(Vec::new())).clone();
    tls.enable_sni = named;
    let name = name.to_owned().try_into().unwrap();
    let mut client = rustls::ClientConnection::new(tls.into(), name).unwrap();
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes).unwrap();
    bytes
}

/// The same with one more extension at the end: RFC 8446, 4.1.2.
fn with_extension(mut hello: Vec<u8>, number: u16, body: &[u8]) -> Vec<u8> {
    const SESSION_ID: usize = 5 + 4 + 2 + 32;
    let suites = SESSION_ID + 1 + usize::from(hello[SESSION_ID]);
    let compression = suites + 2 + usize::from(u16::from_be_bytes([hello[suites], hello[suites + 1]]));
    let extensions = compression + 1 + usize::from(hello[compression]);
    let mut extension = number.to_be_bytes().to_vec();
    extension.extend(u16::try_from(body.len()).unwrap().to_be_bytes());
    extension.extend(body);
    // The lengths of the record, of the handshake message (its low two bytes) and of the extensions.
    for at in [3, 7, extensions] {
        let length = u16::from_be_bytes([hello[at], hello[at + 1]]) + u16::try_from(extension.len()).unwrap();
        hello[at..at + 2].copy_from_slice(&length.to_be_bytes());
    }
    hello.extend(extension);
    hello
}

/// What stands in that extension; its secret parts are noise to whoever has no key.
fn encrypted_name() -> Vec<u8> {
    let outer_and_suite_and_key = [0, 0, 1, 0, 1, 7];
    [&outer_and_suite_and_key[..], &[0, 32], &[9; 32], &[0, 100], &[9; 100]].concat()
}

/// First words that name no metered host, with what the audit calls them.
fn other_words() -> [(Vec<u8>, &'static str); 6] {
    [
        (hello("example.com", true), "TLS for example.com"),
        (hello("example.com", false), "TLS for no name"),
        (with_extension(hello("example.com", true), ECH, &encrypted_name()), "TLS for example.com"),
        (vec![0x16, 3, 1, 0, 4, 9, 9, 9, 9], "TLS that cannot be read"),
        (b"SSH-2.0-OpenSSH_9.9 x\r\n".to_vec(), "another protocol"),
        (vec![0, 255, 7, 0x16, 3, 1], "another protocol"),
    ]
}

fn is_notice(message: &ToController, words: &str) -> bool {
    matches!(message, ToController::Notice(notice) if notice.bottle == Some(BOTTLE) && notice.detail.contains(words))
}

/// What comes until the other side closes, in whichever way.
fn rest_of(stream: &mut TcpStream) -> Vec<u8> {
    let mut rest = Vec::new();
    match stream.read_to_end(&mut rest) {
        Ok(_) => {}
        Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset, "the connection should be closed"),
    }
    rest
}

/// The next connection to a server that the test plays.
fn next_at(origin: &TcpListener) -> TcpStream {
    origin.set_nonblocking(true).unwrap();
    let until = Instant::now() + SOON;
    let (stream, _) = loop {
        match origin.accept() {
            Err(error) if error.kind() == ErrorKind::WouldBlock && Instant::now() < until => {
                std::thread::sleep(Duration::from_millis(1));
            }
            taken => break taken.expect("somebody should have come"),
        }
    };
    stream.set_nonblocking(false).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    stream
}

fn nobody_comes(origin: &TcpListener) {
    origin.set_nonblocking(true).unwrap();
    assert_eq!(origin.accept().unwrap_err().kind(), ErrorKind::WouldBlock, "nothing may arrive");
}

#[test]
fn root_a_metered_address_is_reached_by_its_metered_name_alone() {
    let rig = Rig::start(localhost_is_metered());
    for target in ["127.0.0.1:8443", "[::ffff:127.0.0.1]:443", "[64:ff9b::7f00:1]:443"] {
        let answer = rig.ask(&format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n"));
        assert_eq!(answer.status(), 403, "{target}");
        let message = answer.json()["error"]["message"].as_str().unwrap().to_owned();
        assert!(message.contains("leads to an address of localhost, which is metered"), "{message}");
    }
    let plain = rig.ask("GET http://127.0.0.1:8080/ HTTP/1.1\r\nHost: 127.0.0.1:8080\r\n\r\n");
    assert_eq!(plain.status(), 403);
    rig.heard(|message| is_notice(message, "leads to an address of localhost, which is metered"));
    let elsewhere = rig.ask("GET http://127.77.0.1:9/ HTTP/1.1\r\nHost: 127.77.0.1:9\r\n\r\n");
    assert_eq!(elsewhere.status(), 502, "another address may be tried");
}

#[test]
fn root_a_redirected_client_of_a_metered_name_is_metered() {
    let upstream = Upstream::saying(json_answer("200 OK", JSON));
    let rig = Rig::start(config(upstream.address));
    let request = post("/v1/messages", ASK).replace("Host: meter", "Host: api.anthropic.com");
    let mut client = rig.secure(rig.redirected(far(443)), "api.anthropic.com");
    client.write_all(request.as_bytes()).unwrap();
    assert_eq!(Answer::read(&mut client).unwrap().body, JSON.as_bytes());
    assert_eq!(rig.settlement().tokens.output, 5);
    assert_eq!(rig.reservation().provider, "claude");
    client.write_all(request.replace("api.anthropic.com", "example.com").as_bytes()).unwrap();
    assert_eq!(Answer::read(&mut client).unwrap().status(), 421);
    assert_eq!(upstream.heads().len(), 1);

    rig.send(&ToMeter::Cut { bottle: BOTTLE, upstream: Towards::Close });
    let mut client = rig.secure(rig.redirected(far(443)), "api.anthropic.com");
    client.write_all(b"GET /v1/models HTTP/1.1\r\nHost: api.anthropic.com\r\n\r\n").unwrap();
    assert_eq!(Answer::read(&mut client).unwrap().status(), 402, "a cut bottle hears it inside TLS");

    let mut client = rig.redirected(far(80));
    client.write_all(&hello("api.anthropic.com", true)).unwrap();
    assert_eq!(rest_of(&mut client), ACCESS_DENIED);
    rig.heard(|message| is_notice(message, "reached on port 443 only"));
}

#[test]
fn root_a_hello_that_hides_a_name_behind_a_metered_one_is_opened() {
    let rig = Rig::start(config(nowhere()));
    let mut client = rig.redirected(far(443));
    client.write_all(&with_extension(hello("api.anthropic.com", true), ECH, &encrypted_name())).unwrap();
    let mut record = [0; 6];
    client.read_exact(&mut record).unwrap();
    assert_eq!((record[0], record[5]), (0x16, 2), "the meter itself says hello");
    rig.heard(|message| matches!(message, ToController::Sign { host, .. } if host == "api.anthropic.com"));
}

#[test]
fn root_what_names_no_metered_host_arrives_unchanged_where_it_was_going() {
    let origin = TcpListener::bind("127.0.0.1:0").unwrap();
    let rig = Rig::start(loopback_is_open(nowhere()));
    for (words, what) in other_words() {
        let mut client = rig.redirected(origin.local_addr().unwrap());
        for byte in &words {
            client.write_all(&[*byte]).unwrap();
        }
        let mut server = next_at(&origin);
        let mut arrived = vec![0; words.len()];
        server.read_exact(&mut arrived).unwrap();
        assert_eq!(arrived, words, "{what}");
        server.write_all(b"answer").unwrap();
        drop(server);
        assert_eq!(rest_of(&mut client), b"answer", "{what}");
    }
    assert_eq!(rig.count(|message| matches!(message, ToController::Notice(_))), 0);
}

#[test]
fn root_a_metered_address_is_closed_to_whoever_does_not_name_it() {
    let origin = TcpListener::bind("127.0.0.1:0").unwrap();
    let rig = Rig::start(localhost_is_metered());
    for (words, what) in other_words() {
        let mut client = rig.redirected(origin.local_addr().unwrap());
        client.write_all(&words).unwrap();
        let told: &[u8] = if what.starts_with("TLS") { &ACCESS_DENIED } else { b"" };
        assert_eq!(rest_of(&mut client), told, "{what}");
        rig.heard(|message| is_notice(message, &format!("{what} was closed")));
    }
    let mut client = rig.redirected(origin.local_addr().unwrap());
    client.write_all(b"GET / HTTP/1.1\r\nHost: example.com\r\n\r\n").unwrap();
    assert_eq!(Answer::read(&mut client).unwrap().status(), 403);
    nobody_comes(&origin);
}

#[test]
fn root_a_redirected_client_reaches_no_private_address() {
    let rig = Rig::start(config(nowhere()));
    for original in ["203.0.113.7:443", "169.254.169.254:80", "[::ffff:10.0.0.1]:443", "[fd00::1]:443"] {
        let mut client = rig.redirected(original.parse().unwrap());
        client.write_all(&hello("example.com", true)).unwrap();
        assert_eq!(rest_of(&mut client), ACCESS_DENIED, "{original}");
        rig.heard(|message| is_notice(message, "address that the meter does not connect to"));
    }
}

#[test]
fn root_a_redirected_client_without_tls_is_metered_or_goes_where_it_was_going() {
    let provider = Upstream::saying(json_answer("200 OK", JSON));
    let origin = Upstream::saying(json_answer("200 OK", "{}"));
    let rig = Rig::start(loopback_is_open(provider.address));
    let metered = post("/v1/messages", ASK).replace("Host: meter", "Host: api.anthropic.com");
    let mut client = rig.redirected(origin.address);
    let mut ask = |request: &str| {
        client.write_all(request.as_bytes()).unwrap();
        Answer::read(&mut client).unwrap()
    };
    let other =
        format!("GET /x?y HTTP/1.1\r\nHost: example.com:{}\r\nX-Mine: 1\r\n\r\n", origin.address.port());
    assert_eq!(ask(&other).body, b"{}");
    assert_eq!(ask(&metered).body, JSON.as_bytes());
    assert_eq!(ask(&other).body, b"{}");
    assert_eq!(ask("GET / HTTP/1.1\r\nHost: example.org\r\n\r\n").status(), 421);
    assert_eq!(rig.settlement().tokens.output, 5);
    assert_eq!((provider.heads().len(), origin.heads().len()), (1, 2));
    let head = origin.heads()[0].to_lowercase();
    assert!(head.starts_with("get /x?y http/1.1"), "{head}");
    assert!(head.contains(&format!("host: example.com:{}\r\n", origin.address.port())), "{head}");
    for bad in ["GET / HTTP/1.1\r\n\r\n", "CONNECT a.test:443 HTTP/1.1\r\nHost: a.test:443\r\n\r\n"] {
        let mut client = rig.redirected(origin.address);
        client.write_all(bad.as_bytes()).unwrap();
        assert_eq!(Answer::read(&mut client).unwrap().status(), 400, "{bad}");
    }
}

#[test]
fn root_a_server_may_speak_first_and_its_client_still_names_no_metered_host() {
    let origin = TcpListener::bind("127.0.0.1:0").unwrap();
    let there = origin.local_addr().unwrap();
    let rig = Rig::start(loopback_is_open(nowhere()));
    let met = || {
        let mut client = rig.redirected(there);
        let since = Instant::now();
        let mut server = next_at(&origin);
        assert!(since.elapsed() >= Duration::from_millis(250), "the client has the first word");
        server.write_all(b"220 hello\r\n").unwrap();
        client.read_exact(&mut [0; 11]).unwrap();
        (client, server)
    };
    let (mut client, mut server) = met();
    client.write_all(b"EHLO x\r\n").unwrap();
    let mut said = [0; 8];
    server.read_exact(&mut said).unwrap();
    assert_eq!(&said, b"EHLO x\r\n");
    rig.send(&ToMeter::Cut { bottle: BOTTLE, upstream: Towards::Close });
    assert_eq!(rest_of(&mut client), b"", "a cut ends it");
    rig.send(&ToMeter::Open { bottle: BOTTLE });

    let (mut client, mut server) = met();
    client.write_all(&hello("api.anthropic.com", true)).unwrap();
    assert_eq!(rest_of(&mut client), b"");
    assert_eq!(server.read(&mut [0]).unwrap_or(0), 0, "nothing of it may arrive");
    rig.heard(|message| is_notice(message, "its TLS asks for api.anthropic.com, which is metered"));
}

#[test]
fn root_a_client_that_is_slow_to_speak_is_still_metered() {
    let upstream = Upstream::saying(json_answer("200 OK", JSON));
    let origin = TcpListener::bind("127.0.0.1:0").unwrap();
    let there = SocketAddr::new("127.0.0.1".parse().unwrap(), 443);
    let rig = Rig::start(loopback_is_open(upstream.address));
    for original in [there, far(443)] {
        let stream = rig.redirected(original);
        std::thread::sleep(Duration::from_millis(600));
        let mut client = rig.secure(stream, "api.anthropic.com");
        let request = post("/v1/messages", ASK).replace("Host: meter", "Host: api.anthropic.com");
        client.write_all(request.as_bytes()).unwrap();
        assert_eq!(Answer::read(&mut client).unwrap().body, JSON.as_bytes(), "{original}");
    }
    let mut client = rig.redirected(origin.local_addr().unwrap());
    let server = next_at(&origin);
    client.write_all(b"GET /v1/models HTTP/1.1\r\nHost: api.anthropic.com\r\n\r\n").unwrap();
    assert_eq!(Answer::read(&mut client).unwrap().status(), 200);
    drop(server);
    assert_eq!(upstream.heads().len(), 3);
}

#[test]
fn root_a_client_that_refuses_our_certificate_is_audited_once() {
    let rig = Rig::start(config(nowhere()));
    for _ in 0..3 {
        let name = "api.anthropic.com".try_into().unwrap();
        let distrusting = rustls::ClientConnection::new(client_tls(Vec::new()), name).unwrap();
        let mut client = rustls::StreamOwned::new(distrusting, rig.redirected(far(443)));
        assert_eq!(client.flush().unwrap_err().kind(), ErrorKind::InvalidData);
        assert_eq!(rest_of(&mut client.sock), b"");
    }
    let refused = |message: &ToController| {
        is_notice(message, "refused the meter's certificate") && is_notice(message, "api.anthropic.com")
    };
    rig.heard(|message| refused(message) && is_notice(message, "b1"));
    rig.manner(|manner| manner.original = None);
    rig.taken_in();
    assert_eq!(rig.count(refused), 1);
}

#[test]
fn root_a_client_that_stops_in_the_middle_is_closed_in_time() {
    let origin = TcpListener::bind("127.0.0.1:0").unwrap();
    let rig = Rig::start(localhost_is_metered());
    let there = origin.local_addr().unwrap();
    let (mut half, mut begun, mut silent) =
        (rig.redirected(there), rig.redirected(there), rig.redirected(there));
    half.write_all(&hello("localhost", true)[..100]).unwrap();
    begun.write_all(b"GE").unwrap();
    let since = Instant::now();
    for client in [&mut half, &mut begun, &mut silent] {
        client.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        assert_eq!(rest_of(client), b"");
    }
    assert!(since.elapsed() < Duration::from_secs(13), "{:?}", since.elapsed());
    rig.heard(|message| is_notice(message, "did not say what it wants"));
    nobody_comes(&origin);
}

#[test]
fn root_a_connection_to_the_meter_itself_is_not_redirected() {
    let upstream = Upstream::saying(json_answer("200 OK", JSON));
    let rig = Rig::start(config(upstream.address));
    let mut client = rig.redirected(rig.address);
    client.write_all(post("/claude/v1/messages", ASK).as_bytes()).unwrap();
    assert_eq!(Answer::read(&mut client).unwrap().body, JSON.as_bytes());
}
