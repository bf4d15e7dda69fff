//! TLS: for metered names, by the name that is asked for; nobody else's.
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;

use meter_proxy::protocol::{LaneConfig, LaneToController, Leaf, ToLane};
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, ServerConfig, ServerConnection, StreamOwned};
use rustls_pki_types::CertificateDer;

use crate::rig::{ACCESS_DENIED, Answer, Rig, client_tls, client_tls_of, config, curl, rest_of};

const ASK: &[u8] = b"POST /v1/messages HTTP/1.1\r\nHost: api.anthropic.com\r\nContent-Length: 2\r\n\r\n{}";

fn is_sign(message: &LaneToController) -> bool {
    matches!(message, LaneToController::Sign { .. })
}

#[test]
fn root_redirected_tls_is_answered_by_the_name_it_asks_for() {
    let rig = Rig::start();
    rig.manner(|manner| manner.original = Some("203.0.113.7:443".parse().unwrap()));
    for version in [&TLS12, &TLS13] {
        let tls = client_tls_of(vec![rig.root()], &[version]);
        let mut stream = rig.secure_by(tls, rig.connect(), "api.anthropic.com");
        stream.write_all(ASK).unwrap();
        let mut said = Vec::new();
        // To its end: closed in the way of TLS, so that nobody can have cut the answer off.
        stream.read_to_end(&mut said).unwrap();
        let answer = Answer::read(&mut &said[..]).unwrap();
        assert_eq!(answer.status(), 402, "{version:?}");
        assert_eq!(answer.json()["error"]["type"], "billing_error");
        assert_eq!(stream.conn.protocol_version(), Some(version.version));
    }
    assert_eq!(rig.count(is_sign), 1, "a leaf is kept");
}

#[test]
fn root_http_2_is_for_who_offers_nothing_else() {
    let rig = Rig::start();
    let mut tls = (*client_tls(vec![rig.root()])).clone();
    tls.alpn_protocols = vec![b"h2".to_vec()];
    let mut stream = rig.secure_by(tls.into(), rig.connect(), "api.openai.com");
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").unwrap();
    let mut settings = [0; 9];
    stream.read_exact(&mut settings).unwrap();
    assert_eq!((settings[3], stream.conn.alpn_protocol()), (4, Some(&b"h2"[..])), "it sends its settings");

    let mut stream = rig.secure_by(prefers_http2(&rig), rig.connect(), "api.openai.com");
    stream.write_all(ASK).unwrap();
    assert_eq!(Answer::read(&mut stream).unwrap().status(), 429);
    assert_eq!(stream.conn.alpn_protocol(), Some(&b"http/1.1"[..]));
}

/// A client that speaks HTTP/2 where it can.
fn prefers_http2(rig: &Rig) -> Arc<ClientConfig> {
    let mut tls = (*client_tls(vec![rig.root()])).clone();
    tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Arc::new(tls)
}

/// A server that offers HTTP/2 and lets a session be resumed; it says one byte and ends.
fn http2_server(rig: &Rig, name: &str) -> SocketAddr {
    let Leaf { chain, key } = rig.leaf(name);
    let builder = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()));
    let builder = builder.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
    let chain = chain.into_iter().map(CertificateDer::from).collect();
    let mut tls = builder.with_single_cert(chain, key.try_into().unwrap()).unwrap();
    tls.alpn_protocols = vec![b"h2".to_vec()];
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        let mut stream = StreamOwned::new(ServerConnection::new(Arc::new(tls)).unwrap(), stream);
        stream.write_all(b"x").unwrap();
        stream.conn.send_close_notify();
        stream.flush().unwrap();
    });
    address
}

