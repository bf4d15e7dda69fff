//! Sockets that end in every way: each response under way is settled once.
use std::io::Write;
use std::net::Shutdown;
use std::time::{Duration, Instant};

use meter_proxy::protocol::{ToController, ToMeter, Upstream as Towards};
use meter_proxy::tokens::{Ending, Provenance};

use super::{
    MASK, Pair, asking, close, completed, create, create_in, created, delta, in_lane, is_silent, opened,
    rest, saying,
};
use crate::rig::BOTTLE;

/// One response is over, two are under way, one of them with words.
fn under_way(pair: &mut Pair) {
    pair.asks(&asking(&create()));
    pair.answers(&saying(&completed("r1", 10, 5)));
    pair.asks(&asking(&create_in("a")));
    pair.asks(&asking(&create_in("b")));
    pair.answers(&saying(&in_lane(created("a1"), "a")));
    pair.answers(&saying(&in_lane(delta(&"words ".repeat(20)), "a")));
}

fn assert_settled(rig: &crate::rig::Rig, ending: Ending) {
    let settled = rig.settlements(3);
    assert_eq!((settled[0].ending, settled[0].tokens.total()), (Ending::Completed, 15));
    let mut outputs = Vec::new();
    for broken in &settled[1..] {
        assert_eq!((broken.ending, broken.provenance), (ending, Provenance::Estimated));
        assert!(broken.tokens.input > 0, "what was asked is charged: {:?}", broken.tokens);
        outputs.push(broken.tokens.output);
    }
    outputs.sort_unstable();
    assert_eq!(outputs, [0, 40], "what was seen is charged");
}

#[test]
fn root_a_cut_inside_closes_upstream_at_once() {
    let (rig, mut pair) = opened();
    under_way(&mut pair);
    rig.send(&ToMeter::Cut { bottle: BOTTLE, upstream: Towards::Close });
    let since = Instant::now();
    assert_eq!(rest(&mut pair.server), b"");
    assert!(since.elapsed() < Duration::from_millis(500));
    assert_eq!(rest(&mut pair.client), b"", "a cut bottle hears nothing");
    assert_settled(&rig, Ending::Cut);
}

#[test]
fn root_a_cut_between_closes_both_sides() {
    let (rig, mut pair) = opened();
    pair.asks(&asking(&create()));
    pair.answers(&saying(&completed("r1", 10, 5)));
    rig.send(&ToMeter::Cut { bottle: BOTTLE, upstream: Towards::Close });
    assert_eq!((rest(&mut pair.server), rest(&mut pair.client)), (vec![], vec![]));
    assert_eq!(rig.settlement().ending, Ending::Completed);
}

#[test]
fn root_a_held_socket_goes_on_after_a_restore() {
    let (rig, mut pair) = opened();
    pair.asks(&asking(&create()));
    rig.send(&ToMeter::Cut { bottle: BOTTLE, upstream: Towards::Hold });
    rig.taken_in();
    let (words, end) = (saying(&delta("words")), saying(&completed("r1", 10, 5)));
    pair.server.write_all(&words).unwrap();
    pair.server.write_all(&end).unwrap();
    let next = asking(&create());
    pair.client.write_all(&next).unwrap();
    assert!(is_silent(&mut pair.client) && is_silent(&mut pair.server));
    rig.send(&ToMeter::Open { bottle: BOTTLE });
    pair.client_hears(&[words, end].concat());
    pair.server_hears(&next);
    pair.answers(&saying(&completed("r2", 10, 6)));
    assert!(rig.settlements(2).iter().all(|settle| settle.ending == Ending::Completed));
}

#[test]
fn root_a_client_that_is_gone_ends_all_of_it() {
    for says_so in [true, false] {
        let (rig, mut pair) = opened();
        under_way(&mut pair);
        if says_so {
            pair.client.write_all(&close(Some(MASK))).unwrap();
        } else {
            pair.client.shutdown(Shutdown::Both).unwrap();
        }
        let since = Instant::now();
        rest(&mut pair.server);
        assert!(since.elapsed() < Duration::from_secs(1), "what is under way would cost on");
        assert_settled(&rig, Ending::ClientGone);
    }
}

