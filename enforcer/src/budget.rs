//! Budgets: which one governs, what it still allows, when it is crossed. Pure integer arithmetic.
//!
//! An account is one owner's sum for one provider. An exchange is charged to every account on its path (launch,
//! agent, bottle, its ancestors, global), so that a sum is right whether or not a budget is defined there yet;
//! the nearest account with a limit governs. No I/O, no clock, no names of kernels or sockets.
use std::collections::HashMap;

use crate::ledger::Owner;

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

/// Index of an account in [`Accounts`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AccountId(usize);

/// The accounts that an exchange of one bottle and one provider is charged to, nearest first.
pub type Path = Vec<(Scope, AccountId)>;

/// One owner's sum for one provider. All figures are tokens; sums are wide enough never to saturate.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Account {
    /// The budget as defined, if one is.
    limit: Option<u64>,
    /// What the operator added to it.
    added: u64,
    /// Final figures.
    settled: u128,
    /// Figures so far of exchanges under way.
    in_flight: u128,
    /// What exchanges under way hold beyond their figures so far.
    reserved: u128,
}

impl Account {
    /// What is allowed in all: the budget and what was added to it; `None` where no budget is defined.
    #[must_use]
    pub fn limit(&self) -> Option<u64> {
        self.limit.map(|limit| limit.saturating_add(self.added))
    }

    /// Settled and in flight, tokens.
    #[must_use]
    pub fn used(&self) -> u64 {
        clamp(self.settled + self.in_flight)
    }

    /// Held by exchanges under way beyond what they used already, tokens.
    #[must_use]
    pub fn reserved(&self) -> u64 {
        clamp(self.reserved)
    }

    /// What is left for a new exchange, tokens; `None` where no budget is defined.
    #[must_use]
    pub fn remaining(&self) -> Option<u64> {
        let held = self.settled + self.in_flight + self.reserved;
        self.limit().map(|limit| clamp(u128::from(limit).saturating_sub(held)))
    }

    /// Whether a budget is defined and used up, reservations not counted.
    #[must_use]
    pub fn is_used_up(&self) -> bool {
        self.limit().is_some_and(|limit| self.settled + self.in_flight >= u128::from(limit))
    }

    fn is_spoken_for(&self) -> bool {
        self.limit().is_some_and(|limit| self.settled + self.in_flight + self.reserved >= u128::from(limit))
    }
}

fn clamp(tokens: u128) -> u64 {
    u64::try_from(tokens).unwrap_or(u64::MAX)
}

/// What one exchange under way weighs on its accounts, tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// Figures so far.
    pub in_flight: u64,
    /// Reserved beyond them.
    pub reserved: u64,
}

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

/// Every account, and the arithmetic on them.
#[derive(Debug, Default)]
pub struct Accounts {
    rows: Vec<(Owner, String, Account)>,
    index: HashMap<(Owner, String), AccountId>,
}

impl Accounts {
    /// The account of an owner for a provider; made, without a limit, when there is none yet.
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

