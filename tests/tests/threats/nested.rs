//! Bottles in bottles, ten cgroups deep: the innermost is charged, all above it count, and each one's verdict holds.
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Command, Stdio};

use serde_json::json;
use support::cgroup::TestCgroup;
use support::clock::wait_until;
use support::network::{PUBLIC4, in_own_network};
use support::process::{self, built};
use support::provider::Reply;
use support::sink::Sink;
use support::stage::{Sending, Stage};

use crate::SOON;

const NAMES: [&str; 3] = ["outer", "middle", "inner"];

/// A cgroup and nine below it, each in the one before. Dropped from the innermost on.
struct Shaft(Vec<TestCgroup>);

impl Shaft {
    /// With a bottle at its top, one in the middle and one at the bottom.
    fn attached(stage: &Stage) -> Self {
        let shaft = Self::ten_deep();
        for (name, depth) in NAMES.into_iter().zip([1, 5, 10]) {
            stage.daemon.attach(name, shaft.at(depth).path(), &[]);
        }
        shaft
    }

    fn ten_deep() -> Self {
        let mut cgroups = vec![TestCgroup::new("depth")];
        while let Some(last) = cgroups.last().filter(|_| cgroups.len() < 10) {
            let next = last.child("n");
            cgroups.push(next);
        }
        Self(cgroups)
    }

    /// The cgroup at a depth, from 1.
    fn at(&self, depth: usize) -> &TestCgroup {
        &self.0[depth - 1]
    }
}

impl Drop for Shaft {
    fn drop(&mut self) {
        while self.0.pop().is_some() {}
    }
}

/// An agent that knows of no proxy, in a cgroup.
fn agent(stage: &Stage, cgroup: &TestCgroup) -> Command {
    let address = SocketAddr::new(PUBLIC4, 443).to_string();
    let ca = stage.daemon.ok(&["ca", "path"]);
    let mut command = Command::new(built("demo-agent"));
    command.env_clear().args(["--json", "--mode", "direct", "--address", &address, "--ca-file", ca.trim()]);
    cgroup.enter_before_exec(&mut command);
    command
}

/// A sender in a cgroup for a moment: whether its datagrams come out. The kernel tells it of each that does not.
fn gets_out(cgroup: &TestCgroup) -> bool {
    let sink = Sink::udp(Ipv4Addr::LOCALHOST.into());
    let figures = Sending::start(Some(cgroup), "udp", sink.address(), 60).figures();
    let sent = figures["bytes"].as_u64().unwrap();
    assert_eq!(sent > 0, figures["errors"] == json!({}), "all or nothing: {figures}");
    wait_until(SOON, || (sink.bytes() as u64 == sent).then_some(())).expect("what is sent comes in");
    sent > 0
}

#[test]
fn root_ten_deep_the_innermost_is_charged_and_every_bottle_above_counts_it() {
    in_own_network(|| {
        // one request is 65 tokens
        let budgets =
            "bottles: { outer: { budget: { claude: 300 } }, middle: { budget: { claude: 1000 } } }\n";
        let stage = Stage::over_tls(Reply::default(), budgets);
        let shaft = Shaft::attached(&stage);
        for (depth, charged) in [(10, "inner"), (9, "middle"), (4, "outer"), (10, "inner")] {
            let before = stage.flows(charged).len();
            let output = process::run(&mut agent(&stage, shaft.at(depth)), SOON);
            assert_eq!(output.code, Some(0), "{depth} deep: {output:?}");
            assert_eq!(stage.flows(charged).len(), before + 1, "{depth} deep");
        }
        let told = NAMES.map(|name| {
            let bottle = stage.daemon.bottle(name);
            let budget = &bottle["budget"]["claude"];
            json!([bottle["parent"], bottle["usage"]["claude"]["flows"], budget["owner"], budget["used"]])
        });
        let expected = [
            json!([null, 1, "outer", 4 * 65]),
            json!(["outer", 1, "middle", 3 * 65]),
            json!(["middle", 2, "middle", 3 * 65]),
        ];
        assert_eq!(told, expected);
        // what the fifth answer costs, the outermost's budget has no room for: nothing in the whole shaft goes on
        let mut crossing = agent(&stage, shaft.at(10)).stdout(Stdio::null()).spawn().unwrap();
        let cut = stage.daemon.wait_bottle("outer", |bottle| bottle["state"] == "cut", SOON);
        process::kill(&mut crossing);
        let cause = ["kind", "scope", "owner", "limit", "used"].map(|key| cut["cause"][key].clone());
        assert_eq!(json!(cause), json!(["budget", "bottle", "outer", 300, 5 * 65]));
        assert_eq!([1, 5, 10].map(|depth| gets_out(shaft.at(depth))), [false; 3]);
    });
}

#[test]
fn root_ten_deep_each_verdict_holds_until_it_is_lifted_itself() {
    in_own_network(|| {
        let stage = Stage::over_tls(Reply::default(), "");
        let shaft = Shaft::attached(&stage);
        let out = || [1, 4, 5, 9, 10].map(|depth| gets_out(shaft.at(depth)));
        assert_eq!(out(), [true; 5]);
        for (verdict, name, expected) in [
            ("cut", "inner", [true, true, true, true, false]),
            ("cut", "outer", [false; 5]),
            ("restore", "outer", [true, true, true, true, false]),
            ("cut", "middle", [true, true, false, false, false]),
            ("restore", "inner", [true, true, false, false, false]),
            ("restore", "middle", [true; 5]),
        ] {
            stage.daemon.ok(&[verdict, name]);
            assert_eq!(out(), expected, "after {verdict} {name}");
        }
    });
}
