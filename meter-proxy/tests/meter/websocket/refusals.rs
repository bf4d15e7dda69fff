//! The gate on an open WebSocket: what is refused is not passed, and its client hears why in the provider's words.
use std::io::Write;

use meter_proxy::protocol::{ToController, ToMeter};
use meter_proxy::tokens::{Ending, Provenance};
use serde_json::json;

use super::opening::budget;
use super::{
    MASK, asking, completed, create, create_in, created, delta, in_lane, is_silent, opened, rest, saying,
    text_frame,
};
use crate::words::is_settle;

#[test]
fn root_a_refused_request_is_not_passed_and_its_client_hears_why() {
    let (rig, mut pair) = opened();
    pair.asks(&asking(&create()));
    pair.answers(&saying(&created("r1")));
    rig.manner(|manner| manner.refusal = Some(budget()));
    pair.client.write_all(&asking(&create_in("other"))).unwrap();
    let refused = pair.next_json();
    assert_eq!((&refused["type"], &refused["status"]), (&json!("error"), &json!(429)));
    assert_eq!(
        (&refused["error"]["type"], &refused["stream_id"]),
        (&json!("usage_limit_reached"), &json!("other"))
    );
    let message = refused["error"]["message"].as_str().unwrap();
    assert_eq!(refused["headers"]["x-codex-promo-message"], message.strip_suffix('.').unwrap());
    for word in ["b1", "agent", "reviewer", "12", "10", "daily", "codex"] {
        assert!(message.contains(word), "{word}: {message}");
    }
    assert!(is_silent(&mut pair.server), "nothing of it leaves");
    // what is under way goes on, and later requests are asked for again
    pair.answers(&saying(&completed("r1", 10, 5)));
    rig.manner(|manner| manner.refusal = None);
    pair.asks(&asking(&create()));
    pair.answers(&saying(&completed("r2", 20, 5)));
    assert_eq!(rig.settlements(2).len(), 2);
}

#[test]
fn root_a_refusal_does_not_wait_for_a_message_that_stands_still() {
    let (rig, mut pair) = opened();
    pair.asks(&asking(&create_in("a")));
    let words = saying(&in_lane(delta("words"), "a"));
    let (first, second) = words.split_at(words.len() / 2);
    pair.server.write_all(first).unwrap();
    assert!(is_silent(&mut pair.client));
    rig.manner(|manner| manner.refusal = Some(budget()));
    pair.client.write_all(&asking(&create_in("b"))).unwrap();
    assert_eq!(pair.next_json()["stream_id"], "b");
    pair.server.write_all(second).unwrap();
    pair.client_hears(&words);
    drop(pair);
    rig.settlement();
}

#[test]
fn root_what_cannot_be_metered_is_refused_and_the_socket_stays() {
    let (rig, mut pair) = opened();
    let mut background = create();
    background["background"] = json!(true);
    for (message, words) in [
        (background.to_string(), "background"),
        (create_in("no lane").to_string(), "stream_id"),
        ("{\"type\":\"response.create\",\"type\":\"x\"}".to_owned(), "twice"),
        ("no json".to_owned(), "JSON"),
        ("{\"a\":1}".to_owned(), "type"),
    ] {
        pair.client.write_all(&text_frame(&message, true, Some(MASK))).unwrap();
        let refused = pair.next_json();
        assert_eq!((&refused["type"], &refused["status"]), (&json!("error"), &json!(400)), "{message}");
        assert_eq!(refused["error"]["type"], "invalid_request_error");
        assert!(refused["error"]["message"].as_str().unwrap().contains(words), "{refused}");
    }
    assert!(is_silent(&mut pair.server));
    pair.asks(&asking(&create()));
    pair.answers(&saying(&completed("r1", 10, 5)));
    assert_eq!(rig.settlement().tokens.total(), 15);
}

#[test]
fn root_responses_under_way_are_ended_when_they_may_not_go_on() {
    let (rig, mut pair) = opened();
    pair.asks(&asking(&create_in("a")));
    pair.answers(&saying(&in_lane(created("a1"), "a")));
    pair.answers(&saying(&in_lane(delta(&"words ".repeat(30)), "a")));
    let exchange = rig.reservation().exchange;
    rig.send(&ToMeter::Refused { exchange, refusal: budget() });
    let failed = pair.next_json();
    assert_eq!((&failed["type"], &failed["stream_id"]), (&json!("response.failed"), &json!("a")));
    assert_eq!((&failed["response"]["id"], &failed["response"]["status"]), (&json!("a1"), &json!("failed")));
    assert_eq!(failed["response"]["error"]["code"], "invalid_prompt");
    let message = failed["response"]["error"]["message"].as_str().unwrap();
    assert!(message.contains("12 of 10 codex tokens"), "{message}");
    let (opcode, payload) = pair.next_frame();
    assert_eq!((opcode, &payload[..2]), (8, &1008_u16.to_be_bytes()[..]));
    assert_eq!(rest(&mut pair.server), b"", "the provider stops");
    let settle = rig.settlement();
    assert_eq!((settle.ending, settle.provenance), (Ending::Cut, Provenance::Estimated));
    assert!(settle.tokens.output >= 60, "{:?}", settle.tokens);
}

#[test]
fn root_an_end_that_is_not_durable_in_time_is_not_passed() {
    let origin = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut settings = crate::rig::config(origin.local_addr().unwrap());
    settings.settle_timeout_ms = 100;
    let rig = crate::rig::Rig::start(settings);
    let mut pair = super::Pair::open(&rig, &origin, "");
    rig.manner(|manner| manner.settles = false);
    pair.asks(&asking(&create()));
    pair.server.write_all(&saying(&completed("r1", 10, 5))).unwrap();
    let told = pair.next_json();
    assert_eq!((&told["type"], &told["status"]), (&json!("error"), &json!(429)));
    assert!(told["error"]["message"].as_str().unwrap().contains("could not be recorded"), "{told}");
    assert_eq!(rest(&mut pair.server), b"");
    rig.settlement();
}

#[test]
fn root_too_many_at_once_are_refused() {
    let (rig, mut pair) = opened();
    (0..64).for_each(|_| pair.asks(&asking(&create())));
    pair.client.write_all(&asking(&create())).unwrap();
    assert_eq!(pair.next_json()["status"], 400);
    assert_eq!(rig.count(|message| matches!(message, ToController::Reserve(_))), 64);
    assert_eq!(rig.count(is_settle), 0);
    drop(pair);
    rig.settlements(64);
}
