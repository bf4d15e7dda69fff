//! Scopes and the rule that says which of a chain's budgets bind. Pure.
use serde::Deserialize;

use super::AccountId;

/// Where a budget is defined, seen from a bottle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// This attachment (`--budget`).
    Launch,
    /// The bottle's agent.
    Agent,
    /// The bottle by name.
    Bottle,
    /// An ancestor of the bottle.
    Parent,
    /// The host.
    Global,
}

impl Scope {
    /// The word used in JSON and messages.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Launch => "launch",
            Self::Agent => "agent",
            Self::Bottle => "bottle",
            Self::Parent => "parent",
            Self::Global => "global",
        }
    }
}

/// Which of several budgets binds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ScopeRule {
    /// The first of launch, agent, bottle, parent, global that is defined.
    #[default]
    Nearest,
    /// That one, and the global one always.
    Ceiling,
    /// All of them: the one with the least left is felt first.
    Strictest,
}

impl ScopeRule {
    /// The word used in settings and in JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Nearest => "nearest",
            Self::Ceiling => "ceiling",
            Self::Strictest => "strictest",
        }
    }

    /// Those of a chain (nearest first) that bind, given which of them have a budget.
    pub(super) fn binding<'a>(
        self,
        chain: &'a [(Scope, AccountId)],
        is_defined: impl Fn(AccountId) -> bool + 'a,
    ) -> impl Iterator<Item = (Scope, AccountId)> + 'a {
        let defined = chain.iter().copied().filter(move |(_, account)| is_defined(*account));
        defined.enumerate().filter(move |(nth, (scope, _))| self.binds(*nth, *scope)).map(|(_, entry)| entry)
    }

    /// Whether the `nth` (from 0) of a chain's defined budgets binds.
    fn binds(self, nth: usize, scope: Scope) -> bool {
        match self {
            Self::Nearest => nth == 0,
            Self::Ceiling => nth == 0 || scope == Scope::Global,
            Self::Strictest => true,
        }
    }

    /// Why a budget governs a bottle, in words: it is one of `binding` that bind, and the `nth` of them (from 0).
    pub(super) fn why(self, nth: usize, binding: usize) -> String {
        match self {
            Self::Nearest => "the nearest budget governs".into(),
            Self::Ceiling if nth > 0 => "the global budget is a ceiling, and less of it is left".into(),
            Self::Ceiling if binding > 1 => {
                "the nearest budget governs, and less of it is left than of the global ceiling".into()
            }
            Self::Ceiling => "the nearest budget governs, under the global ceiling if there is one".into(),
            Self::Strictest => format!("the strictest governs: the least is left of {binding}"),
        }
    }
}
