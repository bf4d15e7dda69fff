//! Budgets: which ones bind, what they still allow, when they are crossed. Pure integer arithmetic.
//!
//! An account is one owner's sum for one provider. An exchange is charged to every account on its path (launch,
//! agent, bottle, its ancestors, global), so that a sum is right whether or not a budget is defined there yet; the
//! scope rule says which of the defined ones bind. `account` is one of them, `window` the calendar, `weights` what a
//! token counts for, `rules` the scopes. No I/O, no clock, no names of kernels or sockets.
mod account;
mod rules;
#[cfg(test)]
mod tests;
pub mod weights;
pub mod window;

use std::collections::HashMap;

use meter_proxy::tokens::Tokens;

use self::account::Account;
pub use self::account::{Budget, Figures, Held, Source, Statement, Warned};
pub use self::rules::{Scope, ScopeRule};
use self::weights::{Classes, Weights};
use self::window::{Hour, Window};
use crate::ledger::Owner;

/// Index of an account in [`Accounts`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AccountId(usize);

/// The accounts that an exchange of one bottle and one provider is charged to, nearest first.
pub type Path = Vec<(Scope, AccountId)>;

/// What the gate does with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judgement {
    /// Forward it.
    Grant,
    /// Only reservations of others stand in the way of this account: ask again when one is released.
    Wait(Scope, AccountId),
    /// This account's budget is used up.
    Refuse(Scope, AccountId),
}

/// The budget that a bottle feels first, and why it is that one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Governing {
    /// Where it is defined, seen from the bottle.
    pub scope: Scope,
    /// Whose it is.
    pub account: AccountId,
    /// Why it is that one, in words.
    pub why: String,
}

/// Every account, and the arithmetic on them.
#[derive(Debug, Default)]
pub struct Accounts {
    rows: Vec<(Owner, String, Account)>,
    index: HashMap<(Owner, String), AccountId>,
    rule: ScopeRule,
    weights: Weights,
    hour: Hour,
}

impl Accounts {
    /// No account yet, in this hour.
    #[must_use]
    pub fn new(rule: ScopeRule, weights: Weights, hour: Hour) -> Self {
        Self { rule, weights, hour, ..Self::default() }
    }

    /// Judges by this rule and these weights from now on; what was charged stays, class by class.
    pub fn judge_by(&mut self, rule: ScopeRule, weights: Weights) {
        self.rule = rule;
        self.weights = weights;
    }

    /// The account of an owner for a provider; made, without a budget, when there is none yet.
    pub fn id(&mut self, owner: &Owner, provider: &str) -> AccountId {
        let key = (owner.clone(), provider.to_owned());
        if let Some(id) = self.index.get(&key) {
            return *id;
        }
        let id = AccountId(self.rows.len());
        self.rows.push((owner.clone(), provider.to_owned(), Account::default()));
        self.index.insert(key, id);
        id
    }

    /// Every account there is.
    pub fn ids(&self) -> impl Iterator<Item = AccountId> + use<> {
        (0..self.rows.len()).map(AccountId)
    }

    /// The figures of an account.
    #[must_use]
    pub fn figures(&self, id: AccountId) -> Figures {
        self.row(id).figures(&self.weights)
    }

    /// Whether the account's budget is used up, reservations not counted.
    #[must_use]
    pub fn is_used_up(&self, id: AccountId) -> bool {
        self.figures(id).is_used_up()
    }

    /// Whose account it is.
    #[must_use]
    pub fn owner(&self, id: AccountId) -> &Owner {
        &self.rows[id.0].0
    }

    /// The provider of an account.
    #[must_use]
    pub fn provider(&self, id: AccountId) -> &str {
        &self.rows[id.0].1
    }

    /// What tokens count for.
    #[must_use]
    pub fn weights(&self) -> &Weights {
        &self.weights
    }

    /// The hour that windows stand at.
    #[must_use]
    pub fn hour(&self) -> Hour {
        self.hour
    }

    /// When the account's window ends; `None`: never.
    #[must_use]
    pub fn window_end(&self, id: AccountId) -> Option<Hour> {
        self.figures(id).window().end(self.hour)
    }

    /// Defines the account's budget as settings or a launch say it; `None`: they say nothing.
    pub fn define(&mut self, id: AccountId, budget: Option<Budget>) {
        self.row_mut(id).define(budget);
    }

    /// Takes what an operator said in the hour `at`. Debt stays: of what is added only what exceeds it becomes usable.
    pub fn state(&mut self, id: AccountId, statement: Statement, at: Hour) {
        let now = self.hour;
        self.row_mut(id).state(statement, at, now);
    }

    /// What `look` finds if the statement were taken now. Nothing is changed.
    pub fn preview<T>(&mut self, id: AccountId, statement: Statement, look: impl FnOnce(&Self) -> T) -> T {
        let before = self.row(id).clone();
        self.state(id, statement, self.hour);
        let found = look(self);
        *self.row_mut(id) = before;
        found
    }

    /// Loads what was settled in all of time.
    pub fn load_total(&mut self, id: AccountId, settled: &Tokens) {
        self.row_mut(id).load_total(&settled.into());
    }

