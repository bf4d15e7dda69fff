//! Bottles that may not reach everything: by CONNECT, in absolute form, and redirected.
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use meter_proxy::egress::EgressMode;
use meter_proxy::protocol::{Config, ToController};

use crate::hellos::hello;
use crate::rig::{Answer, Rig, SOON, Upstream, config, json_answer, post};
use crate::words::{ASK, JSON};

const CLOSED: [EgressMode; 2] = [EgressMode::Allowlist, EgressMode::Metered];

/// Loopback may be dialled, and these rules hold.
fn with_rules(upstream: SocketAddr, rules: &[String]) -> Config {
    let mut settings = config(upstream);
    settings.allow_private = vec!["127.0.0.0/8".into()];
    settings.allow = rules.iter().map(|rule| rule.parse().unwrap()).collect();
    settings
}

fn confined(settings: Config, mode: EgressMode) -> Rig {
    let rig = Rig::start(settings);
    rig.manner(|manner| manner.egress = mode);
    rig
}

fn connect_to(rig: &Rig, authority: &str) -> u16 {
    let mut stream = rig.connect();
    write!(stream, "CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n").unwrap();
    Answer::read_head(&mut stream).unwrap().status()
}

fn notices(rig: &Rig, words: &str) -> usize {
    rig.taken_in();
    rig.count(|message| matches!(message, ToController::Notice(notice) if notice.detail.contains(words)))
}

fn listener(address: &str) -> TcpListener {
    let listener = TcpListener::bind(address).unwrap();
    listener.set_nonblocking(true).unwrap();
    listener
}

/// The next connection there, if one comes soon.
fn visitor(listener: &TcpListener, wait: Duration) -> Option<TcpStream> {
    let until = Instant::now() + wait;
    while Instant::now() < until {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false).unwrap();
                stream.set_read_timeout(Some(SOON)).unwrap();
                return Some(stream);
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                std::thread::sleep(Duration::from_millis(2));
            }
            Err(error) => panic!("{error}"),
        }
    }
    None
}

#[test]
fn root_a_confined_bottle_still_reaches_its_providers() {
    for mode in CLOSED {
        let upstream = Upstream::saying(json_answer("200 OK", JSON));
        let rig = confined(with_rules(upstream.address, &[]), mode);
        assert_eq!(rig.ask(&post("/claude/v1/messages", ASK)).body, JSON.as_bytes(), "{mode:?}");
        let mut tunnel = rig.tunnel("api.anthropic.com:443", "api.anthropic.com");
        let request = post("/v1/messages", ASK).replace("Host: meter", "Host: api.anthropic.com");
        tunnel.write_all(request.as_bytes()).unwrap();
        assert_eq!(Answer::read(&mut tunnel).unwrap().body, JSON.as_bytes(), "{mode:?}");
        let mut redirected =
            rig.secure(rig.redirected("203.0.113.7:443".parse().unwrap()), "api.anthropic.com");
        redirected.write_all(request.as_bytes()).unwrap();
        assert_eq!(Answer::read(&mut redirected).unwrap().body, JSON.as_bytes(), "{mode:?}");
    }
}

#[test]
fn root_nobody_else_is_reached_and_it_is_audited_once() {
    let upstream = Upstream::saying(json_answer("200 OK", "{}"));
    let there = upstream.address;
    let rules = [format!("127.0.0.1:{}", there.port()), "localhost".to_owned()];
    let rig = confined(with_rules(there, &rules), EgressMode::Metered);
    // the upstream's own address is metered; these are not
    let elsewhere = listener("127.0.0.1:0");
    let port = elsewhere.local_addr().unwrap().port();
    for target in [format!("127.0.0.1:{port}"), format!("localhost:{port}")] {
        for _ in 0..2 {
            assert_eq!(connect_to(&rig, &target), 403, "{target}");
        }
        let plain = rig.ask(&format!("GET http://{target}/x HTTP/1.1\r\nHost: {target}\r\n\r\n"));
        assert_eq!(plain.status(), 403, "{target}");
        let words = plain.json()["error"]["message"].as_str().unwrap().to_owned();
        assert!(words.contains("its providers alone (egress metered)"), "{words}");
        assert_eq!(notices(&rig, &format!("{target} may not be reached")), 1);
    }
    assert!(visitor(&elsewhere, Duration::from_millis(200)).is_none());
}

