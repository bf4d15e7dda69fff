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
use support::sink::Sink;

use crate::away::Away;
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
            println!("{:?}", held.inmate.order(&repair(near, public)));
            println!("{:?}", held.inmate.order("wake"));
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

/// An origin at :443 of a public address of the test's own network.
struct Origin(Sink);

impl Origin {
    fn new(ip: IpAddr) -> Self {
        Self(Sink::tcp_at(web(ip)))
    }

    /// Bytes that it has got once everything has had its time.
    fn bytes(&self) -> usize {
        std::thread::sleep(QUIET);
        self.0.bytes()
    }

    #[track_caller]
    fn assert_hears(&self, mut write: impl FnMut()) {
        let before = self.0.bytes();
        write();
        wait_until(SOON, || (self.0.bytes() > before).then_some(())).expect("it comes out");
    }

    #[track_caller]
    fn assert_deaf_to(&self, mut write: impl FnMut()) {
        let before = self.bytes();
        write();
        assert_eq!(self.bytes(), before, "it came out");
    }
}

#[test]
fn root_a_connection_from_before_the_attachment_is_dropped() {
    in_own_network(|| {
        let daemon = Daemon::start("");
        for ip in [PUBLIC4, PUBLIC6] {
            let origin = Origin::new(ip);
            let group = TestCgroup::new("early");
            let mut inmate = Inmate::start(Some(&group));
            inmate.ok(&format!("connect {}", web(ip)));
            origin.assert_hears(|| drop(inmate.ok("write")));
            daemon.attach("early", group.path(), &[]);
            // into the socket's buffer, where it stays
            origin.assert_deaf_to(|| drop(inmate.ok("write")));
            daemon.ok(&["detach", "early"]);
        }
    });
}

#[test]
fn root_a_connection_made_outside_stays_outside_which_is_a_named_limit() {
    in_own_network(|| {
        let daemon = Daemon::start("");
        let origin = Origin::new(PUBLIC4);
        let group = TestCgroup::new("foreign");
        daemon.attach("foreign", group.path(), &[]);
        let mut joined = Inmate::start(None);
        joined.ok(&format!("connect {}", web(PUBLIC4)));
        joined.ok(&format!("join {}", group.path().display()));
        let mut given = Inmate::start(Some(&group));
        given.hand_over(TcpStream::connect(web(PUBLIC4)).unwrap());
        for inmate in [&mut joined, &mut given] {
            origin.assert_hears(|| drop(inmate.ok("write")));
        }
        daemon.ok(&["cut", "foreign"]);
        for inmate in [&mut joined, &mut given] {
            origin.assert_hears(|| drop(inmate.ok("write")));
            // what it makes from now on is the bottle's
            assert_eq!(inmate.order(&format!("connect {}", web(PUBLIC4))), "EPERM");
        }
    });
}

#[test]
fn root_run_hands_no_connection_on() {
    in_own_network(|| {
        let daemon = Daemon::start("");
        let origin = Origin::new(PUBLIC4);
        let run = format!("{:?} run --user nobody -- sh -c 'echo inside >&9'", daemon.command());
        let script = format!("exec 9<>/dev/tcp/{PUBLIC4}/443; echo outside >&9; {}", run.replace('"', ""));
        let output = process::run(Command::new("bash").args(["-c", &script]), SOON);
        assert_ne!(output.code, Some(0), "{output:?}");
        assert!(output.stderr.contains("Bad file descriptor"), "{output:?}");
        assert_eq!(origin.bytes(), "outside\n".len());
    });
}
