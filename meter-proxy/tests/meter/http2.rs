//! HTTP/2 on either side, and HTTP/1.1 on the other: names, headers, trailers, bodies.
use std::io::Write;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use h2::Reason;
use http::HeaderMap;
use meter_proxy::protocol::{ToController, ToMeter};
use meter_proxy::tokens::{Ending, Provenance};

use crate::rig::http2::{Asked, Client, Provider, read, soon};
use crate::rig::{Answer, Rig, Upstream, config, curl, far, json_answer, post};
use crate::words::{ASK, ASK_STREAM, DELTA, JSON, MESSAGES, START, STOP, WORDS};

const NAME: &str = "api.anthropic.com";
const EVENTS: [&str; 4] = [START, WORDS, DELTA, STOP];

/// Answers a message as it was asked to: by a stream, or by a document.
async fn tell(mut asked: Asked) -> Result<(), h2::Error> {
    let (body, _) = asked.read().await?;
    let is_streamed = String::from_utf8(body).unwrap().contains(r#""stream":true"#);
    let (content_type, pieces) =
        if is_streamed { ("text/event-stream", &EVENTS[..]) } else { ("application/json", &[JSON][..]) };
    let mut answer = asked.answer(content_type);
    for piece in pieces {
        answer.send_data(Bytes::from_static(piece.as_bytes()), false)?;
    }
    answer.send_data(Bytes::new(), true)
}

fn settled(rig: &Rig) {
    let settle = rig.heard(|message| matches!(message, ToController::Settle(_)));
    let ToController::Settle(settle) = settle else { unreachable!() };
    assert_eq!(settle.provenance, Provenance::Reported, "{settle:?}");
    assert_eq!(settle.ending, Ending::Completed);
}

#[tokio::test(flavor = "multi_thread")]
async fn root_either_protocol_goes_on_in_either() {
    let by_http2 = Provider::start(tell);
    let by_http1 = Upstream::saying(json_answer("200 OK", JSON));
    for settings in [by_http2.config(), config(by_http1.address)] {
        let rig = Rig::start(settings);
        assert_eq!(rig.ask(&post(MESSAGES, ASK)).body, JSON.as_bytes());
        let clients = [Client::at_gateway(&rig).await, Client::through_tunnel(&rig).await];
        for client in clients {
            let answer = soon(client.ask(ASK).await).await.unwrap();
            assert_eq!(answer.status(), 200);
            assert_eq!(answer.headers()["content-type"], "application/json");
            assert_eq!(read(&mut answer.into_body()).await.unwrap().0, JSON.as_bytes());
        }
        settled(&rig);
        rig.taken_in();
        assert_eq!(rig.count(|message| matches!(message, ToController::Settle(_))), 3);
    }
    assert_eq!((by_http2.connections(), by_http2.heads().len()), (1, 3), "they share a connection");
}

#[tokio::test(flavor = "multi_thread")]
async fn root_a_stream_arrives_byte_for_byte_and_its_end_waits_for_the_ledger_in_http2() {
    let provider = Provider::start(tell);
    let rig = Rig::start(provider.config());
    rig.manner(|manner| manner.settles = false);
    let client = Client::through_tunnel(&rig).await;
    let mut body = soon(client.ask(ASK_STREAM).await).await.unwrap().into_body();
    let mut got = Vec::new();
    while got.len() < START.len() + WORDS.len() {
        got.extend(crate::rig::http2::next(&mut body).await.unwrap().unwrap());
    }
    let ToController::Settle(settle) = rig.heard(|message| matches!(message, ToController::Settle(_))) else {
        unreachable!()
    };
    let early = tokio::time::timeout(std::time::Duration::from_millis(200), body.data()).await;
    assert!(early.is_err(), "nothing of the end may arrive before it is settled");
    rig.send(&ToMeter::Settled { exchange: settle.exchange });
    got.extend(read(&mut body).await.unwrap().0);
    assert_eq!(String::from_utf8(got).unwrap(), EVENTS.concat());
    assert!(body.is_end_stream());
}

#[tokio::test(flavor = "multi_thread")]
async fn root_what_is_not_durable_in_time_is_not_delivered_in_http2() {
    let provider = Provider::start(tell);
    let mut settings = provider.config();
    settings.settle_timeout_ms = 100;
    let rig = Rig::start(settings);
    rig.manner(|manner| manner.settles = false);
    let client = Client::through_tunnel(&rig).await;
    for ask in [ASK, ASK_STREAM] {
        let mut body = soon(client.ask(ask).await).await.unwrap().into_body();
        let broken = read(&mut body).await.unwrap_err();
        assert_eq!(broken.reason(), Some(Reason::INTERNAL_ERROR), "no clean end");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn root_names_and_headers_are_those_of_the_other_side() {
    let by_http2 = Provider::start(tell);
    let by_http1 = Upstream::saying(json_answer(
        "200 OK\r\nconnection: x-own\r\nx-own: 1\r\nkeep-alive: timeout=5",
        JSON,
    ));
    let headers = [
        ("cookie", "a=b"),
        ("cookie", "c=d"),
        ("te", "trailers"),
        ("accept-encoding", "gzip"),
        ("x-api-key", "k"),
    ];
    for settings in [by_http2.config(), config(by_http1.address)] {
        let rig = Rig::start(settings);
        let client = Client::through_tunnel(&rig).await;
        let with = |request: http::request::Builder| {
            headers.iter().fold(request, |request, (name, value)| request.header(*name, *value))
        };
        let (answer, _) = client.send(with(client.request("POST", "/v1/messages?beta=true")), ASK).await;
        let answer = soon(answer).await.unwrap();
        for gone in ["connection", "x-own", "keep-alive", "transfer-encoding"] {
            assert!(!answer.headers().contains_key(gone), "{gone}");
        }
        let by_hand = post(&format!("{MESSAGES}?beta=true"), ASK)
            .replace("Host: meter\r\n", "Host: meter\r\nConnection: x-mine, TE\r\nX-Mine: 1\r\nTE: trailers\r\nProxy-Authorization: Basic x\r\nExpect: 100-continue\r\n");
        assert_eq!(rig.ask(&by_hand).status(), 100);
    }
    let heads = by_http2.heads();
    let authority = format!("localhost:{}", by_http2.address.port());
    for head in &heads {
        assert_eq!(head.uri().to_string(), format!("https://{authority}/v1/messages?beta=true"));
        for gone in ["host", "connection", "x-mine", "proxy-authorization", "expect", "transfer-encoding"] {
            assert!(!head.headers().contains_key(gone), "{gone}: {head:?}");
        }
        assert_eq!(head.headers()["te"], "trailers");
    }
    assert_eq!(heads[0].headers()["cookie"], "a=b; c=d");
    assert_eq!(heads[0].headers()["x-api-key"], "k");
    let head = by_http1.heads()[0].to_lowercase();
    assert!(head.starts_with("post /v1/messages?beta=true http/1.1\r\n"), "{head}");
    for line in
        [&format!("host: {}", by_http1.address), "cookie: a=b; c=d", "accept-encoding: gzip", "te: trailers"]
    {
        assert_eq!(head.matches(&format!("\r\n{line}\r\n")).count(), 1, "{line} in {head}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn root_trailers_and_what_comes_before_an_answer_pass_or_are_left_out_in_http2() {
    let got = Arc::new(Mutex::new(Vec::new()));
    let kept = Arc::clone(&got);
    let provider = Provider::start(move |mut asked: Asked| {
        let got = Arc::clone(&got);
        async move {
            let (body, trailers) = asked.read().await?;
            got.lock().unwrap().push((body, trailers));
            let hints = http::Response::builder().status(103).body(()).unwrap();
            asked.respond.send_informational(hints)?;
            let mut answer = asked.answer("application/json");
            answer.send_data(Bytes::from_static(JSON.as_bytes()), false)?;
            answer.send_trailers(HeaderMap::from_iter([("x-sum".parse().unwrap(), "9".parse().unwrap())]))
        }
    });
    let rig = Rig::start(provider.config());
    let client = Client::through_tunnel(&rig).await;
    // one whose body the gate reads, and one whose body it does not
    for path in ["/v1/messages", "/v9/other"] {
        let request = client.request("POST", path).body(()).unwrap();
        let (answer, mut sending) = client.ready().await.send_request(request, false).unwrap();
        sending.send_data(Bytes::from_static(ASK.as_bytes()), false).unwrap();
        let trailers = HeaderMap::from_iter([("x-sum".parse().unwrap(), "7".parse().unwrap())]);
        sending.send_trailers(trailers).unwrap();
        let mut answer = soon(answer).await.unwrap();
        assert_eq!(answer.status(), 200);
        let (body, trailers) = read(answer.body_mut()).await.unwrap();
        assert_eq!((body.as_slice(), trailers.unwrap()["x-sum"].as_bytes()), (JSON.as_bytes(), &b"9"[..]));
    }
    for (body, trailers) in kept.lock().unwrap().iter() {
        assert_eq!(
            (body.as_slice(), trailers.as_ref().unwrap()["x-sum"].as_bytes()),
            (ASK.as_bytes(), &b"7"[..])
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn root_names_that_do_not_agree_are_misdirected_in_http2() {
    let provider = Provider::start(tell);
    let rig = Rig::start(provider.config());
    let client = Client::through_tunnel(&rig).await;
    for (uri, host, status) in [
        (format!("https://{NAME}/v1/messages"), None, 200),
        (format!("https://{NAME}:443/v1/messages"), Some("API.anthropic.com"), 200),
        (format!("https://{NAME}/v1/messages"), Some("example.com"), 421),
        (format!("https://{NAME}/v1/messages"), Some("api.openai.com"), 421),
        ("https://example.com/v1/messages".to_owned(), None, 421),
        ("https://example.com/v1/messages".to_owned(), Some(NAME), 421),
        (format!("https://{NAME}:444/v1/messages"), None, 421),
    ] {
        let mut request = http::Request::builder().method("POST").uri(&uri);
        if let Some(host) = host {
            request = request.header("host", host);
        }
        let answer = soon(client.send(request, ASK).await.0).await.unwrap();
        assert_eq!(answer.status(), status, "{uri} {host:?}");
    }
    assert_eq!(provider.heads().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn root_http2_carries_no_tunnels_and_no_upgrades() {
    let rig = Rig::start(config(far(1)));
    let client = Client::at_gateway(&rig).await;
    let connect = http::Request::builder().method("CONNECT").uri("api.anthropic.com:443");
    let answer = soon(client.send(connect, "").await.0).await.unwrap();
    assert_eq!(answer.status(), 400);
    let (body, _) = read(&mut answer.into_body()).await.unwrap();
    assert!(String::from_utf8(body).unwrap().contains("HTTP/1.1"));
    let mut extended = client.request("CONNECT", "/v1/responses").body(()).unwrap();
    extended.extensions_mut().insert(h2::ext::Protocol::from_static("websocket"));
    let (answer, _) = client.ready().await.send_request(extended, false).unwrap();
    assert_eq!(soon(answer).await.unwrap_err().reason(), Some(Reason::PROTOCOL_ERROR), "it is not offered");
}

#[tokio::test(flavor = "multi_thread")]
async fn root_heads_are_bounded_in_http2() {
    let rig = Rig::start(config(far(1)));
    let client = Client::through_tunnel(&rig).await;
    let long = client.request("GET", "/v1/models").header("x-a", "x".repeat(40_000));
    assert_eq!(soon(client.send(long, "").await.0).await.unwrap().status(), 431);
    let many = (0..2_000).fold(client.request("GET", "/v1/models"), |request, _| request.header("x-a", "1"));
    assert_eq!(soon(client.send(many, "").await.0).await.unwrap().status(), 431);
}

#[tokio::test(flavor = "multi_thread")]
async fn root_curl_speaks_http2_through_a_tunnel_redirected_and_at_the_gateway() {
    let provider = Provider::start(tell);
    let rig = Rig::start(provider.config());
    let meter = format!("http://{}", rig.address);
    let at_gateway = format!("{meter}{MESSAGES}");
    let there = format!("{NAME}:443:{}", rig.address);
    let url = format!("https://{NAME}/v1/messages");
    let ways: [(&[&str], _); 3] = [
        (&["--http2", "--proxy", &meter, &url], None),
        (&["--http2-prior-knowledge", &at_gateway], None),
        (&["--http2", "--connect-to", &there, &url], Some(far(443))),
    ];
    for (way, original) in ways {
        rig.manner(|manner| manner.original = original);
        for (ask, said) in [(ASK, JSON.to_owned()), (ASK_STREAM, EVENTS.concat())] {
            let common = ["--data", ask, "--write-out", "%{http_version} %{http_code}"];
            let Some(printed) = curl(rig.root_pem(), &[&common, way].concat()) else { return };
            assert_eq!(printed, format!("{said}2 200"), "{way:?}");
        }
    }
}

#[test]
fn root_a_client_that_begins_as_http2_does_in_pieces_is_let_go() {
    let rig = Rig::start(config(far(1)));
    let mut stream = rig.connect();
    stream.set_nodelay(true).unwrap();
    stream.write_all(b"P").unwrap();
    std::thread::sleep(std::time::Duration::from_millis(100));
    // It may be closed before all is written.
    drop(stream.write_all(b"RI * HTTP/2.0\r\n\r\nSM\r\n\r\n"));
    assert!(Answer::read_head(&mut stream).is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn root_a_refused_upload_is_stopped_without_an_error_and_its_connection_goes_on_in_http2() {
    let upstream = Upstream::saying(json_answer("200 OK", JSON));
    let rig = Rig::start(config(upstream.address));
    let client = Client::at_gateway(&rig).await;
    for path in ["/claude/v1/messages/batches", "/nobody/x", "/claude/v1/messages/batches"] {
        let request = client.request("POST", path).body(()).unwrap();
        let (answer, mut sending) = client.ready().await.send_request(request, false).unwrap();
        // It may have been stopped before the first piece. Its end is not sent: h2 tells no reset once it is asked to.
        drop(sending.send_data(Bytes::from(vec![b'x'; 8 << 20]), false));
        let answer = soon(answer).await.unwrap();
        assert!([400, 404].contains(&answer.status().as_u16()), "{path}");
        assert!(!read(&mut answer.into_body()).await.unwrap().0.is_empty(), "{path}");
        let reset = soon(std::future::poll_fn(|cx| sending.poll_reset(cx))).await;
        assert_eq!(reset.unwrap(), Reason::NO_ERROR, "{path}");
    }
    let answer = soon(client.ask(ASK).await).await.unwrap();
    assert_eq!(read(&mut answer.into_body()).await.unwrap().0, JSON.as_bytes());
}
