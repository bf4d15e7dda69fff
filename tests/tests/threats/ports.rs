//! Ports: the meter's may not be taken by a bottle, and a connection's own says nothing of whose it is.
use std::net::{IpAddr, SocketAddr};

use support::cgroup::TestCgroup;
use support::clock::wait_until;
use support::enforcer::Daemon;
use support::inmate::Inmate;
use support::network::in_own_network;
use support::provider::Reply;
use support::stage::Stage;

use crate::SOON;

/// Addresses under which a squatter would be found.
const ADDRESSES: [&str; 5] = ["127.0.0.1", "0.0.0.0", "127.0.0.2", "::1", "::"];

#[test]
fn root_with_daemon_and_meter_dead_a_bottle_cannot_take_their_port() {
    in_own_network(|| {
        let mut daemon = Daemon::start("");
        let meter: SocketAddr = daemon.listen_addr().parse().unwrap();
        let group = TestCgroup::new("squatter");
        daemon.attach("squatter", group.path(), &[]);
        let [mut here, mut elsewhere] = [(); 2].map(|()| Inmate::start(Some(&group)));
        elsewhere.ok("unshare");
        let mut free = Inmate::start(None);
        let process = daemon.meter();
        daemon.kill9();
        process.kill();
        wait_until(SOON, || (!process.is_alive()).then_some(())).expect("the meter is dead");
        // a killed process holds its descriptors until the last of its threads has ended
        let first = format!("listen tcp {meter}");
        wait_until(SOON, || (free.order(&first) == "ok").then_some(()))
            .expect("nobody holds the port any more");
        for ip in ADDRESSES.map(|ip| ip.parse::<IpAddr>().unwrap()) {
            for (kind, how) in [("tcp", ""), ("tcp", "shared"), ("udp", ""), ("udp", "shared")] {
                let order = format!("listen {kind} {} {how}", SocketAddr::new(ip, meter.port()));
                assert_eq!(free.order(&order), "ok", "{order}: nobody holds it");
                for inmate in [&mut here, &mut elsewhere] {
                    assert_eq!(inmate.order(&order), "EPERM", "{order}");
                }
            }
        }
        // another port is nobody's business
        for inmate in [&mut here, &mut elsewhere] {
            inmate.ok(&format!("listen tcp {}", SocketAddr::new(meter.ip(), meter.port() ^ 1)));
        }
    });
}

/// The ports that every connection of the test's network comes from.
const FIRST_PORT: u16 = 40_000;
const PORTS: u16 = 24;
const REQUESTS: usize = 5;
/// The meter's address before and after a restart.
const RESTARTED: &str = "127.0.0.1:7080";

/// Connections of a namespace that the agent made itself, from every port that its neighbour can have, to the address
/// and port that the meter has in the neighbour's: none of the neighbour's is taken for one of them.
#[test]
fn root_a_namespace_of_its_own_makes_no_connection_of_a_neighbour_s_its_own() {
    in_own_network(|| {
        let range = format!("{FIRST_PORT} {}", FIRST_PORT + PORTS - 1);
        std::fs::write("/proc/sys/net/ipv4/ip_local_port_range", range).unwrap();
        let stage = Stage::new(Reply::default(), "");
        let meter: SocketAddr = stage.daemon.listen_addr().parse().unwrap();
        let [spoofing, working] = ["spoofing", "working"].map(|name| stage.bottle(name, &[]));
        let connect = format!("connect {meter}");
        let mut spoofer = Inmate::start(Some(&spoofing.cgroup));
        spoofer.ok("unshare");
        // before the meter is there too, where nothing is remembered, and after
        for is_served in [false, true] {
            if is_served {
                let connected = wait_until(SOON, || spoofer.order(&connect).starts_with("ok").then_some(()));
                connected.expect("the meter comes to the namespace");
            }
            let claimed = spoofer.ok(&format!("claim {FIRST_PORT} {PORTS} {meter}"));
            assert!(!is_served || !claimed.starts_with('0'), "{claimed}");
            for _ in 0..REQUESTS {
                let asked = stage.ask(&working, &["--stream", "--mode", "gateway"]);
                assert_eq!((asked.code, asked.answers.len()), (Some(0), 1), "{asked:?}");
            }
        }
        let flows = ["spoofing", "working"].map(|name| stage.flows(name).len());
        assert_eq!(flows, [0, 2 * REQUESTS], "each is charged to whose it is");
    });
}

/// As above, with connections that the agent only began under an earlier controller, whose ids of namespaces a later
/// one could give to others.
#[test]
fn root_connections_begun_before_a_restart_make_none_of_a_neighbour_s_their_own() {
    in_own_network(|| {
        let stage_settings = format!("listen: \"{RESTARTED}\"\n");
        let mut stage = Stage::new(Reply::default(), &stage_settings);
        // the neighbour's slot is the first to be looked at after the restart
        let [working, spoofing] = ["working", "spoofing"].map(|name| stage.bottle(name, &[]));
        let [mut spoofer, mut neighbour] = [&spoofing, &working].map(|bottle| {
            let mut inmate = Inmate::start(Some(&bottle.cgroup));
            inmate.ok("unshare");
            let connect = format!("connect {RESTARTED}");
            let connected = wait_until(SOON, || inmate.order(&connect).starts_with("ok").then_some(()));
            connected.expect("the meter comes to the namespace");
            inmate.ok("close");
            inmate
        });
        spoofer.shell("echo 5 > /proc/sys/net/ipv4/tcp_fastopen");
        let begun = spoofer.ok(&format!("begin {FIRST_PORT} {PORTS} {RESTARTED}"));
        assert!(begun.starts_with(&PORTS.to_string()), "{begun}");
        stage.daemon.kill9();
        stage.daemon.restart();
        spoofer.order("speak");

        let last = FIRST_PORT + PORTS - 1;
        neighbour.shell(&format!("echo {FIRST_PORT} {last} > /proc/sys/net/ipv4/ip_local_port_range"));
        neighbour.network().enter(|| {
            for _ in 0..REQUESTS {
                let asked = stage.ask(&working, &["--stream", "--mode", "gateway"]);
                assert_eq!((asked.code, asked.answers.len()), (Some(0), 1), "{asked:?}");
            }
        });
        let flows = ["spoofing", "working"].map(|name| stage.flows(name).len());
        assert_eq!(flows, [0, REQUESTS], "each is charged to whose it is");
    });
}
