//! Clients that believe they speak to somebody else: the kernel sent them to the meter.
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use meter_proxy::protocol::{ToController, ToMeter, Upstream as Towards};

use crate::hellos::{hello, other_words};
use crate::rig::{
    ACCESS_DENIED, Answer, BOTTLE, Rig, Upstream, config, far, is_notice, json_answer, localhost_is_metered,
    loopback_is_open, next_at, nobody_comes, nowhere, post, rest_of,
};
use crate::words::{ASK, JSON};

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
