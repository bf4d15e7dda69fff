//! One account: one owner's sums for one provider, in every window at once, and the budget on them.
//!
//! Pure. All windows are summed whatever the budget's own is, so that a budget that is stated later, or with another
//! window, finds what was used.
use super::weights::{Classes, Weights, clamp};
use super::window::{Hour, Window};

/// A budget as it is stated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// What may be used in each window, tokens.
    pub tokens: u64,
    /// When it starts anew.
    pub window: Window,
}

/// What an operator says of a budget while the daemon runs. It stands over what settings and launch define.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Statement {
    /// This is the budget now; what was added before is gone.
    Set(Budget),
    /// So many tokens more, in the window that is now.
    Add(u64),
    /// What was stated does not hold any more; what settings or launch define stands again.
    Clear,
}

/// Who defined the budget that an account has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// Settings, or `--budget` at the launch.
    Defined,
    /// An operator, by command.
    Stated,
}

/// What was settled and added since a window began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Period {
    settled: Classes,
    added: u128,
}

/// One owner's sums for one provider.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Account {
    defined: Option<Budget>,
    stated: Option<Budget>,
    /// By [`Window::ALL`].
    periods: [Period; Window::ALL.len()],
    /// Figures so far of exchanges under way.
    pub(super) in_flight: Classes,
    /// What exchanges under way hold beyond their figures so far.
    pub(super) reserved: u128,
    /// The greatest percentage that was warned of, and the window it was in.
    warned: Option<Warned>,
}

/// A warning that was given, or was due and is known to have been given before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Warned {
    /// Of which budgets.
    pub window: Window,
    /// The first hour of the window it was given in.
    pub since: Hour,
    /// Used, percent.
    pub percent: u8,
}

/// An account's figures at one moment, tokens by weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Figures {
    /// The budget, and who defined it; `None` where there is none.
    pub budget: Option<(Budget, Source)>,
    /// Added to it in its present window.
    pub added: u64,
    /// Settled and in flight, in the budget's present window; of all time where there is no budget.
    pub used: u64,
    /// Held by exchanges under way beyond what they used already.
    pub reserved: u64,
}

impl Figures {
    /// What is allowed in all; `None` where no budget is defined.
    #[must_use]
    pub fn limit(&self) -> Option<u64> {
        self.budget.map(|(budget, _)| budget.tokens.saturating_add(self.added))
    }

    /// The budget's window; that of all time where there is no budget.
    #[must_use]
    pub fn window(&self) -> Window {
        self.budget.map_or(Window::Total, |(budget, _)| budget.window)
    }

    /// What is left for a new exchange; `None` where no budget is defined.
    #[must_use]
    pub fn remaining(&self) -> Option<u64> {
        self.limit().map(|limit| limit.saturating_sub(self.used).saturating_sub(self.reserved))
    }

    /// Whether a budget is defined and used up, reservations not counted.
    #[must_use]
    pub fn is_used_up(&self) -> bool {
        self.limit().is_some_and(|limit| self.used >= limit)
    }

    /// Whether nothing is left of a budget when reservations are counted.
    pub(super) fn is_spoken_for(&self) -> bool {
        self.limit().is_some_and(|limit| self.used.saturating_add(self.reserved) >= limit)
    }

    /// What is left before the budget is used up, below 0 in debt; `None` where no budget is defined.
    pub(super) fn headroom(&self) -> Option<i128> {
        self.limit().map(|limit| i128::from(limit) - i128::from(self.used))
    }

    /// Percent used; 100 and more is used up.
    fn percent(&self) -> Option<u128> {
        let limit = u128::from(self.limit()?);
        Some((u128::from(self.used) * 100).checked_div(limit).unwrap_or(100))
    }
}

impl Account {
    pub(super) fn budget(&self) -> Option<Budget> {
        self.stated.or(self.defined)
    }

    pub(super) fn figures(&self, weights: &Weights) -> Figures {
        let source = if self.stated.is_some() { Source::Stated } else { Source::Defined };
        let budget = self.budget().map(|budget| (budget, source));
        let period = self.period(budget.map_or(Window::Total, |(budget, _)| budget.window));
        Figures {
            budget,
            added: clamp(period.added),
            used: clamp(weights.weigh(&period.settled.plus(&self.in_flight))),
            reserved: clamp(weights.reserved(self.reserved)),
        }
    }

    pub(super) fn define(&mut self, budget: Option<Budget>) {
        self.defined = budget;
    }

    /// Takes a statement that was made in the hour `at`, when it is `now`.
    pub(super) fn state(&mut self, statement: Statement, at: Hour, now: Hour) {
        match statement {
            Statement::Add(tokens) => {
                for window in Window::ALL.into_iter().filter(|window| window.start(at) == window.start(now)) {
                    self.period_mut(window).added += u128::from(tokens);
                }
            }
            Statement::Set(budget) => self.replace(Some(budget)),
            Statement::Clear => self.replace(None),
        }
    }

    fn replace(&mut self, stated: Option<Budget>) {
        self.stated = stated;
        self.periods.iter_mut().for_each(|period| period.added = 0);
    }

    /// Charges what is settled now to every window.
    pub(super) fn charge(&mut self, settled: &Classes) {
        for period in &mut self.periods {
            period.settled = period.settled.plus(settled);
        }
    }

    /// Loads what was settled in all of time.
    pub(super) fn load_total(&mut self, settled: &Classes) {
        let total = self.period_mut(Window::Total);
        total.settled = total.settled.plus(settled);
    }

    /// Loads what was settled in the hour `at`, a part of the total, into the windows of `now` that hold it.
    pub(super) fn load_hour(&mut self, settled: &Classes, at: Hour, now: Hour) {
        let rolling = Window::ALL.into_iter().filter(|window| *window != Window::Total);
        for window in rolling.filter(|window| window.start(at) == window.start(now)) {
            let period = self.period_mut(window);
            period.settled = period.settled.plus(settled);
        }
    }

    fn period(&self, window: Window) -> &Period {
        &self.periods[window.index()]
    }

    fn period_mut(&mut self, window: Window) -> &mut Period {
        &mut self.periods[window.index()]
    }

    /// These windows begin anew: with nothing settled and nothing added.
    pub(super) fn roll(&mut self, ended: &[Window]) {
        for window in ended {
            *self.period_mut(*window) = Period::default();
        }
    }

    /// Notes a warning that was given before.
    pub(super) fn was_warned(&mut self, warned: Warned) {
        self.warned = Some(warned);
    }

    /// The percentages of `warn_at` that are reached and were not warned of in this window; they are from now on.
    pub(super) fn warn(&mut self, warn_at: &[u8], weights: &Weights, now: Hour) -> Vec<Warned> {
        let (Some(budget), Some(used)) = (self.budget(), self.figures(weights).percent()) else {
            return Vec::new();
        };
        let (window, since) = (budget.window, budget.window.start(now));
        let before = self.warned.filter(|warned| (warned.window, warned.since) == (window, since));
        let floor = before.map_or(0, |warned| warned.percent);
        let due = warn_at.iter().filter(|percent| **percent > floor && u128::from(**percent) <= used);
        let warnings: Vec<Warned> = due.map(|&percent| Warned { window, since, percent }).collect();
        self.warned = warnings.last().copied().or(self.warned);
        warnings
    }
}

/// What one exchange under way weighs on its accounts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// Figures so far.
    pub(super) in_flight: Classes,
    /// Reserved beyond them, tokens.
    pub(super) reserved: u64,
}
