//! The answered cut: an agent's connections end at once, its next request hears why, and nothing else gets anywhere.
#![allow(clippy::unwrap_used, reason = "a failed expectation should stop the test where it stands")]
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::cgroup::{self, TestCgroup};
use support::clock::wait_until;
use support::enforcer::Daemon;
use support::inmate::Inmate;
use support::namespace::Holder;
use support::network::{Namespace, PUBLIC4, PUBLIC6, in_own_network};
use support::process::{self, Output, built};
use support::provider::{End, Reply, Script};
use support::sink::Sink;
use support::stage::{Bottle, Stage};

const SOON: Duration = Duration::from_secs(10);
/// An agent that hangs would not be told within this.
const AT_ONCE: Duration = Duration::from_secs(2);

/// A stream that goes on for longer than any test.
fn endless() -> Reply {
    Reply::paced(20_000, 8, Duration::from_millis(2))
}

fn face(bottle: &Value) -> [&Value; 2] {
    [&bottle["state"], &bottle["face"]]
}

fn wait_face(daemon: &Daemon, name: &str, wanted: &str) -> Value {
    daemon.wait_bottle(name, |bottle| face(bottle) == [&json!("cut"), &json!(wanted)], SOON)
}

/// An agent that dials the provider at `address` itself and knows of no proxy.
fn direct(stage: &Stage, bottle: &Bottle, address: IpAddr) -> Command {
    let address = SocketAddr::new(address, 443).to_string();
    let ca = stage.daemon.ok(&["ca", "path"]);
    let mut command = Command::new(built("demo-agent"));
    command.env_clear().args(["--json", "--mode", "direct", "--address", &address, "--ca-file", ca.trim()]);
    bottle.cgroup.enter_before_exec(&mut command);
    command
}

/// Runs an agent that is told why within the time of an answer.
fn told_why(command: &mut Command, why: &str) -> Output {
    let started = Instant::now();
    let output = process::run(command, SOON);
    assert_eq!(output.code, Some(3), "{output:?}");
    assert!(output.stderr.contains(why), "{why}: {}", output.stderr);
    assert!(started.elapsed() < AT_ONCE, "it took {:?}", started.elapsed());
    output
}

#[test]
fn root_an_agent_cut_for_budget_in_a_stream_is_interrupted_and_its_next_request_hears_why() {
    let stage = Stage::over_tls(endless(), "");
    let bottle = stage.bottle("told", &["--budget", "claude=600"]);
    let asking = stage.start_asking(&bottle, &["--stream", "--mode", "connect"]);
    let cut = wait_face(&stage.daemon, "told", "answered");
    let began = Instant::now();
    let asked = asking.ended(SOON);
    println!("the agent's stream broke {:?} after the cut was seen", began.elapsed());
    assert!(began.elapsed() < AT_ONCE, "it was not left hanging");
    assert_eq!(asked.code, Some(4), "{asked:?}");
    let record = stage.provider.wait_for(|records| records[0].end.is_some(), SOON).remove(0);
    assert_eq!(record.end, Some(End::ClientGone));

    let used = cut["cause"]["used"].to_string();
    for provider in ["claude", "codex"] {
        for mode in ["gateway", "connect"] {
            let mut agent =
                stage.agent(&bottle, &["--json", "--stream", "--provider", provider, "--mode", mode]);
            let output = told_why(&mut agent, "of 600 claude tokens");
            assert!(output.stderr.contains(&used), "{used}: {}", output.stderr);
            let answer: Value = serde_json::from_str(&output.stdout).unwrap();
            assert_eq!(answer["status"], if provider == "claude" { 402 } else { 429 });
            let headers = answer["headers"].as_array().unwrap();
            assert!(headers.contains(&json!(["x-should-retry", "false"])), "{headers:?}");
        }
    }
    assert_eq!(stage.provider.records().len(), 1, "the provider saw no further request");
    assert_eq!(stage.daemon.json(&["status"])["daemon"]["lane"]["state"], "serving");
}

