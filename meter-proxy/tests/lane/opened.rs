//! A bottle that is opened: its connections end, no other's.
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use meter_proxy::protocol::ToLane;

use crate::rig::{Answer, BOTTLE, OTHER, Rig, post};

/// A connection that is known to be of its bottle: it has been accepted as a proxy's.
fn held(rig: &Rig) -> TcpStream {
    rig.through("example.com:443")
}

fn is_open(stream: &mut TcpStream) -> bool {
    stream.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    stream.read(&mut [0]).is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock)
}

#[test]
fn root_an_opened_bottle_s_connections_end_and_no_other_s() {
    let rig = Rig::start();
    let mut of_bottle: Vec<_> = (0..3).map(|_| held(&rig)).collect();
    rig.manner(|manner| manner.bottle = Some(OTHER));
    let mut of_other = held(&rig);
    rig.send(&ToLane::Opened { bottle: BOTTLE });
    for stream in &mut of_bottle {
        let ended = stream.read(&mut [0]);
        assert!(matches!(ended, Ok(0)) || ended.is_err_and(|error| error.raw_os_error() == Some(104)));
    }
    assert!(is_open(&mut of_other));
    rig.send(&ToLane::Opened { bottle: BOTTLE });
    assert!(is_open(&mut of_other), "a bottle without connections is none's");
}

#[test]
fn root_a_bottle_that_is_cut_again_is_answered_again() {
    let rig = Rig::start();
    let first = held(&rig);
    rig.send(&ToLane::Opened { bottle: BOTTLE });
    assert_eq!(rig.ask(&post("/claude/v1/messages", "{}")).status(), 402);
    let mut second = held(&rig);
    assert!(is_open(&mut second));
    drop(first);
    second.write_all(b"GET / HTTP/1.1\r\nHost: example.com\r\n\r\n").unwrap();
    assert_eq!(Answer::read(&mut second).unwrap().status(), 403);
}
