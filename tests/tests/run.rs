//! `enforcer run` from end to end: an unprivileged agent in a bottle of its own, metered by its variables alone.
#![allow(clippy::unwrap_used, reason = "a failed expectation should stop the test where it stands")]
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use support::agent::Answer;
use support::clock::wait_until;
use support::process::{self, Output};
use support::provider::{Reply, Script};
use support::stage::Stage;
use tempfile::TempDir;

const SOON: Duration = Duration::from_secs(10);
const PATIENCE: Duration = Duration::from_secs(30);

/// A stage, and an agent where every user can start it.
struct Scene {
    stage: Stage,
    programs: TempDir,
}

impl Scene {
    fn new(script: impl Into<Script>) -> Self {
        Self::with(script, "")
    }

    fn with(script: impl Into<Script>, settings: &str) -> Self {
        let stage = Stage::over_tls(script, settings);
        let programs = tempfile::tempdir().unwrap();
        fs::set_permissions(programs.path(), fs::Permissions::from_mode(0o755)).unwrap();
        process::copy_program(&process::built("demo-agent"), &programs.path().join("demo-agent"));
        Self { stage, programs }
    }

    fn agent(&self) -> String {
        self.programs.path().join("demo-agent").to_str().unwrap().to_owned()
    }

    /// `enforcer run --user nobody OPTIONS -- WORDS`, with no variable of the test's own that would lead to the meter.
    fn command(&self, options: &[&str], words: &[&str]) -> Command {
        let mut command = self.stage.daemon.command();
        command.args(["run", "--user", "nobody"]).args(options).arg("--").args(words);
        for variable in ["ANTHROPIC_BASE_URL", "OPENAI_BASE_URL", "HTTPS_PROXY", "SSL_CERT_FILE"] {
            command.env_remove(variable);
        }
        command.current_dir("/");
        command
    }

    fn run(&self, options: &[&str], words: &[&str]) -> Output {
        process::run(&mut self.command(options, words), PATIENCE)
    }

    fn names(&self) -> Vec<Value> {
        let status = self.stage.daemon.json(&["status"]);
        status["bottles"].as_array().unwrap().iter().map(|bottle| bottle["name"].clone()).collect()
    }
}

#[test]
fn root_an_agent_is_metered_by_its_variables_alone() {
    let scene = Scene::new(Reply::default());
    let agent = scene.agent();
    let ways: [&[&str]; 4] = [
        &["--stream"],
        &["--stream", "--mode", "connect"],
        &["--provider", "codex"],
        &["--provider", "codex", "--mode", "connect", "--stream"],
    ];
    for way in ways {
        let output =
            scene.run(&["--name", "launched", "--agent", "writer"], &[&[&*agent, "--json"], way].concat());
        assert_eq!(output.code, Some(0), "{way:?}: {output:?}");
        let answer: Answer = serde_json::from_str(&output.stdout).unwrap();
        let record = scene.stage.provider.billing_records().pop().unwrap();
        assert_eq!(answer.body_sha256, record.response_sha256, "{way:?}");
    }
    let flows = scene.stage.flows("launched");
    assert_eq!(flows.len(), ways.len());
    for flow in &flows {
        let told = ["provenance", "agent", "input", "output"].map(|key| flow[key].clone());
        assert_eq!(json!(told), json!(["reported", "writer", 25, 40]), "{flow}");
    }
    assert_eq!(scene.names(), [Value::Null; 0], "the bottle goes with its command");
    let kinds = ["attach", "detach"].map(|kind| scene.stage.audit("launched", kind).len());
    assert_eq!(kinds, [ways.len(); 2]);
}

#[test]
fn root_the_command_is_unprivileged_and_inside_from_its_first_instruction() {
    let scene = Scene::new(Reply::default());
    let script = "id -u; cat /proc/self/cgroup; grep NoNewPrivs /proc/self/status; ls /proc/self/fd | wc -l";
    let output = scene.run(&["--name", "inside"], &["sh", "-c", script]);
    assert_eq!(output.code, Some(0), "{output:?}");
    let lines: Vec<&str> = output.stdout.lines().collect();
    assert_eq!(lines[0], "65534", "nobody: {output:?}");
    let cgroup = lines.iter().find_map(|line| line.strip_prefix("0::")).unwrap();
    assert!(cgroup.contains("inside"), "{cgroup}");
    let attached = scene.stage.audit("inside", "attach").pop().unwrap();
    let path = attached["detail"].as_str().unwrap();
    assert!(path.ends_with(cgroup), "{path} is where it ran: {cgroup}");
    assert!(!Path::new(path).exists(), "and is removed");
    assert!(lines.contains(&"NoNewPrivs:\t1"), "{output:?}");
    // 0, 1, 2 and the one that ls opens
    assert_eq!(lines.last().unwrap().trim(), "4", "nothing is inherited: {output:?}");
}

#[test]
fn root_the_exit_code_is_the_commands_own() {
    let scene = Scene::new(Reply::error(429));
    let agent = scene.agent();
    let table: [(&[&str], i32); 5] = [
        (&["true"], 0),
        (&["sh", "-c", "exit 7"], 7),
        (&[&agent, "--stream"], 3),
        (&["sh", "-c", "kill -9 $$"], 137),
        (&["/no/such/program"], 125),
    ];
    for (words, code) in table {
        let output = scene.run(&[], words);
        assert_eq!(output.code, Some(code), "{words:?}: {output:?}");
        assert_eq!(scene.names(), [Value::Null; 0], "{words:?}");
    }
    let output = scene.run(&[], &[&agent, "--stream"]);
    assert!(output.stderr.contains("429 This request would exceed your rate limit"), "{output:?}");
}

/// A `run` under way; asked to end when dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        if self.0.try_wait().unwrap().is_none() {
            process::stop(&mut self.0, SOON);
        }
    }
}

#[test]
fn root_a_launch_budget_cuts_the_command_in_its_stream() {
    // an answered one ends the stream, and the agent with it
    let scene = Scene::with(Reply::paced(5_000, 8, Duration::from_millis(2)), "cut: silent");
    let agent = scene.agent();
    let mut command = scene.command(&["--budget", "claude=600", "--name", "spender"], &[&agent, "--stream"]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut running = Running(command.spawn().unwrap());
    wait_until(SOON, || scene.names().contains(&json!("spender")).then_some(())).expect("a bottle");
    let cut = scene.stage.daemon.wait_bottle("spender", |bottle| bottle["state"] == "cut", PATIENCE);
    let told = ["kind", "scope", "owner", "limit"].map(|key| cut["cause"][key].clone());
    assert_eq!(json!(told), json!(["budget", "launch", "spender", 600]), "{cut}");
    assert_eq!(running.0.try_wait().unwrap(), None, "it is cut, not ended");
    assert!(process::stop(&mut running.0, SOON), "SIGTERM reaches the command and ends the run");
    wait_until(SOON, || scene.names().is_empty().then_some(())).expect("the bottle goes with its command");
    let flow = scene.stage.flows("spender").pop().unwrap();
    assert_eq!(flow["status"], "cut", "{flow}");
}
