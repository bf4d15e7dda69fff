//! Many connections that say little, of one bottle, beside a neighbour that works.
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use meter_proxy::protocol::ToController;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::hellos::hello;
use crate::rig::{BOTTLE, OTHER, Rig, Upstream, config, far, is_notice, json_answer, nowhere, post};
use crate::words::{ASK, JSON, MESSAGES};

const DRIBBLERS: usize = 500;
/// The meter may open so many descriptors: 381 connections, 95 of one bottle.
const DESCRIPTORS: &str = "--nofile=1100:1100";
const MOST_OF_ONE_BOTTLE: usize = 95;

/// How long a request of the neighbour's took, sorted.
fn requests(rig: &Rig) -> Vec<Duration> {
    let mut took: Vec<Duration> = (0..200)
        .map(|_| {
            let since = Instant::now();
            assert_eq!(rig.ask(&post(MESSAGES, ASK)).body, JSON.as_bytes());
            since.elapsed()
        })
        .collect();
    took.sort_unstable();
    took
}

/// Whether the other side has closed the connection.
fn is_closed(stream: &mut TcpStream) -> bool {
    match stream.read(&mut [0; 16]) {
        Err(error) if error.kind() == ErrorKind::WouldBlock => false,
        Ok(read) => read == 0,
        Err(_) => true,
    }
}

/// Connections of [`BOTTLE`], redirected; all are identified when this returns.
fn dribblers(rig: &Rig) -> Vec<TcpStream> {
    rig.manner(|manner| manner.bottle = BOTTLE);
    let identified = || rig.count(|message| matches!(message, ToController::Identify { .. }));
    let before = identified();
    let streams: Vec<TcpStream> = (0..DRIBBLERS).map(|_| rig.redirected(far(443))).collect();
    streams.iter().for_each(|stream| stream.set_nonblocking(true).unwrap());
    let until = Instant::now() + Duration::from_secs(10);
    while identified() < before + DRIBBLERS {
        assert!(Instant::now() < until, "all should have been asked for");
        std::thread::sleep(Duration::from_millis(5));
    }
    rig.manner(|manner| (manner.bottle, manner.original) = (OTHER, None));
    streams
}

/// Half of them say a byte of a hello now and then, half nothing, until the meter has closed them all.
fn dribble(mut streams: Vec<TcpStream>) {
    let since = Instant::now();
    for byte in hello("example.com", true) {
        streams.retain_mut(|stream| !is_closed(stream));
        if streams.is_empty() {
            return;
        }
        let late = since.elapsed() > Duration::from_secs(3);
        assert!(!late || streams.len() <= MOST_OF_ONE_BOTTLE, "{} of one bottle are open", streams.len());
        for stream in streams.iter_mut().step_by(2) {
            // It may be closed by now; the next round finds out.
            drop(stream.write(&[byte]));
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    panic!("{} are still open after {:?}", streams.len(), since.elapsed());
}

#[test]
fn root_five_hundred_dribblers_are_bounded_and_their_neighbour_works() {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, most, most).unwrap();
    let upstream = Upstream::saying(json_answer("200 OK", JSON));
    let rig = Rig::start_by(&["env", "ENFORCER_LOG=error", "prlimit", DESCRIPTORS], config(upstream.address));
    rig.manner(|manner| manner.bottle = OTHER);
    let alone = requests(&rig);

    let streams = dribblers(&rig);
    let dribbling = std::thread::spawn(move || dribble(streams));
    let beside = requests(&rig);
    dribbling.join().unwrap();
    rig.heard(|message| is_notice(message, "b1 has as many connections as it may"));
    let p99 = |took: &[Duration]| took[took.len() * 99 / 100];
    eprintln!(
        "p99 of a neighbour's request: {:?} alone, {:?} beside {DRIBBLERS} dribblers",
        p99(&alone),
        p99(&beside)
    );
    // Twice as long, and what a busy machine adds to either.
    assert!(p99(&beside) < p99(&alone) * 2 + Duration::from_millis(50), "{:?}", p99(&beside));
    let peak_kib: usize = rig.status_line("VmHWM:").trim_end_matches(" kB").parse().unwrap();
    assert!(peak_kib < 64 * 1024, "the meter used {peak_kib} KiB");
    rig.manner(|manner| manner.bottle = BOTTLE);
    assert_eq!(rig.ask(&post(MESSAGES, ASK)).status(), 200, "and its places are free again");
}

/// Prints how long it takes from taking a connection to knowing whose it is, the question to the (played)
/// controller included: one connection at a time, and while 64 are always being made.
#[test]
#[ignore = "prints figures; run by name, in release"]
fn root_identities_under_load() {
    for (threads, each) in [(1, 2_000), (64, 200)] {
        let log = tempfile::NamedTempFile::new().unwrap();
        let logged = format!(
            "exec env ENFORCER_LOG=meter_proxy::identify=debug \"$0\" \"$@\" 2>{}",
            log.path().display()
        );
        let rig = Rig::start_by(&["sh", "-c", &logged], config(nowhere()));
        let ask = || drop(rig.ask("GET /nobody HTTP/1.1\r\nHost: m\r\n\r\n"));
        std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| (0..each).for_each(|_| ask()));
            }
        });
        let mut took = identified(&std::fs::read_to_string(log.path()).unwrap());
        took.sort_unstable();
        assert_eq!(took.len(), threads * each);
        let at = |percent: usize| took[(took.len() - 1) * percent / 100];
        println!("{threads} at a time: median {} us, p99 {} us, most {} us", at(50), at(99), at(100));
    }
}

/// How long each took, microseconds, by the meter's log.
fn identified(log: &str) -> Vec<u64> {
    log.lines().filter_map(|line| line.split_once("took_us=")?.1.split(' ').next()?.parse().ok()).collect()
}
