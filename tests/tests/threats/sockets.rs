//! Sockets that connect() never saw, or saw elsewhere: repaired into being, from before the bottle, from outside of it.
//!
//! A packet is judged by the cgroup that its *socket* was made in. What was made in the bottle is dropped on the way
//! out; what was made outside stays outside, which is a limit that the README names and these tests hold to.
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::process::Command;

use support::capture::TCP;
use support::cgroup::TestCgroup;
use support::clock::wait_until;
use support::enforcer::Daemon;
use support::inmate::Inmate;
use support::network::{NEAR4, NEAR6, PUBLIC4, PUBLIC6, in_own_network};
use support::process;

use crate::away::{Away, Origin};
use crate::{QUIET, SOON};

const FAMILIES: [(IpAddr, IpAddr); 2] = [(NEAR4, PUBLIC4), (NEAR6, PUBLIC6)];

fn web(ip: IpAddr) -> SocketAddr {
    SocketAddr::new(ip, 443)
}

fn repair(near: IpAddr, public: IpAddr) -> String {
    format!("repair {} {}", SocketAddr::new(near, 4000), web(public))
}

#[test]
fn root_a_connection_repaired_into_being_leads_nowhere() {
    in_own_network(|| {
        let daemon = Daemon::start("");
        for (near, public) in FAMILIES {
            let group = TestCgroup::new("repair");
            let [mut free, mut early, mut held] = [None, Some(&group), Some(&group)].map(Away::new);
            // before the bottle is attached, connect() is nobody's business
            early.inmate.ok(&repair(near, public));
            daemon.attach("repair", group.path(), &[]);
            early.inmate.ok("wake");
            // inside, it is redirected as any other: its peer is the meter, which knows nothing of it
            held.inmate.ok(&repair(near, public));
            held.inmate.ok("wake");
            free.inmate.ok(&repair(near, public));
            free.inmate.ok("wake");
            let segments = free.came();
            assert!(
                segments.iter().any(|packet| packet.protocol == TCP && packet.port == 443),
                "{segments:?}"
            );
            assert_eq!((early.came(), held.came()), (vec![], vec![]), "{public}");
            daemon.ok(&["detach", "repair"]);
        }
    });
}

/// What the process writes comes out.
#[track_caller]
fn assert_comes_out(origin: &Origin, inmate: &mut Inmate) {
    let before = origin.bytes();
    inmate.ok("write");
    wait_until(SOON, || (origin.bytes() > before).then_some(())).expect("it comes out");
}

#[test]
fn root_a_connection_from_before_the_attachment_is_dropped() {
    in_own_network(|| {
        let daemon = Daemon::start("");
        let origin = Origin::new();
        for ip in [PUBLIC4, PUBLIC6] {
            let group = TestCgroup::new("early");
            let mut inmate = Inmate::start(Some(&group));
            inmate.ok(&format!("connect {}", web(ip)));
            assert_comes_out(&origin, &mut inmate);
            daemon.attach("early", group.path(), &[]);
            let before = origin.bytes();
            // into the socket's buffer, where it stays
            inmate.ok("write");
            std::thread::sleep(QUIET);
            assert_eq!(origin.bytes(), before, "{ip}");
            daemon.ok(&["detach", "early"]);
        }
    });
}

#[test]
fn root_a_connection_made_outside_stays_outside_which_is_a_named_limit() {
    in_own_network(|| {
        let daemon = Daemon::start("");
        let origin = Origin::new();
        let group = TestCgroup::new("foreign");
        daemon.attach("foreign", group.path(), &[]);
        let mut joined = Inmate::start(None);
        joined.ok(&format!("connect {}", web(PUBLIC4)));
        joined.ok(&format!("join {}", group.path().display()));
        let mut given = Inmate::start(Some(&group));
        given.hand_over(TcpStream::connect(web(PUBLIC4)).unwrap());
        for inmate in [&mut joined, &mut given] {
            assert_comes_out(&origin, inmate);
        }
        daemon.ok(&["cut", "foreign"]);
        for inmate in [&mut joined, &mut given] {
            assert_comes_out(&origin, inmate);
            // what it makes from now on is the bottle's
            assert_eq!(inmate.order(&format!("connect {}", web(PUBLIC4))), "EPERM");
        }
    });
}

#[test]
fn root_run_hands_no_connection_on() {
    in_own_network(|| {
        let daemon = Daemon::start("");
        let origin = Origin::new();
        let mut command = Command::new("bash");
        let script =
            format!("exec 9<>/dev/tcp/{PUBLIC4}/443; echo outside >&9; exec \"$@\" sh -c 'echo inside >&9'");
        command.args(["-c", &script, "bash"]).arg(daemon.command().get_program());
        command.args(daemon.command().get_args()).args(["run", "--user", "nobody", "--"]);
        let output = process::run(&mut command, SOON);
        assert_ne!(output.code, Some(0), "{output:?}");
        assert!(output.stderr.contains("Bad file descriptor"), "{output:?}");
        std::thread::sleep(QUIET);
        assert_eq!(origin.bytes(), "outside\n".len());
    });
}
