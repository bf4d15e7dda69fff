//! Agents in containers (runc's), which start after their bottle is attached: by what they are in they are metered.
use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use serde_json::Value;
use support::cgroup::TestCgroup;
use support::container::{Bundle, PROGRAMS};
use support::network::{PUBLIC4, in_own_network};
use support::provider::Reply;
use support::sink::Sink;
use support::stage::Stage;

use crate::clients::{NODE_CLIENT, assert_metered, assert_stops_and_goes_on, hosts_file};
use crate::{QUIET, SOON};

/// A container's files: it knows the provider's address and the CA, and of no proxy.
fn bundle(stage: &Stage) -> Bundle {
    let ca = fs::read(stage.daemon.ok(&["ca", "path"]).trim()).unwrap();
    let node = fs::read(NODE_CLIENT).unwrap();
    Bundle::new(&[("ca.pem", &ca), ("client.mjs", &node), ("etc/hosts", hosts_file(PUBLIC4).as_bytes())])
}

#[test]
fn root_a_container_with_nothing_but_lo_is_metered_cut_and_restored() {
    in_own_network(|| {
        let stage = Stage::over_tls(Reply::paced(300, 8, Duration::from_millis(5)), "");
        let slice = stage.bottle("slice", &[]);
        let bundle = bundle(&stage);
        let mut node = bundle.start(&slice.cgroup, "node", true, &["node", "/client.mjs"]);
        assert_stops_and_goes_on(&stage, "slice", &bundle.output("node", "stdout"));
        assert_eq!(node.ended(SOON), Some(0), "{}", bundle.said("node", "stderr"));
        println!("the client said: {}", bundle.said("node", "stderr").trim());
        assert_metered(&stage, "slice", &fs::read(bundle.output("node", "stdout")).unwrap());
    });
}

/// The way without a gap: the parent is attached while it is empty, and whatever starts below is in the bottle from
/// its first instruction on.
#[test]
fn root_below_an_attached_parent_the_first_packet_is_governed() {
    in_own_network(|| {
        let stage = Stage::over_tls(Reply::default(), "");
        let slice = stage.bottle("slice", &[]);
        let bundle = bundle(&stage);
        let sink = Sink::udp(IpAddr::V4(Ipv4Addr::LOCALHOST));
        let to = sink.address().to_string();
        let sender = format!("{PROGRAMS}/sender");
        let words = [&sender, "udp", &to, "--for-ms", "300"];
        stage.daemon.ok(&["cut", "slice"]);
        let figures = |name: &str| -> Value {
            let mut sender = bundle.start(&slice.cgroup, name, false, &words);
            assert_eq!(sender.ended(SOON), Some(0), "{}", bundle.said(name, "stderr"));
            serde_json::from_str(&bundle.said(name, "stdout")).unwrap()
        };
        let cut = figures("cut");
        std::thread::sleep(QUIET);
        assert_eq!((cut["sent"].as_u64(), sink.bytes()), (Some(0), 0), "{cut}");
        assert!(cut["errors"]["EPERM"].as_u64() > Some(10), "{cut}");
        stage.daemon.ok(&["restore", "slice"]);
        let open = figures("open");
        assert!(open["sent"].as_u64() > Some(10) && sink.bytes() > 0, "{open}");
        let mut node = bundle.start(&slice.cgroup, "node", false, &["node", "/client.mjs"]);
        assert_eq!(node.ended(SOON), Some(0), "{}", bundle.said("node", "stderr"));
        assert_metered(&stage, "slice", &fs::read(bundle.output("node", "stdout")).unwrap());
        assert!(stage.flows("slice").len() == 1 && TestCgroup::pids(&slice.cgroup).is_empty());
    });
}
