//! Changed settings, as far as sums and verdicts are concerned. They are recorded before they hold; then what they close
//! is closed first. What they would open stays cut until somebody restores it, and is said. Settings that are put back
//! hold at once, and are recorded as soon as they can be.
use std::sync::Arc;

use tokio::sync::oneshot;

use super::durable::{After, action};
use super::{Change, Core, answer};
use crate::audit::{Action, ActionKind};
use crate::control::api::Problem;
use crate::ledger::Entry;
use crate::settings::Settings;

/// Settings that are to hold from now on.
pub struct Reloading {
    /// All of them.
    pub settings: Arc<Settings>,
    /// What is different, for the audit.
    pub changed: String,
    /// Whether they held before, and are put back because the rest of the controller could not take others: no error
    /// may leave it divided.
    pub back: bool,
    /// `controller` or `uid:N`.
    pub by: String,
    /// Done; what the operator should know of it.
    pub reply: oneshot::Sender<Result<Vec<String>, Problem>>,
}

impl Core {
    /// Records the change; it holds once that is durable. What is put back does not wait for that: a reload opens nothing.
    pub(super) fn reload(&mut self, reloading: Reloading) {
        let mut row = action(ActionKind::Settings, None, None, &reloading.by);
        row.detail = Some(reloading.changed.clone());
        if reloading.back {
            self.record(row);
            return self.reloaded(reloading, Ok(()));
        }
        if let Some(behind) = self.closed() {
            return answer(reloading.reply, Err(Problem::failed(behind.to_string())));
        }
        self.submit(vec![Entry::Action(row)], After::Reloaded(reloading));
    }

    pub(super) fn reloaded(&mut self, reloading: Reloading, result: Result<(), Problem>) {
        if let Err(problem) = result {
            return answer(reloading.reply, Err(problem));
        }
        let before = self.used_up_by_slot(self.bottles.keys().copied().collect());
        let lease = self.settings.lease;
        self.settings = reloading.settings;
        self.redefine_budgets();
        self.cut_newly_used_up(before);
        self.warn_of_all();
        if self.settings.lease != lease {
            self.bottles.keys().for_each(|slot| self.lend(*slot));
        }
        let stays = [self.cut_without_need(), self.kept_for_nobody()].concat();
        for line in &stays {
            self.warn(None, line.clone(), false);
        }
        self.admit_waiting();
        self.publish(Change::State);
        answer(reloading.reply, Ok(stays));
    }

    /// The settings are not taken: for the audit.
    pub(super) fn not_reloaded(&mut self, by: &str, why: String) {
        let row = action(ActionKind::Settings, None, None, by);
        self.record(Action { done: false, detail: Some(why), ..row });
    }

    /// Has the settings' budgets, weights and scope rule hold, for whatever providers there are now.
    fn redefine_budgets(&mut self) {
        self.accounts.judge_by(self.settings.scope_rule, self.settings.weights);
        for account in self.accounts.ids() {
            let owner = self.accounts.owner(account).clone();
            let provider = self.accounts.provider(account).to_owned();
            self.account(&owner, &provider);
        }
        for (owner, provider) in self.defined_owners() {
            self.account(&owner, &provider);
        }
        for slot in self.bottles.keys().copied().collect::<Vec<_>>() {
            self.open_accounts(slot);
        }
        self.forget_crossings();
    }

    /// What budgets alone have cut and none cuts any longer, one line each.
    fn cut_without_need(&mut self) -> Vec<String> {
        let mut slots: Vec<u32> = self.bottles.keys().copied().collect();
        slots.retain(|slot| self.is_cut_without_need(*slot));
        let line =
            |name| format!("{name} stays cut although its budget has room again: enforcer restore {name}");
        slots.into_iter().map(|slot| line(self.name_of(slot))).collect()
    }

    /// The kept cuts of bottles that the settings do not attach any more, one line each: only an operator's attach would
    /// end them, and a new daemon does.
    fn kept_for_nobody(&self) -> Vec<String> {
        let mut names: Vec<&String> =
            self.kept_cuts.keys().filter(|name| self.settings.awaited_cgroup(name).is_none()).collect();
        names.sort_unstable();
        let line = |name| {
            format!(
                "{name} was cut when its cgroup went, and the settings do not attach it any more: until the daemon is \
                 started again, an attach of {name} begins with that cut"
            )
        };
        names.into_iter().map(line).collect()
    }
}
