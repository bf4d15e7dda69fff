//! The cut: a crossing in the middle of a stream, an operator's word, what opens again, and whose budget decides.
#![allow(clippy::unwrap_used, reason = "a failed expectation should stop the test where it stands")]
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use support::cgroup::TestCgroup;
use support::clock::{mono_ns, wait_until};
use support::process;
use support::provider::{End, Record, Reply};
use support::sink::Sink;
use support::stage::{Bottle, Sending, Stage, mono_of};

const SOON: Duration = Duration::from_secs(10);
const V4: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const V6: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);
/// How long it is watched that nothing happens.
const WATCHED: Duration = Duration::from_millis(400);
/// What was delivered before the cut may be read by a busy host's receiver this much later.
const READ_LATE_NS: u64 = 50_000_000;

fn is_cut(bottle: &Value) -> bool {
    bottle["state"] == "cut"
}

/// A sender and the receiver it sends to.
struct Lane {
    name: &'static str,
    protocol: &'static str,
    sink: Sink,
    sending: Sending,
}

impl Lane {
    fn open(name: &'static str, cgroup: Option<&TestCgroup>, protocol: &'static str, ip: IpAddr) -> Self {
        let sink = if protocol == "udp" { Sink::udp(ip) } else { Sink::tcp(ip) };
        let sending = Sending::start(cgroup, protocol, sink.address(), 2_000);
        Self { name, protocol, sink, sending }
    }

    fn wait_flowing(&self) {
        let flowing = wait_until(SOON, || (self.sink.bytes() > 1_000).then_some(()));
        assert!(flowing.is_some(), "{} {}: nothing flows", self.name, self.protocol);
    }

    /// Nothing of it is received after the cut, and a datagram that the kernel refused is known to its sender.
    fn assert_stopped(self, cut_ns: u64) {
        let Self { name, protocol, sink, sending } = self;
        let figures = sending.figures();
        let late = sink.bytes_since(cut_ns + READ_LATE_NS);
        assert_eq!(late, 0, "{name} {protocol}: {late} bytes came after the cut");
        if protocol == "udp" {
            let refused = figures["errors"]["EPERM"].as_u64().unwrap_or(0);
            assert!(refused > 100, "{name}: the kernel refuses: {figures}");
            let last_ok_ns = figures["last_ok_ns"].as_u64().unwrap();
            assert!(last_ok_ns < cut_ns + READ_LATE_NS, "{name}: a send worked after the cut: {figures}");
        }
        let last_ns = sink.receipts().last().unwrap().at_ns;
        let since_us = (i128::from(last_ns) - i128::from(cut_ns)) / 1_000;
        println!(
            "{name} {protocol}: last receipt {since_us} us from the audit's cut (whole milliseconds, up)"
        );
    }

    /// Everything that was sent is received, without a pause.
    fn assert_unaffected(self, cut_ns: u64) {
        let Self { name, protocol, sink, sending } = self;
        let figures = sending.figures();
        let sent = usize::try_from(figures["bytes"].as_u64().unwrap()).unwrap();
        let all = wait_until(SOON, || (sink.bytes() == sent).then_some(()));
        assert!(all.is_some(), "{name} {protocol}: {} of {sent} bytes came", sink.bytes());
        assert!(sink.bytes_since(cut_ns + READ_LATE_NS) > 1_000, "{name} {protocol}: it outlives the cut");
        assert_eq!(figures["errors"], json!({}), "{name} {protocol}");
    }
}

/// An agent whose events go to a file as they come; killed when dropped.
struct Streaming {
    child: Child,
    events: std::path::PathBuf,
}

impl Streaming {
    fn start(stage: &Stage, bottle: &Bottle) -> Self {
        let events = stage.provider.dir().join(format!("events-{}", bottle.name));
        let mut command = stage.agent(bottle, &["--stream", "--events"]);
        command.stdin(Stdio::null()).stderr(Stdio::null()).stdout(File::create(&events).unwrap());
        Self { child: command.spawn().unwrap(), events }
    }

    fn seen_bytes(&self) -> u64 {
        self.events.metadata().unwrap().len()
    }
}

impl Drop for Streaming {
    fn drop(&mut self) {
        process::kill(&mut self.child);
    }
}

