//! What is logged, and who logs: the controller alone, with `-v` the meter and the lane too, with `-vv` the kernel programs.
#![allow(clippy::unwrap_used, reason = "a failed expectation should stop the test where it stands")]
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use support::cgroup::TestCgroup;
use support::clock::wait_until;
use support::enforcer::Daemon;
use support::provider::Reply;
use support::sink::Sink;
use support::stage::{Sending, Stage};

const SOON: Duration = Duration::from_secs(10);
/// How the kernel programs' words begin.
const PROGRAMS: &str = "DEBUG enforcer_ebpf::";

/// A cut bottle whose datagrams are dropped, some hundred of them; the far end's address.
fn drop_datagrams(daemon: &Daemon, cgroup: &TestCgroup) -> SocketAddr {
    let sink = Sink::udp(IpAddr::V4(Ipv4Addr::LOCALHOST));
    daemon.ok(&["cut", "logged"]);
    drop(Sending::start(Some(cgroup), "udp", sink.address(), 100).figures());
    sink.address()
}

/// Waits for a line of the log that has all of these words.
fn logs(daemon: &Daemon, words: &[&str]) {
    let has = || daemon.logs().lines().any(|line| words.iter().all(|word| line.contains(word)));
    assert!(wait_until(SOON, || has().then_some(())).is_some(), "no line has {words:?}");
}

#[test]
fn root_what_kernel_programs_drop_is_logged_where_it_is_asked_for_and_nowhere_else() {
    let cgroup = TestCgroup::new("logged");
    let mut daemon = Daemon::start("");
    daemon.set_verbosity(Some("-v"));
    daemon.restart();
    daemon.attach("logged", cgroup.path(), &[]);
    drop_datagrams(&daemon, &cgroup);
    logs(&daemon, &["DEBUG"]);
    assert!(!daemon.logs().contains(PROGRAMS), "with -v alone");

    daemon.set_verbosity(Some("-vv"));
    for start in ["loads its own programs", "takes over programs that log"] {
        daemon.restart();
        let to = drop_datagrams(&daemon, &cgroup);
        let far_end = format!("::ffff:{} port {}", to.ip(), to.port());
        logs(&daemon, &[PROGRAMS, "cut: protocol 17", &far_end]);
        let told = daemon.logs().lines().filter(|line| line.contains(&far_end)).count();
        assert!(told > 10, "every one is told, not one a second: {told} by a daemon that {start}");
    }

    daemon.set_verbosity(None);
    daemon.restart();
    let before = daemon.logs().matches(PROGRAMS).count();
    drop_datagrams(&daemon, &cgroup);
    assert_eq!(daemon.logs().matches(PROGRAMS).count(), before, "loaded anew, they log nothing");
    assert_eq!(daemon.bottle("logged")["state"], "cut", "and the cut stood all the time");
}

#[test]
fn root_the_meter_and_the_lane_log_as_much_as_the_controller() {
    for verbosity in [None, Some("-v")] {
        let mut stage = Stage::new(Reply::default(), "");
        stage.daemon.set_verbosity(verbosity);
        stage.daemon.restart();
        let bottle = stage.bottle("logged", &[]);
        stage.daemon.ok(&["cut", "logged", "--answered"]);
        assert_ne!(stage.ask(&bottle, &["--stream"]).code, Some(0), "the lane says why");
        drop(TcpStream::connect(stage.daemon.listen_addr()).unwrap());
        let helpers = ["DEBUG meter_proxy::lane::", "DEBUG meter_proxy::identify"];
        if verbosity.is_some() {
            helpers.iter().for_each(|helper| logs(&stage.daemon, &[helper]));
        }
        stage.daemon.stop();
        let told = helpers.map(|helper| stage.daemon.logs().contains(helper));
        assert_eq!(told, [verbosity.is_some(); 2], "with {verbosity:?}");
    }
}
