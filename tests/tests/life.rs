//! What outlives whom: cuts, sums and listeners when a process is killed, asked to stop, or loses its bottle.
//!
//! `ENFORCER_TEST_FULL=1` kills the daemon 200 times instead of 5, the meter 40 times instead of 4.
#![allow(clippy::unwrap_used, reason = "a failed expectation should stop the test where it stands")]
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::agent::{Answer, Ended};
use support::cgroup::TestCgroup;
use support::clock::{mono_ns, wait_until};
use support::enforcer::Daemon;
use support::process::Seen;
use support::provider::{Record, Reply, Script};
use support::rounds;
use support::sink::Sink;
use support::stage::{Asked, Asking, Bottle, Sending, Stage};

const SOON: Duration = Duration::from_secs(10);
const V4: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
/// A new meter serves within this.
const METER_BACK: Duration = Duration::from_secs(2);

/// A sender in the cgroup for a moment: whether anything of it came out, and what the kernel told it.
fn gets_out(cgroup: &TestCgroup) -> bool {
    let sink = Sink::udp(V4);
    let figures = Sending::start(Some(cgroup), "udp", sink.address(), 200).figures();
    let sent = figures["bytes"].as_u64().unwrap();
    assert_eq!(sent > 0, figures["errors"] == json!({}), "all or nothing: {figures}");
    wait_until(SOON, || (sink.bytes() as u64 == sent).then_some(())).expect("what is sent comes in");
    sent > 0
}

fn wait_gone(process: &Seen) {
    wait_until(SOON, || (!process.is_alive()).then_some(())).expect("the meter ends with its controller");
}

/// One bottle cut by a budget, one by an operator, one open.
struct Three {
    stage: Stage,
    spent: Bottle,
    told: Bottle,
    open: Bottle,
}

impl Three {
    fn new() -> Self {
        let stage = Stage::new(Reply { input: 1_000, ..Reply::default() }, "");
        let spent = stage.bottle("spent", &["--budget", "claude=1500"]);
        let told = stage.bottle("told", &[]);
        let open = stage.bottle("open", &["--budget", "claude=100k"]);
        for bottle in [&spent, &told, &open] {
            assert_eq!(stage.ask(bottle, &["--stream"]).code, Some(0));
        }
        let crossing = stage.start_asking(&spent, &["--stream"]);
        let settled = |bottle: &Value| bottle["state"] == "cut" && bottle["usage"]["claude"]["flows"] == 2;
        stage.daemon.wait_bottle("spent", settled, SOON);
        crossing.hang_up();
        stage.daemon.ok(&["cut", "told", "--reason", "enough"]);
        Self { stage, spent, told, open }
    }

    /// What must not change: verdicts with their causes, and every sum.
    fn facts(&self) -> Value {
        let facts = ["spent", "told", "open"].map(|name| {
            let bottle = self.stage.daemon.bottle(name);
            ["state", "cause", "usage", "budget"].map(|key| bottle[key].clone())
        });
        json!([facts, self.stage.daemon.json(&["usage"])])
    }

    fn assert_cut_ones_are_shut(&self, when: &str) {
        for bottle in [&self.spent, &self.told] {
            assert!(!gets_out(&bottle.cgroup), "{} {when}", bottle.name);
        }
    }

    /// After a new start all is as it was, and only what is restored opens.
    fn assert_found_as_left(&self, before: &Value) {
        assert_eq!(&self.facts(), before, "found as it was left");
        self.assert_cut_ones_are_shut("under the new daemon");
        assert!(gets_out(&self.open.cgroup), "the open one is found open");
        assert_eq!(self.stage.ask(&self.open, &["--stream"]).code, Some(0), "and is metered on");
        let details = self.stage.audit("spent", "cut").pop().unwrap();
        assert!(details["detail"].as_str().unwrap().contains("stays cut"), "{details}");
        self.stage.daemon.ok(&["restore", "spent", "--add", "claude=100k"]);
        assert!(gets_out(&self.spent.cgroup), "restored");
        assert_eq!(self.stage.ask(&self.spent, &["--stream"]).code, Some(0));
    }
}

