//! The process: whose it is, what it could still do, how it begins and ends.
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::process::{Command, Stdio};
use std::time::Duration;

use meter_proxy::protocol::{self, LaneConfig, ToLane};

use crate::rig::{Answer, Rig, config, exited, post, spawn};

#[test]
fn root_the_lane_is_nobody_alone_and_confined() {
    let mut rig = Rig::start();
    let check = |rig: &Rig| {
        for (key, value) in [
            ("Uid:", "65534\t65534\t65534\t65534"),
            ("Gid:", "65534\t65534\t65534\t65534"),
            ("Groups:", ""),
            ("NoNewPrivs:", "1"),
            ("Seccomp:", "2"),
            ("Threads:", "1"),
        ] {
            assert_eq!(rig.status_line(key), value, "{key}");
        }
        for key in ["CapEff:", "CapPrm:", "CapInh:", "CapAmb:"] {
            assert_eq!(u64::from_str_radix(&rig.status_line(key), 16).unwrap(), 0, "{key}");
        }
    };
    check(&rig);
    let mut stream = rig.secure(rig.connect(), "api.anthropic.com");
    stream.write_all(post("/v1/messages", "{}").as_bytes()).unwrap();
    assert_eq!(Answer::read(&mut stream).unwrap().status(), 402);
    check(&rig);
    for signal in [rustix::process::Signal::TERM, rustix::process::Signal::INT, rustix::process::Signal::HUP]
    {
        rig.signal(signal);
    }
    std::thread::sleep(Duration::from_millis(100));
    assert!(rig.runs(), "only its controller ends the lane");
}

#[test]
fn root_a_lane_that_was_stopped_goes_on() {
    let mut rig = Rig::start();
    rig.signal(rustix::process::Signal::STOP);
    let mut stream = rig.connect();
    stream.write_all(post("/codex/v1/responses", "{}").as_bytes()).unwrap();
    std::thread::sleep(Duration::from_millis(200));
    rig.signal(rustix::process::Signal::CONT);
    assert_eq!(Answer::read(&mut stream).unwrap().status(), 429);
    assert!(rig.runs());
}

#[test]
fn root_the_lane_ends_with_its_controller() {
    let mut rig = Rig::start();
    let mut client = rig.through("example.com:443");
    assert_eq!(rig.leave().code(), Some(1));
    assert!(!matches!(client.read(&mut [0]), Ok(1..)));
}

#[test]
fn root_the_lane_does_not_start_as_root_or_without_a_controller() {
    for (uid, words) in [("0", "does not run as root"), ("65534", "the lane ends")] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_meter-proxy"));
        let command = command.args(["lane", "--uid", uid, "--gid", "65534"]).stdin(Stdio::null());
        let output = command.output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains(words), "{said}");
    }
}

#[test]
fn root_a_beginning_that_cannot_be_used_ends_the_lane_with_words() {
    let [claude, ..] = &config().providers[..] else { unreachable!() };
    let mut wrong = claude.clone();
    wrong.hosts = vec!["a b".into()];
    for (beginning, words) in [
        (ToLane::Config(LaneConfig { providers: vec![wrong] }), "a b: not a host name"),
        (ToLane::Unlisten { id: 1 }, "did not begin with"),
    ] {
        let (mut child, socket) = spawn(Stdio::piped());
        protocol::send(socket.as_fd(), &beginning, &[]).unwrap();
        assert_eq!(exited(&mut child).code(), Some(1));
        let mut said = String::new();
        child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        assert!(said.contains(words), "{said}");
    }
}
