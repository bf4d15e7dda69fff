//! How long a verdict takes: under four scopes, with ten thousand bottles, after a short history and after a long one;
//! and what the history costs the books.
//!
//! Run by `cargo xtask bench budget`. Prints figures and judges none; needs neither root nor a harness. What needs a
//! whole daemon is measured by the benchmark `budget` of the end-to-end tests.
#![allow(clippy::unwrap_used, reason = "a benchmark that cannot go on has nothing to report")]
#[path = "../support/figures.rs"]
#[allow(dead_code, reason = "the other benchmarks use the rest of it")]
mod figures;

mod books;
mod core;

use std::hint::black_box;

use enforcer::budget::weights::Weights;
use enforcer::budget::window::{Hour, Window};
use enforcer::budget::{Accounts, Budget, Path, Scope, ScopeRule};
use enforcer::ledger::Owner;
use meter_proxy::tokens::Tokens;

use figures::{nanoseconds, report};

/// Bottles, each with an agent and a parent that it shares with others.
const BOTTLES: usize = 10_000;
/// The kernel's table has slots for little more.
const ATTACHED: usize = 4_000;
const AGENTS: usize = 100;
const PARENTS: usize = 50;
/// Settled exchanges before the verdicts.
const HISTORIES: [usize; 2] = [1_000, 2_000_000];
const VERDICTS: usize = 200_000;
/// Exchanges in the books before each start.
const RECORDED: [usize; 2] = [20_000, 400_000];

fn main() {
    println!("{BOTTLES} bottles, scopes agent, bottle, parent and global, each with a budget");
    for rule in [ScopeRule::Nearest, ScopeRule::Strictest] {
        for history in HISTORIES {
            let mut chains = Chains::new(rule);
            chains.settle(history);
            let rule = rule.as_str();
            report(&format!("a verdict by {rule}, after {history} exchanges"), chains.verdicts());
            report(&format!("figures and a verdict by {rule}, after {history} exchanges"), chains.charges());
        }
    }
    core::verdicts(ATTACHED);
    core::waiting(ATTACHED);
    books::settle_and_load(&RECORDED);
}

/// Every bottle's path and the accounts they lead to.
struct Chains {
    accounts: Accounts,
    paths: Vec<Path>,
}

impl Chains {
    fn new(rule: ScopeRule) -> Self {
        let mut accounts = Accounts::new(rule, Weights::default(), Hour::of(0));
        let mut path = |bottle: usize| -> Path {
            let owners = [
                (Scope::Agent, Owner::Agent(format!("agent-{}", bottle % AGENTS)), Window::Hourly),
                (Scope::Bottle, Owner::Bottle(format!("bottle-{bottle}")), Window::Daily),
                (Scope::Parent, Owner::Bottle(format!("parent-{}", bottle % PARENTS)), Window::Weekly),
                (Scope::Global, Owner::Global, Window::Total),
            ];
            let define = |(scope, owner, window)| {
                let account = accounts.id(&owner, "claude");
                accounts.define(account, Some(Budget { tokens: u64::MAX, window }));
                (scope, account)
            };
            owners.map(define).to_vec()
        };
        let paths = (0..BOTTLES).map(&mut path).collect();
        Self { accounts, paths }
    }

    /// A bottle for each round, as far from the one before as a cache dislikes.
    fn nth(&self, round: usize) -> usize {
        round.wrapping_mul(7_919) % self.paths.len()
    }

    fn settle(&mut self, exchanges: usize) {
        for round in 0..exchanges {
            let path = &self.paths[self.nth(round)];
            let held = self.accounts.reserve(path, 100);
            self.accounts.settle(path, held, &tokens(round));
        }
    }

    fn verdicts(&self) -> Vec<u64> {
        let verdict = |round| {
            let path = &self.paths[self.nth(round)];
            nanoseconds(|| {
                black_box(self.accounts.judge(black_box(path)));
            })
        };
        (0..VERDICTS).map(verdict).collect()
    }

    /// What the core does with a settlement until it knows whether to cut: release, charge, look at every account.
    fn charges(&mut self) -> Vec<u64> {
        let mut charge = |round| {
            let path = self.paths[self.nth(round)].clone();
            let held = self.accounts.reserve(&path, 100);
            nanoseconds(|| {
                self.accounts.settle(&path, held, &tokens(round));
                let crossed = path.iter().any(|(_, account)| self.accounts.is_used_up(*account));
                black_box((crossed, self.accounts.judge(&path)));
            })
        };
        (0..VERDICTS).map(&mut charge).collect()
    }
}

fn tokens(round: usize) -> Tokens {
    let some = u64::try_from(round % 1_000).unwrap();
    Tokens { input: some, cache_write: 1, cache_read: 10 * some, output: some / 2, ..Tokens::default() }
}
