//! The ledger as the rest of the controller sees it: load once, commit entries, answer queries.
//!
//! No SQL and no SQLite type here, so that a server database can implement it later. `sqlite` implements it,
//! `writer` is the thread that commits in groups.
pub mod sqlite;
pub mod writer;

use std::ops::Range;

use meter_proxy::tokens::{Ending, Provenance, Tokens};
use serde::{Deserialize, Serialize};

use crate::audit::Action;
use crate::bottle::engine::Container;
use crate::budget::weights::Weights;
use crate::budget::window::Hour;
use crate::budget::{Statement, Warned};
use crate::settings::{Egress, Policy};

/// What can go wrong in the ledger.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// The database refused; its own words.
    #[error("the ledger {path}: {what}")]
    Database {
        /// The file.
        path: String,
        /// What was refused.
        what: String,
    },
    /// The file is not what it should be (owner, link, damage, a newer schema).
    #[error("the ledger {path}: {what}")]
    Unusable {
        /// The file.
        path: String,
        /// What is wrong.
        what: String,
        /// What the operator can do.
        hint: String,
    },
}

/// One attachment of a bottle, from attach to detach; unique for ever.
pub type AttachmentId = i64;
/// One exchange; unique for ever, given out by the core.
pub type ExchangeId = i64;
/// Milliseconds since the Unix epoch, UTC.
pub type UnixMs = i64;

/// A bottle as it was attached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    /// Identity of this attachment.
    pub id: AttachmentId,
    /// The bottle's name.
    pub name: String,
    /// Its agent.
    pub agent: Option<String>,
    /// Its parent bottle's name.
    pub parent: Option<String>,
    /// Names of all ancestors, nearest first.
    pub ancestors: Vec<String>,
    /// Absolute path of the cgroup.
    pub cgroup: String,
    /// Inode of the cgroup.
    pub cgroup_id: u64,
    /// Whether the cgroup was made by `run` and is removed at detach.
    pub owns_cgroup: bool,
    /// The container that it was attached by.
    pub container: Option<Container>,
    /// Slot in the kernel's table.
    pub slot: u32,
    /// Generation of the slot.
    pub generation: u32,
    /// What a crossed budget does to it.
    pub policy: Policy,
    /// What it may reach.
    pub egress: Egress,
    /// Launch-time budgets: provider and tokens.
    pub launch_budget: Vec<(String, u64)>,
    /// Start of the attachment.
    pub attached_at: UnixMs,
}

/// A request that is about to leave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reservation {
    /// Identity of the exchange.
    pub id: ExchangeId,
    /// Whose attachment; `None` for the host (`unattached: meter`).
    pub attachment: Option<AttachmentId>,
    /// The bottle's name (`host` without an attachment).
    pub bottle: String,
    /// Its agent.
    pub agent: Option<String>,
    /// Names of the bottle's ancestors, nearest first.
    pub ancestors: Vec<String>,
    /// Key of the budget.
    pub provider: String,
    /// Path asked for.
    pub endpoint: String,
    /// Model asked for.
    pub model: Option<String>,
    /// Reserved tokens.
    pub reserved_tokens: u64,
    /// The hour that windows stand at.
    pub hour: Hour,
    /// Start.
    pub started_at: UnixMs,
}

/// The end of an exchange.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settlement {
    /// The exchange.
    pub id: ExchangeId,
    /// Final figures.
    pub tokens: Tokens,
    /// Where they come from.
    pub provenance: Provenance,
    /// How it ended.
    pub ending: Ending,
    /// Status of the provider's answer.
    pub http_status: Option<u16>,
    /// The model that answered.
    pub model: Option<String>,
    /// The provider's own usage JSON.
    pub raw: Option<String>,
    /// The hour that it counts in: the one that windows stood at, which never go back as the clock may.
    pub hour: Hour,
    /// End.
    pub ended_at: UnixMs,
}

/// Whose budget it is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Owner {
    /// One attachment (`--budget`).
    Launch(AttachmentId),
    /// An agent, by name.
    Agent(String),
    /// A bottle, by name; counts its descendants too.
    Bottle(String),
    /// The host.
    Global,
}

/// What an operator said of a budget.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stated {
    /// Whose budget.
    pub owner: Owner,
    /// Which provider's.
    pub provider: String,
    /// What was said.
    pub statement: Statement,
    /// The hour that windows stood at.
    pub hour: Hour,
    /// When.
    pub at: UnixMs,
}

