//! What clients send: large bodies, expectations, trailers.
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::{Mutex, mpsc};
use std::time::Duration;

use meter_proxy::protocol::{Refusal, ToMeter};

use crate::rig::{Answer, Rig, Upstream, config, json_answer, post};
use crate::words::{ASK, JSON, MESSAGES};

#[test]
fn root_a_large_upload_is_streamed_in_bounded_memory() {
    const MIB: usize = 1024 * 1024;
    let upstream = Upstream::saying(json_answer("200 OK", JSON));
    let rig = Rig::start(config(upstream.address));
    let mut client = rig.connect();
    let head = post(MESSAGES, "").replace("Content-Length: 0", &format!("Content-Length: {}", 100 * MIB));
    client.write_all(head.as_bytes()).unwrap();
    let piece = vec![b'x'; MIB];
    (0..100).for_each(|_| client.write_all(&piece).unwrap());
    assert_eq!(Answer::read(&mut client).unwrap().status(), 200);
    assert_eq!(upstream.body_bytes(), 100 * MIB);
    let peak_kib: usize = rig.status_line("VmHWM:").trim_end_matches(" kB").parse().unwrap();
    assert!(peak_kib < 64 * 1024, "the meter used {peak_kib} KiB");
}

#[test]
fn root_an_upload_waits_for_its_permit() {
    const BYTES: usize = 6 * 1024 * 1024;
    let upstream = Upstream::saying(json_answer("200 OK", JSON));
    let rig = Rig::start(config(upstream.address));
    rig.manner(|manner| manner.permits = false);
    let mut client = rig.connect();
    let head = post(MESSAGES, "").replace("Content-Length: 0", &format!("Content-Length: {BYTES}"));
    let mut uploading = client.try_clone().unwrap();
    let upload = std::thread::spawn(move || {
        uploading.write_all(head.as_bytes())?;
        uploading.write_all(&vec![b'x'; BYTES])
    });
    let reserve = rig.reservation();
    std::thread::sleep(Duration::from_millis(200));
    assert!(upstream.heads().is_empty() && upstream.body_bytes() == 0, "nothing leaves before the permit");
    rig.send(&ToMeter::Permit { exchange: reserve.exchange });
    assert_eq!(Answer::read(&mut client).unwrap().body, JSON.as_bytes());
    upload.join().unwrap().unwrap();
    assert_eq!(upstream.body_bytes(), BYTES);
}

#[test]
fn root_an_expectation_is_met_by_the_meter() {
    let upstream = Upstream::saying(json_answer("200 OK", JSON));
    let rig = Rig::start(config(upstream.address));
    let mut client = rig.connect();
    let request = post(MESSAGES, ASK).replace("Host: meter", "Host: meter\r\nExpect: 100-continue");
    let (head, body) = request.split_at(request.find("\r\n\r\n").unwrap() + 4);
    client.write_all(head.as_bytes()).unwrap();
    assert_eq!(Answer::read_head(&mut client).unwrap().status(), 100);
    client.write_all(body.as_bytes()).unwrap();
    assert_eq!(Answer::read(&mut client).unwrap().body, JSON.as_bytes());
    assert!(!upstream.heads()[0].to_lowercase().contains("expect"));
}

#[test]
fn root_trailers_of_requests_are_forwarded() {
    let (tell, told) = mpsc::channel();
    let tell = Mutex::new(tell);
    let upstream = Upstream::start(move |stream| {
        let mut got = Vec::new();
        while !got.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte)?;
            got.push(byte[0]);
        }
        tell.lock().unwrap().send(String::from_utf8(got).unwrap()).unwrap();
        stream.write_all(json_answer("200 OK", "{}").as_bytes())
    });
    let rig = Rig::start(config(upstream.address));
    // one whose body the gate reads, and one whose body it does not
    for path in [MESSAGES, "/claude/v9/x"] {
        let request = format!(
            "POST {path} HTTP/1.1\r\nHost: m\r\nTransfer-Encoding: chunked\r\nTrailer: x-sum\r\n\r\n3\r\nabc\r\n0\r\nx-sum: 7\r\n\r\n"
        );
        assert_eq!(rig.ask(&request).status(), 200);
        assert_eq!(told.recv().unwrap(), "3\r\nabc\r\n0\r\nx-sum: 7\r\n\r\n", "{path}");
    }
}

/// Sends a request whole, and only then reads its answer, on a connection that is kept.
fn upload(client: &mut TcpStream, path: &str, bytes: usize) -> std::io::Result<u16> {
    let head = post(path, "").replace("Content-Length: 0", &format!("Content-Length: {bytes}"));
    client.write_all(head.as_bytes())?;
    for piece in vec![b'x'; bytes].chunks(64 * 1024) {
        client.write_all(piece)?;
    }
    Answer::read(client).map(|answer| answer.status())
}

#[test]
fn root_who_uploads_all_before_reading_hears_why_it_is_refused() {
    const MIB: usize = 1 << 20;
    let upstream = Upstream::saying(json_answer("200 OK", JSON));
    let rig = Rig::start(config(upstream.address));
    rig.manner(|manner| manner.refusal = Some(Refusal::Closed { reason: "test".to_owned() }));
    let mut client = rig.connect();
    for (path, bytes, status) in [
        // read in part, or not at all, before it is refused
        (MESSAGES, 1024, 402),
        (MESSAGES, 31 * MIB, 402),
        ("/claude/v9/x", 24 * MIB, 402),
        ("/claude/v1/messages/batches", 24 * MIB, 400),
        ("/nobody/x", 24 * MIB, 404),
        (MESSAGES, 1024, 402),
    ] {
        assert_eq!(upload(&mut client, path, bytes).unwrap(), status, "{path}, {bytes} bytes");
    }
    rig.manner(|manner| manner.attached = false);
    assert_eq!(upload(&mut rig.connect(), MESSAGES, 24 * MIB).unwrap(), 403);
    assert!(upstream.heads().is_empty());
}

#[test]
fn root_what_is_refused_unread_is_not_asked_for() {
    let upstream = Upstream::saying(json_answer("200 OK", JSON));
    let rig = Rig::start(config(upstream.address));
    let mut client = rig.connect();
    let request =
        post("/claude/v1/messages/batches", "").replace("Host: meter", "Host: meter\r\nExpect: 100-continue");
    client.write_all(request.replace("Content-Length: 0", "Content-Length: 99").as_bytes()).unwrap();
    assert_eq!(Answer::read(&mut client).unwrap().status(), 400, "and not 100 before it");
}
