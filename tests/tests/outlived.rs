//! A socket of a bottle in the hands of a process outside, from when the bottle's cgroup is removed: whatever becomes of
//! the bottle, nothing passes.
#![allow(clippy::unwrap_used, reason = "a failed expectation should stop the test where it stands")]
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, TcpStream};
use std::time::Duration;

use rustix::net::{connect, connect_unspec};
use serde_json::json;
use support::inmate::Inmate;
use support::namespace::copy_socket;
use support::provider::Reply;
use support::sink::Sink;
use support::stage::Stage;

const SOON: Duration = Duration::from_secs(10);
/// Long enough to see that nothing comes.
const A_WHILE: Duration = Duration::from_millis(300);

/// What is sent does not arrive, by the connection nor by another of the same socket.
fn assert_silent(stream: &mut TcpStream, sink: &Sink, why: &str) {
    let before = sink.bytes();
    stream.write_all(b"leak").unwrap();
    std::thread::sleep(A_WHILE);
    assert_eq!(sink.bytes(), before, "{why}");
}

#[test]
fn root_a_socket_that_outlives_its_bottle_is_cut_whoever_lets_that_go() {
    let mut stage = Stage::new(Reply::default(), "");
    let sink = Sink::tcp(IpAddr::V4(Ipv4Addr::LOCALHOST));
    for how in ["detached", "named again", "at a restart"] {
        let bottle = stage.bottle("cut", &[]);
        let mut inmate = Inmate::start(Some(&bottle.cgroup));
        inmate.ok(&format!("connect {}", sink.address()));
        inmate.ok("write");
        let mut stream = TcpStream::from(copy_socket(inmate.pid()));
        stage.daemon.ok(&["cut", "cut"]);
        drop((inmate, bottle));
        stage.daemon.wait_bottle("cut", |status| status["state"] == "gone", SOON);
        assert_silent(&mut stream, &sink, "its guard is on");
        let again = match how {
            "detached" => {
                stage.daemon.ok(&["detach", "cut", "--force"]);
                assert_eq!(stage.daemon.json(&["status"])["bottles"], json!([]));
                None
            }
            "named again" => Some(stage.bottle("cut", &[])),
            _ => {
                stage.daemon.kill9();
                stage.daemon.restart();
                assert_silent(&mut stream, &sink, "a new daemon has taken it over");
                stage.daemon.ok(&["detach", "cut", "--force"]);
                None
            }
        };
        assert_silent(&mut stream, &sink, how);
        connect_unspec(&stream).unwrap();
        let anew = connect(&stream, &sink.address());
        assert_eq!(anew, Err(rustix::io::Errno::PERM), "{how}");
        if let Some(again) = again {
            assert_eq!(stage.ask(&again, &[]).code, Some(0), "the next one is free");
            stage.daemon.ok(&["detach", "cut"]);
        }
    }
}