/// What a bottle is allowed, and why not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// The attachment it is about.
    pub attachment: AttachmentId,
    /// `None`: open.
    pub cause: Option<crate::audit::Cause>,
}

/// One durable fact. A commit takes a group of them, all or nothing.
#[derive(Clone, Debug, PartialEq)]
pub enum Entry {
    /// A bottle was attached.
    Attach(Attachment),
    /// An attachment ended.
    Detach {
        /// Which.
        attachment: AttachmentId,
        /// When.
        at: UnixMs,
    },
    /// A request is about to leave.
    Reserve(Reservation),
    /// What was seen of an exchange under way, so that a crash does not make it cheaper.
    Progress {
        /// The exchange.
        exchange: ExchangeId,
        /// Figures so far. Input and cache classes are kept as one.
        seen: Tokens,
    },
    /// An exchange ended. A second settlement of the same exchange changes nothing.
    Settle(Settlement),
    /// An operator said something of a budget.
    State(Stated),
    /// Windows have reached this hour; a later one that was reached before stands.
    Reached(Hour),
    /// A percentage of a budget was warned of.
    Warned {
        /// Whose budget.
        owner: Owner,
        /// Which provider's.
        provider: String,
        /// What was warned of.
        warned: Warned,
    },
    /// A bottle was cut or opened.
    Verdict(Verdict),
    /// A row of the audit.
    Action(Action),
    /// Settled exchanges that began in this time are summed, and not kept by themselves any more.
    RollUp {
        /// When.
        time: Range<UnixMs>,
        /// The row of the audit that says so; written where there was anything to sum: once, however often that is
        /// asked.
        row: Option<Action>,
    },
}

/// Sum of settled exchanges of one account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sum {
    /// The account. A bottle's holds its own exchanges and those of its descendants, each once.
    pub owner: Owner,
    /// The provider.
    pub provider: String,
    /// Settled figures by class.
    pub tokens: Tokens,
    /// The part of them that is not `reported`; its reasoning is not told apart.
    pub estimated: Tokens,
    /// Exchanges.
    pub flows: u64,
}

/// Figures that one account settled in one hour.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HourSum {
    /// The account.
    pub owner: Owner,
    /// The provider.
    pub provider: String,
    /// The hour.
    pub hour: Hour,
    /// Settled figures by class.
    pub tokens: Tokens,
}

/// Everything that a new controller must know before it decides anything.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Snapshot {
    /// Attachments that have not ended, with the verdict that was recorded last.
    pub attachments: Vec<(Attachment, Option<crate::audit::Cause>)>,
    /// Reservations that were never settled, each with what was seen of it last (all input in `input`).
    pub orphans: Vec<(Reservation, Tokens)>,
    /// Settled sums of every account that has any.
    pub sums: Vec<Sum>,
    /// Settled sums of each bottle by name, without its descendants' (`status` shows them); `owner` is
    /// [`Owner::Bottle`].
    pub own: Vec<Sum>,
    /// The latest hour that windows have reached; `None` in a ledger that knew of none.
    pub reached: Option<Hour>,
    /// Parts of `sums` that were settled in windows that have not ended, by hour.
    pub hours: Vec<HourSum>,
    /// What operators said of budgets, oldest first.
    pub stated: Vec<Stated>,
    /// The last warning of each budget.
    pub warned: Vec<(Owner, String, Warned)>,
    /// Highest ids given out so far.
    pub last_exchange: ExchangeId,
    /// Highest attachment id given out so far.
    pub last_attachment: AttachmentId,
    /// Highest generation given out so far.
    pub last_generation: u32,
}

/// Which exchanges a usage query covers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsageQuery {
    /// Only this bottle.
    pub bottle: Option<String>,
    /// Only this agent.
    pub agent: Option<String>,
    /// Only this provider.
    pub provider: Option<String>,
    /// Only exchanges started at or after.
    pub since: Option<UnixMs>,
    /// Group by this alone; by bottle, agent, provider and model without it.
    pub by: Option<GroupBy>,
}

/// What usage rows are grouped by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GroupBy {
    /// Bottle's name.
    Bottle,
    /// Agent's name.
    Agent,
    /// Provider.
    Provider,
    /// Model.
    Model,
    /// Day of the start, UTC (`2026-01-31`), in `day`.
    Day,
}