#[test]
fn root_a_crossing_in_a_stream_cuts_the_bottle_and_nothing_else() {
    let stage = Stage::new(Reply::paced(5_000, 8, Duration::from_millis(2)), "cut: silent");
    let bottle = stage.bottle("crossing", &["--budget", "claude=600"]);
    let nested = bottle.cgroup.child("nested");
    let own = Some(&bottle.cgroup);
    let inside = [
        Lane::open("in the bottle", own, "udp", V4),
        Lane::open("in the bottle, v6", own, "udp", V6),
        Lane::open("in the bottle", own, "tcp", V4),
        Lane::open("nested", Some(&nested), "udp", V4),
        Lane::open("nested", Some(&nested), "tcp", V4),
    ];
    let outside = [Lane::open("outside", None, "udp", V4), Lane::open("outside", None, "tcp", V4)];
    inside.iter().chain(&outside).for_each(Lane::wait_flowing);

    let agent = Streaming::start(&stage, &bottle);
    let status = stage.daemon.wait_bottle("crossing", is_cut, SOON);
    let record = stage.provider.wait_for(|records| records[0].end.is_some(), SOON).remove(0);
    // what closes is done before it is written
    let row = wait_until(SOON, || stage.audit("crossing", "cut").pop()).unwrap();
    let cut_ns = mono_of(&row["at"]);

    assert_eq!(record.end, Some(End::ClientGone), "upstream is closed by the cut");
    let closed_ms = record.ended_ns.unwrap().saturating_sub(cut_ns) / 1_000_000;
    println!("upstream noticed {closed_ms} ms after the cut; the cut took {} us", row["took_us"]);
    assert!(closed_ms <= 1_000, "{closed_ms} ms");
    assert!(row["took_us"].as_u64().is_some(), "{row}");
    assert_eq!((&row["outcome"], &row["by"]), (&json!("done"), &json!("controller")), "{row}");

    let flow = wait_until(SOON, || stage.flows("crossing").pop().filter(|f| f["status"] != "open")).unwrap();
    assert_eq!((&flow["status"], &flow["provenance"]), (&json!("cut"), &json!("partial")), "{flow}");
    let charged = flow["total"].as_u64().unwrap();
    assert!(charged >= 600, "what was used is kept as debt: {flow}");
    let cause = &status["cause"];
    let expected = json!(["budget", "claude", "launch", "crossing", 600, flow["id"]]);
    let told = ["kind", "provider", "scope", "owner", "limit", "flow"].map(|key| cause[key].clone());
    assert_eq!(json!(told), expected, "{cause}");
    assert!((600..900).contains(&cause["used"].as_u64().unwrap()), "{cause}");
    assert_eq!(&row["cause"], cause);

    let seen = agent.seen_bytes();
    assert!(seen > 1_000, "the stream flowed");
    assert_no_request_leaves(&stage, &bottle);
    inside.into_iter().for_each(|lane| lane.assert_stopped(cut_ns));
    outside.into_iter().for_each(|lane| lane.assert_unaffected(cut_ns));
    assert_eq!(agent.seen_bytes(), seen, "not one more byte of the stream");
    assert!(stage.daemon.bottle("crossing")["kernel"]["dropped_packets"].as_u64().unwrap() > 100);
}

/// New requests of a cut bottle are refused by the kernel at once (EPERM), and nothing of them reaches the provider.
fn assert_no_request_leaves(stage: &Stage, bottle: &Bottle) {
    let before = stage.provider.records().len();
    let asking = ["gateway", "connect"].map(|mode| stage.start_asking(bottle, &["--stream", "--mode", mode]));
    for agent in asking {
        let complaint = agent.complaint(SOON);
        assert!(complaint.contains("Operation not permitted"), "{complaint}");
    }
    std::thread::sleep(WATCHED);
    assert_eq!(stage.provider.records().len(), before, "the provider saw no request");
}

#[test]
fn root_a_crossing_through_connect_closes_upstream_too() {
    let stage = Stage::over_tls(Reply::paced(5_000, 8, Duration::from_millis(2)), "cut: silent");
    let bottle = stage.bottle("tunnel", &["--budget", "codex=600"]);
    let agent = ["--provider", "codex", "--stream", "--mode", "connect"];
    let asking = stage.start_asking(&bottle, &agent);
    let status = stage.daemon.wait_bottle("tunnel", is_cut, SOON);
    let record = stage.provider.wait_for(|records| records[0].end.is_some(), SOON).remove(0);
    let row = stage.audit("tunnel", "cut").pop().unwrap();
    let closed_ms = record.ended_ns.unwrap().saturating_sub(mono_of(&row["at"])) / 1_000_000;
    println!("upstream over TLS noticed {closed_ms} ms after the cut");
    assert!(record.end == Some(End::ClientGone) && closed_ms <= 1_000, "{closed_ms} ms: {record:?}");
    assert_eq!(status["cause"]["provider"], "codex");
    assert_no_request_leaves(&stage, &bottle);
    asking.hang_up();
}