#[test]
fn root_an_agent_that_spoke_http2_is_interrupted_and_hears_why_all_the_same() {
    let stage = Stage::over_tls(Script::from(endless()).offering_http2(), "");
    let bottle = stage.bottle("told2", &["--budget", "claude=600"]);
    let asking = stage.start_asking(&bottle, &["--stream", "--mode", "connect", "--http2"]);
    wait_face(&stage.daemon, "told2", "answered");
    let began = Instant::now();
    let asked = asking.ended(SOON);
    assert!(began.elapsed() < AT_ONCE, "it was not left hanging");
    assert_eq!(asked.code, Some(4), "{asked:?}");
    assert!(asked.one().http2);
    let record = stage.provider.wait_for(|records| records[0].end.is_some(), SOON).remove(0);
    assert_eq!((record.end, record.http2), (Some(End::ClientGone), true));
    for (provider, status) in [("claude", 402), ("codex", 429)] {
        let options = ["--json", "--mode", "connect", "--http2", "--provider", provider];
        let output = told_why(&mut stage.agent(&bottle, &options), "of 600 claude tokens");
        let answer: Value = serde_json::from_str(&output.stdout).unwrap();
        assert_eq!((&answer["status"], &answer["http2"]), (&json!(status), &json!(false)));
    }
    assert_eq!(stage.provider.records().len(), 1, "the provider saw no further request");
}

#[test]
fn root_a_redirected_agent_hears_why_in_the_host_s_network_and_in_its_own() {
    in_own_network(|| {
        let stage = Stage::over_tls(Reply::default(), "");
        let here = stage.bottle("here", &[]);
        let cgroup = TestCgroup::new("apart");
        let holder = Holder::start(&cgroup);
        stage.daemon.attach("apart", cgroup.path(), &[]);
        let apart = Bottle { name: "apart".into(), cgroup };
        let ask = |bottle: &Bottle, address: IpAddr| {
            let mut agent = direct(&stage, bottle, address);
            if bottle.name == "apart" {
                holder.enter_before_exec(&mut agent);
            }
            agent
        };
        for bottle in [&here, &apart] {
            let asked = process::run(&mut ask(bottle, PUBLIC4), SOON);
            assert_eq!(asked.code, Some(0), "{asked:?}");
            stage.daemon.ok(&["cut", &bottle.name, "--answered", "--reason", "tea time"]);
            for address in [PUBLIC4, PUBLIC6] {
                told_why(&mut ask(bottle, address), "by uid:0: tea time");
            }
            stage.daemon.ok(&["restore", &bottle.name]);
            let asked = process::run(&mut ask(bottle, PUBLIC4), SOON);
            assert_eq!(asked.code, Some(0), "it works again at once: {asked:?}\n{}", stage.daemon.logs());
        }
        assert_eq!(stage.provider.billing_records().len(), 4);
    });
}

#[test]
fn root_a_stream_in_a_namespace_of_its_own_is_interrupted_too() {
    in_own_network(|| {
        let stage = Stage::over_tls(endless(), "");
        let cgroup = TestCgroup::new("streaming");
        let holder = Holder::start(&cgroup);
        stage.daemon.attach("streaming", cgroup.path(), &["--budget", "claude=600"]);
        let bottle = Bottle { name: "streaming".into(), cgroup };
        let mut agent = direct(&stage, &bottle, PUBLIC4);
        let output = process::run(holder.enter_before_exec(agent.arg("--stream")), SOON);
        assert_eq!(output.code, Some(4), "{output:?}");
        let mut again = direct(&stage, &bottle, PUBLIC4);
        told_why(holder.enter_before_exec(&mut again), "of 600 claude tokens");
    });
}

#[test]
fn root_without_its_lane_an_answered_cut_is_silent_and_a_new_lane_answers() {
    let stage = Stage::new(Reply::default(), "");
    let bottle = stage.bottle("deaf", &[]);
    stage.daemon.ok(&["cut", "deaf", "--answered"]);
    told_why(&mut stage.agent(&bottle, &["--json"]), "by uid:0");
    let first = stage.daemon.lane().unwrap();
    first.kill();
    let asked = process::run(&mut stage.agent(&bottle, &["--json"]), SOON);
    // either it was refused, or it waited in the queue until the new one answered: never anything else
    let refused = asked.stderr.contains("Operation not permitted");
    assert!(refused || asked.code == Some(3), "{asked:?}");
    let second = wait_until(SOON, || stage.daemon.lane().filter(|lane| *lane != first)).unwrap();
    assert!(second.is_alive());
    told_why(&mut stage.agent(&bottle, &["--json"]), "by uid:0");
    assert!(stage.provider.records().is_empty());
    let rows = stage.daemon.json_lines(&["audit"]);
    assert!(rows.iter().any(|row| row["detail"].as_str().is_some_and(|d| d.contains("lane ended"))));
}

