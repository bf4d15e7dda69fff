//! The JSON of the control API: the documents that `status`, the TUI and scripts read. The contract's names.
mod budget;

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

pub use self::budget::{AddTokens, Budget, BudgetRow, BudgetScope, Link, SetBudget};
use crate::audit::Cause;
use crate::kernel::Face;

/// `GET /v1/status`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The controller.
    pub daemon: Daemon,
    /// Every attached bottle, by name.
    pub bottles: Vec<Bottle>,
}

/// The controller and its parts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Daemon {
    /// Process id.
    pub pid: u32,
    /// Version of the program.
    pub version: String,
    /// The meter process.
    pub meter: Meter,
    /// The refusal lane.
    pub lane: Lane,
    /// The kernel plane.
    pub kernel: Programs,
    /// Why requests are refused although the meter serves (`the ledger …: disk full`); absent when all is well.
    pub closed: Option<String>,
}

/// The meter process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meter {
    /// Process id; `None` while it is down.
    pub pid: Option<u32>,
    /// Address and port of the listener.
    pub listen: String,
    /// `serving`, `starting` or `down`.
    pub state: String,
}

/// The refusal lane: the process that tells agents of answered cuts why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lane {
    /// Process id; `None` while it is down.
    pub pid: Option<u32>,
    /// `serving`, `starting` or `down`; while it does not serve, answered cuts are silent ones.
    pub state: String,
}

/// The kernel plane.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Programs {
    /// `attached` once the programs are loaded.
    pub programs: String,
    /// Seconds of the lease; `None`: off.
    pub lease_s: Option<u64>,
}

/// State of a bottle.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs, reason = "the contract's words say it")]
pub enum State {
    Open,
    Cut,
    Frozen,
    Killed,
    /// Its cgroup is gone.
    Gone,
}

impl State {
    /// The word used in JSON and tables.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Cut => "cut",
            Self::Frozen => "frozen",
            Self::Killed => "killed",
            Self::Gone => "gone",
        }
    }
}

/// One bottle.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bottle {
    /// Name.
    pub name: String,
    /// Agent's name.
    pub agent: Option<String>,
    /// Parent bottle's name.
    pub parent: Option<String>,
    /// Absolute path of the cgroup.
    pub cgroup: String,
    /// Processes in it and below.
    pub pids: usize,
    /// State.
    pub state: State,
    /// `silent` or `answered` while cut.
    pub face: Option<Face>,
    /// Why it is cut.
    pub cause: Option<Cause>,
    /// `cutoff`, `freeze` or `kill`.
    pub policy: String,
    /// `open`, `allowlist` or `metered`.
    pub egress: String,
    /// Settled usage of the bottle by name (all its attachments, not its descendants'), by provider.
    pub usage: BTreeMap<String, Usage>,
    /// The budget that it feels first, by provider that has one.
    pub budget: BTreeMap<String, Budget>,
    /// Every scope that its exchanges are charged to, nearest first, by provider: where one bottle is asked for.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub chain: BTreeMap<String, Vec<Link>>,
    /// Packets.
    pub kernel: Packets,
}

/// Settled usage. All counts are tokens but `flows`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the contract's words say it")]
pub struct Usage {
    pub input: u64,
    pub cache_write: u64,
    pub cache_read: u64,
    pub output: u64,
    pub reasoning: u64,
    pub total: u64,
    /// The part of total that is not `reported`.
    pub estimated: u64,
    /// Settled exchanges.
    pub flows: u64,
}

/// Packets and bytes, both directions, since attach.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the contract's words say it")]
pub struct Packets {
    pub passed_packets: u64,
    pub passed_bytes: u64,
    pub dropped_packets: u64,
    pub dropped_bytes: u64,
}

/// Body of `POST /v1/bottles`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Attach {
    /// Name of the bottle.
    pub name: String,
    /// Path of the cgroup; or one of `pid`, `docker`, `podman`, `unit` and `create`.
    #[serde(default)]
    pub cgroup: Option<String>,
    /// A process whose cgroup it is.
    #[serde(default)]
    pub pid: Option<u32>,
    /// Name or id of a Docker container.
    #[serde(default)]
    pub docker: Option<String>,
    /// Name or id of a Podman container.
    #[serde(default)]
    pub podman: Option<String>,
    /// A systemd unit.
    #[serde(default)]
    pub unit: Option<String>,
    /// Make a cgroup for it (`run`); removed at detach.
    #[serde(default)]
    pub create: bool,
    /// Agent's name.
    #[serde(default)]
    pub agent: Option<String>,
    /// Parent bottle's name; by nesting without it.
    #[serde(default)]
    pub parent: Option<String>,
    /// Launch-time budgets, tokens by provider.
    #[serde(default)]
    pub budget: BTreeMap<String, u64>,
    /// `cutoff`, `freeze` or `kill`; the settings' without it.
    #[serde(default)]
    pub policy: Option<String>,
    /// `open`, `allowlist` or `metered`; the settings' without it.
    #[serde(default)]
    pub egress: Option<String>,
    /// Abort the sockets that were made outside its cgroup.
    #[serde(default)]
    pub hard: bool,
}