    /// How many accounts there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there is no account yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The figures of an account.
    #[must_use]
    pub fn account(&self, id: AccountId) -> &Account {
        &self.rows[id.0].2
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

    /// The accounts whose budget is used up.
    #[must_use]
    pub fn used_up(&self) -> Vec<AccountId> {
        (0..self.rows.len()).map(AccountId).filter(|id| self.account(*id).is_used_up()).collect()
    }

    /// Defines the account's budget, tokens; `None`: there is none (any more).
    pub fn define(&mut self, id: AccountId, tokens: Option<u64>) {
        self.rows[id.0].2.limit = tokens;
    }

    /// Every account.
    pub fn ids(&self) -> impl Iterator<Item = AccountId> + use<> {
        (0..self.rows.len()).map(AccountId)
    }

    /// Adds tokens to the account's budget. Debt stays: only what exceeds it becomes usable.
    pub fn add_tokens(&mut self, id: AccountId, tokens: u64) {
        let added = &mut self.rows[id.0].2.added;
        *added = added.saturating_add(tokens);
    }

    /// Puts settled tokens on one account, as loaded from the ledger.
    pub fn load_settled(&mut self, id: AccountId, tokens: u64) {
        self.rows[id.0].2.settled += u128::from(tokens);
    }

    /// The nearest account of the path with a budget.
    #[must_use]
    pub fn governing(&self, path: &Path) -> Option<(Scope, AccountId)> {
        path.iter().copied().find(|(_, id)| self.account(*id).limit.is_some())
    }

    /// What the gate does with a new exchange on this path. Refuses for good only what is used up; grants while
    /// used and others' reservations are below the limit; waits where only reservations stand in the way.
    #[must_use]
    pub fn judge(&self, path: &Path) -> Judgement {
        let Some((scope, id)) = self.governing(path) else { return Judgement::Grant };
        let account = self.account(id);
        if account.is_used_up() {
            Judgement::Refuse(scope, id)
        } else if account.is_spoken_for() {
            Judgement::Wait(scope, id)
        } else {
            Judgement::Grant
        }
    }

    /// Starts to hold a reservation of `tokens` on every account of the path.
    pub fn reserve(&mut self, path: &Path, tokens: u64) -> Held {
        let held = Held { in_flight: 0, reserved: tokens };
        self.weigh(path, Held::default(), held);
        held
    }

    /// Moves an exchange to its figures so far: they grow out of its reservation, and never shrink.
    pub fn progress(&mut self, path: &Path, held: Held, total: u64) -> Held {
        let grown = total.saturating_sub(held.in_flight);
        let now =
            Held { in_flight: held.in_flight.max(total), reserved: held.reserved.saturating_sub(grown) };
        self.weigh(path, held, now);
        now
    }

    /// Ends an exchange: what it held is released and its final figures are charged.
    pub fn settle(&mut self, path: &Path, held: Held, total: u64) {
        self.weigh(path, held, Held::default());
        for (_, id) in path {
            self.rows[id.0].2.settled += u128::from(total);
        }
    }

    fn weigh(&mut self, path: &Path, before: Held, after: Held) {
        for (_, id) in path {
            let account = &mut self.rows[id.0].2;
            account.in_flight =
                account.in_flight - u128::from(before.in_flight) + u128::from(after.in_flight);
            account.reserved = account.reserved - u128::from(before.reserved) + u128::from(after.reserved);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn chain(accounts: &mut Accounts) -> Path {
        vec![
            (Scope::Launch, accounts.id(&Owner::Launch(1), "claude")),
            (Scope::Agent, accounts.id(&Owner::Agent("implementer".into()), "claude")),
            (Scope::Bottle, accounts.id(&Owner::Bottle("b".into()), "claude")),
            (Scope::Parent, accounts.id(&Owner::Bottle("base".into()), "claude")),
            (Scope::Global, accounts.id(&Owner::Global, "claude")),
        ]
    }

    /// The nearest defined budget governs, for each set of scopes that define one.
    #[test]
    fn the_nearest_defined_budget_governs() {
        let all = [Scope::Launch, Scope::Agent, Scope::Bottle, Scope::Parent, Scope::Global];
        for defined in 0_u32..32 {
            let mut accounts = Accounts::default();
            let path = chain(&mut accounts);
            for (bit, (_, id)) in path.iter().enumerate() {
                if defined & (1 << bit) != 0 {
                    accounts.define(*id, Some(100));
                }
            }
            let expected = (defined != 0).then(|| all[defined.trailing_zeros() as usize]);
            assert_eq!(accounts.governing(&path).map(|(scope, _)| scope), expected, "defined: {defined:05b}");
        }
    }

    /// limit, settled, others' reservations -> what the gate does
    #[test]
    fn the_gate_grants_waits_and_refuses() {
        for (limit, settled, reserved, expected) in [
            (100, 0, 0, "grant"),
            (100, 99, 0, "grant"),
            (100, 100, 0, "refuse"),
            (100, 101, 0, "refuse"),
            (100, 50, 49, "grant"),
            (100, 50, 50, "wait"),
            (100, 0, 5_000, "wait"),
            (0, 0, 0, "refuse"),
        ] {
            let mut accounts = Accounts::default();
            let path = chain(&mut accounts);
            accounts.define(path[2].1, Some(limit));
            accounts.load_settled(path[2].1, settled);
            accounts.reserve(&path, reserved);
            let got = match accounts.judge(&path) {
                Judgement::Grant => "grant",
                Judgement::Wait(Scope::Bottle, _) => "wait",
                Judgement::Refuse(Scope::Bottle, _) => "refuse",
                other => panic!("{other:?} by the wrong scope"),
            };
            assert_eq!(got, expected, "limit {limit}, settled {settled}, reserved {reserved}");
        }
    }

    #[test]
    fn without_a_budget_everything_is_granted() {
        let mut accounts = Accounts::default();
        let path = chain(&mut accounts);
        accounts.load_settled(path[4].1, u64::MAX);
        assert_eq!(accounts.judge(&path), Judgement::Grant);
    }

    #[test]
    fn debt_survives_adding_tokens() {
        let mut accounts = Accounts::default();
        let path = chain(&mut accounts);
        let (_, global) = path[4];
        accounts.define(global, Some(100));
        accounts.load_settled(global, 250);
        accounts.add_tokens(global, 150);
        assert!(accounts.account(global).is_used_up(), "150 more only cover the debt");
        accounts.add_tokens(global, 10);
        assert!(!accounts.account(global).is_used_up());
        assert_eq!(accounts.account(global).remaining(), Some(10));
    }

    #[test]
    fn progress_grows_out_of_the_reservation() {
        let mut accounts = Accounts::default();
        let path = chain(&mut accounts);
        let (_, global) = path[4];
        accounts.define(global, Some(1_000));
        let held = accounts.reserve(&path, 300);
        let held = accounts.progress(&path, held, 200);
        assert_eq!(held, Held { in_flight: 200, reserved: 100 });
        let held = accounts.progress(&path, held, 150);
        assert_eq!(held.in_flight, 200, "figures never shrink");
        let held = accounts.progress(&path, held, 1_000);
        assert_eq!(held, Held { in_flight: 1_000, reserved: 0 });
        assert!(accounts.account(global).is_used_up());
    }

    proptest! {
        /// Whatever the order, after every exchange has settled the sums are those of the figures alone.
        #[test]
        fn the_order_of_settlements_never_changes_the_verdict(
            exchanges in prop::collection::vec((0_u64..u64::MAX, prop::collection::vec(any::<u64>(), 0..4), any::<u64>()), 1..12),
            limit in any::<u64>(),
            order in any::<u64>(),
        ) {
            let settled = |reverse: bool| {
                let mut accounts = Accounts::default();
                let path = chain(&mut accounts);
                accounts.define(path[4].1, Some(limit));
                let mut held: Vec<_> = exchanges
                    .iter()
                    .map(|(reserved, progress, total)| {
                        let mut held = accounts.reserve(&path, *reserved);
                        for figure in progress {
                            held = accounts.progress(&path, held, *figure);
                        }
                        (held, *total)
                    })
                    .collect();
                let turn = usize::try_from(order % held.len() as u64).unwrap();
                held.rotate_left(turn);
                if reverse {
                    held.reverse();
                }
                for (held, total) in held {
                    accounts.settle(&path, held, total);
                }
                let account = accounts.account(path[4].1).clone();
                (account.is_used_up(), account)
            };
            let (used_up, account) = settled(false);
            prop_assert_eq!((used_up, account.clone()), settled(true));
            prop_assert_eq!(account.reserved(), 0);
            let sum: u128 = exchanges.iter().map(|(_, _, total)| u128::from(*total)).sum();
            prop_assert_eq!(used_up, sum >= u128::from(limit));
        }
    }
}
