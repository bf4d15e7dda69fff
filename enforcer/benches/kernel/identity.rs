//! What it costs to know whose a connection is: the meter's question to a real controller, over their socket, and
//! its answer.
//!
//! The controller is the built daemon, with its own state directory. The meter is this program once more, which
//! asks and does nothing else, and tells every connection how long its question took.
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};

use enforcer::bottle::cgroup::Cgroup;
use enforcer_ebpf::LISTENER_HOST;
use meter_proxy::protocol::{self, ToController, ToMeter};
use rustix::process::{Signal, set_parent_process_death_signal};

use crate::daemon::Daemon;
use crate::support::figures::{nanoseconds, report};
use crate::support::inside::{Inside, shared};
use crate::support::{Bench, network};

/// Connections, each of which is asked about once.
const QUESTIONS: usize = 5_000;
/// The daemon starts its meter with this; nobody else starts this program so.
pub const METER_ARGUMENT: &str = "--uid";
/// And its refusal lane with this besides.
const LANE_ARGUMENT: &str = "lane";

/// A bottle of a real daemon connects to a public address, again and again.
pub fn identity(bench: &Bench) {
    let cgroup = bench.cgroup.join("asked");
    drop(Cgroup::create(&cgroup).unwrap());
    let daemon = Daemon::start();
    daemon.run(&["attach", "asked", "--cgroup", cgroup.to_str().unwrap()]);
    let times = shared::<[AtomicU64; QUESTIONS]>();
    let client = Inside::start(Some(&cgroup), || {
        for time in times {
            let mut took = [0; 8];
            let mut stream = TcpStream::connect((network::PUBLIC4, 443)).unwrap();
            stream.read_exact(&mut took).unwrap();
            time.store(u64::from_ne_bytes(took), Ordering::SeqCst);
        }
    });
    client.finish();
    let rounds = times.iter().map(|time| time.load(Ordering::SeqCst)).collect();
    report("whose is it: the meter's question to the controller, and the answer", rounds);
    daemon.run(&["detach", "asked"]);
}

/// The meter's part, when the daemon has started this program in its place: its socket is the standard input.
pub fn ask() {
    // a controller that is killed takes this with it
    set_parent_process_death_signal(Some(Signal::KILL)).unwrap();
    if std::env::args().any(|argument| argument == LANE_ARGUMENT) {
        return stand_by();
    }
    let socket = rustix::stdio::stdin();
    let mut buffer = Vec::new();
    let listener = loop {
        let (_, mut descriptors) = protocol::receive::<ToMeter>(socket, &mut buffer).unwrap().unwrap();
        if !descriptors.is_empty() {
            // the host's own is the first
            break TcpListener::from(descriptors.remove(0));
        }
    };
    let ready = ToController::Ready { pid: std::process::id() };
    protocol::send(socket, &ready, &[]).unwrap();
    for question in 0.. {
        let (mut stream, peer) = listener.accept().unwrap();
        let local = stream.local_addr().unwrap();
        let asked = ToController::Identify { question, peer, local, listener: LISTENER_HOST };
        let took = nanoseconds(|| {
            protocol::send(socket, &asked, &[]).unwrap();
            answer(&mut buffer, question);
        });
        stream.write_all(&took.to_ne_bytes()).unwrap();
    }
}

/// In the lane's place there is nothing to do, until the controller hangs up.
fn stand_by() {
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink()).unwrap();
}

/// Waits for the answer to a question.
fn answer(buffer: &mut Vec<u8>, asked: u64) {
    loop {
        // the controller has hung up: so the meter ends
        let Some((message, _)) = protocol::receive::<ToMeter>(rustix::stdio::stdin(), buffer).unwrap() else {
            std::process::exit(0);
        };
        if let ToMeter::Identified { question, identity } = message
            && question == asked
        {
            assert!(identity.is_some(), "a connection of nobody");
            return;
        }
    }
}
