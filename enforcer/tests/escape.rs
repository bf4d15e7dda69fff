//! The self-test of `doctor` can fail: where no bottle is guarded, every attempt gets out, and is seen to.
//!
//! Needs root. It plays in a network of its own, on a cgroup of its own.
#![allow(clippy::unwrap_used, reason = "a test's helper says what it expects by unwrapping")]
use std::path::Path;

use enforcer::escape::attempts::{ATTEMPTS, Evidence};
use enforcer::escape::sender::Word;
use enforcer::escape::stage::{Stage, in_own_network};
use enforcer::escape::{State, self_test};

#[test]
fn root_without_a_guard_every_attempt_gets_out() {
    let outcomes = in_own_network(|| {
        let stage = Stage::set(Path::new(env!("CARGO_BIN_EXE_enforcer")))?;
        let all =
            ATTEMPTS.iter().flat_map(|attempt| attempt.families.iter().map(move |&family| (attempt, family)));
        all.map(|(attempt, family)| Ok((attempt, family, stage.attempt(attempt, family)?)))
            .collect::<Result<Vec<_>, _>>()
    });
    for (attempt, family, outcome) in outcomes.unwrap() {
        let name = attempt.name;
        match (&outcome.word, attempt.evidence) {
            (Word::Missing(why), _) => println!("not offered by this kernel: {name} {family:?}: {why}"),
            (word, Evidence::Grant) => assert_eq!(*word, Word::Granted, "{name} {family:?}"),
            (_, Evidence::Arrival) => {
                assert!(outcome.heard.elsewhere > 0, "{name} {family:?}: {outcome:?}");
                assert_eq!(outcome.heard.at_meter, 0, "{name} {family:?}: {outcome:?}");
            }
        }
    }
}

#[test]
fn root_print_table() {
    let start = std::time::Instant::now();
    for escape in self_test(Path::new(env!("CARGO_BIN_EXE_enforcer"))).unwrap() {
        println!(
            "{:?} {:45} {:?} closed={} {}",
            escape.bottle, escape.attempt, escape.family, escape.closed, escape.detail
        );
    }
    println!("{:?}", start.elapsed());
}
