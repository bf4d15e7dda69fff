//! Unmodified clients in a bottle that are told nothing of the meter but to trust its CA: each is metered to the byte.
//!
//! They find the provider's name in a hosts file of their own, which leads to an address where nobody listens: what is
//! answered went through the meter.
use std::fs::{self, File};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::json;
use support::mounts;
use support::network::{PUBLIC4, PUBLIC6, in_own_network};
use support::process;
use support::provider::{Reply, sha256_hex};
use support::stage::{Bottle, Stage};
use tempfile::TempDir;

use crate::{QUIET, SOON};

/// A program of `node`; see there.
pub const NODE_CLIENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/threats/client.mjs");
/// Where nobody is: clients that obey this variable get no answer.
pub const NO_PROXY_THERE: (&str, &str) = ("HTTPS_PROXY", "http://127.0.0.1:9");

const QUESTION: &str =
    r#"{"model": "claude-mock-1", "max_tokens": 64, "messages": [{"role": "user", "content": "Hello"}]}"#;
const CURL: &str = "curl -sS --noproxy '*' -H 'x-api-key: sk-test' -H 'anthropic-version: 2023-06-01' \
    -H 'content-type: application/json' --data-binary \"$0\" https://api.anthropic.com/v1/messages";
const URLLIB: &str = "
import sys, urllib.request
headers = {'x-api-key': 'sk-test', 'anthropic-version': '2023-06-01', 'content-type': 'application/json'}
request = urllib.request.Request('https://api.anthropic.com/v1/messages', sys.argv[1].encode(), headers)
sys.stdout.buffer.write(urllib.request.urlopen(request, timeout=8).read())
";
const REQUESTS: &str = "
import sys, requests
headers = {'x-api-key': 'sk-test', 'anthropic-version': '2023-06-01', 'content-type': 'application/json'}
answer = requests.post('https://api.anthropic.com/v1/messages', sys.argv[1], headers=headers, timeout=8)
sys.stdout.buffer.write(answer.content)
";

/// A stage whose provider every client finds at a public address.
struct Scene {
    stage: Stage,
    bottle: Bottle,
    files: TempDir,
    ca: PathBuf,
}

impl Scene {
    fn new(reply: Reply) -> Self {
        let stage = Stage::over_tls(reply, "");
        let ca = PathBuf::from(stage.daemon.ok(&["ca", "path"]).trim());
        Self { bottle: stage.bottle("clients", &[]), stage, files: tempfile::tempdir().unwrap(), ca }
    }

    /// Runs something where the provider's name has this address alone.
    fn with_provider_at<T: Send>(&self, ip: IpAddr, work: impl FnOnce() -> T + Send) -> T {
        let hosts = self.files.path().join("hosts");
        fs::write(&hosts, hosts_file(ip)).unwrap();
        mounts::private(|| {
            mounts::show_instead(Path::new("/etc/hosts"), &hosts);
            work()
        })
    }

    /// A program in the bottle that trusts the CA, in the ways in which clients are told to.
    fn client(&self, words: &[&str]) -> Command {
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).env_clear();
        command.envs(["PATH", "HOME"].into_iter().filter_map(|name| Some((name, std::env::var_os(name)?))));
        for variable in ["NODE_EXTRA_CA_CERTS", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"] {
            command.env(variable, &self.ca);
        }
        self.bottle.cgroup.enter_before_exec(&mut command);
        command
    }

    /// The last answer's bytes are the provider's, and the ledger says what it billed.
    #[track_caller]
    fn assert_metered(&self, received: &[u8]) {
        assert_metered(&self.stage, &self.bottle.name, received);
    }
}

/// A hosts file with the provider in it.
pub fn hosts_file(ip: IpAddr) -> String {
    format!("127.0.0.1 localhost\n{ip} api.anthropic.com\n")
}

