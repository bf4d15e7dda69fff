//! CONNECT: tunnels that are opened, and tunnels that are spliced.
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use meter_proxy::protocol::{Refusal, ToController, ToMeter, Upstream as Towards};
use meter_proxy::tokens::Provenance;

use crate::rig::{Answer, BOTTLE, Rig, SOON, Upstream, chunk, config, json_answer, post};
use crate::words::{ASK, JSON, STREAM_HEAD, is_settle};

#[test]
fn root_private_addresses_are_not_reached_unless_allowed() {
    let upstream = Upstream::saying(json_answer("200 OK", "{}"));
    let there = upstream.address;
    let elsewhere: std::net::SocketAddr = "127.0.0.1:9".parse().unwrap();
    let strict = Rig::start(config(elsewhere));
    for target in [
        format!("{there}"),
        format!("localhost:{}", there.port()),
        format!("[::ffff:127.0.0.1]:{}", there.port()),
        format!("[64:ff9b::7f00:1]:{}", there.port()),
        "169.254.169.254:80".to_owned(),
        format!("{}", strict.address),
    ] {
        let answer = strict.ask(&format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n"));
        assert_eq!(answer.status(), 403, "{target}");
    }
    let plain = format!("GET http://{there}/x HTTP/1.1\r\nHost: {there}\r\n\r\n");
    assert_eq!(strict.ask(&plain).status(), 403);
    assert!(upstream.heads().is_empty());

    let mut open = config(elsewhere);
    open.allow_private = vec!["127.0.0.0/8".into()];
    let open = Rig::start(open);
    assert_eq!(open.ask(&plain).body, b"{}");
    let mut tunnel = open.connect();
    write!(tunnel, "CONNECT {there} HTTP/1.1\r\nHost: {there}\r\n\r\n").unwrap();
    assert_eq!(Answer::read_head(&mut tunnel).unwrap().status(), 200);
    tunnel.write_all(b"GET /spliced HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    assert_eq!(Answer::read(&mut tunnel).unwrap().body, b"{}");
    let own = open.address;
    assert_eq!(open.ask(&format!("CONNECT {own} HTTP/1.1\r\nHost: {own}\r\n\r\n")).status(), 403);
    open.send(&ToMeter::Cut { bottle: BOTTLE, upstream: Towards::Close });
    assert_eq!(tunnel.read(&mut [0]).unwrap_or(0), 0, "a spliced tunnel ends with the cut");
    assert_eq!(open.count(|message| matches!(message, ToController::Reserve(_))), 0);
}

#[test]
fn root_a_tunnel_to_a_metered_name_is_opened_and_metered() {
    let upstream = Upstream::saying(json_answer("200 OK", JSON));
    let rig = Rig::start(config(upstream.address));
    let request = post("/v1/messages", ASK).replace("Host: meter", "Host: api.anthropic.com");
    for _ in 0..2 {
        let mut tunnel = rig.tunnel("api.anthropic.com:443", "api.anthropic.com");
        tunnel.write_all(request.as_bytes()).unwrap();
        assert_eq!(Answer::read(&mut tunnel).unwrap().body, JSON.as_bytes());
    }
    assert_eq!(rig.count(|message| matches!(message, ToController::Sign { .. })), 1);
    assert_eq!(rig.count(is_settle), 2);

    let mut tunnel = rig.tunnel("api.anthropic.com:443", "api.anthropic.com");
    tunnel
        .write_all(post("/v1/messages", ASK).replace("Host: meter", "Host: example.com").as_bytes())
        .unwrap();
    let fronted = Answer::read(&mut tunnel).unwrap();
    assert_eq!((fronted.status(), &fronted.json()["type"]), (421, &"error".into()));
    assert_eq!(upstream.heads().len(), 2);

    rig.manner(|manner| {
        manner.refusal = Some(Refusal::Cut { bottle: "b1".into(), cause: "the operator".into() });
    });
    let mut tunnel = rig.tunnel("api.anthropic.com:443", "api.anthropic.com");
    tunnel.write_all(request.as_bytes()).unwrap();
    assert_eq!(Answer::read(&mut tunnel).unwrap().status(), 402, "a refused bottle hears it inside TLS");
}

#[test]
fn root_a_stream_of_responses_passes_through_a_tunnel() {
    const CREATED: &str = "event: response.created\ndata: {\"type\":\"response.created\",\"response\":{\"id\":\"r1\",\"model\":\"gpt-x\"}}\n\n";
    const COMPLETED: &str = "event: response.completed\ndata: {\"type\":\"response.completed\",\"response\":{\"id\":\"r1\",\"model\":\"gpt-x\",\"usage\":{\"input_tokens\":30,\"input_tokens_details\":{\"cached_tokens\":20},\"output_tokens\":9}}}\n\n";
    let chunks = [CREATED, COMPLETED].map(chunk).concat();
    let upstream = Upstream::saying(format!("{STREAM_HEAD}{chunks}0\r\n\r\n"));
    let rig = Rig::start(config(upstream.address));
    let mut tunnel = rig.tunnel("api.openai.com:443", "api.openai.com");
    let request = post("/v1/responses", r#"{"model":"gpt-x","stream":true,"input":"hi"}"#);
    tunnel.write_all(request.replace("Host: meter", "Host: api.openai.com").as_bytes()).unwrap();
    let answer = Answer::read(&mut tunnel).unwrap();
    assert_eq!(String::from_utf8(answer.body).unwrap(), [CREATED, COMPLETED].concat());
    let settle = rig.settlement();
    assert_eq!((settle.tokens.input, settle.tokens.cache_read, settle.tokens.output), (10, 20, 9));
    assert_eq!((settle.provenance, rig.reservation().provider.as_str()), (Provenance::Reported, "codex"));
}

#[test]
fn root_a_tunnel_elsewhere_may_not_mean_a_metered_name() {
    let [.., high, low] = std::process::id().to_be_bytes();
    let target = format!("127.77.{high}.{low}:443");
    let there = TcpListener::bind(&target).unwrap();
    there.set_nonblocking(false).unwrap();
    let mut settings = config("127.0.0.1:9".parse().unwrap());
    settings.allow_private = vec!["127.0.0.0/8".into()];
    let rig = Rig::start(settings);

    let mut honest = rig.tunnel(&target, "example.com");
    let (mut origin, _) = there.accept().unwrap();
    honest.conn.complete_io(&mut WriteOnly(&mut honest.sock)).unwrap_err();
    let mut record = [0; 5];
    origin.read_exact(&mut record).unwrap();
    assert_eq!(record[0], 0x16, "another name passes untouched");

    let mut fronting = rig.tunnel(&target, "api.anthropic.com");
    let (mut origin, _) = there.accept().unwrap();
    fronting.flush().unwrap_err();
    assert_eq!(origin.read(&mut record).unwrap_or(0), 0, "nothing of it may arrive");
    let is_notice = |message: &ToController| matches!(message, ToController::Notice(_));
    let ToController::Notice(notice) = rig.heard(is_notice) else { unreachable!() };
    assert!(notice.detail.contains("api.anthropic.com, which is metered"), "{}", notice.detail);

    for _ in 0..3 {
        rig.tunnel(&target, "api.anthropic.com").flush().unwrap_err();
        let mut unread = rig.tunnel(&target, "example.com").sock;
        unread.write_all(&[0x16, 3, 1, 0, 4, 9, 9, 9, 9]).unwrap();
        // How it is closed is the kernel's choice: an end or a reset.
        drop(unread.read_to_end(&mut Vec::new()));
    }
    rig.taken_in();
    assert_eq!(rig.count(is_notice), 1, "told once, and failed tunnels are not told");
}

#[test]
fn root_the_first_message_of_a_tunnel_waits_while_the_bottle_is_held() {
    let [.., high, low] = std::process::id().to_be_bytes();
    let target = format!("127.78.{high}.{low}:443");
    let there = TcpListener::bind(&target).unwrap();
    let mut settings = config("127.0.0.1:9".parse().unwrap());
    settings.allow_private = vec!["127.0.0.0/8".into()];
    let rig = Rig::start(settings);
    let mut tunnel = rig.tunnel(&target, "example.com");
    let (mut origin, _) = there.accept().unwrap();
    rig.send(&ToMeter::Cut { bottle: BOTTLE, upstream: Towards::Hold });
    rig.taken_in();
    tunnel.conn.complete_io(&mut WriteOnly(&mut tunnel.sock)).unwrap_err();
    origin.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    assert!(origin.read(&mut [0]).is_err(), "nothing passes while the bottle is held");
    rig.send(&ToMeter::Open { bottle: BOTTLE });
    origin.set_read_timeout(Some(SOON)).unwrap();
    assert_eq!(origin.read(&mut [0]).unwrap(), 1);
}

#[test]
fn root_a_held_tunnel_goes_on_after_a_restore() {
    let echo = TcpListener::bind("127.0.0.1:0").unwrap();
    let there = echo.local_addr().unwrap();
    let mut settings = config("127.0.0.1:9".parse().unwrap());
    settings.allow_private = vec!["127.0.0.0/8".into()];
    let rig = Rig::start(settings);
    let mut tunnel = rig.connect();
    write!(tunnel, "CONNECT {there} HTTP/1.1\r\nHost: {there}\r\n\r\n").unwrap();
    assert_eq!(Answer::read_head(&mut tunnel).unwrap().status(), 200);
    let (mut origin, _) = echo.accept().unwrap();
    rig.send(&ToMeter::Cut { bottle: BOTTLE, upstream: Towards::Hold });
    rig.taken_in();
    tunnel.write_all(b"x").unwrap();
    origin.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    assert!(origin.read(&mut [0]).is_err(), "nothing passes while the bottle is held");
    rig.send(&ToMeter::Open { bottle: BOTTLE });
    origin.set_read_timeout(Some(SOON)).unwrap();
    assert_eq!(origin.read(&mut [0]).unwrap(), 1);
}

/// Writes to the stream, and reads nothing.
struct WriteOnly<'a>(&'a mut TcpStream);

impl Read for WriteOnly<'_> {
    fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
        Err(std::io::ErrorKind::UnexpectedEof.into())
    }
}

impl Write for WriteOnly<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.0.flush()
    }
}