#[test]
fn root_an_allow_list_lets_through_what_it_names() {
    let upstream = Upstream::saying(json_answer("200 OK", "{}"));
    let listed = Upstream::saying(json_answer("200 OK", "{\"listed\":1}"));
    let port = listed.address.port();
    for (rules, target, status) in [
        (format!("localhost:{port}"), format!("localhost:{port}"), 200),
        (format!("localhost:{port}"), format!("LOCALHOST:{port}"), 200),
        (format!("localhost:{port}"), format!("127.0.0.1:{port}"), 403),
        ("localhost:1".to_owned(), format!("localhost:{port}"), 403),
        (format!("127.0.0.0/8:{port}"), format!("127.0.0.1:{port}"), 200),
        (format!("127.0.0.0/8:{port}"), format!("[::ffff:127.0.0.1]:{port}"), 200),
        (format!("127.0.0.0/8:{port}"), format!("localhost:{port}"), 403),
        ("127.0.0.1".to_owned(), format!("127.0.0.1:{port}"), 200),
        ("10.0.0.0/8".to_owned(), format!("127.0.0.1:{port}"), 403),
    ] {
        let rig = confined(with_rules(upstream.address, std::slice::from_ref(&rules)), EgressMode::Allowlist);
        assert_eq!(connect_to(&rig, &target), status, "{rules}: {target}");
        let plain = rig.ask(&format!("GET http://{target}/x HTTP/1.1\r\nHost: {target}\r\n\r\n"));
        assert_eq!(plain.status(), status, "{rules}: {target}");
    }
    let private = Rig::start(Config {
        allow_private: Vec::new(),
        ..with_rules(upstream.address, &[format!("127.0.0.1:{port}")])
    });
    private.manner(|manner| manner.egress = EgressMode::Allowlist);
    assert_eq!(connect_to(&private, &format!("127.0.0.1:{port}")), 403, "private all the same");
}

#[test]
fn root_a_redirected_client_s_words_do_not_open_the_address_it_was_going_to() {
    let far = listener("127.0.0.9:0");
    let original = far.local_addr().unwrap();
    let named = listener(&format!("127.0.0.1:{}", original.port()));
    let plain = format!("GET / HTTP/1.1\r\nHost: localhost:{}\r\n\r\n", original.port());
    let by_name = [format!("localhost:{}", original.port())];
    for words in [hello("localhost", true), plain.into_bytes()] {
        let rig = confined(with_rules("127.0.0.1:9".parse().unwrap(), &by_name), EgressMode::Allowlist);
        let mut stream = rig.redirected(original);
        stream.write_all(&words).unwrap();
        let mut visitor_there = visitor(&named, SOON).expect("the name is dialled");
        visitor_there.read_exact(&mut [0; 4]).unwrap();
        assert!(visitor(&far, Duration::from_millis(200)).is_none());
    }
    let by_address = [format!("127.0.0.9:{}", original.port())];
    let rig = confined(with_rules("127.0.0.1:9".parse().unwrap(), &by_address), EgressMode::Allowlist);
    let mut stream = rig.redirected(original);
    stream.write_all(&hello("elsewhere.test", true)).unwrap();
    assert!(visitor(&far, SOON).is_some(), "an address that is listed is reached by any name");
}

#[test]
fn root_a_redirected_client_that_names_nobody_listed_is_closed() {
    let far = listener("127.0.0.9:0");
    let original = far.local_addr().unwrap();
    for mode in CLOSED {
        let rig = confined(with_rules("127.0.0.1:9".parse().unwrap(), &["github.com".to_owned()]), mode);
        let mut tls = rig.redirected(original);
        tls.write_all(&hello("evil.test", true)).unwrap();
        let mut answer = Vec::new();
        tls.read_to_end(&mut answer).unwrap();
        assert_eq!(answer, [0x15, 3, 3, 0, 2, 2, 49], "{mode:?}: the alert \"access denied\"");
        let mut plain = rig.redirected(original);
        write!(plain, "GET / HTTP/1.1\r\nHost: evil.test\r\n\r\n").unwrap();
        assert_eq!(Answer::read(&mut plain).unwrap().status(), 403, "{mode:?}");
        let mut other = rig.redirected(original);
        other.write_all(b"SSH-2.0-x\r\n").unwrap();
        assert_eq!(other.read(&mut [0]).unwrap(), 0, "{mode:?}");
        rig.manner(|manner| manner.original = None);
        assert!(notices(&rig, &format!("{original} may not be reached")) >= 2, "{mode:?}");
        assert!(visitor(&far, Duration::from_millis(200)).is_none(), "{mode:?}");
    }
}
