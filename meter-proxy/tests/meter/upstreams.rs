//! Connections to providers: whose they are, whom they trust.
use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use meter_proxy::protocol::{ToController, ToMeter, Upstream as Towards};
use meter_proxy::tokens::Ending;

use crate::rig::{Answer, BOTTLE, OTHER, Rig, Upstream, config, json_answer, post};
use crate::words::{ASK, JSON, MESSAGES};

#[test]
fn root_an_upstream_by_tls_is_trusted_by_the_extra_roots_alone() {
    let key = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let (certificate, signing) = (key.cert.der().clone(), key.signing_key.serialize_der());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ServerConfig::builder_with_provider(provider);
    let builder = builder.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
    let tls = Arc::new(builder.with_single_cert(vec![certificate], signing.try_into().unwrap()).unwrap());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let session = rustls::ServerConnection::new(Arc::clone(&tls)).unwrap();
            let mut stream = rustls::StreamOwned::new(session, stream.unwrap());
            // A client that trusts nobody here ends the handshake.
            if Answer::read_head(&mut stream).is_ok() {
                stream.write_all(json_answer("200 OK", JSON).as_bytes()).unwrap();
            }
        }
    });
    let mut settings = config("127.0.0.1:9".parse().unwrap());
    settings.providers[0].upstream = Some(format!("https://localhost:{port}"));
    let strict = Rig::start(settings.clone());
    assert_eq!(strict.ask(&post(MESSAGES, "")).status(), 502);
    assert_eq!(strict.settlement().ending, Ending::Unsent);
    settings.extra_roots_pem = key.cert.pem();
    let trusting = Rig::start(settings);
    assert_eq!(trusting.ask(&post(MESSAGES, "")).body, JSON.as_bytes());
    assert_eq!(trusting.settlement().tokens.output, 5);
}

#[test]
fn root_bottles_share_no_connection_to_upstream() {
    let accepted = Arc::new(Mutex::new(Vec::new()));
    let kept = Arc::clone(&accepted);
    let upstream = Upstream::start(move |stream: &mut TcpStream| {
        kept.lock().unwrap().push(stream.peer_addr().unwrap());
        stream.write_all(json_answer("200 OK", JSON).as_bytes())
    });
    let rig = Rig::start(config(upstream.address));
    for bottle in [BOTTLE, OTHER, BOTTLE, OTHER] {
        rig.manner(|manner| manner.bottle = bottle);
        assert_eq!(rig.ask(&post(MESSAGES, ASK)).status(), 200);
        rig.heard(|message| matches!(message, ToController::Reserve(reserve) if reserve.bottle == bottle));
    }
    let peers = accepted.lock().unwrap().clone();
    assert!(peers[0] == peers[2] && peers[1] == peers[3] && peers[0] != peers[1], "{peers:?}");

    rig.send(&ToMeter::Cut { bottle: BOTTLE, upstream: Towards::Close });
    rig.taken_in();
    assert_eq!(rig.ask(&post(MESSAGES, ASK)).status(), 200, "the other bottle is not cut");
    rig.manner(|manner| manner.bottle = BOTTLE);
    assert_eq!(rig.ask(&post(MESSAGES, ASK)).status(), 402);
}

#[test]
fn root_many_requests_share_a_connection_to_upstream() {
    let accepted = Arc::new(Mutex::new(Vec::new()));
    let kept = Arc::clone(&accepted);
    let upstream = Upstream::start(move |stream: &mut TcpStream| {
        kept.lock().unwrap().push(stream.peer_addr().unwrap());
        stream.write_all(json_answer("200 OK", JSON).as_bytes())
    });
    let rig = Rig::start(config(upstream.address));
    for _ in 0..3 {
        assert_eq!(rig.ask(&post(MESSAGES, ASK)).status(), 200);
    }
    let peers = accepted.lock().unwrap();
    assert!(peers.len() == 3 && peers.iter().all(|peer| *peer == peers[0]), "{peers:?}");
}

/// A provider that closes each connection after its answer, without having said so.
fn closing_without_a_word() -> Upstream {
    Upstream::start(|stream| {
        stream.write_all(json_answer("200 OK", JSON).as_bytes())?;
        Err(std::io::ErrorKind::ConnectionReset.into())
    })
}

#[test]
fn root_a_connection_that_a_provider_closed_in_between_is_replaced() {
    let upstream = closing_without_a_word();
    let rig = Rig::start(config(upstream.address));
    let mut client = rig.connect();
    for _ in 0..3 {
        client.write_all(post(MESSAGES, ASK).as_bytes()).unwrap();
        assert_eq!(Answer::read(&mut client).unwrap().status(), 200);
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    assert_eq!(upstream.heads().len(), 3);
    assert!(rig.settlements(3).iter().all(|settle| settle.ending == Ending::Completed));
}

#[test]
fn root_what_meets_a_closing_connection_is_sent_and_charged_at_most_once() {
    const ASKED: usize = 300;
    let upstream = closing_without_a_word();
    let rig = Rig::start(config(upstream.address));
    let mut client = rig.connect();
    let mut answered = 0;
    for number in 0..ASKED {
        let request =
            post(MESSAGES, ASK).replace("Host: meter", &format!("Host: meter\r\nX-Number: {number};"));
        client.write_all(request.as_bytes()).unwrap();
        match Answer::read(&mut client).unwrap().status() {
            200 => answered += 1,
            502 => {}
            status => panic!("{status}"),
        }
    }
    let mut numbers: Vec<String> = upstream.heads().iter().map(|head| number_of(head)).collect();
    let seen = numbers.len();
    numbers.sort_unstable();
    numbers.dedup();
    assert_eq!(numbers.len(), seen, "nothing is sent twice");
    let settled = rig.settlements(ASKED);
    let completed = settled.iter().filter(|settle| settle.ending == Ending::Completed).count();
    println!("{answered} of {ASKED} answered, {seen} seen by the provider");
    assert_eq!((completed, answered), (seen, seen), "what was processed is charged, and once");
    for broken in settled.iter().filter(|settle| settle.ending != Ending::Completed) {
        let is_unsent = broken.ending == Ending::Unsent;
        assert_eq!(broken.tokens.total() == 0, is_unsent, "{broken:?}");
    }
}

fn number_of(head: &str) -> String {
    let (_, number) = head.split_once("x-number: ").unwrap();
    number.split(';').next().unwrap().to_owned()
}

#[test]
fn root_a_request_that_a_provider_took_and_dropped_is_not_sent_again() {
    let upstream = Upstream::start(|stream| {
        static ASKED: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
        match ASKED.fetch_add(1, std::sync::atomic::Ordering::SeqCst) {
            0 => stream.write_all(json_answer("200 OK", JSON).as_bytes()),
            _ => Err(std::io::ErrorKind::ConnectionReset.into()),
        }
    });
    let rig = Rig::start(config(upstream.address));
    assert_eq!(rig.ask(&post(MESSAGES, ASK)).status(), 200);
    assert_eq!(rig.ask(&post(MESSAGES, ASK)).status(), 502);
    assert_eq!(upstream.heads().len(), 2);
    let broken = &rig.settlements(2)[1];
    assert_eq!(broken.ending, Ending::UpstreamBroke);
    assert!(broken.tokens.total() > 100, "the whole reservation: {broken:?}");
}
