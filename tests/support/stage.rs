//! One test's whole scene: a mock provider, a daemon that meters it, and bottles with agents and senders in them.
//!
//! Everything in a bottle is a process of its own in a real cgroup, told of the meter by nothing but `enforcer env`.
use std::net::{IpAddr, SocketAddr};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, SystemTime};

use serde_json::Value;

use crate::agent::Answer;
use crate::cgroup::TestCgroup;
use crate::clock::mono_ns;
use crate::enforcer::Daemon;
use crate::process::{self, Output};
use crate::provider::{Provider, Script};

/// How long an agent may take to its end.
const AGENT_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a sender may take to end after its own time.
const SENDER_TIMEOUT: Duration = Duration::from_secs(30);

/// A provider and the daemon that stands before it.
pub struct Stage {
    /// The daemon; taken down first.
    pub daemon: Daemon,
    /// The provider, whatever it is called.
    pub provider: Provider,
}

impl Stage {
    /// The daemon reaches the provider over plain HTTP; `settings` are the rest of its settings file.
    #[must_use]
    pub fn new(script: impl Into<Script>, settings: &str) -> Self {
        let provider = Provider::start(script);
        let settings = format!("{}{settings}", upstreams(&provider.http_url()));
        Self { daemon: Daemon::start(&settings), provider }
    }

    /// As [`Stage::new`], with a daemon whose clock shows `utc` and can be turned ([`Daemon::set_clock`]).
    #[must_use]
    pub fn at(utc: &str, script: impl Into<Script>, settings: &str) -> Self {
        let provider = Provider::start(script);
        let settings = format!("{}{settings}", upstreams(&provider.http_url()));
        Self { daemon: Daemon::start_at(utc, &settings), provider }
    }

    /// The daemon reaches the provider over TLS, and trusts its CA.
    #[must_use]
    pub fn over_tls(script: impl Into<Script>, settings: &str) -> Self {
        let provider = Provider::start(script);
        let tls = format!("tls: {{ extra_roots: \"{}\" }}\n", provider.ca_file().display());
        let settings = format!("{}{tls}{settings}", upstreams(&provider.https_url()));
        Self { daemon: Daemon::start(&settings), provider }
    }

    /// The daemon reaches the provider, whose CA it trusts, at `address` by the names that clients ask for; what it
    /// asks for names has to know them.
    #[must_use]
    pub fn by_its_names(script: impl Into<Script>, address: IpAddr) -> Self {
        let provider = Provider::start(script);
        provider.serve_tls_at(SocketAddr::new(address, 443));
        let roots = provider.ca_file();
        // addresses of tests and documentation are not public
        let settings =
            format!("tls: {{ extra_roots: \"{}\" }}\nallow_private: [\"{address}/32\"]\n", roots.display());
        Self { daemon: Daemon::start(&settings), provider }
    }

    /// Replaces the rest of the settings file; the daemon reads it at its next start or reload.
    pub fn write_settings(&self, settings: &str) {
        let upstreams = upstreams(&self.provider.http_url());
        self.daemon.write_settings(&format!("{upstreams}{settings}"));
    }

    /// A new cgroup, attached under this name; `options` as on the command line of `attach`.
    #[must_use]
    pub fn bottle(&self, name: &str, options: &[&str]) -> Bottle {
        let cgroup = TestCgroup::new(name);
        self.daemon.attach(name, cgroup.path(), options);
        Bottle { name: name.to_owned(), cgroup }
    }

    /// `demo-agent` as a program of the bottle starts it: with the variables of `enforcer env`.
    #[must_use]
    pub fn agent(&self, bottle: &Bottle, args: &[&str]) -> Command {
        let mut command = Command::new(process::built("demo-agent"));
        command.args(args).envs(self.daemon.environment(&bottle.name));
        bottle.cgroup.enter_before_exec(&mut command);
        command
    }

    /// An agent of the bottle that dials the provider at `address` itself and knows of no proxy; with `--json`.
    #[must_use]
    pub fn direct(&self, bottle: &Bottle, address: IpAddr) -> Command {
        let address = SocketAddr::new(address, 443).to_string();
        let ca = self.daemon.ok(&["ca", "path"]);
        let mut command = Command::new(process::built("demo-agent"));
        command.env_clear().args(["--json", "--mode", "direct", "--address", &address]);
        command.args(["--ca-file", ca.trim()]);
        bottle.cgroup.enter_before_exec(&mut command);
        command
    }

    /// Runs an agent with `--json` to its end.
    #[must_use]
    pub fn ask(&self, bottle: &Bottle, args: &[&str]) -> Asked {
        let output = process::run(&mut self.agent(bottle, &[args, &["--json"]].concat()), AGENT_TIMEOUT);
        Asked::of(output)
    }

