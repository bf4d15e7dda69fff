//! A container of runc's, frozen, thawed and killed from outside of it.
use std::time::Duration;

use support::cgroup::TestCgroup;
use support::clock::wait_until;
use support::container::Bundle;
use support::network::in_own_network;
use support::provider::Reply;
use support::stage::Stage;

use crate::{SOON, WATCHED};

#[test]
fn root_a_container_is_frozen_thawed_and_killed() {
    in_own_network(|| {
        let stage = Stage::new(Reply::default(), "");
        let slice = stage.bottle("slice", &[]);
        let bundle = Bundle::new(&[]);
        let script = "while :; do echo tick; sleep 0.01; done";
        let mut container = bundle.start(&slice.cgroup, "ticking", true, &["/bin/sh", "-c", script]);
        let ticks = || bundle.said("ticking", "stdout").len();
        let goes_on = || {
            let before = ticks();
            wait_until(SOON, || (ticks() > before).then_some(())).expect("the container goes on");
        };
        goes_on();
        stage.daemon.ok(&["freeze", "slice"]);
        let before = ticks();
        std::thread::sleep(WATCHED);
        assert_eq!(ticks(), before, "it goes on");
        stage.daemon.ok(&["thaw", "slice"]);
        goes_on();
        stage.daemon.ok(&["freeze", "slice"]);
        stage.daemon.ok(&["kill", "slice", "--yes"]);
        assert_eq!(container.ended(Duration::from_secs(10)), Some(137), "killed although it was frozen");
        assert!(TestCgroup::pids(&slice.cgroup).is_empty());
        assert_eq!(stage.daemon.bottle("slice")["state"], "killed");
    });
}