#[test]
fn root_a_client_that_leaves_while_the_gate_thinks_is_not_charged() {
    let (rig, mut pair) = opened();
    rig.manner(|manner| manner.permits = false);
    pair.client.write_all(&asking(&create())).unwrap();
    let reserve = rig.reservation();
    pair.client.shutdown(Shutdown::Both).unwrap();
    rig.heard(
        |message| matches!(message, ToController::Withdraw { exchange } if *exchange == reserve.exchange),
    );
    assert_eq!(rest(&mut pair.server), b"");
}

#[test]
fn root_a_provider_that_breaks_off_is_seen_as_broken() {
    for says_so in [true, false] {
        let (rig, mut pair) = opened();
        under_way(&mut pair);
        if says_so {
            pair.answers(&close(None));
            pair.asks(&close(Some(MASK)));
        }
        pair.server.shutdown(Shutdown::Both).unwrap();
        assert_eq!(rest(&mut pair.client), b"", "no end is made up");
        assert_settled(&rig, Ending::UpstreamBroke);
    }
}

#[test]
fn root_an_end_that_comes_with_the_break_is_still_passed() {
    let (rig, mut pair) = opened();
    pair.asks(&asking(&create()));
    let end = saying(&completed("r1", 10, 5));
    pair.server.write_all(&end).unwrap();
    pair.server.shutdown(Shutdown::Write).unwrap();
    pair.client_hears(&end);
    assert_eq!(rig.settlement().provenance, Provenance::Reported);
}

#[test]
fn root_half_a_request_leaves_no_trace() {
    let (rig, mut pair) = opened();
    let ask = asking(&create());
    pair.client.write_all(&ask[..ask.len() - 1]).unwrap();
    assert!(is_silent(&mut pair.server));
    drop(pair.client);
    assert_eq!(rest(&mut pair.server), b"");
    rig.taken_in();
    assert_eq!(rig.count(|message| matches!(message, ToController::Reserve(_))), 0);
}

#[test]
fn root_a_detached_bottle_loses_its_sockets() {
    let (rig, mut pair) = opened();
    under_way(&mut pair);
    rig.send(&ToMeter::Detached { bottle: BOTTLE });
    assert_eq!((rest(&mut pair.server), rest(&mut pair.client)), (vec![], vec![]));
    let settled = rig.settlements(3);
    assert!(settled[1..].iter().all(|settle| settle.ending == Ending::Cut), "{settled:?}");
}

#[test]
fn root_a_client_that_reads_nothing_does_not_keep_upstream_open() {
    let (rig, mut pair) = opened();
    pair.asks(&asking(&create()));
    pair.answers(&saying(&created("r1")));
    let words = saying(&delta(&"words ".repeat(10_000)));
    pair.server.set_write_timeout(Some(Duration::from_millis(300))).unwrap();
    while pair.server.write_all(&words).is_ok() {}
    rig.send(&ToMeter::Cut { bottle: BOTTLE, upstream: Towards::Close });
    rest(&mut pair.server);
    assert_eq!(rig.settlement().ending, Ending::Cut);
}

#[test]
fn root_a_silence_is_charged_to_the_response_under_way_and_not_to_the_one_behind_it() {
    let (rig, mut pair) = opened();
    pair.asks(&asking(&create()));
    pair.asks(&asking(&create()));
    pair.answers(&saying(&created("r1")));
    std::thread::sleep(Duration::from_secs(3));
    pair.answers(&saying(&delta("Hi")));
    pair.client.shutdown(Shutdown::Both).unwrap();
    let mut outputs: Vec<u64> = rig.settlements(2).iter().map(|settle| settle.tokens.output).collect();
    outputs.sort_unstable();
    assert_eq!(outputs[0], 0, "it has not begun");
    assert!((300..1_500).contains(&outputs[1]), "{outputs:?}");
}
