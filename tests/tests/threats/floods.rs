//! A bottle that opens every connection it can: it refuses itself, its neighbours go on, and it recovers.
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use support::inmate::Inmate;
use support::network::{PUBLIC4, in_own_network};
use support::provider::Reply;
use support::stage::{Bottle, Stage};

use crate::QUIET;

/// Attempts of each of two programs in one round of the flood: together more than a bottle may hold connections.
const ATTEMPTS: usize = 1_200;
/// Live connections to the meter that a bottle may hold, and one a processor that may slip in beside the count.
const MOST: usize = 2_048 + 64;
/// As many as it may, but for those that the meter ended meanwhile.
const LEAST: usize = 2_000;
/// Requests of the neighbour while the flood stands.
const REQUESTS: usize = 20;

/// What flooding with two programs, straight and by the redirect, came to.
struct Flood {
    /// Connections that came about.
    connections: usize,
    /// Why the last one that did not was refused, of each program.
    refusals: [String; 2],
}

impl Flood {
    fn of(inmates: &mut [Inmate; 2], targets: [SocketAddr; 2]) -> Self {
        let answers = std::thread::scope(|scope| {
            let [one, other] = inmates;
            let [there, public] = targets.map(|to| format!("flood {to} {ATTEMPTS}"));
            let aside = scope.spawn(move || one.ok(&there));
            let answer = other.ok(&public);
            [aside.join().unwrap(), answer]
        });
        let split = answers.map(|answer| {
            let (came, refusal) = answer.split_once(' ').map_or((&*answer, ""), |split| split);
            (came.parse::<usize>().unwrap(), refusal.to_owned())
        });
        Self { connections: split[0].0 + split[1].0, refusals: split.map(|(_, refusal)| refusal) }
    }
}

/// Closes what the flood holds, and waits until the meter's side of it is closed too.
fn release(inmates: &mut [Inmate; 2]) {
    inmates.iter_mut().for_each(|inmate| drop(inmate.ok("release")));
    std::thread::sleep(QUIET);
}

/// Asks as a new program each time, which makes a connection of its own; how long each took.
fn ask_again_and_again(stage: &Stage, bottle: &Bottle) -> Vec<Duration> {
    let mut took = Vec::new();
    for _ in 0..REQUESTS {
        let start = Instant::now();
        let asked = stage.ask(bottle, &["--stream"]);
        took.push(start.elapsed());
        assert_eq!((asked.code, asked.one().status), (Some(0), 200), "{asked:?}");
    }
    took.sort_unstable();
    took
}

#[test]
fn root_a_flood_of_connections_refuses_itself_and_nobody_else() {
    in_own_network(|| {
        let stage = Stage::new(Reply::default(), "");
        let targets = [stage.daemon.listen_addr().parse().unwrap(), SocketAddr::new(PUBLIC4, 443)];
        let [flooding, working] = ["flooding", "working"].map(|name| stage.bottle(name, &[]));
        let mut inmates = [(); 2].map(|()| Inmate::start(Some(&flooding.cgroup)));
        let alone = ask_again_and_again(&stage, &working);
        let (first, beside) = std::thread::scope(|scope| {
            let first = scope.spawn(|| Flood::of(&mut inmates, targets));
            let beside = ask_again_and_again(&stage, &working);
            (first.join().unwrap(), beside)
        });
        for (when, took) in [("alone", alone), ("beside the flood", beside)] {
            println!(
                "a neighbour's request {when}: median {:?}, p99 {:?} (n = {REQUESTS})",
                took[REQUESTS / 2],
                took[REQUESTS * 99 / 100]
            );
        }
        assert!(
            first.refusals.iter().any(|refusal| refusal == "EPERM"),
            "the kernel refuses what is too much"
        );
        assert!((LEAST..=MOST).contains(&first.connections), "{} connections", first.connections);

        // what is over leaves nothing behind: as many come about again, and then the bottle works as before
        release(&mut inmates);
        let second = Flood::of(&mut inmates, targets);
        assert!(second.connections * 10 >= first.connections * 9, "{} connections", second.connections);
        release(&mut inmates);
        assert_eq!(stage.ask(&flooding, &["--stream"]).code, Some(0));
    });
}
