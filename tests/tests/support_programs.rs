//! The test programs as programs: the provider with its bill, the agent's output and exit codes, senders into sinks.
#![allow(clippy::unwrap_used, reason = "a failed expectation should stop the test where it stands")]
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::Value;
use support::clock::{mono_ns, wait_until};
use support::process::{Output, Seen, built, run, stop};
use support::provider::{Provider, Reply, sha256_hex};
use support::sink::Sink;

const SOON: Duration = Duration::from_secs(10);

/// A program that is stopped when the test leaves it.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        stop(&mut self.0, SOON);
    }
}

fn agent(provider: &Provider, args: &[&str]) -> Output {
    let mut command = Command::new(built("demo-agent"));
    run(command.env("ANTHROPIC_BASE_URL", provider.http_url()).arg("--stream").args(args), SOON)
}

#[test]
fn the_provider_program_tells_its_addresses_and_its_bill() {
    let mut command = Command::new(built("mock-provider"));
    let child = command.args(["--tokens", "24", "--input", "9"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut running = Running(child);
    let mut line = String::new();
    BufReader::new(running.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let told: Value = serde_json::from_str(&line).unwrap();
    let url = told["http_url"].as_str().unwrap();
    let mut command = Command::new(built("demo-agent"));
    let output = run(command.args(["--stream", "--base-url", url]), SOON);
    assert_eq!(output.code, Some(0), "{}", output.stderr);

    let mut stream = TcpStream::connect(told["http"].as_str().unwrap()).unwrap();
    stream.write_all(b"GET /__bill HTTP/1.1\r\nHost: mock\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let bill: Value = serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap();
    assert_eq!([&bill["total"], &bill["billed"]["output"], &bill["open_streams"]], [33, 24, 0]);
    assert_eq!(bill["records"].as_array().unwrap().len(), 1);
}

#[test]
fn the_agent_prints_the_text_and_dumps_the_bytes() {
    let provider = Provider::start(Reply::default());
    let dump = provider.dir().join("dump");
    let output =
        agent(&provider, &["--gzip", "--header", "x-mock-encoding=gzip", "--dump", dump.to_str().unwrap()]);
    assert_eq!(
        (output.code, output.stdout.as_str()),
        (Some(0), format!("{}\n", Reply::default().text()).as_str())
    );
    let bytes = std::fs::read(dump).unwrap();
    assert_eq!(sha256_hex(&bytes), provider.records()[0].response_sha256);
    assert_eq!(bytes[..2], [0x1f, 0x8b], "the bytes of the wire, not the text");
}

#[test]
fn the_agent_stops_at_a_refusal_and_says_why() {
    let provider = Provider::start(Reply::error(429));
    let output = agent(&provider, &["--requests", "5"]);
    assert_eq!(output.code, Some(3));
    assert!(output.stderr.contains("429 This request would exceed your rate limit"), "{}", output.stderr);
    assert_eq!(provider.records().len(), 1, "asked once");
}

#[test]
fn the_agent_tells_a_broken_answer_from_a_whole_one() {
    let provider = Provider::start(Reply { break_after: Some(4), ..Reply::default() });
    let output = agent(&provider, &["--requests", "5", "--json"]);
    assert_eq!(output.code, Some(4), "{}", output.stderr);
    let answer: Value = serde_json::from_str(&output.stdout).unwrap();
    assert_eq!(answer["events"], 4);
}

#[test]
fn sinks_count_what_senders_send() {
    for ip in [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)] {
        for (protocol, sink) in [("udp", Sink::udp(ip)), ("tcp", Sink::tcp(ip))] {
            let address = sink.address().to_string();
            let args = [protocol, &address, "--pps", "500", "--for-ms", "300", "--progress"];
            let output = run(Command::new(built("sender")).args(args), SOON);
            assert_eq!(output.code, Some(0), "{}", output.stderr);
            let last: Value = serde_json::from_str(output.stdout.lines().last().unwrap()).unwrap();
            let bytes = usize::try_from(last["bytes"].as_u64().unwrap()).unwrap();
            assert!(bytes >= 64 * 50, "{last}");
            assert!(output.stdout.lines().count() >= 3, "progress: {}", output.stdout);
            assert!(wait_until(SOON, || (sink.bytes() == bytes).then_some(())).is_some(), "{protocol} {ip}");
            assert_eq!(sink.bytes_since(mono_ns()), 0);
            let last_ok_ns = last["last_ok_ns"].as_u64().unwrap();
            assert!(sink.receipts().iter().all(|receipt| receipt.at_ns < last_ok_ns + 1_000_000_000));
        }
    }
}

#[test]
fn a_sender_names_what_the_kernel_says() {
    // a datagram that no UDP socket can carry
    let sink = Sink::udp(IpAddr::V4(Ipv4Addr::LOCALHOST));
    let address = sink.address().to_string();
    let args = ["udp", &address, "--size", "70000", "--pps", "100", "--for-ms", "50"];
    let output = run(Command::new(built("sender")).args(args), SOON);
    let last: Value = serde_json::from_str(&output.stdout).unwrap();
    assert_eq!(last["sent"], 0);
    assert!(last["errors"]["EMSGSIZE"].as_u64().unwrap() > 0, "{last}");
}

#[test]
fn a_process_is_known_by_id_and_start() {
    let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
    let seen = Seen::now(child.id()).unwrap();
    assert!(seen.is_alive());
    seen.kill();
    assert!(wait_until(SOON, || (!seen.is_alive()).then_some(())).is_some(), "a zombie is not alive");
    child.wait().unwrap();
    seen.kill();
}