#[test]
fn root_a_killed_daemon_leaves_cut_bottles_cut_and_a_new_one_knows_why() {
    let mut three = Three::new();
    let before = three.facts();
    let sink = Sink::udp(V4);
    let across = Sending::start(Some(&three.spent.cgroup), "udp", sink.address(), 2_500);
    let meter = three.stage.daemon.meter();
    three.stage.daemon.kill9();
    wait_gone(&meter);
    three.assert_cut_ones_are_shut("without a daemon");
    three.stage.daemon.restart();
    let figures = across.figures();
    assert_eq!((sink.bytes(), &figures["sent"]), (0, &json!(0)), "without a gap: {figures}");
    three.assert_found_as_left(&before);
}

#[test]
fn root_a_daemon_that_is_asked_to_stop_opens_nothing() {
    let mut three = Three::new();
    let before = three.facts();
    let meter = three.stage.daemon.meter();
    three.stage.daemon.stop();
    assert!(!meter.is_alive(), "the meter went first");
    three.assert_cut_ones_are_shut("after SIGTERM");
    let without = three.stage.daemon.cli(&["status"]);
    assert_eq!(without.code, Some(3), "no daemon: {without:?}");
    three.stage.daemon.restart();
    three.assert_found_as_left(&before);
}

/// Answers that take about 40 ms; each request is billed another input, which names it in the ledger.
fn numbered() -> Script {
    let script = Script::by(|asked| Reply {
        cache_read: 1 + asked.index as u64,
        ..Reply::paced(20, 8, Duration::from_millis(2))
    });
    script.forgetting_bodies()
}

/// Agents of every kind that ask some times, or until something breaks.
fn load(stage: &Stage, bottle: &Bottle) -> Vec<Asking> {
    let kinds: [&[&str]; 4] =
        [&["--stream"], &[], &["--stream", "--mode", "connect"], &["--stream", "--provider", "codex"]];
    // as much is asked as the provider bills for it: the estimate of a killed exchange is no guess in the dark
    let start = |args: &&[&str]| {
        stage.start_asking(bottle, &[*args, &["--requests", "8", "--prompt-bytes", "20000"]].concat())
    };
    kinds.iter().map(start).collect()
}

fn whole_answers(asked: Vec<Asked>) -> Vec<Answer> {
    let answers = asked.into_iter().flat_map(|asked| asked.answers);
    answers.filter(|answer| answer.status == 200 && answer.ended == Ended::Complete).collect()
}

/// Runs rounds of load with a kill at another moment each; every answer that a client saw whole.
fn kill_under_load(stage: &mut Stage, bottle: &Bottle, rounds: usize, kill: fn(&mut Daemon)) -> Vec<Answer> {
    let mut answers = Vec::new();
    for round in 0..rounds {
        let agents = load(stage, bottle);
        std::thread::sleep(Duration::from_millis(80 + (round as u64 * 37) % 150));
        kill(&mut stage.daemon);
        answers.extend(whole_answers(agents.into_iter().map(|agent| agent.ended(SOON)).collect()));
    }
    answers
}