#[test]
fn root_an_answer_that_crosses_at_its_end_cuts_and_the_next_request_stays_inside() {
    for form in [&["--stream"][..], &[]] {
        let stage = Stage::new(Reply { input: 5_000, ..Reply::default() }, "cut: silent");
        let bottle = stage.bottle("ending", &["--budget", "claude=3000"]);
        let asking = stage.start_asking(&bottle, form);
        stage.daemon.wait_bottle("ending", is_cut, SOON);
        assert_no_request_leaves(&stage, &bottle);
        let billed = stage.provider.billed_total();
        let flow = stage.flows("ending").pop().unwrap();
        assert!(flow["total"].as_u64().unwrap() >= billed.input, "charged: {flow}");
        asking.hang_up();
    }
}

#[test]
fn root_an_operator_cuts_and_an_idle_connection_outlives_it() {
    let stage = Stage::new(Reply::default(), "");
    let bottle = stage.bottle("idle", &[]);
    let asking =
        stage.start_asking(&bottle, &["--stream", "--requests", "2", "--keep-alive-idle-ms", "1500"]);
    stage.provider.wait_for(completed(1), SOON);
    // the answer's last bytes are on their way to the agent
    std::thread::sleep(Duration::from_millis(100));
    stage.daemon.ok(&["cut", "idle", "--reason", "tea time"]);
    let cut = stage.daemon.bottle("idle");
    assert!(is_cut(&cut), "{cut}");
    let cause = &cut["cause"];
    let told = ["kind", "by", "reason"].map(|key| cause[key].clone());
    assert_eq!(json!(told), json!(["operator", "uid:0", "tea time"]), "{cause}");
    let row = stage.audit("idle", "cut").pop().unwrap();
    assert_eq!((&row["by"], row["took_us"].is_u64()), (&json!("uid:0"), true), "{row}");
    assert_no_request_leaves(&stage, &bottle);
    stage.daemon.ok(&["restore", "idle"]);
    assert_eq!(stage.daemon.bottle("idle")["state"], "open");
    assert_eq!(stage.audit("idle", "restore").len(), 1);

    let asked = asking.ended(SOON);
    assert_eq!(asked.code, Some(0), "{asked:?}");
    let connections: Vec<_> = asked.answers.iter().map(|answer| answer.connection).collect();
    assert_eq!(connections, [1, 1], "the next request comes over the same connection");
    assert_eq!(stage.provider.billing_records().len(), 2);
}

fn completed(count: usize) -> impl Fn(&[Record]) -> bool {
    move |records| records.iter().filter(|record| record.end == Some(End::Completed)).count() == count
}

#[test]
fn root_a_stream_that_an_operator_cut_goes_on_after_a_restore() {
    let stage = Stage::new(Reply::paced(150, 8, Duration::from_millis(10)), "");
    let bottle = stage.bottle("held", &[]);
    let asking = stage.start_asking(&bottle, &["--stream"]);
    stage.provider.wait_for(|records| records.first().is_some_and(|r| r.billed.output > 200), SOON);
    stage.daemon.ok(&["cut", "held"]);
    std::thread::sleep(Duration::from_millis(300));
    stage.daemon.ok(&["restore", "held"]);
    let asked = asking.ended(Duration::from_secs(20));
    assert_eq!(asked.code, Some(0), "{asked:?}");
    let record = &stage.provider.billing_records()[0];
    assert_eq!(asked.one().body_sha256, record.response_sha256, "not one byte is missing");
    let flow = stage.flows("held").pop().unwrap();
    assert_eq!((&flow["provenance"], &flow["output"]), (&json!("reported"), &json!(1_200)), "{flow}");
}

