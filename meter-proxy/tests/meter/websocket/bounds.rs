//! What no client and no provider sends who means well: passed or closed, in bounded memory.
use std::io::Write;
use std::net::TcpListener;
use std::time::Duration;

use flate2::{Compress, Compression, FlushCompress};
use meter_proxy::protocol::ToController;
use meter_proxy::tokens::{Ending, Provenance};
use serde_json::json;
use tungstenite::protocol::frame::Frame;
use tungstenite::protocol::frame::coding::{Data, OpCode};

use super::{
    MASK, Pair, asking, close, completed, create, created, opened, opened_with, rest, saying, text_frame,
    written,
};
use crate::rig::{Rig, config};

fn memory_kib(rig: &Rig) -> u64 {
    rig.status_line("VmHWM:").split(' ').next().unwrap().parse().unwrap()
}

#[test]
fn root_frames_that_cannot_be_read_close_the_socket() {
    let masked = |first: u8| [&[first, 0x80], &MASK[..]].concat();
    let from_client: [(&str, Vec<u8>); 7] = [
        ("no mask", text_frame("{}", true, None)),
        ("reserved opcode", masked(0x83)),
        ("reserved control", masked(0x8b)),
        ("reserved bit", masked(0xc1)),
        ("fragmented control", masked(0x09)),
        ("continuation of nothing", masked(0x80)),
        ("impossible length", [&[0x81, 0xff][..], &[0xff; 8], &MASK].concat()),
    ];
    for (what, wire) in &from_client {
        let (rig, mut pair) = opened();
        pair.asks(&asking(&create()));
        pair.client.write_all(wire).unwrap();
        let (opcode, payload) = pair.next_frame();
        assert_eq!((opcode, &payload[..2]), (8, &1002_u16.to_be_bytes()[..]), "{what}");
        assert_eq!(rest(&mut pair.server), b"", "{what}");
        assert_eq!(rig.settlement().ending, Ending::ClientGone, "{what}");
        rig.heard(|message| crate::rig::is_notice(message, "a WebSocket to codex was closed"));
    }
    let from_server: [(&str, Vec<u8>); 3] = [
        ("a mask", text_frame("{}", true, Some(MASK))),
        ("reserved opcode", vec![0x84, 0]),
        ("compressed, and nobody agreed on that", vec![0xc1, 0]),
    ];
    for (what, wire) in &from_server {
        let (rig, mut pair) = opened();
        pair.asks(&asking(&create()));
        pair.server.write_all(wire).unwrap();
        let (opcode, payload) = pair.next_frame();
        assert_eq!((opcode, &payload[..2]), (8, &1002_u16.to_be_bytes()[..]), "{what}");
        assert_eq!(rest(&mut pair.server), b"", "{what}");
        assert_eq!(rig.settlement().provenance, Provenance::Estimated, "{what}");
    }
}

#[test]
fn root_what_is_not_compressed_as_it_says_closes_the_socket() {
    let (rig, mut pair) = opened_with("Sec-WebSocket-Extensions: permessage-deflate\r\n");
    pair.asks(&asking(&create()));
    let mut frame = Frame::message(vec![0xff; 50], OpCode::Data(Data::Text), true);
    frame.header_mut().rsv1 = true;
    pair.server.write_all(&written(frame, None)).unwrap();
    assert_eq!(pair.next_frame().0, 8);
    assert_eq!(rest(&mut pair.server), b"");
    assert_eq!(rig.settlement().provenance, Provenance::Estimated);
}

#[test]
fn root_a_message_of_a_gigabyte_costs_no_memory() {
    let (rig, mut pair) = opened();
    let before = memory_kib(&rig);
    let piece = vec![b' '; 1024 * 1024];
    // a client's is closed when it is longer than what is read
    pair.client.write_all(&[0x81, 0xff, 0, 0, 0, 0, 0x40, 0, 0, 0]).unwrap();
    pair.client.write_all(&[0; 4]).unwrap();
    for _ in 0..1024 {
        if pair.client.write_all(&piece).is_err() {
            break;
        }
    }
    assert_eq!(rest(&mut pair.server), b"");
    rest(&mut pair.client);
    // two copies of what is read, with the room that a growing buffer takes
    assert!(memory_kib(&rig) - before < 96 * 1024, "{} KiB", memory_kib(&rig) - before);
    assert_eq!(rig.count(|message| matches!(message, ToController::Reserve(_))), 0);
}

/// Sockets of one bottle, and what the message that has begun on each of them is decompressed to.
const BOMBS: usize = 40;
const BOMB_BYTES: usize = 15 * 1024 * 1024;