/// The last answer's bytes are the provider's, and the ledger says what it billed.
#[track_caller]
pub fn assert_metered(stage: &Stage, bottle: &str, received: &[u8]) {
    let record = stage.provider.billing_records().pop().expect("the provider was asked");
    assert_eq!(sha256_hex(received), record.response_sha256, "{}", String::from_utf8_lossy(received));
    let flow = stage.flows(bottle).pop().expect("the ledger has it");
    let told = ["provenance", "input", "output"].map(|key| flow[key].clone());
    assert_eq!(json!(told), json!(["reported", record.billed.input, record.billed.output]), "{flow}");
}

/// Whether a client is installed; says so when it is not.
fn is_there(check: &[&str]) -> bool {
    let output = process::try_run(Command::new(check[0]).args(&check[1..]), SOON);
    let there = output.is_ok_and(|output| output.code == Some(0));
    if !there {
        println!("left out, not installed here: {check:?}");
    }
    there
}

#[test]
fn root_clients_that_ignore_the_proxy_are_metered() {
    in_own_network(|| {
        let scene = Scene::new(Reply::default());
        let mut clients = vec![vec!["node", NODE_CLIENT]];
        if is_there(&["curl", "--version"]) {
            clients.push(vec!["sh", "-c", CURL, QUESTION]);
        }
        for (check, program) in [("import urllib.request", URLLIB), ("import requests", REQUESTS)] {
            if is_there(&["python3", "-c", check]) {
                clients.push(vec!["python3", "-c", program, QUESTION]);
            }
        }
        for ip in [PUBLIC4, PUBLIC6] {
            for words in &clients {
                let mut client = scene.client(words);
                // Python's clients would obey it
                if words[0] != "python3" {
                    client.env(NO_PROXY_THERE.0, NO_PROXY_THERE.1);
                }
                let output = scene.with_provider_at(ip, || process::run(&mut client, SOON));
                assert_eq!(output.code, Some(0), "{words:?} at {ip}: {output:?}");
                scene.assert_metered(output.stdout.as_bytes());
            }
        }
        let asked = scene.stage.flows("clients").len();
        assert_eq!(asked, clients.len() * 2, "each was asked once, and nothing else was");
    });
}

/// A client whose answer goes to a file; killed when dropped.
struct Streaming(Child);

impl Drop for Streaming {
    fn drop(&mut self) {
        process::kill(&mut self.0);
    }
}

#[test]
fn root_a_node_stream_stops_at_a_cut_and_goes_on_after_a_restore() {
    in_own_network(|| {
        let scene = Scene::new(Reply::paced(300, 8, Duration::from_millis(5)));
        let answer = scene.files.path().join("answer");
        let mut node = scene.client(&["node", NODE_CLIENT]);
        node.stdin(Stdio::null()).stdout(File::create(&answer).unwrap()).stderr(Stdio::null());
        let mut node =
            Streaming(scene.with_provider_at(PUBLIC4, || node.spawn().expect("node is installed")));
        assert_stops_and_goes_on(&scene.stage, "clients", &answer);
        assert_eq!(process::exit_within(&mut node.0, SOON), Some(Some(0)), "the answer came whole");
        scene.assert_metered(&fs::read(&answer).unwrap());
    });
}

/// Cuts a bottle once some of an answer is there, holds it to getting no more, and restores it.
#[track_caller]
pub fn assert_stops_and_goes_on(stage: &Stage, bottle: &str, answer: &Path) {
    let size = || answer.metadata().unwrap().len();
    let flows = support::clock::wait_until(SOON, || (size() > 2_000).then_some(()));
    assert!(flows.is_some(), "nothing flows\n{}", stage.daemon.logs());
    stage.daemon.ok(&["cut", bottle]);
    std::thread::sleep(QUIET);
    let seen = size();
    std::thread::sleep(QUIET);
    assert_eq!(size(), seen, "a cut bottle hears nothing");
    stage.daemon.ok(&["restore", bottle]);
}
