//! What operators say of budgets while the controller runs: set, add, clear, list. What closes is done at once and then
//! recorded; what opens is recorded first.
use std::cmp::Reverse;
use std::time::Instant;

use tokio::sync::oneshot;

use super::durable::{After, action};
use super::verdicts::Crossing;
use super::windows::Reopening;
use super::{Change, Core, answer};
use crate::audit::{Action, ActionKind};
use crate::budget::window::Hour;
use crate::budget::{AccountId, Budget, Figures, Judgement, Scope, Source, Statement};
use crate::clock::now_ms;
use crate::control::api::{self, BudgetScope, Problem};
use crate::ledger::{Entry, Owner, Stated};

/// An operator's word on one budget.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BudgetOrder {
    /// Whose budget.
    pub scope: BudgetScope,
    /// Which provider's.
    pub provider: String,
    /// What is wanted.
    pub verb: BudgetVerb,
}

/// What an operator wants of a budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BudgetVerb {
    /// So many tokens; without a window in the one it has, or the settings'.
    Set(api::SetBudget),
    /// So many tokens more in this window.
    Add(u64),
    /// What operators said does not hold any more.
    Clear,
}

impl From<&BudgetScope> for Owner {
    fn from(scope: &BudgetScope) -> Self {
        match scope {
            BudgetScope::Global => Self::Global,
            BudgetScope::Bottle(name) => Self::Bottle(name.clone()),
            BudgetScope::Agent(name) => Self::Agent(name.clone()),
        }
    }
}

/// A statement that counts once it is durable.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pending {
    account: AccountId,
    statement: Statement,
    /// Grows with each statement.
    number: u64,
    /// The hour that it was said in.
    hour: Hour,
}

/// What a statement would do to the bottles that are charged to its account.
struct Effect {
    /// Those that it leaves nothing, with the budget that says so and its figures; without what is open although it had
    /// nothing left before: an operator opened it, knowing that.
    closed: Vec<(u32, Scope, AccountId, Figures)>,
    /// Whether it leaves any of them more than before.
    loosens: bool,
}

impl Core {
    pub(super) fn state_budget(
        &mut self,
        order: &BudgetOrder,
        by: &str,
        received: Instant,
        reply: oneshot::Sender<Result<(), Problem>>,
    ) {
        let (account, statement) = match self.check_order(order) {
            Ok(checked) => checked,
            Err(problem) => return answer(reply, Err(problem)),
        };
        let effect = self.effect(account, statement);
        if effect.loosens
            && let Some(behind) = self.closed()
        {
            return answer(reply, Err(Problem::failed(behind.to_string())));
        }
        let row = self.row_of(order, account, statement, by);
        let (pending, entry) = self.pending(account, statement);
        let took = self.close_where_stated(effect.closed, received);
        let entries = vec![entry, Entry::Action(Action { took_us: took, ..row })];
        if effect.loosens {
            return self.submit(entries, After::Stated { pending, by: by.to_owned(), reply });
        }
        self.accounts.state(account, statement, pending.hour);
        // what is added stands beside earlier words, and replaces none
        if !matches!(statement, Statement::Add(_)) {
            self.overtaken.insert(account, pending.number);
        }
        if self.accounts.is_used_up(account) {
            // its bottles are cut already
            self.crossed.insert(account);
        }
        self.submit_done(entries, After::Report { reply });
        self.warn_of(self.own_scope(account), account, None, None);
        self.publish(Change::State);
    }

