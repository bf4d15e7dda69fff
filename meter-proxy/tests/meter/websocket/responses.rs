//! Responses: each asked for at the gate and settled by its own figures, while not a byte changes.
use std::io::Write;

use flate2::{Compress, Compression, FlushCompress};
use meter_proxy::protocol::{ToController, ToMeter};
use meter_proxy::tokens::{Ending, Provenance};
use serde_json::{Value, json};
use tungstenite::protocol::frame::Frame;
use tungstenite::protocol::frame::coding::{Data, OpCode};

use super::{
    MASK, asking, completed, create, create_in, created, delta, in_lane, is_silent, last, opened,
    opened_with, ping, saying, text_frame, written,
};
use crate::words::is_settle;

fn reserves(message: &ToController) -> bool {
    matches!(message, ToController::Reserve(_))
}

#[test]
fn root_many_responses_on_one_socket_are_settled_each() {
    let (rig, mut pair) = opened();
    for n in 1..=5_u64 {
        let id = format!("r{n}");
        pair.asks(&asking(&create()));
        pair.answers(&saying(&created(&id)));
        (0..3).for_each(|_| pair.answers(&saying(&delta("some words of an answer"))));
        let kind =
            ["response.completed", "response.incomplete", "response.failed"][usize::try_from(n % 3).unwrap()];
        pair.answers(&saying(&last(kind, &id, 10 * n, n + 5)));
        pair.asks(&asking(&json!({"type": "response.processed", "response_id": id})));
    }
    let settled = rig.settlements(5);
    for (n, settle) in (1..).zip(&settled) {
        let tokens = &settle.tokens;
        assert_eq!(
            (tokens.input, tokens.cache_read, tokens.output, tokens.reasoning),
            (10 * n - 1, 1, n + 5, 2)
        );
        assert_eq!((settle.provenance, settle.ending), (Provenance::Reported, Ending::Completed));
        assert_eq!((settle.http_status, settle.model.as_deref()), (Some(101), Some("gpt-x-1")));
        assert!(settle.raw.as_deref().unwrap().contains("output_tokens_details"));
    }
    let ToController::Reserve(reserve) = rig.heard(reserves) else { unreachable!() };
    assert_eq!((reserve.provider.as_str(), reserve.endpoint.as_str()), ("codex", "/v1/responses"));
    assert_eq!(reserve.model.as_deref(), Some("gpt-x"));
    assert!(reserve.tokens > 0 && reserve.tokens < 100, "{}", reserve.tokens);
}

#[test]
fn root_a_request_waits_for_the_gate_and_the_end_for_the_ledger() {
    let (rig, mut pair) = opened();
    rig.manner(|manner| {
        manner.permits = false;
        manner.settles = false;
    });
    let ask = asking(&create());
    pair.client.write_all(&ask).unwrap();
    let reserve = rig.reservation();
    assert!(is_silent(&mut pair.server), "nothing leaves before the reservation is durable");
    rig.send(&ToMeter::Permit { exchange: reserve.exchange });
    pair.server_hears(&ask);
    pair.answers(&saying(&created("r1")));
    pair.answers(&saying(&delta("words")));
    let end = saying(&completed("r1", 10, 5));
    let (first, second) = end.split_at(30);
    pair.server.write_all(first).unwrap();
    assert!(is_silent(&mut pair.client), "half a message is not passed");
    pair.server.write_all(second).unwrap();
    let settle = rig.settlement();
    assert!(is_silent(&mut pair.client), "the end is not passed before it is settled");
    rig.send(&ToMeter::Settled { exchange: settle.exchange });
    pair.client_hears(&end);
}

#[test]
fn root_lanes_go_on_side_by_side() {
    let (rig, mut pair) = opened();
    pair.asks(&asking(&create_in("a")));
    pair.asks(&asking(&create_in("b")));
    pair.asks(&asking(&create_in("a")));
    pair.asks(&asking(&create()));
    pair.answers(&saying(&in_lane(created("b1"), "b")));
    pair.answers(&saying(&in_lane(created("a1"), "a")));
    pair.answers(&saying(&created("d1")));
    for lane in ["a", "b", "a"] {
        pair.answers(&saying(&in_lane(delta("words of a lane"), lane)));
    }
    pair.answers(&saying(&in_lane(completed("a1", 11, 6), "a")));
    pair.answers(&saying(&in_lane(created("a2"), "a")));
    // a request is turned down while another of its lane is answered
    pair.asks(&asking(&create_in("b")));
    let refused = json!({"type": "error", "status": 400, "stream_id": "b", "error": {"code": "x"}});
    pair.answers(&saying(&refused));
    pair.answers(&saying(&in_lane(completed("b1", 12, 7), "b")));
    pair.answers(&saying(&completed("d1", 13, 8)));
    pair.answers(&saying(&in_lane(completed("a2", 14, 9), "a")));
    // a last event that comes again is settled no more
    pair.answers(&saying(&in_lane(completed("a1", 11, 6), "a")));
    let mut totals: Vec<u64> = rig.settlements(5).iter().map(|settle| settle.tokens.total()).collect();
    totals.sort_unstable();
    assert_eq!(totals, [0, 17, 19, 21, 23]);
    let turned_down = rig.heard(
        |message| matches!(message, ToController::Settle(settle) if settle.ending == Ending::UpstreamError),
    );
    assert!(matches!(turned_down, ToController::Settle(settle) if settle.http_status == Some(400)));
}