#[test]
fn root_all_bottles_can_be_cut_at_once() {
    let stage = Stage::new(Reply::default(), "");
    let bottles = ["one", "two", "three"].map(|name| stage.bottle(name, &[]));
    stage.daemon.ok(&["cut", "--all", "--reason", "fire"]);
    for bottle in &bottles {
        let status = stage.daemon.bottle(&bottle.name);
        assert!(is_cut(&status) && status["cause"]["reason"] == "fire", "{status}");
        assert_no_request_leaves(&stage, bottle);
    }
    stage.daemon.ok(&["restore", "two"]);
    let states = ["one", "two", "three"].map(|name| stage.daemon.bottle(name)["state"].clone());
    assert_eq!(json!(states), json!(["cut", "open", "cut"]));
    assert_eq!(stage.ask(&bottles[1], &[]).code, Some(0), "the one that was restored works");
}

#[test]
fn root_a_used_up_budget_opens_only_with_more_tokens() {
    let stage = Stage::new(Reply { input: 5_000, ..Reply::default() }, "");
    let bottle = stage.bottle("debt", &["--budget", "claude=3000"]);
    let _crossing = stage.start_asking(&bottle, &["--stream"]);
    stage.daemon.wait_bottle("debt", is_cut, SOON);
    let settled = |bottle: &Value| bottle["usage"]["claude"]["flows"] == 1;
    let cut = stage.daemon.wait_bottle("debt", settled, SOON);
    let used = cut["budget"]["claude"]["used"].as_u64().unwrap();
    assert_eq!(cut["usage"]["claude"]["total"], used, "{cut}");
    assert!(used >= 5_000 && cut["budget"]["claude"]["remaining"] == 0, "{cut}");

    for args in [&["restore", "debt"][..], &["restore", "debt", "--add", "claude=10"]] {
        let refused = stage.daemon.cli(args);
        assert_eq!(refused.code, Some(4), "{args:?}: {refused:?}");
        assert!(refused.stderr.contains("debt stays cut"), "{refused:?}");
        let after = stage.daemon.bottle("debt");
        assert!(is_cut(&after) && after["budget"]["claude"]["limit"] == 3_000, "nothing was added: {after}");
    }

    stage.daemon.ok(&["restore", "debt", "--force"]);
    assert_eq!(stage.daemon.bottle("debt")["state"], "open");
    let before = stage.provider.records().len();
    let asked = stage.ask(&bottle, &["--stream"]);
    let refusal = asked.one().refusal().unwrap_or_else(|| panic!("a refusal: {asked:?}"));
    assert_eq!((asked.code, asked.one().status), (Some(3), 402), "{asked:?}");
    for word in ["debt", "3000", &used.to_string(), "launch"] {
        assert!(refusal.contains(word), "the refusal names {word}: {refusal}");
    }
    assert_eq!(stage.provider.records().len(), before, "it did not reach the provider");
    // beside it are rows of what was dropped while it was cut
    let of_budget = |row: &Value| row["detail"].as_str().unwrap().contains("3000");
    let row = || stage.audit("debt", "refuse").into_iter().find(of_budget);
    assert!(
        wait_until(SOON, row).is_some(),
        "a refusal is in the audit: {:?}",
        stage.audit("debt", "refuse")
    );

    stage.daemon.ok(&["restore", "debt", "--add", "claude=100k"]);
    let open = stage.daemon.bottle("debt");
    assert_eq!((&open["state"], &open["budget"]["claude"]["limit"]), (&json!("open"), &json!(103_000)));
    assert_eq!(stage.ask(&bottle, &["--stream"]).code, Some(0), "requests pass again");
}