/// One row of `usage`. A column that was not grouped by is `None`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsageRow {
    /// Bottle's name.
    pub bottle: Option<String>,
    /// Agent's name.
    pub agent: Option<String>,
    /// Provider.
    pub provider: Option<String>,
    /// Model that answered (or was asked for).
    pub model: Option<String>,
    /// Day, when grouped by it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub day: Option<String>,
    /// Settled exchanges.
    pub flows: u64,
    /// Uncached input.
    pub input: u64,
    /// Written to the cache.
    pub cache_write: u64,
    /// Read from the cache.
    pub cache_read: u64,
    /// Output, reasoning included.
    pub output: u64,
    /// Reasoning.
    pub reasoning: u64,
    /// The part of `cache_write` that is kept for five minutes, where the provider tells.
    #[serde(default)]
    pub cache_write_5m: u64,
    /// The part of `cache_write` that is kept for an hour, where the provider tells.
    #[serde(default)]
    pub cache_write_1h: u64,
    /// The part of `input` that the provider's own tools made.
    #[serde(default)]
    pub tool_prompt: u64,
    /// Sum of input, cache_write, cache_read and output, by weight.
    pub total: u64,
    /// The part of total that is not `reported`.
    pub estimated: u64,
    /// The budget that the bottle feels first for this provider now (`parent:base`), where the row is of one bottle
    /// that is attached and of one provider.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub governs: Option<String>,
}

/// One exchange, for `usage --flows`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowRow {
    /// Identity of the exchange.
    pub id: ExchangeId,
    /// RFC 3339, UTC.
    pub started: String,
    /// RFC 3339, UTC; `None` while under way.
    pub ended: Option<String>,
    /// How it ended (`completed`, …); `open` while under way.
    pub status: String,
    /// `reported`, `partial`, `estimated`; `None` while under way.
    pub provenance: Option<String>,
    /// Path asked for.
    pub endpoint: String,
    /// HTTP status of the provider's answer.
    pub http_status: Option<u16>,
    /// Tokens that were reserved.
    pub reserved: u64,
    /// The figures, with `flows` = 1.
    #[serde(flatten)]
    pub usage: UsageRow,
}

/// Writes. Owned by the writer thread alone.
pub trait Ledger: Send {
    /// Everything a new controller must know.
    ///
    /// # Errors
    /// When the database cannot be read.
    fn load(&mut self) -> Result<Snapshot, LedgerError>;

    /// Makes the entries durable, all or none.
    ///
    /// # Errors
    /// When the database refuses; then none of the entries is in.
    fn commit(&mut self, entries: &[Entry]) -> Result<(), LedgerError>;

    /// A reader of the same ledger, for another thread.
    ///
    /// # Errors
    /// When the database cannot be opened.
    fn reader(&self) -> Result<Box<dyn Reader>, LedgerError>;
}

/// Queries; never blocks a writer.
pub trait Reader: Send {
    /// Sums of settled exchanges; totals by these weights.
    ///
    /// # Errors
    /// When the database refuses.
    fn usage(&mut self, query: &UsageQuery, weights: &Weights) -> Result<Vec<UsageRow>, LedgerError>;

    /// Exchanges, newest last, those under way included.
    ///
    /// # Errors
    /// When the database refuses.
    fn flows(&mut self, query: &UsageQuery, weights: &Weights) -> Result<Vec<FlowRow>, LedgerError>;

    /// Id of the newest row of the audit; 0 for none.
    ///
    /// # Errors
    /// When the database refuses.
    fn newest_audit_row(&mut self) -> Result<i64, LedgerError>;

    /// Start of the oldest settled exchange that is kept by itself; `None`: there is none.
    ///
    /// # Errors
    /// When the database refuses.
    fn oldest_settled(&mut self) -> Result<Option<UnixMs>, LedgerError>;

    /// The beginning of this time in which no more than `most` settled exchanges began, but for those of one
    /// millisecond; all of it where there are fewer.
    ///
    /// # Errors
    /// When the database refuses.
    fn beginning_of(&mut self, time: &Range<UnixMs>, most: u32) -> Result<Range<UnixMs>, LedgerError>;

    /// Rows of the audit with an id above `after`, oldest first, at most `limit`.
    ///
    /// # Errors
    /// When the database refuses.
    fn audit(&mut self, after: i64, limit: u32) -> Result<Vec<crate::audit::Row>, LedgerError>;
}
