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
    /// Whether somebody cut it too, whom no budget concerns: then more tokens do not open it.
    #[serde(default)]
    pub held: bool,
    /// An operator's freeze of what was cut already, or was cut then by another order: it goes with the thaw.
    #[serde(default)]
    pub freeze: Option<Freeze>,
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

/// An operator's freeze that lies over another cut.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Freeze {
    /// RFC 3339, UTC, milliseconds.
    pub at: String,
    /// `uid:N`.
    pub by: String,
    /// What the operator said (`--reason`).
    pub reason: Option<String>,
    /// What the bottle sees of the cut beneath once it is thawed.
    pub leaves: Face,
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
            freeze: None,
            face: Face::Silent,
            policy: Policy::Cutoff,
            processes: Processes::Running,
        }
    }

    /// Whether it is an operator's freeze alone, and goes with the thaw. (One that is held was recorded by a time that
    /// did not tell a freeze from a cut.)
    #[must_use]
    pub fn is_freeze(&self) -> bool {
        self.kind == CauseKind::Operator && self.policy == Policy::Freeze && !self.held
    }

    /// Whether a budget alone cut it, whoever has frozen it then: more tokens end it.
    #[must_use]
    pub fn is_budget_s(&self) -> bool {
        self.kind == CauseKind::Budget && !self.held
    }

    /// What stands when this joins what may stand already: the first cause, each part as closed as the more closed of
    /// the two. A freeze stays apart from what else closes it, an order or a budget, since its thaw ends it alone.
    #[must_use]
    pub fn joined_to(self, standing: Option<Self>) -> Self {
        let new = Self { processes: self.processes.max(self.policy.into()), ..self };
        let Some(standing) = standing else { return new };
        let face = standing.face.max(new.face);
        let processes = standing.processes.max(new.processes);
        let from_budget = new.kind == CauseKind::Budget;
        let joined = match (standing.is_freeze(), new.is_freeze()) {
            (false, true) => {
                let freeze = standing.freeze.clone().unwrap_or_else(|| new.freeze_over(standing.face));
                Self { freeze: Some(freeze), ..standing }
            }
            (true, false) => {
                let freeze = standing.freeze_over(new.face);
                Self { freeze: Some(freeze), ..new }
            }
            (true, true) => standing,
            (false, false) => {
                let held = standing.held || (standing.kind == CauseKind::Budget && !from_budget);
                let leaves = |freeze: Freeze| Freeze { leaves: freeze.leaves.max(new.face), ..freeze };
                Self { held, freeze: standing.freeze.clone().map(leaves), ..standing }
            }
        };
        Self { face, processes, ..joined }
    }

    /// This freeze, as it lies over another cut of that face.
    fn freeze_over(&self, leaves: Face) -> Freeze {
        Freeze { at: self.at.clone(), by: self.by.clone(), reason: self.reason.clone(), leaves }
    }

    /// What is left of a cut when its processes go on; `None`: it was a freeze alone. What a budget itself froze was
    /// silent because nobody could read an answer, and has the face of a budget's cut from now on.
    #[must_use]
    pub fn thawed(self, of_budget: Face) -> Option<Self> {
        if self.is_freeze() {
            return None;
        }
        let face = match &self.freeze {
            _ if self.is_budget_s() && self.policy == Policy::Freeze => of_budget,
            Some(freeze) => freeze.leaves,
            None => self.face,
        };
        Some(Self { face, processes: Processes::Running, freeze: None, ..self })
    }

    /// What is left of a budget's cut when the budget has room again: an operator's freeze, where it lies over it.
    #[must_use]
    pub fn without_budget(self) -> Option<Self> {
        let Freeze { at, by, reason, .. } = self.freeze?;
        let (policy, processes) = (Policy::Freeze, Processes::Frozen);
        Some(Self { at, policy, processes, ..Self::operator(by, reason) })
    }

    /// The cut alone, as it goes over to the bottle's next cgroup: what was done to processes was done to others. What an
    /// operator's freeze kept closed stays so.
    #[must_use]
    pub fn without_processes(self) -> Self {
        let held = self.held || (self.kind == CauseKind::Budget && self.freeze.is_some());
        Self { held, freeze: None, policy: Policy::Cutoff, processes: Processes::Running, ..self }
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
        if let Some(reason) = &self.reason {
            write!(f, ": {reason}")?;
        }
        if let Some(Freeze { by, reason, .. }) = &self.freeze {
            write!(f, ", and frozen by {by}")?;
            if let Some(reason) = reason {
                write!(f, ": {reason}")?;
            }
        }
        Ok(())
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