    /// Loads what was settled in one hour, a part of the total.
    pub fn load_hour(&mut self, id: AccountId, settled: &Tokens, at: Hour) {
        let now = self.hour;
        self.row_mut(id).load_hour(&settled.into(), at, now);
    }

    /// Charges figures that were never reserved here to one account.
    pub fn charge(&mut self, id: AccountId, settled: &Tokens) {
        self.row_mut(id).charge(&settled.into());
    }

    /// Moves on to this hour: windows that have ended begin anew. A time that has been before changes nothing.
    pub fn roll(&mut self, hour: Hour) {
        if hour <= self.hour {
            return;
        }
        let ended = |window: &Window| window.start(hour) != window.start(self.hour);
        let ended: Vec<Window> = Window::ALL.into_iter().filter(ended).collect();
        self.rows.iter_mut().for_each(|(_, _, account)| account.roll(&ended));
        self.hour = hour;
    }

    /// The accounts of the path whose budgets bind, nearest first.
    pub fn binding<'a>(&'a self, path: &'a Path) -> impl Iterator<Item = (Scope, AccountId)> + 'a {
        self.rule.binding(path, |id| self.row(id).budget().is_some())
    }

    /// Of the budgets that bind the one with the least left, the nearest of several: what the bottle feels first.
    #[must_use]
    pub fn governing(&self, path: &Path) -> Option<Governing> {
        let binding: Vec<(Scope, AccountId)> = self.binding(path).collect();
        let left = |id: AccountId| self.figures(id).headroom().unwrap_or(i128::MAX);
        let least = binding.iter().enumerate().min_by_key(|(_, (_, id))| left(*id));
        least.map(|(nth, (scope, account))| {
            let why = self.rule.why(nth, binding.len());
            Governing { scope: *scope, account: *account, why }
        })
    }

    /// What is left before a budget that binds is used up, below 0 in debt; `None`: no budget binds.
    #[must_use]
    pub fn headroom(&self, path: &Path) -> Option<i128> {
        self.binding(path).filter_map(|(_, id)| self.figures(id).headroom()).min()
    }

    /// What the gate does with a new exchange on this path. Refuses for good only what is used up; grants while used
    /// and others' reservations are below every limit that binds; waits where only reservations stand in the way.
    #[must_use]
    pub fn judge(&self, path: &Path) -> Judgement {
        let mut judgement = Judgement::Grant;
        for (scope, id) in self.binding(path) {
            let figures = self.figures(id);
            if figures.is_used_up() {
                return Judgement::Refuse(scope, id);
            }
            if figures.is_spoken_for() && judgement == Judgement::Grant {
                judgement = Judgement::Wait(scope, id);
            }
        }
        judgement
    }

    /// Starts to hold a reservation of `tokens` on every account of the path.
    pub fn reserve(&mut self, path: &Path, tokens: u64) -> Held {
        let held = Held { in_flight: Classes::default(), reserved: tokens };
        self.hold(path, Held::default(), held);
        held
    }

    /// Moves an exchange to its figures so far: they grow out of its reservation, and never weigh less than before.
    pub fn progress(&mut self, path: &Path, held: Held, so_far: &Tokens) -> Held {
        let so_far = Classes::from(so_far);
        if self.weights.weigh(&so_far) < self.weights.weigh(&held.in_flight) {
            return held;
        }
        let grown = so_far.raw().saturating_sub(held.in_flight.raw());
        let reserved = u128::from(held.reserved).saturating_sub(grown);
        let now = Held { in_flight: so_far, reserved: weights::clamp(reserved) };
        self.hold(path, held, now);
        now
    }

    /// Ends an exchange: what it held is released and its final figures are charged to every window.
    pub fn settle(&mut self, path: &Path, held: Held, settled: &Tokens) {
        self.hold(path, held, Held::default());
        for (_, id) in path {
            self.charge(*id, settled);
        }
    }

    fn hold(&mut self, path: &Path, before: Held, after: Held) {
        for (_, id) in path {
            let account = self.row_mut(*id);
            account.in_flight = account.in_flight.minus(&before.in_flight).plus(&after.in_flight);
            account.reserved = account.reserved - u128::from(before.reserved) + u128::from(after.reserved);
        }
    }

    /// The percentages of `warn_at` (ascending) that the account has reached and that were not warned of in this
    /// window; asked again, they are not among them.
    pub fn warn(&mut self, id: AccountId, warn_at: &[u8]) -> Vec<Warned> {
        let (weights, hour) = (self.weights, self.hour);
        self.row_mut(id).warn(warn_at, &weights, hour)
    }

    /// Notes a warning that was given before.
    pub fn was_warned(&mut self, id: AccountId, warned: Warned) {
        self.row_mut(id).was_warned(warned);
    }

    fn row(&self, id: AccountId) -> &Account {
        &self.rows[id.0].2
    }

    fn row_mut(&mut self, id: AccountId) -> &mut Account {
        &mut self.rows[id.0].2
    }
}