/// Every whole answer is in the ledger once, by the bill; nothing is open; nothing reached the provider unrecorded.
fn assert_nothing_lost(stage: &Stage, answers: &[Answer]) {
    let records = stage.provider.billing_records();
    // each answer's cached input is its number; the guesses for orphans have none, or their own
    let by_number: BTreeMap<u64, &Record> = records.iter().map(|r| (r.billed.cache_read, r)).collect();
    let settled = || {
        let flows = stage.flows("load");
        flows.iter().all(|flow| flow["status"] != "open").then_some(flows)
    };
    let flows = wait_until(SOON, settled).expect("every flow is settled");
    for answer in answers {
        let usage = answer.usage.as_ref().unwrap();
        let told = [&usage["cache_read_input_tokens"], &usage["input_tokens_details"]["cached_tokens"]];
        let number = told.iter().find_map(|cached| cached.as_u64()).unwrap();
        let rows: Vec<_> = flows.iter().filter(|flow| flow["cache_read"] == number).collect();
        assert_eq!(rows.len(), 1, "exchange {number} is charged once: {rows:?}");
        let told = ["provenance", "status"].map(|key| rows[0][key].clone());
        assert_eq!(json!(told), json!(["reported", "completed"]), "{}", rows[0]);
        assert_eq!(rows[0]["output"], by_number[&number].billed.output, "{}", rows[0]);
    }
    assert!(flows.len() >= records.len(), "{} flows, {} requests", flows.len(), records.len());
    let (reported, others): (Vec<&Value>, Vec<_>) =
        flows.iter().partition(|flow| flow["provenance"] == "reported");
    for flow in &others {
        assert_eq!(json!([flow["provenance"], flow["status"]]), json!(["estimated", "orphaned"]), "{flow}");
        assert!(flow["total"].as_u64().unwrap() >= flow["reserved"].as_u64().unwrap(), "{flow}");
        assert!(flow["total"].as_u64().unwrap() > 0, "{flow}");
    }
    let sum = |flows: &[&Value]| flows.iter().map(|flow| flow["total"].as_u64().unwrap()).sum::<u64>();
    let usage = stage.daemon.json(&["usage", "--bottle", "load"]);
    let usage: Vec<_> = usage.as_array().unwrap().iter().collect();
    assert_eq!(sum(&usage), sum(&flows.iter().collect::<Vec<_>>()), "sums are of the flows");
    println!(
        "{} whole answers seen, {} flows reported, {} orphaned, {} requests at the provider",
        answers.len(),
        reported.len(),
        others.len(),
        records.len()
    );
    let unreported = stage.provider.billed_total().total().saturating_sub(sum(&reported));
    println!("orphans are charged {} tokens, the provider billed {unreported} for them", sum(&others));
    assert!(sum(&others) >= unreported, "a kill must not make an exchange cheaper");
    assert!(!answers.is_empty() && !others.is_empty(), "the load was none");
}

#[test]
fn root_kills_of_the_daemon_under_load_lose_no_exchange() {
    let mut stage = Stage::over_tls(numbered(), "");
    let bottle = stage.bottle("load", &[]);
    let answers = kill_under_load(&mut stage, &bottle, rounds(5, 200), |daemon| {
        let meter = daemon.meter();
        daemon.kill9();
        wait_gone(&meter);
        daemon.restart();
    });
    assert_nothing_lost(&stage, &answers);
}

#[test]
fn root_kills_of_the_meter_under_load_lose_no_exchange() {
    let mut stage = Stage::over_tls(numbered(), "");
    let bottle = stage.bottle("load", &[]);
    let rounds = rounds(4, 40);
    let answers = kill_under_load(&mut stage, &bottle, rounds, kill_meter);
    assert_nothing_lost(&stage, &answers);
    let deaths = stage.daemon.json_lines(&["audit"]).into_iter();
    let deaths = deaths.filter(|row| row["action"] == "meter" && row["outcome"] == "failed").count();
    assert_eq!(deaths, rounds, "each death is in the audit");
}

/// Once it serves: it waits longer and longer between two starts.
fn kill_meter(daemon: &mut Daemon) {
    let serves = || (daemon.json(&["status"])["daemon"]["meter"]["state"] == "serving").then_some(());
    wait_until(SOON, serves).expect("a new meter");
    let meter = daemon.meter();
    meter.kill();
    wait_gone(&meter);
}

#[test]
fn root_a_request_that_comes_when_the_meter_was_killed_waits_for_the_new_one() {
    let mut stage = Stage::new(Reply::default(), "");
    let bottle = stage.bottle("patient", &[]);
    let listen = stage.daemon.listen_addr();
    kill_meter(&mut stage.daemon);
    let killed = Instant::now();
    let asked = stage.ask(&bottle, &["--stream"]);
    println!("a request sent right after the meter's kill was answered after {:?}", killed.elapsed());
    assert_eq!(asked.code, Some(0), "it is known whose it is: {asked:?}");
    assert!(killed.elapsed() < METER_BACK, "{:?}", killed.elapsed());
    assert_eq!(stage.daemon.listen_addr(), listen);
    assert_eq!(stage.flows("patient").len(), 1);
    assert_unattached_is_refused(&stage, &bottle);
}

/// A process outside of every bottle is not taken for one inside.
fn assert_unattached_is_refused(stage: &Stage, bottle: &Bottle) {
    let outside = Bottle { name: bottle.name.clone(), cgroup: TestCgroup::new("outside") };
    let asked = stage.ask(&outside, &["--stream"]);
    assert_eq!(asked.one().status, 403, "{asked:?}");
}

