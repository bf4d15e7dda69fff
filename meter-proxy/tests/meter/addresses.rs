//! Which addresses are reached, and by whose name.
use std::io::Write;
use std::net::TcpListener;

use crate::hellos::{hello, other_words};
use crate::rig::{
    ACCESS_DENIED, Answer, Rig, config, is_notice, localhost_is_metered, nobody_comes, nowhere, rest_of,
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
