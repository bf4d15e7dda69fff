//! An operator's restore: checked against what is used up, committed with what is added, and only then done.
use std::time::Instant;

use tokio::sync::oneshot;

use super::budgets::Pending;
use super::durable::{After, action};
use super::processes::{Asker, killed};
use super::verdicts::unknown;
use super::windows::Reopening;
use super::{Change, Core, answer};
use crate::audit::{ActionKind, Processes};
use crate::budget::{AccountId, Statement};
use crate::control::api::{self, Problem};
use crate::ledger::{AttachmentId, Entry, Owner, Verdict};

/// A restore that was found right, before it is durable.
struct Restoring {
    entries: Vec<Entry>,
    /// Tokens to add to accounts.
    additions: Vec<Pending>,
    restored: Restored,
}

/// A restore that does what it is to do once that is durable.
pub(super) struct Restored {
    attachment: AttachmentId,
    /// The verdict's number when it was decided.
    verdict: u64,
    /// The accounts that it opens the bottle in spite of: they were used up when it was ordered, and forced.
    accepted: Vec<AccountId>,
    /// `controller` or `uid:N`.
    by: String,
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
            Ok(Restoring { entries, additions, restored }) => {
                self.submit(entries, After::Restored { restored, additions, reply });
            }
            Err(problem) => answer(reply, Err(problem)),
        }
    }

    /// Checks the order and composes what is to be committed. Nothing opens and nothing is added before that.
    fn prepare_restore(&mut self, name: &str, order: &api::Restore, by: &str) -> Result<Restoring, Problem> {
        // of one that is being attached the ledger knows nothing yet
        let (slot, _) = self.to_be_held(name)?;
        if self.processes_of(slot) == Processes::Killed {
            return Err(killed(name));
        }
        let additions = self.additions(slot, name, order)?;
        let accepted = match order.force {
            true => self.all_used_up(slot),
            false => self.refuse_what_stays_used_up(slot, name, &additions).map(|()| Vec::new())?,
        };
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
        let restored = Restored { attachment, verdict, accepted, by: by.to_owned() };
        Ok(Restoring { entries, additions, restored })
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

    /// The restore is durable: what was added counts, and the bottle opens unless it was closed again meanwhile.
    pub(super) fn restored(
        &mut self,
        restored: Restored,
        additions: &[Pending],
        result: Result<(), Problem>,
        reply: oneshot::Sender<Result<(), Problem>>,
    ) {
        if let Err(problem) = result {
            self.record_standing_of(restored.attachment);
            return answer(reply, Err(problem));
        }
        additions.iter().for_each(|addition| self.apply(addition));
        match self.slot_of_attachment(restored.attachment) {
            Some(slot) => self.open_restored(slot, restored, reply),
            None => answer(reply, Err(Problem::failed("the bottle was detached meanwhile"))),
        }
        self.admit_waiting();
        self.publish(Change::State);
    }

    fn open_restored(&mut self, slot: u32, restored: Restored, reply: oneshot::Sender<Result<(), Problem>>) {
        if let Some(why) = self.closed_since(slot, &restored) {
            let problem = self.stays_cut(slot, why);
            // beneath what closed it, the tokens may cover what a budget has cut
            let reopening = Reopening { by: restored.by, why: "it was to be restored".into(), reply: None };
            self.reopen_covered(vec![slot], reopening);
            return answer(reply, Err(problem));
        }
        let Restored { attachment, verdict, .. } = restored;
        if let Ok((slot, cause)) = self.end_verdict(attachment, verdict, None) {
            let asker = Asker { by: restored.by, received: Instant::now(), reply: Some(reply) };
            return self.thaw_with(slot, cause.as_ref(), asker);
        }
        // a thaw or a window was first, or more was used than before and less than was added: that it opens must be the
        // last word of the ledger, too
        let verdict = self.bottles.get(&slot).map_or(verdict, |bottle| bottle.verdict);
        let entry = Entry::Verdict(Verdict { attachment, cause: None });
        let restored = Restored { verdict, ..restored };
        self.submit(vec![entry], After::Restored { restored, additions: Vec::new(), reply });
    }

    /// What came after the order and keeps the bottle closed, if anything did.
    fn closed_since(&mut self, slot: u32, restored: &Restored) -> Option<&'static str> {
        if self.is_ordered_since(slot, restored.verdict) {
            return Some("it was cut again while it was being restored");
        }
        if self.processes_of(slot) == Processes::Killed {
            return Some("it was killed while it was being restored");
        }
        let used_up = self.all_used_up(slot);
        let news = used_up.iter().any(|account| !restored.accepted.contains(account));
        news.then_some("its budget was used up again while it was being restored")
    }
}
