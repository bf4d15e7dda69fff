//! The demo: a real process in a real cgroup streams from a mock provider on loopback through the meter, crosses
//! its token budget in the middle of the stream, and loses its network in the kernel; then it is restored.
//!
//! Everything is the product's own: the daemon, its command line, the eBPF programs, the ledger. Only the provider
//! is a mock, and the agent is small. What the demo makes (daemon, cgroups, pins, files) it removes.
#![allow(clippy::unwrap_used, reason = "a demo that cannot go on stops where it stands, and cleans up")]
use std::fs;
use std::io::Read as _;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use clap::Parser;
use serde_json::Value;
use support::cgroup::TestCgroup;
use support::clock::{mono_ns, wait_until};
use support::enforcer::Daemon;
use support::process::{built, exit_within, kill};
use support::provider::{End, Provider, Reply};
use support::sink::Sink;

const SOON: Duration = Duration::from_secs(20);
/// How much the sender in the bottle sends, datagrams a second.
const SENDER_PPS: &str = "200";
/// Output tokens of one delta of the mock's stream.
const TOKENS_PER_DELTA: usize = 8;

/// Watch a bottle cross its budget and lose its network.
#[derive(Parser)]
struct Args {
    /// Budget of the whole host, in tokens.
    #[arg(long, default_value_t = 1_500)]
    budget: u64,
    /// Pause between two pieces of the provider's stream, in milliseconds.
    #[arg(long, default_value_t = 15)]
    pace_ms: u64,
}

fn main() {
    let args = Args::parse();
    let provider =
        Provider::start(Reply::paced(4_000, TOKENS_PER_DELTA, Duration::from_millis(args.pace_ms)));
    let daemon = Daemon::start(&settings(&args, &provider));
    let bottle = TestCgroup::new("demo");
    daemon.attach("demo", bottle.path(), &[]);
    say(&format!("The bottle `demo` is the cgroup {}.", bottle.path().display()));
    say(&format!("Its budget is the host's: {} claude tokens.", args.budget));

    let sink = Sink::udp(IpAddr::V4(Ipv4Addr::LOCALHOST));
    let nested = bottle.child("nested");
    let mut sender = Running(nested.spawn(sender(&sink).stdout(Stdio::null())));
    say("In a cgroup nested in it, a sender sends 200 datagrams a second to a socket outside.");
    let mut agent = Running(bottle.spawn(agent(&daemon, 1).stdout(Stdio::piped())));
    let text = agent.0.stdout.take().unwrap();
    let printing = std::thread::spawn(move || count_words(text));
    say("In the bottle, an agent asks for one long stream. Enforcer watches:\n");

    watch_until_cut(&daemon);
    show_the_cut(&daemon, &provider, &sink);
    agent.end();
    sender.end();
    let words = printing.join().unwrap();
    say(&format!("The agent had read {words} words of its answer when the network went."));

    say("The dashboard (`enforcer top`) shows:\n");
    println!("{}", daemon.ok(&["top", "--once", "--width", "110", "--height", "26"]));
    show_restore(&daemon, &bottle, &args);
    say("Done. The demo removes its daemon, its cgroups, its pins and its files.");
}

/// A process that is ended when the demo leaves it.
struct Running(Child);

impl Running {
    fn end(&mut self) {
        kill(&mut self.0);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.end();
    }
}

fn settings(args: &Args, provider: &Provider) -> String {
    format!(
        "budget: {{ claude: {} }}\nproviders:\n  claude: {{ dialect: anthropic, hosts: [api.anthropic.com], \
         upstream: \"{}\" }}\n",
        args.budget,
        provider.http_url()
    )
}

fn say(words: &str) {
    println!("==> {words}");
}

fn sender(sink: &Sink) -> Command {
    let mut command = Command::new(built("sender"));
    command.args(["udp", &sink.address().to_string(), "--pps", SENDER_PPS]);
    command
}

/// The agent with the variables that `enforcer env` prints, as `enforcer run` would set them.
fn agent(daemon: &Daemon, requests: usize) -> Command {
    let mut command = Command::new(built("demo-agent"));
    command.envs(daemon.environment("demo")).args(["--stream", "--requests", &requests.to_string()]);
    command
}