#[test]
fn root_an_error_that_turns_no_request_down_ends_no_response() {
    let (rig, mut pair) = opened();
    pair.asks(&asking(&create()));
    pair.answers(&saying(&created("r1")));
    // nobody knows such a message, and the provider says so while it goes on
    pair.asks(&asking(&json!({"type": "response.bogus"})));
    pair.answers(&saying(&json!({"type": "error", "status": 400, "error": {"code": "unknown"}})));
    pair.answers(&saying(&delta("words that go on")));
    assert_eq!(rig.count(is_settle), 0);
    pair.answers(&saying(&completed("r1", 10, 5)));
    let settle = rig.settlement();
    assert_eq!((settle.tokens.total(), settle.provenance), (15, Provenance::Reported));
    assert_eq!((settle.ending, rig.count(reserves)), (Ending::Completed, 1));
}

#[test]
fn root_a_response_that_an_error_has_ended_is_charged_when_the_next_one_begins() {
    let (rig, mut pair) = opened();
    pair.asks(&asking(&create()));
    pair.answers(&saying(&created("r1")));
    pair.answers(&saying(&delta(&"words ".repeat(30))));
    pair.answers(&saying(&json!({"type": "error", "status": 500, "error": {"code": "server_error"}})));
    pair.asks(&asking(&create()));
    pair.answers(&saying(&created("r2")));
    let settle = rig.settlement();
    assert_eq!((settle.ending, settle.provenance), (Ending::UpstreamBroke, Provenance::Estimated));
    assert!(settle.tokens.output >= 60, "{:?}", settle.tokens);
    pair.answers(&saying(&delta("words of the next one")));
    pair.answers(&saying(&completed("r2", 10, 5)));
    // and if the first one has not ended after all, its figures are charged all the same
    pair.answers(&saying(&completed("r1", 20, 40)));
    let totals: Vec<u64> = rig.settlements(3).iter().map(|settle| settle.tokens.total()).collect();
    assert_eq!(totals[1..], [15, 60]);
}

#[test]
fn root_a_warm_up_is_free() {
    let (rig, mut pair) = opened();
    let mut warm_up = create();
    warm_up["generate"] = json!(false);
    pair.asks(&asking(&warm_up));
    pair.answers(&saying(&created("w1")));
    let mut end = completed("w1", 500, 0);
    end["response"]["usage"]["output_tokens_details"] = Value::Null;
    pair.answers(&saying(&end));
    pair.asks(&asking(&create()));
    pair.answers(&saying(&completed("r1", 10, 5)));
    assert_eq!(rig.settlement().tokens.total(), 15);
    assert_eq!(rig.count(reserves), 1);
}

#[test]
fn root_a_warm_up_that_generates_is_charged_all_the_same() {
    let (rig, mut pair) = opened();
    let mut warm_up = create();
    warm_up["generate"] = json!(false);
    pair.asks(&asking(&warm_up));
    pair.answers(&saying(&created("w1")));
    assert_eq!(rig.count(reserves), 0);
    pair.answers(&saying(&delta("but it does generate something")));
    rig.reservation();
    pair.answers(&saying(&completed("w1", 500, 40)));
    let settle = rig.settlement();
    assert_eq!((settle.tokens.total(), settle.provenance), (540, Provenance::Reported));
}

#[test]
fn root_a_response_that_nobody_asked_for_is_charged() {
    let (rig, mut pair) = opened();
    pair.asks(&asking(&create()));
    pair.answers(&saying(&completed("r1", 10, 5)));
    pair.asks(&asking(&json!({"type": "response.steer", "input": "x"})));
    pair.answers(&saying(&created("s1")));
    pair.answers(&saying(&delta("a continuation")));
    pair.answers(&saying(&completed("s1", 20, 6)));
    pair.answers(&saying(&completed("s2", 30, 7)));
    let totals: Vec<u64> = rig.settlements(3).iter().map(|settle| settle.tokens.total()).collect();
    assert_eq!(totals, [15, 26, 37]);
    rig.heard(|message| {
        crate::rig::is_notice(message, "unlisted message to codex on a WebSocket: response.steer")
    });
    rig.heard(|message| crate::rig::is_notice(message, "was not asked for"));
}