#[test]
fn root_a_client_that_spoke_http2_before_its_cut_is_answered() {
    const NAME: &str = "api.anthropic.com";
    let rig = Rig::start();
    let tls = prefers_http2(&rig);
    let before = TcpStream::connect(http2_server(&rig, NAME)).unwrap();
    let mut before = rig.secure_by(Arc::clone(&tls), before, NAME);
    before.read_exact(&mut [0]).unwrap();
    assert_eq!(before.conn.alpn_protocol(), Some(&b"h2"[..]));
    for stream in [rig.connect(), rig.through("api.anthropic.com:443")] {
        let mut after = rig.secure_by(Arc::clone(&tls), stream, NAME);
        after.write_all(ASK).unwrap();
        assert_eq!(Answer::read(&mut after).unwrap().status(), 402);
        assert_eq!(after.conn.alpn_protocol(), Some(&b"http/1.1"[..]));
    }
}

#[test]
fn root_curl_that_asks_for_http2_is_answered() {
    let rig = Rig::start();
    let there = format!("api.openai.com:443:{}", rig.address);
    let lane = format!("http://{}", rig.address);
    for way in [["--connect-to", &there], ["--proxy", &lane]] {
        let common = ["--http2", "--data", "{}", "--write-out", "%{http_version} %{http_code}"];
        let url = ["https://api.openai.com/v1/responses"];
        let Some(printed) = curl(rig.root_pem(), &[&common[..], &way, &url].concat()) else { return };
        assert!(printed.ends_with("1.1 429") && printed.contains("usage_limit_reached"), "{printed}");
    }
}

#[test]
fn root_there_is_no_certificate_for_other_names() {
    let rig = Rig::start();
    for (name, sends_it) in [("example.com", true), ("api.anthropic.com", false)] {
        let mut tls = (*client_tls(vec![rig.root()])).clone();
        tls.enable_sni = sends_it;
        let mut hello = Vec::new();
        rig.secure_by(tls.into(), rig.connect(), name).conn.write_tls(&mut hello).unwrap();
        for mut stream in [rig.connect(), rig.through("example.com:443"), rig.through("192.0.2.1:443")] {
            stream.write_all(&hello).unwrap();
            assert_eq!(rest_of(&mut stream), ACCESS_DENIED, "{name} {sends_it}");
        }
    }
    assert_eq!(rig.count(is_sign), 0);
    // Without a name of its own a tunnel's is meant.
    let mut tls = (*client_tls(vec![rig.root()])).clone();
    tls.enable_sni = false;
    let through = rig.through("api.anthropic.com:443");
    let mut stream = rig.secure_by(tls.into(), through, "api.anthropic.com");
    stream.write_all(ASK).unwrap();
    assert_eq!(Answer::read(&mut stream).unwrap().status(), 402);
}

#[test]
fn root_a_leaf_that_is_not_signed_closes_the_connection() {
    let mut rig = Rig::start();
    rig.manner(|manner| manner.signs = false);
    for _ in 0..2 {
        let mut stream = rig.secure(rig.connect(), "api.anthropic.com");
        assert!(stream.write_all(ASK).and_then(|()| stream.read_to_end(&mut Vec::new())).is_err());
    }
    assert_eq!(rig.count(is_sign), 2, "it is asked for again");
    rig.manner(|manner| manner.signs = true);
    let mut stream = rig.secure(rig.connect(), "api.anthropic.com");
    stream.write_all(ASK).unwrap();
    assert_eq!(Answer::read(&mut stream).unwrap().status(), 402);
    assert!(rig.runs());
}

#[test]
fn root_a_changed_configuration_counts_from_the_next_connection_on() {
    let rig = Rig::start();
    let ask = |name: &str| {
        let mut stream = rig.secure(rig.connect(), name);
        stream.write_all(ASK).and_then(|()| Answer::read(&mut stream)).map(|answer| answer.status())
    };
    assert_eq!(ask("api.anthropic.com").unwrap(), 402);
    let [claude, ..] = &config().providers[..] else { unreachable!() };
    let mut other = claude.clone();
    other.hosts = vec!["other.test".into()];
    rig.send(&ToLane::Config(LaneConfig { providers: vec![other] }));
    assert_eq!(ask("other.test").unwrap(), 402);
    assert!(ask("api.anthropic.com").is_err());
}