#[test]
fn root_silence_outranks_an_answer_whichever_came_first() {
    let stage = Stage::new(Reply::default(), "");
    let bottle = stage.bottle("two", &[]);
    let refused = |why: &str| {
        let asked = process::run(&mut stage.agent(&bottle, &["--json"]), SOON);
        assert!(asked.stderr.contains("Operation not permitted"), "{why}: {asked:?}");
    };
    assert_eq!(stage.daemon.ok(&["cut", "two", "--answered"]), "two: cut (answered)\n");
    assert_eq!(stage.daemon.ok(&["cut", "two"]), "two: cut (silent)\n");
    refused("silence after an answer");
    stage.daemon.ok(&["restore", "two"]);
    stage.daemon.ok(&["cut", "two", "--silent"]);
    assert_eq!(stage.daemon.ok(&["cut", "two", "--answered"]), "two: cut (silent)\n");
    refused("an answer after silence");
    stage.daemon.ok(&["restore", "two"]);
    assert_eq!(stage.ask(&bottle, &[]).code, Some(0));
}

#[test]
fn root_a_restarted_daemon_keeps_the_face() {
    let mut stage = Stage::new(Reply::default(), "");
    let bottles = ["answered", "silent"].map(|name| stage.bottle(name, &[]));
    stage.daemon.ok(&["cut", "answered", "--answered", "--reason", "lunch"]);
    stage.daemon.ok(&["cut", "silent"]);
    for crash in [false, true] {
        if crash {
            stage.daemon.kill9();
        }
        stage.daemon.restart();
        for bottle in &bottles {
            wait_face(&stage.daemon, &bottle.name, &bottle.name);
        }
        told_why(&mut stage.agent(&bottles[0], &["--json"]), "lunch");
        let asked = process::run(&mut stage.agent(&bottles[1], &["--json"]), SOON);
        assert!(asked.stderr.contains("Operation not permitted"), "{asked:?}");
    }
    for bottle in &bottles {
        stage.daemon.ok(&["restore", &bottle.name]);
        assert_eq!(stage.ask(bottle, &[]).code, Some(0));
    }
}

#[test]
fn root_a_hard_cut_aborts_every_socket_and_no_neighbour_s() {
    let stage = Stage::new(endless(), "");
    let [bottle, neighbour] = ["hard", "neighbour"].map(|name| stage.bottle(name, &[]));
    let [asking, other] = [&bottle, &neighbour].map(|bottle| stage.start_asking(bottle, &["--stream"]));
    stage.provider.wait_for(|records| records.len() == 2, SOON);
    stage.daemon.ok(&["cut", "hard", "--hard"]);
    let began = Instant::now();
    let asked = asking.ended(SOON);
    assert!(asked.code == Some(4) && began.elapsed() < AT_ONCE, "{asked:?}");
    assert_eq!(face(&stage.daemon.bottle("hard")), [&json!("cut"), &json!("silent")]);
    assert_eq!(stage.provider.open_streams(), 1, "the neighbour's goes on");
    other.hang_up();
}

#[test]
fn root_a_lease_that_ran_out_closes_the_lane_too() {
    let mut stage = Stage::new(Reply::default(), "lease: 2s\n");
    let bottle = stage.bottle("leased", &[]);
    stage.daemon.ok(&["cut", "leased", "--answered"]);
    let mut agent = stage.agent(&bottle, &["--json"]);
    told_why(&mut agent, "by uid:0");
    stage.daemon.kill9();
    std::thread::sleep(Duration::from_millis(2_500));
    let asked = process::run(&mut agent, SOON);
    assert!(asked.stderr.contains("Operation not permitted"), "{asked:?}");
    stage.daemon.restart();
    told_why(&mut stage.agent(&bottle, &["--json"]), "by uid:0");
}

