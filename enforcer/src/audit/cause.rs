//! Why a bottle is cut, and what is decided with that: its face, its processes, and what may end it. Pure; the core
//! decides, the ledger keeps.
use serde::{Deserialize, Serialize};

use crate::clock::{now_ms, rfc3339};
use crate::kernel::Face;
use crate::settings::Policy;

/// Why a bottle is cut, or what an action was about. Absent fields are `null` in JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cause {
    /// Who or what decided.
    pub kind: CauseKind,
    /// Provider of the budget.
    pub provider: Option<String>,
    /// Scope of the budget: launch, agent, bottle, parent, global.
    pub scope: Option<String>,
    /// Whose budget.
    pub owner: Option<String>,
    /// Budget, tokens.
    pub limit: Option<u64>,
    /// Used when it was crossed, tokens.
    pub used: Option<u64>,
    /// The budget's window, and when it ends.
    #[serde(default)]
    pub window: Option<String>,
    /// The rule by which that budget binds the bottle.
    #[serde(default)]
    pub rule: Option<String>,
    /// The exchange that crossed.
    pub flow: Option<i64>,
    /// RFC 3339, UTC, milliseconds.
    pub at: String,
    /// `controller` or `uid:N`.
    pub by: String,
    /// What the operator said (`--reason`).
    #[serde(default)]
    pub reason: Option<String>,
    /// Whether somebody cut it too, whom neither a budget nor a freeze concerns: then neither more tokens nor a thaw
    /// opens it.
    #[serde(default)]
    pub held: bool,
    /// What the bottle sees of it; silent where nothing is said, as in rows of a time before there was another.
    #[serde(default)]
    pub face: Face,
    /// What it asked for beyond dropping packets when it was made.
    #[serde(default)]
    pub policy: Policy,
    /// What stands decided for the processes; only those of a cut bottle are ever held.
    #[serde(default)]
    pub processes: Processes,
}

/// What stands decided for the processes of a cut bottle. Of two, the greater is the more closed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Processes {
    /// They run, without a network.
    #[default]
    Running,
    /// They are frozen, and may have been ended after a snapshot.
    Frozen,
    /// They are killed, for good.
    Killed,
}

impl From<Policy> for Processes {
    fn from(policy: Policy) -> Self {
        match policy {
            Policy::Cutoff => Self::Running,
            Policy::Freeze => Self::Frozen,
            Policy::Kill => Self::Killed,
        }
    }
}

impl Cause {
    /// A decision of somebody, not of a budget, made now; silent.
    #[must_use]
    pub fn operator(by: String, reason: Option<String>) -> Self {
        Self {
            kind: CauseKind::Operator,
            provider: None,
            scope: None,
            owner: None,
            limit: None,
            used: None,
            window: None,
            rule: None,
            flow: None,
            at: rfc3339(now_ms()),
            by,
            reason,
            held: false,
            face: Face::Silent,
            policy: Policy::Cutoff,
            processes: Processes::Running,
        }
    }

    /// Whether it came with an operator's freeze, and goes with the thaw.
    #[must_use]
    pub fn came_with_freeze(&self) -> bool {
        self.kind == CauseKind::Operator && self.policy == Policy::Freeze && !self.held
    }

    /// Whether, coming to a bottle that is cut already, it is to stay when what ends the standing cut has come: more
    /// tokens end a budget's, a thaw that of a freeze. (A thaw looks at budgets by itself.)
    #[must_use]
    pub fn outlasts(&self, standing: &Self) -> bool {
        match self.kind {
            CauseKind::Budget => false,
            _ => {
                standing.kind == CauseKind::Budget
                    || (standing.came_with_freeze() && !self.came_with_freeze())
            }
        }
    }

    /// The cut alone, as it goes over to the bottle's next cgroup: what was done to processes was done to others.
    #[must_use]
    pub fn without_processes(self) -> Self {
        Self { policy: Policy::Cutoff, processes: Processes::Running, ..self }
    }
}

impl std::fmt::Display for Cause {
    /// One line for people: who decided, by which budget, and what the operator said.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.kind, &self.provider, &self.scope, &self.owner, self.limit, self.used) {
            (CauseKind::Budget, Some(provider), Some(scope), Some(owner), Some(limit), Some(used)) => {
                write!(
                    f,
                    "{used} of {limit} {provider} tokens used (budget of scope {scope}, owner {owner}"
                )?;
                if let Some(window) = &self.window {
                    write!(f, ", window {window}")?;
                }
                if let Some(rule) = &self.rule {
                    write!(f, ", scope rule {rule}")?;
                }
                f.write_str(")")?;
            }
            (CauseKind::Budget, ..) => f.write_str("a budget is used up")?,
            (CauseKind::Operator, ..) => write!(f, "by {}", self.by)?,
            (CauseKind::Lease, ..) => f.write_str("the controller was silent for too long")?,
            (CauseKind::Hook, ..) => f.write_str("by a hook")?,
        }
        if let Some(flow) = self.flow {
            write!(f, ", exchange {flow}")?;
        }
        if self.held {
            f.write_str(", and cut by an operator too")?;
        }
        match &self.reason {
            Some(reason) => write!(f, ": {reason}"),
            None => Ok(()),
        }
    }
}

/// Who or what decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CauseKind {
    /// A budget was crossed.
    Budget,
    /// An operator said so.
    Operator,
    /// The controller was silent for too long.
    Lease,
    /// A hook said so.
    Hook,
}