/// Answer to `POST /v1/bottles`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attached {
    /// The bottle.
    pub bottle: Bottle,
    /// What the operator should know (foreign sockets, …), one line each.
    pub warnings: Vec<String>,
}

/// Answer to `DELETE /v1/bottles/NAME`; no document at all when there is nothing to know.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Detached {
    /// What the operator should know (when it is attached again, …), one line each.
    pub warnings: Vec<String>,
}

/// Body of `POST /v1/bottles/NAME/cut`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cut {
    /// Words for the audit and the cause.
    #[serde(default)]
    pub reason: Option<String>,
    /// `silent` (default) or `answered`.
    #[serde(default)]
    pub face: Option<Face>,
    /// Abort every socket of the bottle too.
    #[serde(default)]
    pub hard: bool,
}

/// Body of `POST /v1/bottles/NAME/freeze` and `…/kill`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reason {
    /// Words for the audit and the cause.
    #[serde(default)]
    pub reason: Option<String>,
}

/// Body of `POST /v1/bottles/NAME/restore`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Restore {
    /// Tokens to add to the governing budget, by provider.
    #[serde(default)]
    pub add: BTreeMap<String, u64>,
    /// Open although a budget is used up (requests are still refused until it is raised).
    #[serde(default)]
    pub force: bool,
}

/// Answer to `POST /v1/settings/reload`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reloaded {
    /// What is different, one line each; none when nothing is.
    pub changed: Vec<String>,
    /// What the operator should know (what stays cut, what waits for the next attach), one line each.
    pub warnings: Vec<String>,
}

/// Any refusal of the API.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// What is wrong, one line.
    pub error: String,
    /// What to do about it.
    pub hint: Option<String>,
    /// The exit code a command should end with.
    pub exit_code: u8,
}

impl Problem {
    /// The order itself is wrong (exit code 2).
    #[must_use]
    pub fn usage(error: impl Into<String>) -> Self {
        Self { error: error.into(), hint: None, exit_code: 2 }
    }

    /// The order is refused by budget, policy or permission (exit code 4).
    #[must_use]
    pub fn refused(error: impl Into<String>) -> Self {
        Self { error: error.into(), hint: None, exit_code: 4 }
    }

    /// The order failed (exit code 1).
    #[must_use]
    pub fn failed(error: impl Into<String>) -> Self {
        Self { error: error.into(), hint: None, exit_code: 1 }
    }

    /// The kernel or the host cannot do it (exit code 5).
    #[must_use]
    pub fn host(error: impl Into<String>) -> Self {
        Self { error: error.into(), hint: None, exit_code: 5 }
    }

    /// Says what to do about it.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

/// What a bottle needs to trust and reach the meter: `GET /v1/bottles/NAME/env`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Environment {
    /// Variables and their values, in a fixed order.
    pub variables: Vec<(String, String)>,
    /// What clients read from a file of their own and from no variable.
    #[serde(default)]
    pub config: Vec<ConfigLine>,
}

/// A line of a client's own configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigLine {
    /// Which client.
    pub client: String,
    /// Its file, `~` for the home of its user.
    pub file: String,
    /// The line.
    pub line: String,
    /// What the client does by itself and what the line is for, in words that follow its name.
    pub when: String,
}

/// The event `drop`: what the kernel dropped or refused of a bottle.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dropped {
    /// RFC 3339, UTC, milliseconds.
    pub at: String,
    /// Whose.
    pub bottle: String,
    /// Why.
    pub cause: DropCause,
    /// `tcp`, `udp`, `icmp`, `icmpv6`, `sctp`, or the IP protocol's number.
    pub protocol: String,
    /// The far end's address.
    pub address: IpAddr,
    /// The far end's port, where there is one.
    pub port: Option<u16>,
    /// The calling process as the host counts it; `None` where a packet was judged, which is nobody's call.
    pub pid: Option<u32>,
    /// Drops since the event before this one that made none.
    pub suppressed: u32,
}

/// Why something was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DropCause {
    /// The bottle is cut.
    Cut,
    /// The controller was silent for longer than the lease.
    Lease,
    /// The bottle is open; its egress rules, or those that keep traffic from going around the meter.
    Rule,
}
