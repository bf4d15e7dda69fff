//! The words of the audit: actions, causes, rows. Written by the core, kept by the ledger, shown by `audit`.
mod cause;

use serde::{Deserialize, Serialize};

pub use self::cause::{Cause, CauseKind, Freeze, Processes};

/// What was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs, reason = "the contract's words say it")]
pub enum ActionKind {
    Attach,
    Detach,
    Cut,
    Restore,
    Freeze,
    Thaw,
    Kill,
    Warn,
    Budget,
    Refuse,
    Dlp,
    Lease,
    Meter,
    Snapshot,
    Hook,
    Settings,
    Retention,
}

impl ActionKind {
    /// The word used in the ledger and in JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Attach => "attach",
            Self::Detach => "detach",
            Self::Cut => "cut",
            Self::Restore => "restore",
            Self::Freeze => "freeze",
            Self::Thaw => "thaw",
            Self::Kill => "kill",
            Self::Warn => "warn",
            Self::Budget => "budget",
            Self::Refuse => "refuse",
            Self::Dlp => "dlp",
            Self::Lease => "lease",
            Self::Meter => "meter",
            Self::Snapshot => "snapshot",
            Self::Hook => "hook",
            Self::Settings => "settings",
            Self::Retention => "retention",
        }
    }
}

/// An action to be recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Action {
    /// Milliseconds since the Unix epoch, UTC.
    pub at: i64,
    /// The bottle it concerns.
    pub bottle: Option<String>,
    /// What was done.
    pub action: ActionKind,
    /// Why.
    pub cause: Option<Cause>,
    /// `controller` or `uid:N`.
    pub by: String,
    /// Whether it worked.
    pub done: bool,
    /// More words, printable characters only.
    pub detail: Option<String>,
    /// From the event that caused it to its effect, microseconds.
    pub took_us: Option<u64>,
}

/// A recorded action, as `audit --json` prints it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    /// Grows.
    pub id: i64,
    /// RFC 3339, UTC, milliseconds.
    pub at: String,
    /// The bottle it concerns.
    pub bottle: Option<String>,
    /// What was done.
    pub action: String,
    /// Why.
    pub cause: Option<Cause>,
    /// `controller` or `uid:N`.
    pub by: String,
    /// `done` or `failed`.
    pub outcome: String,
    /// More words.
    pub detail: Option<String>,
    /// From the event that caused it to its effect, microseconds.
    pub took_us: Option<u64>,
}