    /// Starts an agent with `--json` that goes on by itself.
    #[must_use]
    pub fn start_asking(&self, bottle: &Bottle, args: &[&str]) -> Asking {
        let mut command = self.agent(bottle, &[args, &["--json"]].concat());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Asking(Some(command.spawn().expect("the agent can be started")))
    }

    /// `usage --flows --json` of a bottle, oldest first.
    #[must_use]
    pub fn flows(&self, bottle: &str) -> Vec<Value> {
        let rows = self.daemon.json(&["usage", "--flows", "--bottle", bottle]);
        rows.as_array().cloned().expect("flows are a list")
    }

    /// Rows of the audit of one kind that name a bottle, oldest first.
    #[must_use]
    pub fn audit(&self, bottle: &str, action: &str) -> Vec<Value> {
        let rows = self.daemon.json_lines(&["audit"]).into_iter();
        rows.filter(|row| row["bottle"] == bottle && row["action"] == action).collect()
    }
}

/// Settings by which the daemon reaches the provider that serves at this URL.
#[must_use]
pub fn upstreams(url: &str) -> String {
    let all = ["claude", "codex", "gemini", "bedrock"];
    all.iter()
        .fold("providers:\n".to_owned(), |text, name| format!("{text}  {name}: {{ upstream: \"{url}\" }}\n"))
}

/// An attached cgroup. Dropped: its processes are killed and it is removed.
pub struct Bottle {
    /// Its name.
    pub name: String,
    /// Its cgroup.
    pub cgroup: TestCgroup,
}

/// What an agent that ended had to say.
#[derive(Debug)]
pub struct Asked {
    /// Every answer that came, whole or broken.
    pub answers: Vec<Answer>,
    /// The exit code.
    pub code: Option<i32>,
    /// What it complained of.
    pub stderr: String,
}

impl Asked {
    fn of(output: Output) -> Self {
        let answers = output.stdout.lines().map(|line| {
            serde_json::from_str(line).unwrap_or_else(|error| panic!("not an answer: {error}: {line}"))
        });
        Self { answers: answers.collect(), code: output.code, stderr: output.stderr }
    }

    /// The only answer. Panics unless there is exactly one.
    #[must_use]
    pub fn one(&self) -> &Answer {
        assert_eq!(self.answers.len(), 1, "{self:?}");
        &self.answers[0]
    }
}

/// An agent that runs; killed when dropped.
pub struct Asking(Option<Child>);

impl Asking {
    /// Waits for its end. Panics after `timeout`.
    #[must_use]
    pub fn ended(mut self, timeout: Duration) -> Asked {
        Asked::of(process::finish(self.0.take().expect("an agent ends once"), timeout))
    }

    /// Waits for the end of one that got no answer; what it said of that. Panics after `timeout`.
    #[must_use]
    pub fn complaint(mut self, timeout: Duration) -> String {
        let output = process::finish(self.0.take().expect("an agent ends once"), timeout);
        format!("{}{}", output.stdout, output.stderr)
    }

    /// Kills it, as a client that hangs up.
    pub fn hang_up(mut self) {
        process::kill(self.0.as_mut().expect("an agent that was not waited for"));
        self.0 = None;
    }
}

impl Drop for Asking {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            process::kill(child);
        }
    }
}

/// A `sender` that runs for a given time; killed when dropped.
pub struct Sending(Option<Child>);

impl Sending {
    /// Starts one that sends 64 bytes 1000 times a second for `for_ms`; in `cgroup`, or outside of every bottle.
    #[must_use]
    pub fn start(cgroup: Option<&TestCgroup>, protocol: &str, to: SocketAddr, for_ms: u64) -> Self {
        let mut command = Command::new(process::built("sender"));
        command.args([protocol, &to.to_string(), "--for-ms", &for_ms.to_string()]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = match cgroup {
            Some(cgroup) => cgroup.spawn(&mut command),
            None => command.spawn().expect("the sender can be started"),
        };
        Self(Some(child))
    }

    /// Waits for its end; its figures.
    #[must_use]
    pub fn figures(mut self) -> Value {
        let output = process::finish(self.0.take().expect("a sender ends once"), SENDER_TIMEOUT);
        assert_eq!(output.code, Some(0), "the sender: {}", output.stderr);
        serde_json::from_str(&output.stdout).expect("the sender prints its figures")
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            process::kill(child);
        }
    }
}

/// The monotonic clock at an instant that a document names in RFC 3339 with milliseconds, rounded up: what happened
/// before it was written is before this.
#[must_use]
pub fn mono_of(written: &Value) -> u64 {
    let text = written.as_str().unwrap_or_else(|| panic!("not an instant: {written}"));
    let at: jiff::Timestamp = text.parse().unwrap_or_else(|error| panic!("{text}: {error}"));
    let ago = SystemTime::now().duration_since(SystemTime::from(at)).expect("it is past");
    let ago_ns = u64::try_from(ago.as_nanos()).expect("a test is short");
    mono_ns() - ago_ns + 1_000_000
}