#[test]
fn root_fragments_and_frames_between_them_pass_in_their_order() {
    let (rig, mut pair) = opened();
    let text = create().to_string();
    let (first, rest) = text.split_at(20);
    let (second, third) = rest.split_at(5);
    let frame = |text: &str, kind, is_final, mask| {
        written(Frame::message(text.as_bytes().to_vec(), OpCode::Data(kind), is_final), mask)
    };
    let mask = Some(MASK);
    let wire = [
        frame(first, Data::Text, false, mask),
        ping(mask),
        frame(second, Data::Continue, false, mask),
        frame("", Data::Continue, false, mask),
        frame(third, Data::Continue, true, mask),
    ];
    for byte in wire.concat() {
        pair.client.write_all(&[byte]).unwrap();
    }
    pair.server_hears(&wire.concat());
    pair.asks(&ping(mask));
    pair.answers(&ping(None));
    let text = completed("r1", 10, 5).to_string();
    let (first, rest) = text.split_at(20);
    let wire =
        [frame(first, Data::Text, false, None), ping(None), frame(rest, Data::Continue, true, None)].concat();
    pair.answers(&wire);
    assert_eq!(rig.settlement().tokens.total(), 15);
}

/// A compressed text, of a sender that builds on its earlier ones or does not.
struct Deflated {
    codec: Compress,
    takeover: bool,
}

impl Deflated {
    fn new(takeover: bool) -> Self {
        Self { codec: Compress::new(Compression::default(), false), takeover }
    }

    fn frame(&mut self, message: &Value, mask: Option<[u8; 4]>) -> Vec<u8> {
        let mut payload = Vec::with_capacity(64 * 1024);
        self.codec.compress_vec(message.to_string().as_bytes(), &mut payload, FlushCompress::Sync).unwrap();
        payload.truncate(payload.len() - 4);
        if !self.takeover {
            self.codec.reset();
        }
        let mut frame = Frame::message(payload, OpCode::Data(Data::Text), true);
        frame.header_mut().rsv1 = true;
        written(frame, mask)
    }
}

#[test]
fn root_compressed_messages_are_read_and_pass_as_they_are() {
    let deflate = "Sec-WebSocket-Extensions: permessage-deflate";
    for (parameters, takeover) in
        [("", true), ("; client_no_context_takeover; server_no_context_takeover", false)]
    {
        let (rig, mut pair) = opened_with(&format!("{deflate}{parameters}\r\n"));
        let (mut client, mut server) = (Deflated::new(takeover), Deflated::new(takeover));
        for n in 1..=3 {
            let id = format!("r{n}");
            pair.asks(&client.frame(&create(), Some(MASK)));
            pair.answers(&server.frame(&created(&id), None));
            pair.answers(&server.frame(&delta("words and words and words"), None));
            pair.answers(&server.frame(&completed(&id, 10, n), None));
        }
        // nobody has to compress
        pair.asks(&asking(&create()));
        pair.answers(&saying(&completed("r4", 10, 4)));
        let totals: Vec<u64> = rig.settlements(4).iter().map(|settle| settle.tokens.total()).collect();
        assert_eq!(totals, [11, 12, 13, 14], "{parameters}");
        assert_eq!(rig.count(reserves), 4);
    }
}

#[test]
fn root_after_a_refusal_a_message_that_builds_on_the_refused_one_is_not_passed() {
    let (rig, mut pair) = opened_with("Sec-WebSocket-Extensions: permessage-deflate\r\n");
    let mut client = Deflated::new(true);
    let mut background = create();
    background["background"] = json!(true);
    pair.client.write_all(&client.frame(&background, Some(MASK))).unwrap();
    assert_eq!(pair.next_json()["status"], 400);
    pair.asks(&asking(&create()));
    pair.answers(&saying(&completed("r1", 10, 5)));
    pair.client.write_all(&client.frame(&create(), Some(MASK))).unwrap();
    let (opcode, payload) = pair.next_frame();
    assert_eq!((opcode, &payload[..2]), (8, &1012_u16.to_be_bytes()[..]), "connect again");
    assert_eq!(super::rest(&mut pair.server), b"");
    assert_eq!(rig.settlement().tokens.total(), 15);
}

#[test]
fn root_what_runs_is_told_while_it_runs() {
    let (rig, mut pair) = opened();
    pair.asks(&asking(&create()));
    pair.answers(&saying(&created("r1")));
    pair.answers(&saying(&delta(&"many words ".repeat(60))));
    rig.heard(|message| matches!(message, ToController::Progress(counts) if counts.iter().any(|(_, tokens)| tokens.output > 64)));
    assert_eq!(rig.count(is_settle), 0);
    pair.answers(&saying(&completed("r1", 10, 200)));
    assert_eq!(rig.settlement().tokens.total(), 210);
}

#[test]
fn root_a_text_that_is_no_event_passes() {
    let (rig, mut pair) = opened();
    pair.asks(&asking(&create()));
    for odd in ["", "not json", "[1]", "{\"type\":5}", "\u{0}"] {
        pair.answers(&text_frame(odd, true, None));
    }
    let invalid = written(Frame::message(vec![0xff, 0xfe], OpCode::Data(Data::Binary), true), None);
    pair.answers(&invalid);
    pair.answers(&saying(&completed("r1", 10, 5)));
    assert_eq!(rig.settlement().tokens.total(), 15);
}