/// Where the pins of this daemon are.
fn pins(daemon: &Daemon) -> PathBuf {
    Path::new("/sys/fs/bpf").join(daemon.run_dir().file_name().unwrap())
}

fn names_in(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

/// Names of the bottles that this daemon has pinned: its lane's guards bear names that no bottle can have.
fn pinned_bottles(daemon: &Daemon) -> Vec<String> {
    let names = names_in(&pins(daemon).join("bottles")).into_iter();
    names.filter(|name| !name.starts_with("%2E")).collect()
}

#[test]
fn root_a_detached_bottle_leaves_nothing_pinned_and_goes_free() {
    let stage = Stage::new(Reply::default(), "");
    let bottle = stage.bottle("free", &[]);
    assert_eq!(pinned_bottles(&stage.daemon), ["free"]);
    stage.daemon.ok(&["cut", "free"]);
    assert!(!gets_out(&bottle.cgroup));
    let refused = stage.daemon.cli(&["detach", "free"]);
    assert_eq!(refused.code, Some(4), "a cut bottle is not let go by mistake: {refused:?}");
    assert!(!gets_out(&bottle.cgroup), "still cut");

    stage.daemon.ok(&["detach", "free", "--force"]);
    assert_eq!(pinned_bottles(&stage.daemon), [""; 0]);
    assert!(gets_out(&bottle.cgroup), "nothing guards it");
    assert_eq!(stage.daemon.json(&["status"])["bottles"], json!([]));
    assert_eq!(stage.audit("free", "detach").len(), 1);
    stage.daemon.attach("free", bottle.cgroup.path(), &[]);
    assert_eq!(stage.ask(&bottle, &[]).code, Some(0), "name and cgroup can be attached again");
}

#[test]
fn root_unpinning_takes_everything_away_but_not_under_a_daemon() {
    let mut stage = Stage::new(Reply::default(), "");
    let bottle = stage.bottle("pinned", &[]);
    stage.daemon.ok(&["cut", "pinned"]);
    let pins = pins(&stage.daemon);
    let refused = stage.daemon.cli(&["daemon", "--unpin-all"]);
    assert_eq!(refused.code, Some(1), "a daemon runs: {refused:?}");
    assert!(!gets_out(&bottle.cgroup), "nothing was taken away");
    stage.daemon.stop();
    assert!(!gets_out(&bottle.cgroup));
    assert_eq!(stage.daemon.ok(&["daemon", "--unpin-all"]), "1 bottles unpinned\n");
    assert!(!pins.exists(), "{}: {:?}", pins.display(), names_in(&pins));
    assert!(gets_out(&bottle.cgroup), "nothing guards it");

    // as after a reboot: the ledger knows the cut, the kernel does not
    stage.daemon.restart();
    assert_eq!(stage.daemon.bottle("pinned")["state"], "cut");
    assert!(!gets_out(&bottle.cgroup), "it is cut again");
}

#[test]
fn root_a_bottle_whose_cgroup_was_removed_is_gone() {
    let mut stage = Stage::new(Reply::default(), "");
    let bottle = stage.bottle("lost", &[]);
    assert_eq!(stage.ask(&bottle, &[]).code, Some(0));
    let started = mono_ns();
    drop(bottle);
    stage.daemon.wait_bottle("lost", |status| status["state"] == "gone", SOON);
    println!("gone is told {} ms after the removal", (mono_ns() - started) / 1_000_000);
    stage.daemon.ok(&["detach", "lost", "--force"]);
    assert_eq!(pinned_bottles(&stage.daemon), [""; 0]);

    // the same path again is another cgroup
    let second = stage.bottle("lost", &[]);
    assert_eq!(stage.ask(&second, &[]).code, Some(0));
    assert_eq!(stage.daemon.bottle("lost")["usage"]["claude"]["flows"], 2, "a bottle's sums are its name's");
    drop(second);
    stage.daemon.restart();
    assert_eq!(stage.daemon.json(&["status"])["bottles"], json!([]), "an ended attachment is not taken over");
    assert_eq!(pinned_bottles(&stage.daemon), [""; 0]);
    assert!(wait_until(SOON, || stage.audit("lost", "detach").get(1).cloned()).is_some(), "and said");
}