/// Reads the agent's text to its end; how many words there were.
fn count_words(mut text: impl std::io::Read) -> usize {
    let mut all = Vec::new();
    drop(text.read_to_end(&mut all));
    String::from_utf8_lossy(&all).split_whitespace().count()
}

fn watch_until_cut(daemon: &Daemon) {
    let cut = wait_until(SOON * 3, || {
        let bottle = daemon.bottle("demo");
        println!("    {}", gauge(&bottle));
        std::thread::sleep(Duration::from_millis(200));
        (bottle["state"] == "cut").then_some(())
    });
    assert!(cut.is_some(), "the bottle was never cut\n{}", daemon.logs());
}

/// `open  [#####.....]  734 of 1500 tokens`
fn gauge(bottle: &Value) -> String {
    const WIDTH: u64 = 40;
    let budget = &bottle["budget"]["claude"];
    let (used, limit) = (budget["used"].as_u64().unwrap(), budget["limit"].as_u64().unwrap());
    let filled = usize::try_from((used.min(limit) * WIDTH).checked_div(limit).unwrap_or(WIDTH)).unwrap();
    let empty = usize::try_from(WIDTH).unwrap() - filled;
    let state = bottle["state"].as_str().unwrap();
    format!("{state:<5} [{}{}]  {used} of {limit} tokens", "#".repeat(filled), ".".repeat(empty))
}

fn show_the_cut(daemon: &Daemon, provider: &Provider, sink: &Sink) {
    let seen = mono_ns();
    let rows = daemon.json_lines(&["audit"]);
    let cut = rows.iter().rfind(|row| row["action"] == "cut").unwrap();
    println!();
    say(&format!("Cut. The audit says why: {}", cut["cause"]));
    say(&format!("From the meter's message to the store in the kernel's map: {} µs.", cut["took_us"]));
    let records = provider.wait_for(|records| records.iter().any(|record| record.end.is_some()), SOON);
    let broken = records.iter().find(|record| record.end == Some(End::ClientGone)).unwrap();
    say(&format!("The provider saw its stream closed, having sent {} output tokens.", broken.billed.output));
    std::thread::sleep(Duration::from_millis(500));
    say(&format!(
        "Bytes of the nested sender that came out in the half second since: {}.",
        sink.bytes_since(seen)
    ));
    let packets = &daemon.bottle("demo")["kernel"];
    say(&format!("Packets that the kernel dropped: {}.", packets["dropped_packets"]));
    assert_eq!(sink.bytes_since(seen), 0, "a cut bottle must send nothing");
}

fn show_restore(daemon: &Daemon, bottle: &TestCgroup, args: &Args) {
    let refused = daemon.cli(&["restore", "demo"]);
    assert_eq!(refused.code, Some(4), "a restore that changes nothing must be refused");
    say(&format!("`enforcer restore demo` is refused (exit {}):", refused.code.unwrap()));
    println!("    {}", refused.stderr.trim().replace('\n', "\n    "));
    let add = format!("claude={}", args.budget * 100);
    drop(daemon.ok(&["restore", "demo", "--add", &add]));
    say(&format!("`enforcer restore demo --add {add}` opens it; the agent asks again:"));
    let dump: PathBuf = daemon.state_dir().join("answer");
    let mut command = agent(daemon, 1);
    let short = ["--header", "x-mock-deltas=6", "--header", "x-mock-pace-ms=0", "--dump"];
    let mut agent = Running(bottle.spawn(command.args(short).arg(&dump).stdout(Stdio::piped())));
    let mut answer = String::new();
    let code = exit_within(&mut agent.0, SOON);
    agent.0.stdout.take().unwrap().read_to_string(&mut answer).unwrap();
    assert_eq!(code, Some(Some(0)), "the restored bottle's agent must be answered: {answer}");
    println!("    {}", answer.trim().replace('\n', "\n    "));
    say(&format!("It received {} bytes. The ledger:", size(&dump)));
    println!("{}", indent(&daemon.ok(&["usage"])));
}

fn size(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |metadata| metadata.len())
}

fn indent(text: &str) -> String {
    text.lines().map(|line| format!("    {line}")).collect::<Vec<_>>().join("\n")
}
