//! What the dashboard knows and where the user is in it: plain data and questions about it, no I/O, no drawing.
use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::audit::Row;
use crate::control::api::{self, Bottle};

/// Audit rows kept for the screen.
pub const AUDIT_ROWS: usize = 100;

/// Everything the screen is drawn from.
#[derive(Clone, Debug, Default)]
pub struct State {
    /// The last figures the daemon gave.
    pub status: Option<api::Status>,
    /// Whether they are fresh.
    pub link: Link,
    /// The latest audit rows, oldest first, at most [`AUDIT_ROWS`].
    pub audit: VecDeque<Row>,
    /// Why the audit could not be read, the last time it was asked for.
    pub audit_error: Option<String>,
    /// Tokens a second, by bottle, between the last two samples of settled usage.
    pub rates: BTreeMap<String, u64>,
    /// Name of the bottle the user moved to; the first visible one without it.
    pub selected: Option<String>,
    /// Only bottles whose name holds this are shown.
    pub filter: String,
    /// What keys mean now.
    pub mode: Mode,
    /// What the user should know of the last action.
    pub note: Option<Note>,
    /// What [`State::rates`] are measured from.
    pub(super) sample: Option<Sample>,
    pub(super) awaits_status: bool,
    pub(super) awaits_audit: bool,
    /// Actions sent and not yet answered.
    pub(super) actions: usize,
    /// The user wants to leave once [`State::actions`] is 0.
    pub(super) leaving: bool,
}

/// How things stand with the daemon.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Link {
    /// No answer yet.
    #[default]
    Connecting,
    /// The last question was answered.
    Live,
    /// The last question was not answered; why. What is shown is stale.
    Lost(String),
}

/// What keys mean.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// Move, act, leave.
    #[default]
    Browse,
    /// The keys are explained.
    Help,
    /// The filter is typed.
    Filter,
    /// A yes or a no is awaited.
    Confirm(Question),
    /// A number of tokens is awaited.
    AddTokens(Prompt),
}

/// What is asked before it is done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Question {
    /// Cut this bottle.
    Cut(String),
    /// Cut every bottle, whatever the filter shows.
    CutAll,
    /// Freeze the processes of this bottle.
    Freeze(String),
    /// Let them go on.
    Thaw(String),
    /// Kill them.
    Kill(String),
    /// Restore this bottle.
    Restore(String),
}

/// Restoring a bottle with used-up budgets: tokens are asked for, one provider after the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prompt {
    /// The bottle.
    pub bottle: String,
    /// The provider asked about.
    pub provider: String,
    /// Providers to ask about next.
    pub next: Vec<String>,
    /// Answers so far, tokens by provider.
    pub add: BTreeMap<String, u64>,
    /// What was typed.
    pub typed: String,
    /// What was wrong with the last answer.
    pub error: Option<String>,
}

/// A line for the user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// The words.
    pub text: String,
    /// Whether something went wrong.
    pub is_error: bool,
}

/// Settled totals by bottle at one moment.
#[derive(Clone, Debug)]
pub(super) struct Sample {
    pub at_ms: u64,
    pub totals: BTreeMap<String, u64>,
}

impl State {
    /// Bottles that the filter lets through, in the daemon's order.
    #[must_use]
    pub fn visible(&self) -> Vec<&Bottle> {
        let all = self.status.iter().flat_map(|status| &status.bottles);
        all.filter(|bottle| bottle.name.contains(&self.filter)).collect()
    }

    /// Where the selected bottle stands among the visible ones; 0 when it is not there.
    #[must_use]
    pub fn selected_row(&self) -> usize {
        let visible = self.visible();
        self.selected.as_ref().and_then(|name| visible.iter().position(|b| b.name == *name)).unwrap_or(0)
    }

    /// The bottle that keys act on.
    #[must_use]
    pub fn selected_bottle(&self) -> Option<&Bottle> {
        self.visible().get(self.selected_row()).copied()
    }

    /// Why what is shown is not what is; `None` while it is fresh.
    #[must_use]
    pub fn stale(&self) -> Option<&str> {
        match &self.link {
            Link::Lost(reason) => Some(reason),
            Link::Connecting | Link::Live => None,
        }
    }

    /// The governing budget that a prompt asks to raise, as last seen.
    #[must_use]
    pub fn budget_asked_for(&self, prompt: &Prompt) -> Option<&api::Budget> {
        let bottles = &self.status.as_ref()?.bottles;
        bottles.iter().find(|bottle| bottle.name == prompt.bottle)?.budget.get(&prompt.provider)
    }
}

/// Providers that the bottle used or has a budget for.
#[must_use]
pub fn providers(bottle: &Bottle) -> BTreeSet<&str> {
    bottle.usage.keys().chain(bottle.budget.keys()).map(String::as_str).collect()
}

/// Providers whose governing budget is used up.
#[must_use]
pub fn used_up(bottle: &Bottle) -> Vec<String> {
    let spent = bottle.budget.iter().filter(|(_, budget)| budget.used >= budget.limit);
    spent.map(|(provider, _)| provider.clone()).collect()
}

/// Settled tokens of all providers.
#[must_use]
pub fn total_tokens(bottle: &Bottle) -> u64 {
    bottle.usage.values().fold(0, |sum, usage| sum.saturating_add(usage.total))
}

/// Used against the limit, percent; above 100 when the budget is in debt, 100 when nothing is allowed.
#[must_use]
pub fn percent_used(budget: &api::Budget) -> u64 {
    let percent = u128::from(budget.used) * 100 / u128::from(budget.limit.max(1));
    if budget.limit == 0 { 100 } else { u64::try_from(percent).unwrap_or(u64::MAX) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percent_has_no_edge() {
        let budget = |used, limit| api::Budget {
            scope: "global".into(),
            owner: "global".into(),
            window: "total".into(),
            limit,
            used,
            ..api::Budget::default()
        };
        for (used, limit, percent) in
            [(0, 10, 0), (9, 10, 90), (15, 10, 150), (0, 0, 100), (u64::MAX, 1, u64::MAX), (1, u64::MAX, 0)]
        {
            assert_eq!(percent_used(&budget(used, limit)), percent);
        }
    }
}