/// Runs a sender as a process of this cgroup for a moment; what came of it.
fn send_from(cgroup: &Path, protocol: &str, sink: &Sink) -> Output {
    let entering = "echo $$ > \"$0/cgroup.procs\" && exec \"$@\"";
    let (sender, to) = (built("sender"), sink.address().to_string());
    let mut command = Command::new("sh");
    command.args(["-c", entering]).arg(cgroup).arg(sender).args([protocol, &to, "--for-ms", "300"]);
    process::run(&mut command, SOON)
}

#[test]
fn root_whoever_takes_the_lane_s_place_gets_nothing_out() {
    let stage = Stage::new(Reply::default(), "");
    let bottle = stage.bottle("sealed", &[]);
    stage.daemon.ok(&["cut", "sealed", "--answered"]);
    let lane = stage.daemon.json(&["status"])["daemon"]["lane"]["pid"].as_u64().unwrap();
    let process = cgroup::of_process(u32::try_from(lane).unwrap()).unwrap();
    let lane = process.parent().unwrap();
    assert!(process.ends_with("lane/process"), "{process:?}");
    let outside = TestCgroup::new("outside");
    for protocol in ["udp", "tcp"] {
        for (cgroup, reaches) in [(process.as_path(), false), (lane, false), (outside.path(), true)] {
            let sink = if protocol == "udp" {
                Sink::udp("127.0.0.1".parse().unwrap())
            } else {
                Sink::tcp("127.0.0.1".parse().unwrap())
            };
            let output = send_from(cgroup, protocol, &sink);
            assert_eq!(sink.bytes() > 0, reaches, "{protocol} from {cgroup:?}: {output:?}");
        }
    }
    let refused = stage.daemon.cli(&["attach", "lane", "--cgroup", lane.to_str().unwrap()]);
    assert_eq!(refused.code, Some(2), "no bottle holds the lane: {refused:?}");
    told_why(&mut stage.agent(&bottle, &["--json"]), "by uid:0");
}

#[test]
fn root_nested_bottles_hear_why_whichever_of_them_is_cut_or_confined() {
    let stage = Stage::new(Reply::default(), "resolvers: [127.0.0.1]\n");
    for (outer, inner) in [("open", "metered"), ("metered", "open"), ("metered", "metered")] {
        let around = stage.bottle("around", &["--egress", outer]);
        let cgroup = around.cgroup.child("inside");
        stage.daemon.attach("inside", cgroup.path(), &["--egress", inner]);
        let inside = Bottle { name: "inside".into(), cgroup };
        for cut in ["around", "inside"] {
            stage.daemon.ok(&["cut", cut, "--answered", "--reason", cut]);
            told_why(&mut stage.agent(&inside, &["--json"]), &format!("by uid:0: {cut}"));
            stage.daemon.ok(&["restore", cut]);
            assert_eq!(stage.ask(&inside, &[]).code, Some(0), "{outer}, {inner}, {cut}");
        }
        stage.daemon.ok(&["detach", "inside"]);
        stage.daemon.ok(&["detach", "around"]);
    }
}

#[test]
fn root_who_is_root_of_a_network_that_leads_out_is_cut_silently_and_told_so() {
    in_own_network(|| {
        let mut stage = Stage::over_tls(Reply::default(), "");
        let cgroup = TestCgroup::new("ruler");
        let far = Namespace::new();
        let mut ruler = Inmate::with_own_network(Some(&cgroup), &far);
        let path = cgroup.path().to_str().unwrap();
        let attached = stage.daemon.cli(&["attach", "ruler", "--cgroup", path]);
        assert!(attached.stderr.contains("a cut of it is always silent"), "{attached:?}");
        let connect = format!("connect {}", SocketAddr::new(PUBLIC4, 443));
        ruler.ok(&connect);
        for restarted in [false, true] {
            assert_eq!(stage.daemon.ok(&["cut", "ruler", "--answered"]), "ruler: cut (silent)\n");
            assert_eq!(ruler.order(&connect), "EPERM");
            let row = stage.audit("ruler", "cut").pop().unwrap();
            assert!(row["detail"].as_str().unwrap().contains("rules over a network that leads out"), "{row}");
            stage.daemon.ok(&["restore", "ruler"]);
            ruler.ok(&connect);
            if !restarted {
                stage.daemon.kill9();
                stage.daemon.restart();
            }
        }
    });
}
