//! Budgets in the documents of the control API: as a bottle feels them, as they are listed, as operators state them.
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::budget::window::Window;
use crate::settings::check_name;

/// The budget that a bottle feels first. All counts are tokens, by weight.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Budget {
    /// `launch`, `agent`, `bottle`, `parent` or `global`.
    pub scope: String,
    /// Whose: a bottle's or an agent's name, `global`.
    pub owner: String,
    /// `total`, `hourly`, `daily`, `weekly` or `monthly`.
    pub window: String,
    /// What is allowed, with what was added.
    pub limit: u64,
    /// Settled and in flight.
    pub used: u64,
    /// Held by requests under way, beyond what they used already.
    pub reserved: u64,
    /// `limit - used - reserved`, not below 0.
    pub remaining: u64,
    /// When the window ends, RFC 3339, UTC; `None`: never.
    #[serde(default)]
    pub until: Option<String>,
    /// Why it is this one of those that there are, in words.
    #[serde(default)]
    pub why: String,
}

/// One scope of a bottle's chain. All counts are tokens, by weight.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// `launch`, `agent`, `bottle`, `parent` or `global`.
    pub scope: String,
    /// Whose: a bottle's or an agent's name, `global`.
    pub owner: String,
    /// The budget's window; `None` where no budget is defined, here and below.
    pub window: Option<String>,
    /// What is allowed, with what was added.
    pub limit: Option<u64>,
    /// Settled and in flight in that window; of all time where no budget is defined.
    pub used: u64,
    /// Held by requests under way, beyond what they used already.
    pub reserved: u64,
    /// `limit - used - reserved`, not below 0.
    pub remaining: Option<u64>,
    /// When the window ends, RFC 3339, UTC.
    pub until: Option<String>,
    /// Whether the scope rule lets this budget hold the bottle back.
    pub binds: bool,
}

/// One budget of `GET /v1/budgets`. All counts are tokens, by weight.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BudgetRow {
    /// `global`, `bottle:NAME`, `agent:NAME`, or `launch:NAME`, which nobody can change.
    pub scope: String,
    /// Whose tokens.
    pub provider: String,
    /// When it starts anew.
    pub window: Window,
    /// The budget as it was stated.
    pub tokens: u64,
    /// What was added to it in this window.
    pub added: u64,
    /// Both together.
    pub limit: u64,
    /// Settled and in flight in this window.
    pub used: u64,
    /// Held by requests under way, beyond what they used already.
    pub reserved: u64,
    /// `limit - used - reserved`, not below 0.
    pub remaining: u64,
    /// When the window ends, RFC 3339, UTC; `None`: never.
    pub until: Option<String>,
    /// Who stated it: `settings`, `launch` or `operator`.
    pub source: String,
    /// How many attached bottles are charged to it.
    pub bottles: usize,
}

/// Body of `PUT /v1/budgets/SCOPE/PROVIDER`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetBudget {
    /// What may be used in each window.
    pub tokens: u64,
    /// The one it has, or the settings', without it.
    #[serde(default)]
    pub window: Option<Window>,
}

/// Body of `POST /v1/budgets/SCOPE/PROVIDER`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AddTokens {
    /// So many more in this window.
    pub tokens: u64,
}

/// Whose budget an operator speaks of: `global`, `bottle:NAME` or `agent:NAME`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BudgetScope {
    /// The host's.
    Global,
    /// A bottle's, by name, attached or not.
    Bottle(String),
    /// An agent's, by name.
    Agent(String),
}

impl fmt::Display for BudgetScope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Global => f.write_str("global"),
            Self::Bottle(name) => write!(f, "bottle:{name}"),
            Self::Agent(name) => write!(f, "agent:{name}"),
        }
    }
}

impl FromStr for BudgetScope {
    type Err = String;

    /// # Errors
    /// What is meant instead.
    fn from_str(text: &str) -> Result<Self, String> {
        let named =
            |name: &str| check_name(name).map(|()| name.to_owned()).map_err(|error| error.to_string());
        match text.split_once(':') {
            None if text == "global" => Ok(Self::Global),
            // what a peer of no bottle uses is booked there
            Some(("bottle", "host")) => Ok(Self::Bottle("host".into())),
            Some(("bottle", name)) => named(name).map(Self::Bottle),
            Some(("agent", name)) => named(name).map(Self::Agent),
            _ => Err(format!("{text:?} is no scope: global, bottle:NAME and agent:NAME are")),
        }
    }
}