    /// Checks what can be said of that budget.
    fn check_order(&mut self, order: &BudgetOrder) -> Result<(AccountId, Statement), Problem> {
        self.check_provider(&order.provider)?;
        let account = self.account(&Owner::from(&order.scope), &order.provider);
        let figures = self.accounts.figures(account);
        let (scope, provider) = (&order.scope, &order.provider);
        let nothing = || Problem::usage(format!("there is no {provider} budget of scope {scope}"));
        let statement = match (order.verb, figures.budget) {
            (BudgetVerb::Set(api::SetBudget { tokens, window }), had) => {
                let standing = had.map_or(self.settings.window, |(budget, _)| budget.window);
                Statement::Set(Budget { tokens, window: window.unwrap_or(standing) })
            }
            (BudgetVerb::Add(tokens), Some(_)) => Statement::Add(tokens),
            (BudgetVerb::Add(_), None) => {
                let hint = format!("state one first: enforcer budget set {scope} {provider}=TOKENS");
                return Err(nothing().with_hint(hint));
            }
            (BudgetVerb::Clear, None) => return Err(nothing().with_hint("enforcer budget list shows them")),
            (BudgetVerb::Clear, Some((_, Source::Defined))) if figures.added == 0 => {
                return Err(Problem::usage(format!(
                    "the {provider} budget of scope {scope} stands in the settings; no command stated it"
                ))
                .with_hint(format!(
                    "take it out of settings.yml, or: enforcer budget set {scope} {provider}=TOKENS"
                )));
            }
            (BudgetVerb::Clear, Some(_)) => Statement::Clear,
        };
        Ok((account, statement))
    }

    fn effect(&mut self, account: AccountId, statement: Statement) -> Effect {
        let provider = self.accounts.provider(account).to_owned();
        let slots = self.payers(account);
        let mut paths: Vec<_> = slots.iter().map(|slot| (Some(*slot), self.path(*slot, &provider))).collect();
        // the budget by itself, for those that will be charged to it
        paths.push((None, vec![(self.own_scope(account), account)]));
        let before: Vec<Option<i128>> = paths.iter().map(|(_, path)| self.accounts.headroom(path)).collect();
        let bottles = &self.bottles;
        self.accounts.preview(account, statement, |accounts| {
            let room = |left: Option<i128>| left.unwrap_or(i128::MAX);
            let is_open = |slot| bottles.get(&slot).is_some_and(|bottle| bottle.cause.is_none());
            let after = paths.iter().map(|(_, path)| accounts.headroom(path));
            let loosens = before.iter().zip(after).any(|(before, after)| room(after) > room(*before));
            let closed = paths.iter().zip(&before).filter_map(|((slot, path), before)| {
                let slot = slot.filter(|slot| room(*before) > 0 || !is_open(*slot))?;
                let Judgement::Refuse(scope, id) = accounts.judge(path) else { return None };
                Some((slot, scope, id, accounts.figures(id)))
            });
            Effect { closed: closed.collect(), loosens }
        })
    }

    /// Cuts what a statement leaves nothing, before it is recorded; how long that took from the order on, microseconds.
    fn close_where_stated(
        &mut self,
        closed: Vec<(u32, Scope, AccountId, Figures)>,
        received: Instant,
    ) -> Option<u64> {
        let crossing = Crossing::Now { flow: None, received };
        for (slot, ..) in &closed {
            self.store_crossing(*slot, crossing);
        }
        let took = u64::try_from(received.elapsed().as_micros()).unwrap_or(u64::MAX);
        let cut = !closed.is_empty();
        for (slot, scope, account, figures) in closed {
            let cause = self.cause_by(self.policy_at(slot, crossing), scope, account, &figures, None);
            self.cut_by_budget(slot, cause, received);
        }
        cut.then_some(took)
    }

    /// Numbers a statement, and says it as the ledger keeps it.
    pub(super) fn pending(&mut self, account: AccountId, statement: Statement) -> (Pending, Entry) {
        self.statements += 1;
        let hour = self.accounts.hour();
        let stated = Stated {
            owner: self.accounts.owner(account).clone(),
            provider: self.accounts.provider(account).to_owned(),
            statement,
            hour,
            at: now_ms(),
        };
        (Pending { account, statement, number: self.statements, hour }, Entry::State(stated))
    }

    /// A statement is durable and counts now, unless a later one that closes counts already: of two words the last holds.
    pub(super) fn apply(&mut self, pending: &Pending) {
        let Pending { account, statement, number, hour } = *pending;
        if self.overtaken.get(&account).is_none_or(|later| *later < number) {
            self.accounts.state(account, statement, hour);
        }
        self.forget_crossings();
        self.warn_of(self.own_scope(account), account, None, None);
    }