#[test]
fn root_messages_that_are_short_and_decompress_to_much_share_the_memory_of_their_bottle() {
    let origin = TcpListener::bind("127.0.0.1:0").unwrap();
    let rig = Rig::start(config(origin.local_addr().unwrap()));
    let mut bomb = Vec::with_capacity(64 * 1024);
    let text = format!(r#"{{"type":"response.create","input":"{}"#, " ".repeat(BOMB_BYTES));
    let mut codec = Compress::new(Compression::best(), false);
    codec.compress_vec(text.as_bytes(), &mut bomb, FlushCompress::Sync).unwrap();
    for is_final in [false, true] {
        let mut frame = Frame::message(bomb.clone(), OpCode::Data(Data::Text), is_final);
        frame.header_mut().rsv1 = true;
        let frame = written(frame, Some(MASK));
        let extension = "Sec-WebSocket-Extensions: permessage-deflate\r\n";
        let mut pairs: Vec<Pair> = (0..BOMBS).map(|_| Pair::open(&rig, &origin, extension)).collect();
        let before = memory_kib(&rig);
        pairs.iter_mut().for_each(|pair| pair.client.write_all(&frame).unwrap());
        std::thread::sleep(Duration::from_secs(3));
        let growth = memory_kib(&rig) - before;
        eprintln!("{BOMBS} messages of {} bytes, whole: {is_final}; grew by {growth} KiB", frame.len());
        // as much as the bottle may have, and again while a buffer grows
        assert!(growth < 160 * 1024, "{growth} KiB, whole: {is_final}");
    }
}

#[test]
fn root_a_providers_endless_message_passes_if_no_figures_can_be_in_it() {
    let (rig, mut pair) = opened();
    pair.asks(&asking(&create()));
    pair.answers(&saying(&created("r1")));
    let before = memory_kib(&rig);
    let (mut client, mut server) = (pair.client.try_clone().unwrap(), pair.server.try_clone().unwrap());
    let whole_bytes: usize = 256 * 1024 * 1024;
    let sending = std::thread::spawn(move || {
        let start = b"{\"type\":\"response.image_generation_call.partial_image\",\"b64\":\"";
        server.write_all(&[0x01, 127]).unwrap();
        server.write_all(&(start.len() as u64).to_be_bytes()).unwrap();
        server.write_all(start).unwrap();
        let mut left = whole_bytes;
        while left > 0 {
            server.write_all(&[0x00, 127, 0, 0, 0, 0, 0, 16, 0, 0]).unwrap();
            server.write_all(&vec![b'A'; 1024 * 1024]).unwrap();
            left -= 1024 * 1024;
        }
        server.write_all(&[0x80, 2, b'"', b'}']).unwrap();
        10 + start.len() + whole_bytes + 256 * 10 + 4
    });
    let mut buffer = vec![0; 64 * 1024];
    let mut heard = 0;
    while heard < 10 + whole_bytes {
        heard += std::io::Read::read(&mut client, &mut buffer).unwrap();
    }
    let sent = sending.join().unwrap();
    while heard < sent {
        heard += std::io::Read::read(&mut client, &mut buffer).unwrap();
    }
    assert_eq!(heard, sent);
    assert!(memory_kib(&rig) - before < 32 * 1024, "{} KiB", memory_kib(&rig) - before);
    pair.answers(&saying(&completed("r1", 10, 5)));
    assert_eq!(rig.settlement().tokens.total(), 15);
}

#[test]
fn root_an_end_that_is_too_long_to_be_held_back_is_not_passed() {
    let (rig, mut pair) = opened();
    pair.asks(&asking(&create()));
    let mut end = completed("r1", 10, 5);
    end["response"]["output"] = json!("x".repeat(2 * 1024 * 1024));
    // the meter may close before all of it is written
    drop(pair.server.write_all(&saying(&end)));
    let (opcode, payload) = pair.next_frame();
    assert_eq!((opcode, &payload[..2]), (8, &1009_u16.to_be_bytes()[..]));
    rest(&mut pair.server);
    assert_eq!(rig.settlement().provenance, Provenance::Estimated);
}

#[test]
fn root_continuations_without_an_end_are_bounded() {
    let (rig, mut pair) = opened();
    let before = memory_kib(&rig);
    pair.client.write_all(&text_frame("{", false, Some(MASK))).unwrap();
    let more = written(Frame::message(vec![b' '; 4096], OpCode::Data(Data::Continue), false), Some(MASK));
    for _ in 0..8192 {
        if pair.client.write_all(&more).is_err() {
            break;
        }
    }
    assert_eq!(rest(&mut pair.server), b"");
    assert!(memory_kib(&rig) - before < 96 * 1024, "{} KiB", memory_kib(&rig) - before);
}

#[test]
fn root_empty_continuations_without_an_end_are_bounded() {
    let (rig, mut pair) = opened();
    let before = memory_kib(&rig);
    pair.client.write_all(&text_frame("{", false, Some(MASK))).unwrap();
    let more =
        written(Frame::message(Vec::new(), OpCode::Data(Data::Continue), false), Some(MASK)).repeat(10_000);
    pair.client.set_write_timeout(Some(Duration::from_secs(10))).unwrap();
    for _ in 0..400 {
        if pair.client.write_all(&more).is_err() {
            break;
        }
    }
    assert_eq!(rest(&mut pair.server), b"");
    assert!(memory_kib(&rig) - before < 96 * 1024, "{} KiB", memory_kib(&rig) - before);
}

#[test]
fn root_a_provider_that_goes_on_after_its_close_is_not_waited_for() {
    let (rig, mut pair) = opened();
    pair.answers(&close(None));
    pair.asks(&close(Some(MASK)));
    let since = std::time::Instant::now();
    rest(&mut pair.client);
    assert!(since.elapsed() < Duration::from_secs(8));
    rig.taken_in();
}
