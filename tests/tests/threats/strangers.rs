//! `unattached: meter`: what is not known for a bottle's is metered as the host's, which a bottle must not be taken for.
use std::net::SocketAddr;

use serde_json::json;
use support::cgroup::TestCgroup;
use support::enforcer::Daemon;
use support::inmate::Inmate;
use support::network::in_own_network;

#[test]
fn root_a_connection_of_before_the_attach_does_not_go_on_as_the_host_s() {
    in_own_network(|| {
        let daemon = Daemon::start("unattached: meter\n");
        let meter: SocketAddr = daemon.listen_addr().parse().unwrap();
        let group = TestCgroup::new("before");
        let [mut early, mut outside] = [Some(&group), None].map(Inmate::start);
        for inmate in [&mut early, &mut outside] {
            inmate.ok(&format!("connect {meter}"));
        }
        let path = group.path().to_str().unwrap();
        let output = daemon.cli(&["attach", "before", "--cgroup", path]);
        assert_eq!(output.code, Some(0), "{output:?}");
        assert!(
            output.stderr.contains("1 connections to the meter that counted as the host's were aborted"),
            "{output:?}"
        );
        assert_eq!(early.order("write"), "ECONNABORTED");
        early.ok(&format!("connect {meter}"));
        assert_eq!(outside.order("write"), "ok", "the host's own goes on");
        assert_eq!(daemon.json(&["usage"]), json!([]));
    });
}