    /// What opens was recorded: the bottles that it covers open, and those that were used up meanwhile are cut.
    pub(super) fn stated(
        &mut self,
        pending: &Pending,
        by: &str,
        result: Result<(), Problem>,
        reply: oneshot::Sender<Result<(), Problem>>,
    ) {
        if let Err(problem) = result {
            return answer(reply, Err(problem));
        }
        let slots = self.payers(pending.account);
        let before = self.used_up_by_slot(slots.clone());
        self.apply(pending);
        // also by a wider budget, which binds them only since this one does not
        self.cut_newly_used_up(before);
        let why = format!("the budget is {}", words(&self.accounts.figures(pending.account)));
        self.reopen_covered(slots, Reopening { by: by.to_owned(), why, reply: Some(reply) });
        self.admit_waiting();
        self.publish(Change::State);
    }

    /// The audit's row of an order.
    fn row_of(&mut self, order: &BudgetOrder, account: AccountId, statement: Statement, by: &str) -> Action {
        let before = words(&self.accounts.figures(account));
        let after = self.accounts.preview(account, statement, |accounts| words(&accounts.figures(account)));
        let bottle = match &order.scope {
            BudgetScope::Bottle(name) => Some(name.clone()),
            BudgetScope::Global | BudgetScope::Agent(_) => None,
        };
        let verb = match order.verb {
            BudgetVerb::Set(_) => "set",
            BudgetVerb::Add(_) => "add",
            BudgetVerb::Clear => "clear",
        };
        let mut row = action(ActionKind::Budget, bottle, None, by);
        row.detail = Some(format!("{verb} {} {}: {after} (before: {before})", order.scope, order.provider));
        row
    }

    /// The scope that an account's budget has for its owner itself.
    pub(super) fn own_scope(&self, account: AccountId) -> Scope {
        match self.accounts.owner(account) {
            Owner::Launch(_) => Scope::Launch,
            Owner::Agent(_) => Scope::Agent,
            Owner::Bottle(_) => Scope::Bottle,
            Owner::Global => Scope::Global,
        }
    }

    /// Every budget there is: global, agents', bottles', launches', by name and provider.
    pub(super) fn budgets(&self) -> Vec<api::BudgetRow> {
        let mut ids: Vec<AccountId> = self.accounts.ids().collect();
        let place = |id: AccountId| {
            let widest_first = Reverse(self.own_scope(id) as u8);
            (widest_first, self.owner_name(id), self.accounts.provider(id).to_owned())
        };
        ids.sort_by_cached_key(|id| place(*id));
        ids.into_iter().filter_map(|id| self.budget_row(id)).collect()
    }

    fn budget_row(&self, id: AccountId) -> Option<api::BudgetRow> {
        let figures = self.accounts.figures(id);
        let (budget, source) = figures.budget?;
        let (scope, defined_in) = match self.accounts.owner(id) {
            Owner::Launch(attachment) => {
                self.slot_of_attachment(*attachment)?;
                (format!("launch:{}", self.owner_name(id)), "launch")
            }
            Owner::Agent(name) => (BudgetScope::Agent(name.clone()).to_string(), "settings"),
            Owner::Bottle(name) => (BudgetScope::Bottle(name.clone()).to_string(), "settings"),
            Owner::Global => (BudgetScope::Global.to_string(), "settings"),
        };
        Some(api::BudgetRow {
            scope,
            provider: self.accounts.provider(id).to_owned(),
            window: budget.window,
            tokens: budget.tokens,
            added: figures.added,
            limit: figures.limit().unwrap_or(0),
            used: figures.used,
            reserved: figures.reserved,
            remaining: figures.remaining().unwrap_or(0),
            until: self.window_end(id),
            source: if source == Source::Stated { "operator" } else { defined_in }.into(),
            bottles: self.payers(id).len(),
        })
    }
}

/// A budget in words: `500000 tokens daily`.
fn words(figures: &Figures) -> String {
    let Some((budget, _)) = figures.budget else { return "none".into() };
    let added = if figures.added > 0 { format!(" and {} added", figures.added) } else { String::new() };
    format!("{} tokens{added} {}", budget.tokens, budget.window.as_str())
}
