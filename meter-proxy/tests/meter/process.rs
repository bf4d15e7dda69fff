//! The process: whose it is, how it begins and ends.
use std::io::Write;
use std::time::Duration;

use crate::rig::{Answer, Rig, config, post};
use crate::words::{ASK_STREAM, MESSAGES, START, WORDS, stepped};

#[test]
fn root_the_meter_is_nobody_and_stays_it() {
    let mut rig = Rig::start(config("127.0.0.1:9".parse().unwrap()));
    assert_eq!(rig.status_line("Uid:"), "65534\t65534\t65534\t65534");
    assert_eq!(rig.status_line("Gid:"), "65534\t65534\t65534\t65534");
    assert_eq!(rig.status_line("Groups:"), "");
    assert_eq!(rig.status_line("NoNewPrivs:"), "1");
    assert_eq!(u64::from_str_radix(&rig.status_line("CapEff:"), 16).unwrap(), 0);
    assert_eq!(u64::from_str_radix(&rig.status_line("CapPrm:"), 16).unwrap(), 0);
    rig.signal(rustix::process::Signal::TERM);
    std::thread::sleep(Duration::from_millis(100));
    assert!(rig.runs(), "only its controller ends the meter");
}

#[test]
fn root_the_meter_ends_with_its_controller() {
    let (upstream, step) = stepped(&[START, WORDS]);
    let mut rig = Rig::start(config(upstream.address));
    let mut client = rig.connect();
    client.write_all(post(MESSAGES, ASK_STREAM).as_bytes()).unwrap();
    step.send(()).unwrap();
    Answer::read_head(&mut client).unwrap();
    drop(step);
    assert_eq!(rig.leave().code(), Some(1));
    upstream.ended();
}

#[test]
fn root_the_meter_does_not_start_as_root_or_without_a_controller() {
    for (uid, words) in [("0", "does not run as root"), ("65534", "the meter ends")] {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_meter-proxy"));
        let command = command.args(["--uid", uid, "--gid", "65534"]).stdin(std::process::Stdio::null());
        let output = command.output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains(words), "{said}");
    }
}
