//! Which addresses are reached, and by whose name.
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use meter_proxy::protocol::{Config, ToMeter};

use crate::hellos::{hello, other_words};
use crate::rig::{
    ACCESS_DENIED, Answer, Rig, SOON, config, is_notice, localhost_is_metered, loopback_is_open,
    nobody_comes, nowhere, rest_of,
};

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

/// The configuration of [`loopback_is_open`], in which `names` are metered too, and dialled by themselves.
fn metering(names: &[&str]) -> Config {
    let mut settings = loopback_is_open(nowhere());
    settings.providers[1].hosts = names.iter().map(|name| (*name).to_owned()).collect();
    settings.providers[1].upstream = None;
    settings
}

/// Whether words that are said to an address, where a server of the test listens, arrive there; both ways in.
fn arrive(rig: &Rig, origin: &TcpListener, words: &[u8]) -> bool {
    let there = origin.local_addr().unwrap();
    let mut redirected = rig.redirected(there);
    redirected.write_all(words).unwrap();
    let arrived = has_arrived(&mut redirected, origin, words);
    rig.manner(|manner| manner.original = None);
    let mut tunnel = rig.connect();
    write!(tunnel, "CONNECT {there} HTTP/1.1\r\nHost: {there}\r\n\r\n").unwrap();
    assert_eq!(Answer::read_head(&mut tunnel).unwrap().status(), 200);
    tunnel.write_all(words).unwrap();
    assert_eq!(has_arrived(&mut tunnel, origin, words), arrived, "both ways in are one");
    arrived
}

/// Whether a client's words are answered by the server, rather than by the end of the connection.
fn has_arrived(client: &mut TcpStream, origin: &TcpListener, words: &[u8]) -> bool {
    client.set_nonblocking(true).unwrap();
    origin.set_nonblocking(true).unwrap();
    let until = Instant::now() + SOON;
    while Instant::now() < until {
        if let Ok((mut server, _)) = origin.accept() {
            server.set_nonblocking(false).unwrap();
            let mut arrived = vec![0; words.len()];
            let all = server.read_exact(&mut arrived).is_ok();
            assert!(!all || arrived[..4] == words[..4], "{arrived:02x?} {words:02x?}");
            if all {
                return true;
            }
        }
        match client.read(&mut [0; 64]) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                std::thread::sleep(Duration::from_millis(1))
            }
            _ => return false,
        }
    }
    panic!("neither arrived nor closed");
}

/// A server at an address of this test's own, on the port of https.
fn https_origin(net: u8) -> TcpListener {
    let [.., high, low] = std::process::id().to_be_bytes();
    TcpListener::bind(SocketAddr::from(([127, net, high, low], 443))).unwrap()
}

#[test]
fn root_what_names_nobody_is_closed_while_a_metered_host_was_never_found() {
    let origin = https_origin(79);
    let rig = Rig::start(metering(&["nowhere.invalid"]));
    let plain = b"GET / HTTP/1.1\r\nHost: example.com\r\n\r\n";
    for (words, what) in other_words().into_iter().chain([(plain.to_vec(), "plain HTTP")]) {
        let names_another = what == "TLS for example.com" || what == "plain HTTP";
        assert_eq!(arrive(&rig, &origin, &words), names_another, "{what}");
        if !names_another {
            let why = "it may lead to nowhere.invalid, which is metered and could not be found yet";
            rig.heard(|message| is_notice(message, &format!("{what} was closed: {why}")));
            rig.heard(|message| is_notice(message, "a tunnel to") && is_notice(message, why));
        }
    }
    let elsewhere = TcpListener::bind("127.0.0.1:0").unwrap();
    assert!(arrive(&rig, &elsewhere, b"SSH-2.0-OpenSSH_9.9 x\r\n"), "other ports serve other protocols");
    assert!(!arrive(&rig, &elsewhere, &hello("example.com", false)), "TLS is served on any port");

    rig.send(&ToMeter::Config(metering(&["localhost"])));
    rig.taken_in();
    for (words, what) in other_words() {
        assert!(arrive(&rig, &origin, &words), "{what}: where localhost is, is known");
    }
}
