//! An agent that knows nothing of the meter: no variable, no proxy. Its bottle alone sends it there.
//!
//! Each test has a network of its own in which the provider's name leads to an address where nobody listens: what is
//! answered went through the meter.
#![allow(clippy::unwrap_used, reason = "a failed expectation should stop the test where it stands")]
use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use serde_json::json;
use support::network::{PUBLIC4, in_own_network};
use support::process::{self, Output, built};
use support::provider::Reply;
use support::stage::{Bottle, Stage};

const SOON: Duration = Duration::from_secs(30);

/// An agent that dials the provider's address itself; it trusts the meter's CA, and that is all it is told.
fn ask_directly(stage: &Stage, bottle: &Bottle, arguments: &[&str]) -> Output {
    let address = SocketAddr::new(PUBLIC4, 443).to_string();
    let ca = stage.daemon.ok(&["ca", "path"]);
    let mut command = Command::new(built("demo-agent"));
    command.env_clear().args(["--json", "--mode", "direct", "--address", &address, "--ca-file", ca.trim()]);
    bottle.cgroup.enter_before_exec(command.args(arguments));
    process::run(&mut command, SOON)
}

#[test]
fn root_an_agent_that_knows_of_no_proxy_is_metered_by_its_cgroup_alone() {
    in_own_network(|| {
        let stage = Stage::over_tls(Reply::default(), "");
        let bottle = stage.bottle("unaware", &[]);
        for (provider, stream) in [("claude", true), ("claude", false), ("codex", true), ("codex", false)] {
            let stream: &[&str] = if stream { &["--stream"] } else { &[] };
            let output = ask_directly(&stage, &bottle, &[&["--provider", provider], stream].concat());
            assert_eq!(
                output.code,
                Some(0),
                "{provider} {stream:?}: {}\n{}",
                output.stderr,
                stage.daemon.logs()
            );
            let answer: serde_json::Value = serde_json::from_str(output.stdout.trim()).unwrap();
            let record = stage.provider.billing_records().pop().unwrap();
            assert_eq!(answer["body_sha256"], record.response_sha256, "{provider} {stream:?}");
            let flow = stage.flows("unaware").pop().unwrap();
            assert_eq!(flow["provenance"], "reported", "{flow}");
            assert_eq!(
                json!([flow["input"], flow["output"]]),
                json!([record.billed.input, record.billed.output])
            );
            assert_eq!(flow["provider"], provider);
        }
    });
}

#[test]
fn root_its_budget_cuts_it_and_nothing_more_reaches_the_provider() {
    in_own_network(|| {
        let endless = Reply::paced(4_000, 8, Duration::from_millis(5));
        let stage = Stage::over_tls(endless, "budget: { claude: 400 }\n");
        let bottle = stage.bottle("keen", &[]);
        let address = SocketAddr::new(PUBLIC4, 443).to_string();
        let ca = stage.daemon.ok(&["ca", "path"]);
        let mut command = Command::new(built("demo-agent"));
        command.env_clear().args([
            "--stream",
            "--mode",
            "direct",
            "--address",
            &address,
            "--ca-file",
            ca.trim(),
        ]);
        let mut agent = bottle.cgroup.spawn(command.stdout(std::process::Stdio::null()));
        let cut = stage.daemon.wait_bottle("keen", |bottle| bottle["state"] == "cut", SOON);
        assert_eq!(cut["cause"]["kind"], "budget");
        process::kill(&mut agent);
        let again = ask_directly(&stage, &bottle, &["--stream"]);
        assert_eq!(again.code, Some(3), "it is told why: {again:?}");
        assert!(again.stderr.contains("of 400 claude tokens"), "{again:?}");
        assert_eq!(stage.provider.billing_records().len(), 1);
    });
}
