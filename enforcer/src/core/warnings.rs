//! Warnings before a budget is used up: each percentage of `warn_at` once in each window, over restarts too.
use super::Core;
use super::durable::{After, action};
use crate::audit::ActionKind;
use crate::budget::{AccountId, Path, Scope, Warned};
use crate::hooks::Occasion;
use crate::ledger::{Entry, ExchangeId};
use crate::settings::Policy;

impl Core {
    /// Warns of what a charge to these accounts has reached.
    pub(super) fn warn_where_due(&mut self, path: &Path, bottle: &str, flow: ExchangeId) {
        for (scope, account) in path {
            self.warn_of(*scope, *account, Some(bottle), Some(flow));
        }
    }

    /// Warns of what any account has reached by itself: with another budget, or while nobody looked.
    pub(super) fn warn_of_all(&mut self) {
        for account in self.accounts.ids() {
            self.warn_of(self.own_scope(account), account, None, None);
        }
    }

    /// Warns of what this account has reached, by an exchange of a bottle or by itself.
    pub(super) fn warn_of(
        &mut self,
        scope: Scope,
        account: AccountId,
        bottle: Option<&str>,
        flow: Option<ExchangeId>,
    ) {
        for warned in self.accounts.warn(account, &self.settings.warn_at) {
            self.budget_warned(scope, account, warned, bottle, flow);
        }
    }

    /// The one place where a budget's warning is given: told to the hook, and recorded together with its being given,
    /// and so told to whoever reads the events.
    fn budget_warned(
        &mut self,
        scope: Scope,
        account: AccountId,
        warned: Warned,
        bottle: Option<&str>,
        flow: Option<ExchangeId>,
    ) {
        let cause = self.budget_cause(Policy::Cutoff, scope, account, flow);
        self.call_hook(Occasion::Warn, bottle, Some(&cause));
        let mut row = action(ActionKind::Warn, bottle.map(str::to_owned), Some(cause), "controller");
        row.detail = Some(format!("{}% of the budget are used", warned.percent));
        let owner = self.accounts.owner(account).clone();
        let provider = self.accounts.provider(account).to_owned();
        self.submit_done(vec![Entry::Warned { owner, provider, warned }, Entry::Action(row)], After::Nothing);
    }
}