#[test]
fn root_the_nearest_budget_governs_and_a_new_bottle_under_a_used_up_one_starts_cut() {
    let settings = "cut: silent\nbudget: { claude: 500 }\nbottles:\n  rich: { budget: { claude: 100k } }\n";
    let stage = Stage::new(Reply { input: 1_000, ..Reply::default() }, settings);
    let rich = stage.bottle("rich", &[]);
    let launched = stage.bottle("launched", &["--budget", "claude=50k"]);
    let plain = stage.bottle("plain", &[]);
    let scopes = ["rich", "launched", "plain"].map(|name| {
        let budget = &stage.daemon.bottle(name)["budget"]["claude"];
        json!([budget["scope"], budget["owner"], budget["limit"]])
    });
    let expected =
        json!([["bottle", "rich", 100_000], ["launch", "launched", 50_000], ["global", "global", 500]]);
    assert_eq!(json!(scopes), expected);

    // both spend more than the global budget holds, each under its own
    for bottle in [&rich, &launched] {
        assert_eq!(stage.ask(bottle, &["--stream"]).code, Some(0));
        assert_eq!(stage.daemon.bottle(&bottle.name)["state"], "open");
    }
    // it sums everything, and cuts whom it governs
    let cut = stage.daemon.wait_bottle("plain", is_cut, SOON);
    assert_eq!(json!([cut["cause"]["scope"], cut["cause"]["limit"]]), json!(["global", 500]), "{cut}");
    assert_eq!(cut["usage"], json!({}), "it used nothing itself");
    assert_no_request_leaves(&stage, &plain);
    assert_eq!(stage.audit("plain", "cut").len(), 1, "one cut for one crossing");

    let fresh = TestCgroup::new("fresh");
    let sink = Sink::udp(V4);
    let sending = Sending::start(Some(&fresh), "udp", sink.address(), 1_000);
    assert!(wait_until(SOON, || (sink.bytes() > 0).then_some(())).is_some());
    stage.daemon.attach("fresh", fresh.path(), &[]);
    let attached_ns = mono_ns();
    let status = stage.daemon.bottle("fresh");
    assert!(is_cut(&status) && status["cause"]["scope"] == "global", "{status}");
    let figures = sending.figures();
    assert_eq!(sink.bytes_since(attached_ns + READ_LATE_NS), 0, "nothing gets out: {figures}");
    let exempt = TestCgroup::new("exempt");
    stage.daemon.attach("exempt", exempt.path(), &["--budget", "claude=50k"]);
    assert_eq!(stage.daemon.bottle("exempt")["state"], "open", "its own budget governs it");
}

#[test]
fn root_a_parent_budget_counts_its_children() {
    let settings = "cut: silent\nbottles:\n  family: { budget: { claude: 1500 } }\n";
    let stage = Stage::new(Reply { input: 1_000, ..Reply::default() }, settings);
    let parent = stage.bottle("family", &[]);
    let inner = parent.cgroup.child("inner");
    stage.daemon.attach("child", inner.path(), &[]);
    let child = Bottle { name: "child".into(), cgroup: inner };
    assert_eq!(stage.daemon.bottle("child")["parent"], "family", "by nesting");
    assert_eq!(stage.ask(&child, &["--stream"]).code, Some(0));
    let budget = stage.daemon.bottle("family")["budget"]["claude"]["used"].clone();
    assert_eq!(budget, 1_040, "what the child uses counts for its parent");
    let _crossing = stage.start_asking(&parent, &["--stream"]);
    for name in ["family", "child"] {
        let status = stage.daemon.wait_bottle(name, is_cut, SOON);
        assert_eq!(status["cause"]["owner"], "family", "{status}");
    }
    assert_no_request_leaves(&stage, &child);
}

#[test]
fn root_the_thread_that_decides_runs_before_others() {
    let stage = Stage::new(Reply::default(), "");
    let ours = nice(Path::new("/proc/thread-self"));
    let daemon = PathBuf::from(format!("/proc/{}", stage.daemon.pid()));
    let mut levels = BTreeMap::new();
    for thread in fs::read_dir(daemon.join("task")).unwrap() {
        let thread = thread.unwrap().path();
        // it may have ended
        let Ok(name) = fs::read_to_string(thread.join("comm")) else { continue };
        levels.extend(nice(&thread).map(|nice| (name.trim_end().to_owned(), nice)));
    }
    assert_eq!(levels.remove("core"), Some(-20), "{levels:?}");
    levels.insert(
        "meter-proxy".into(),
        nice(&PathBuf::from(format!("/proc/{}", stage.daemon.meter().pid()))).unwrap(),
    );
    assert!(
        levels.contains_key("ledger-writer") && levels.values().all(|level| Some(*level) == ours),
        "{levels:?}"
    );
}

/// The nice level of a thread, unless it has ended: the 19th field of its `stat`, counted behind its name.
fn nice(thread: &Path) -> Option<i32> {
    let stat = fs::read_to_string(thread.join("stat")).ok()?;
    let (_, behind_name) = stat.rsplit_once(") ").unwrap();
    Some(behind_name.split(' ').nth(16).unwrap().parse().unwrap())
}
