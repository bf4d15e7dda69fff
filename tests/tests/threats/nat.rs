//! Address translation inside the bottle's own network: the agent is root there, and writes its own rules.
//!
//! connect() sees a harmless address; what leaves is judged after the translation.
use std::net::{IpAddr, SocketAddr};

use support::cgroup::TestCgroup;
use support::clock::wait_until;
use support::enforcer::Daemon;
use support::inmate::Inmate;
use support::network::{NEAR4, NEAR6, Namespace, PUBLIC4, PUBLIC6, cable, in_own_network, link};

use crate::away::{Away, Origin};
use crate::{QUIET, SOON};

/// Lets an inmate's rules for one family send to :443 of the origin, from another source, what is sent to :9999 there,
/// to :8443 of its own address, and to `meter`.
fn translate(away: &mut Away, own: IpAddr, origin: IpAddr, meter: Option<SocketAddr>) {
    let family = if origin.is_ipv4() { "ip" } else { "ip6" };
    let to = SocketAddr::new(origin, 443);
    let mut lines = vec![
        format!("add table {family} away"),
        format!("add chain {family} away out {{ type nat hook output priority -100; }}"),
        format!("add chain {family} away after {{ type nat hook postrouting priority 100; }}"),
        format!("add rule {family} away out {family} daddr {origin} tcp dport 9999 dnat to {to}"),
        format!("add rule {family} away out {family} daddr {own} tcp dport 8443 dnat to {to}"),
        format!("add rule {family} away after {family} daddr {origin} snat to {own}"),
    ];
    if let Some(meter) = meter {
        let (ip, port) = (meter.ip(), meter.port());
        lines.push(format!("add rule {family} away out {family} daddr {ip} tcp dport {port} dnat to {to}"));
    }
    away.inmate.shell(&format!("nft '{}'", lines.join("; ")));
}

#[test]
fn root_translation_to_the_metered_port_leads_nowhere() {
    in_own_network(|| {
        let daemon = Daemon::start("");
        let meter: SocketAddr = daemon.listen_addr().parse().unwrap();
        let group = TestCgroup::new("nat");
        daemon.attach("nat", group.path(), &[]);
        let targets = [
            SocketAddr::new(PUBLIC4, 9999),
            SocketAddr::new(NEAR4, 8443),
            meter,
            SocketAddr::new(PUBLIC6, 9999),
            SocketAddr::new(NEAR6, 8443),
        ];
        let [mut free, mut held] = [None, Some(&group)].map(Away::new);
        for away in [&mut free, &mut held] {
            translate(away, NEAR4, PUBLIC4, Some(meter));
            translate(away, NEAR6, PUBLIC6, None);
            // lets what has a loopback address leave
            away.inmate.shell("echo 1 >/proc/sys/net/ipv4/conf/all/route_localnet");
        }
        for to in targets {
            free.assert_leads_out(to);
            let answer = held.inmate.order(&format!("connect {to}"));
            assert_eq!(answer, "ETIMEDOUT", "{to}");
        }
        assert!(!free.came().is_empty(), "the wire is listened to");
        assert_eq!((held.origin.bytes(), held.came()), (0, vec![]));
    });
}

/// Rewrites at the device, below where packets are judged: :9999 of the origin becomes :443, and back.
const DEVICE_RULES: &str = "nft 'add table netdev below; \
     add chain netdev below out { type filter hook egress device near priority 0; }; \
     add chain netdev below in { type filter hook ingress device near priority 0; }; \
     add rule netdev below out ip daddr 203.0.113.7 tcp dport 9999 tcp dport set 443; \
     add rule netdev below in ip saddr 203.0.113.7 tcp sport 443 tcp sport set 9999'";
/// Makes a router: what comes in for :7443 leaves for the origin's :443.
const ROUTER_RULES: &str = "echo 1 >/proc/sys/net/ipv4/ip_forward; nft 'add table ip router; \
     add chain ip router in { type nat hook prerouting priority -100; }; \
     add chain ip router after { type nat hook postrouting priority 100; }; \
     add rule ip router in tcp dport 7443 dnat to 203.0.113.7:443; \
     add rule ip router after ip daddr 203.0.113.7 masquerade'";

/// Holds to the limit: this way leads out of an open bottle, and a cut closes it all the same.
fn assert_leads_out_until_cut(daemon: &Daemon, bottle: &str, origin: &Origin, client: &mut Inmate, to: &str) {
    client.ok(&format!("connect {to}"));
    client.ok("write");
    let came = wait_until(SOON, || Some(origin.bytes()).filter(|bytes| *bytes > 0)).expect("it comes out");
    daemon.ok(&["cut", bottle]);
    client.ok("write");
    assert_eq!(client.order(&format!("connect {to}")), "EPERM");
    std::thread::sleep(QUIET);
    assert_eq!(origin.bytes(), came, "{bottle}: it came out of a cut bottle");
}

/// The limit that the README names: who is root of a network that leads out rules over its devices, below the hooks
/// on sockets. (A bottle needs no such network: from one with nothing but `lo`, only the meter is reached.)
#[test]
fn root_rules_at_the_device_lead_out_of_an_open_bottle_which_is_a_named_limit() {
    in_own_network(|| {
        let daemon = Daemon::start("");
        let group = TestCgroup::new("device");
        daemon.attach("device", group.path(), &[]);
        let mut away = Away::new(Some(&group));
        away.inmate.shell(DEVICE_RULES);
        let to = SocketAddr::new(PUBLIC4, 9999).to_string();
        assert_leads_out_until_cut(&daemon, "device", &away.origin, &mut away.inmate, &to);
    });
}

/// The same limit: what a router forwards is no socket's.
#[test]
fn root_a_bottle_that_is_its_own_router_gets_out_which_is_a_named_limit() {
    in_own_network(|| {
        let daemon = Daemon::start("");
        let group = TestCgroup::new("router");
        daemon.attach("router", group.path(), &[]);
        let mut router = Away::new(Some(&group));
        let mut client = Inmate::start(Some(&group));
        client.ok("unshare");
        router.inmate.shell(ROUTER_RULES);
        cable((&router.inmate.network(), "outer"), (&client.network(), "inner"));
        router.inmate.shell("ip address add 10.5.0.1/24 dev outer");
        client.shell("ip address add 10.5.0.2/24 dev inner");
        assert_leads_out_until_cut(&daemon, "router", &router.origin, &mut client, "10.5.0.1:7443");
    });
}

/// So who rules over a network that leads out is not confined; who rules over `lo` alone is.
#[test]
fn root_who_rules_over_a_network_that_leads_out_is_not_confined() {
    in_own_network(|| {
        let daemon = Daemon::start("resolvers: [127.0.0.1]\n");
        let group = TestCgroup::new("ruler");
        let path = group.path().to_str().unwrap();
        let attach = |mode: &str| daemon.cli(&["attach", "ruler", "--cgroup", path, "--egress", mode]);
        let mut inmate = Inmate::start(Some(&group));
        inmate.ok("unshare");
        let output = attach("metered");
        assert_eq!((output.code, output.stderr.as_str()), (Some(0), ""));
        daemon.ok(&["detach", "ruler"]);
        let far = Namespace::new();
        link(&inmate.network(), &far);
        for mode in ["metered", "allowlist"] {
            let output = attach(mode);
            assert_eq!(output.code, Some(5), "{output:?}");
            assert!(output.stderr.contains("has CAP_NET_ADMIN over a network that leads out"), "{output:?}");
        }
        let output = attach("open");
        assert_eq!(output.code, Some(0), "{output:?}");
        assert!(output.stderr.contains("is not metered"), "{output:?}");
    });
}
