//! Names that change their mind: where a host is counts when it is dialled, and is learnt each time.
use std::collections::VecDeque;
use std::io::Write;
use std::net::{IpAddr, TcpListener};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use meter_proxy::protocol::Config;

use crate::hellos::hello;
use crate::rig::{
    ACCESS_DENIED, Rig, SOON, config, is_notice, loopback_is_open, nobody_comes, nowhere, resolving, rest_of,
};

/// What no bottle may reach, in the forms that a name can have it.
const PRIVATE: [&str; 10] = [
    "127.0.0.1",
    "169.254.169.254",
    "10.0.0.1",
    "::1",
    "fd00:ec2::254",
    "fe80::1",
    "::ffff:127.0.0.1",
    "::ffff:169.254.169.254",
    "64:ff9b::7f00:1",
    "2002:7f00:1::1",
];
/// An address of the public network. Nothing leads there from the network of a test.
const PUBLIC: &str = "1.1.1.1";

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn connect(rig: &Rig, target: &str) -> u16 {
    rig.ask(&format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n")).status()
}

#[test]
fn root_a_name_that_turns_private_is_refused_at_the_moment_it_is_dialled() {
    let now = Arc::new(Mutex::new(vec![address(PUBLIC)]));
    let says = Arc::clone(&now);
    resolving(
        move |name| Some(if name == "flips.test" { says.lock().unwrap().clone() } else { Vec::new() }),
        || {
            let origin = TcpListener::bind("127.0.0.1:8443").unwrap();
            let rig = Rig::start(config(nowhere()));
            let absolute = "GET http://flips.test:8443/ HTTP/1.1\r\nHost: flips.test:8443\r\n\r\n";
            for private in PRIVATE {
                *now.lock().unwrap() = vec![address(PUBLIC)];
                assert_eq!(connect(&rig, "flips.test:8443"), 502, "allowed, and not to be reached from here");
                *now.lock().unwrap() = vec![address(private)];
                assert_eq!(connect(&rig, "flips.test:8443"), 403, "{private}");
                assert_eq!(rig.ask(absolute).status(), 403, "{private}");
                *now.lock().unwrap() = vec![address(PUBLIC), address(private)];
                let status = connect(&rig, "flips.test:8443");
                assert!(matches!(status, 403 | 502), "{private}: {status}");
            }
            rig.heard(|message| {
                is_notice(message, "flips.test leads to an address that the meter does not connect to")
            });
            nobody_comes(&origin);
        },
    );
}

#[test]
fn root_a_name_is_asked_once_for_each_connection_and_what_was_judged_is_dialled() {
    let answers: VecDeque<&str> = [PUBLIC, "127.0.0.1"].repeat(20).into();
    let answers = Mutex::new(answers);
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    resolving(
        move |name| {
            if name != "flips.test" {
                return Some(Vec::new());
            }
            count.fetch_add(1, Ordering::SeqCst);
            Some(vec![address(answers.lock().unwrap().pop_front()?)])
        },
        || {
            let origin = TcpListener::bind("127.0.0.1:8443").unwrap();
            let rig = Rig::start(config(nowhere()));
            for _ in 0..10 {
                let status = connect(&rig, "flips.test:8443");
                assert!(matches!(status, 403 | 502), "{status}");
            }
            // One question for each family.
            assert!(asked.load(Ordering::SeqCst) <= 20, "{asked:?}");
            nobody_comes(&origin);
        },
    );
}

/// The configuration of [`loopback_is_open`], in which `moves.test` is metered and dialled by itself.
fn moving() -> Config {
    let mut settings = loopback_is_open(nowhere());
    settings.providers[0].hosts = vec!["moves.test".into()];
    settings.providers[0].upstream = None;
    settings
}

#[test]
fn root_the_addresses_of_a_metered_host_are_learnt_by_every_dial() {
    let now = Arc::new(Mutex::new(address("127.0.0.2")));
    let says = Arc::clone(&now);
    resolving(
        move |name| Some(if name == "moves.test" { vec![*says.lock().unwrap()] } else { Vec::new() }),
        || {
            let rig = Rig::start(moving());
            assert_eq!(connect(&rig, "127.0.0.2:8443"), 403, "found at the start");
            assert_eq!(connect(&rig, "127.0.0.3:8443"), 502, "not metered yet");
            *now.lock().unwrap() = address("127.0.0.3");
            let request = "GET /claude/v1/models HTTP/1.1\r\nHost: m\r\n\r\n";
            assert_eq!(rig.ask(request).status(), 502, "nobody listens there");
            assert_eq!(connect(&rig, "127.0.0.3:8443"), 403, "found by that request");
            assert_eq!(connect(&rig, "127.0.0.2:8443"), 403, "it may still be there");
        },
    );
}

#[test]
fn root_a_metered_name_that_cannot_be_resolved_is_tried_again_and_then_opens() {
    let failures = AtomicUsize::new(0);
    resolving(
        move |name| {
            let is_early = failures.fetch_add(usize::from(name == "moves.test"), Ordering::SeqCst) < 4;
            (!is_early).then(|| vec![address("127.0.0.2")])
        },
        || {
            let origin = TcpListener::bind("127.0.0.9:443").unwrap();
            let rig = Rig::start(moving());
            let there = origin.local_addr().unwrap();
            let mut refused = 0;
            let since = Instant::now();
            loop {
                let mut client = rig.redirected(there);
                client.write_all(&hello("example.com", false)).unwrap();
                origin.set_nonblocking(true).unwrap();
                client.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
                let mut first = [0; 7];
                if std::io::Read::read_exact(&mut client, &mut first).is_ok() {
                    assert_eq!(first, ACCESS_DENIED);
                    refused += 1;
                } else if origin.accept().is_ok() {
                    break;
                }
                assert!(since.elapsed() < SOON, "it should have been tried again");
            }
            assert!(refused > 0 && since.elapsed() > Duration::from_millis(900), "{refused}");
            rig.heard(|message| {
                is_notice(message, "moves.test, which is metered and could not be found yet")
            });
            let mut metered = rig.redirected("127.0.0.2:443".parse().unwrap());
            metered.write_all(&hello("example.com", true)).unwrap();
            assert_eq!(rest_of(&mut metered), ACCESS_DENIED, "and where it is, is closed to others");
        },
    );
}

#[test]
fn root_the_first_connection_waits_for_the_first_resolution() {
    resolving(
        |name| {
            // Less than the meter waits, and than the resolver does before it asks again.
            std::thread::sleep(Duration::from_millis(if name == "moves.test" { 300 } else { 0 }));
            Some(vec![address("127.0.0.2")])
        },
        || {
            let rig = Rig::start(moving());
            assert_eq!(connect(&rig, "127.0.0.2:8443"), 403, "nothing passes before it is known");
        },
    );
}
