//! An operator's restore: checked against what is used up, committed with what is added, and only then done.
use std::time::Instant;

use tokio::sync::oneshot;

use super::budgets::Pending;
use super::durable::{After, action};
use super::processes::{Asker, killed};
use super::verdicts::unknown;
use super::{Change, Core, answer};
use crate::audit::{ActionKind, Processes};
use crate::budget::{AccountId, Statement};
use crate::control::api::{self, Problem};
use crate::ledger::{AttachmentId, Entry, Owner, Verdict};

/// A restore that was found right, before it is durable.
struct Restoring {
    entries: Vec<Entry>,
    attachment: AttachmentId,
    /// The verdict's number when the restore was ordered.
    verdict: u64,
    /// Tokens to add to accounts.
    additions: Vec<Pending>,
    /// Whether it opens whatever is used up.
    force: bool,
    by: String,
}

/// A restore that is durable.
pub(super) struct Restored {
    pub(super) attachment: AttachmentId,
    /// The verdict's number when it was ordered.
    pub(super) verdict: u64,
    /// Whether it opens whatever is used up.
    pub(super) force: bool,
    /// `controller` or `uid:N`.
    pub(super) by: String,
}

impl Core {
    pub(super) fn restore(
        &mut self,
        name: &str,
        order: &api::Restore,
        by: String,
        reply: oneshot::Sender<Result<(), Problem>>,
    ) {
        if let Some(behind) = self.closed() {
            return answer(reply, Err(Problem::failed(behind.to_string())));
        }
        match self.prepare_restore(name, order, &by) {
            Ok(Restoring { entries, attachment, verdict, additions, force, by }) => {
                self.submit(entries, After::Restored { attachment, verdict, additions, force, by, reply });
            }
            Err(problem) => answer(reply, Err(problem)),
        }
    }

    /// Checks the order and composes what is to be committed. Nothing opens and nothing is added before that.
    fn prepare_restore(&mut self, name: &str, order: &api::Restore, by: &str) -> Result<Restoring, Problem> {
        let slot = self.slot_of(name).ok_or_else(|| unknown(name))?;
        if self.processes_of(slot) == Processes::Killed {
            return Err(killed(name));
        }
        let additions = self.additions(slot, name, order)?;
        if !order.force {
            self.refuse_what_stays_used_up(slot, name, &additions)?;
        }
        let Some(bottle) = self.bottles.get_mut(&slot) else { return Err(unknown(name)) };
        // a snapshot that ends from now on ends nobody
        bottle.orders += 1;
        let bottle = &*bottle;
        let (attachment, verdict) = (bottle.attachment.id, bottle.verdict);
        let mut row = action(ActionKind::Restore, Some(name.to_owned()), bottle.cause.clone(), by);
        row.detail = self.describe(&additions, order.force);
        let stated =
            additions.iter().map(|(account, tokens)| self.pending(*account, Statement::Add(*tokens)));
        let (additions, mut entries): (Vec<Pending>, Vec<Entry>) = stated.unzip();
        entries.push(Entry::Verdict(Verdict { attachment, cause: None }));
        entries.push(Entry::Action(row));
        Ok(Restoring { entries, attachment, verdict, additions, force: order.force, by: by.to_owned() })
    }

    /// The accounts that the order adds to: for each provider, the one that governs this bottle.
    fn additions(
        &mut self,
        slot: u32,
        name: &str,
        order: &api::Restore,
    ) -> Result<Vec<(AccountId, u64)>, Problem> {
        let mut additions = Vec::new();
        for (provider, tokens) in &order.add {
            self.check_provider(provider)?;
            let path = self.path(slot, provider);
            let governing = self.accounts.governing(&path).ok_or_else(|| {
                Problem::usage(format!("no budget for {provider} governs {name}: there is nothing to add to"))
                    .with_hint(format!("leave out --add {provider}=…"))
            })?;
            additions.push((governing.account, *tokens));
        }
        Ok(additions)
    }

    fn refuse_what_stays_used_up(
        &mut self,
        slot: u32,
        name: &str,
        additions: &[(AccountId, u64)],
    ) -> Result<(), Problem> {
        for (scope, account) in self.binding_accounts(slot) {
            let added: u64 =
                additions.iter().filter(|(to, _)| *to == account).map(|(_, tokens)| *tokens).sum();
            let figures = self.accounts.figures(account);
            let limit = figures.limit().unwrap_or(u64::MAX).saturating_add(added);
            if figures.used >= limit {
                let (provider, used) = (self.accounts.provider(account), figures.used);
                let short = (used - limit).saturating_add(1);
                let problem = Problem::refused(format!(
                    "{name} stays cut: {used} of {limit} {provider} tokens are used (budget of scope {}, owner {}, \
                     window {})",
                    scope.as_str(),
                    self.owner_name(account),
                    self.window_words(&figures),
                ));
                let way = self.way_to_add(slot, name, account);
                return Err(problem.with_hint(format!(
                    "add at least {short} tokens: {way}; or --force, which opens the network while requests stay refused"
                )));
            }
        }
        Ok(())
    }

    /// The command that adds to this budget: a restore adds to the one alone that the bottle feels first.
    fn way_to_add(&mut self, slot: u32, name: &str, account: AccountId) -> String {
        let provider = self.accounts.provider(account).to_owned();
        let path = self.path(slot, &provider);
        let felt_first = self.accounts.governing(&path).is_some_and(|governing| governing.account == account);
        match self.accounts.owner(account) {
            Owner::Global if !felt_first => format!("enforcer budget add global {provider}=TOKENS"),
            Owner::Agent(of) if !felt_first => format!("enforcer budget add agent:{of} {provider}=TOKENS"),
            Owner::Bottle(of) if !felt_first => format!("enforcer budget add bottle:{of} {provider}=TOKENS"),
            _ => format!("enforcer restore {name} --add {provider}=TOKENS"),
        }
    }

    fn describe(&self, additions: &[(AccountId, u64)], force: bool) -> Option<String> {
        let mut words: Vec<String> = additions
            .iter()
            .map(|(account, tokens)| {
                let provider = self.accounts.provider(*account);
                format!("{tokens} {provider} tokens added to the budget of {}", self.owner_name(*account))
            })
            .collect();
        if force {
            words.push("forced".into());
        }
        (!words.is_empty()).then(|| words.join("; "))
    }

    /// The restore is durable: what was added counts, and the bottle opens unless it was cut again meanwhile.
    pub(super) fn restored(
        &mut self,
        restored: Restored,
        additions: &[Pending],
        result: Result<(), Problem>,
        reply: oneshot::Sender<Result<(), Problem>>,
    ) {
        let Restored { attachment, verdict, force, by } = restored;
        if let Err(problem) = result {
            return answer(reply, Err(problem));
        }
        additions.iter().for_each(|addition| self.apply(addition));
        let slot = self.slot_of_attachment(attachment);
        let opened = match slot.filter(|slot| !force && self.used_up(*slot).is_some()) {
            // exchanges under way have used meanwhile what was left, or was added
            Some(slot) => {
                Err(self.stays_cut(slot, "its budget was used up again while it was being restored"))
            }
            None => self.end_verdict(attachment, verdict, None, "restored"),
        };
        self.admit_waiting();
        self.publish(Change::State);
        match opened {
            Ok((slot, cause)) => {
                let asker = Asker { by, received: Instant::now(), reply: Some(reply) };
                self.thaw_with(slot, cause.as_ref(), asker);
            }
            Err(problem) => answer(reply, Err(problem)),
        }
    }
}
