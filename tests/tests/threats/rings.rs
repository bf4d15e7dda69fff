//! io_uring from a bottle that was attached (`run` forbids it): its workers' calls meet the same hooks.
use std::net::{Ipv4Addr, SocketAddr};

use support::cgroup::TestCgroup;
use support::clock::wait_until;
use support::enforcer::Daemon;
use support::inmate::Inmate;
use support::network::{PUBLIC4, PUBLIC6, in_own_network};
use support::sink::Sink;

use crate::{QUIET, SOON};

#[test]
fn root_a_ring_connects_to_the_meter_and_sends_nothing_once_cut() {
    in_own_network(|| {
        let daemon = Daemon::start("");
        let meter: SocketAddr = daemon.listen_addr().parse().unwrap();
        let group = TestCgroup::new("ring");
        daemon.attach("ring", group.path(), &[]);
        let mut inmate = Inmate::start(Some(&group));
        let mut free = Inmate::start(None);
        for ip in [PUBLIC4, PUBLIC6] {
            let web = SocketAddr::new(ip, 443);
            let origin = Sink::tcp_at(web);
            free.ok(&format!("ring-connect {web}"));
            free.ok("ring-write");
            let came = wait_until(SOON, || Some(origin.bytes()).filter(|bytes| *bytes > 0));
            let came = came.expect("the way leads out");
            inmate.ok(&format!("ring-connect {web}"));
            assert_eq!(inmate.ok("peer"), web.to_string(), "it is told what it asked for");
            inmate.ok("ring-write");
            std::thread::sleep(QUIET);
            assert_eq!(origin.bytes(), came, "the origin hears nothing of it");
        }
        let local = Sink::tcp((Ipv4Addr::LOCALHOST).into());
        let passed = daemon.bottle("ring")["kernel"]["passed_packets"].as_u64();
        assert!(passed > Some(0), "what it wrote went to the meter at {meter}");
        inmate.ok(&format!("ring-connect {}", local.address()));
        inmate.ok("ring-write");
        let heard = wait_until(SOON, || Some(local.bytes()).filter(|bytes| *bytes > 0)).expect("it is open");
        daemon.ok(&["cut", "ring"]);
        inmate.ok("ring-write");
        assert_eq!(inmate.order(&format!("ring-connect {}", local.address())), "EPERM");
        assert_eq!(inmate.order(&format!("ring-udp {}", local.address())), "EPERM");
        std::thread::sleep(QUIET);
        assert_eq!(local.bytes(), heard, "what it writes stays in the socket's buffer");
    });
}
