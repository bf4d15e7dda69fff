//! Start-up: brings together what the ledger recorded and what the kernel still holds. The more closed one wins,
//! and the audit says so. Runs before the thread starts, so nothing is decided on half a state.
use std::collections::HashMap;
use std::path::Path;

use meter_proxy::tokens::Tokens;

use super::durable::{After, action};
use super::members::KEPT;
use super::processes::THAW_AGAIN;
use super::requests::{PROGRESS_GRAIN, orphan};
use super::verdicts::Crossing;
use super::{Bottle, Core, Stage};
use crate::act::Which;
use crate::audit::{ActionKind, Cause, Processes};
use crate::bottle::cgroup::{self, Cgroup, CgroupError, Hierarchy};
use crate::budget::Warned;
use crate::clock::now_ms;
use crate::egress::packets;
use crate::kernel::{Face, Guard, KernelError, Pinned};
use crate::lane;
use crate::ledger::{Attachment, Entry, HourSum, Owner, Reservation, Snapshot, Stated, Sum, Verdict};
use crate::settings::{Egress, Policy};

/// What can go wrong while an earlier controller's state is taken over.
#[derive(Debug, thiserror::Error)]
pub enum AdoptError {
    /// A guard that nobody needs any more cannot be removed, or one cannot be put back.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// Whether a bottle's cgroup is still there cannot be told, or it cannot be guarded again.
    #[error("bottle {name} cannot be taken over: {why}")]
    Bottle {
        /// Its name.
        name: String,
        /// What stands in the way.
        why: String,
    },
    /// The thread cannot be started.
    #[error("the core cannot be started: {0}")]
    Thread(#[from] std::io::Error),
}

impl Core {
    pub(super) fn adopt(&mut self, snapshot: Snapshot) -> Result<(), AdoptError> {
        self.last_exchange = snapshot.last_exchange;
        self.last_attachment = snapshot.last_attachment;
        self.last_generation = snapshot.last_generation;
        self.submit_done(vec![Entry::Reached(self.accounts.hour())], After::Nothing);
        let mut pinned: HashMap<String, Pinned> =
            self.kernel.adopted().into_iter().map(|pinned| (pinned.name.clone(), pinned)).collect();
        pinned.retain(|name, _| !lane::is_own_guard(name));
        for found in pinned.values() {
            self.last_generation = self.last_generation.max(found.generation);
        }
        let mut verdicts = Vec::new();
        for (attachment, cause) in snapshot.attachments {
            let guard = pinned.remove(&attachment.name);
            if let Some(verdict) = self.take_over(attachment, cause, guard)? {
                verdicts.push(verdict);
            }
        }
        for unknown in pinned.into_values() {
            verdicts.extend(self.take_over_unknown(unknown)?);
        }

        self.load_budgets(snapshot.stated, snapshot.warned);
        self.load_sums(snapshot.sums, snapshot.hours, snapshot.own);
        self.mark_used_up();
        for (reservation, seen) in snapshot.orphans {
            self.settle_orphan(reservation, seen);
        }
        for (slot, cause) in verdicts {
            self.settle_verdict(slot, cause);
        }
        self.act_on_crossed();
        self.tell_who_stands_still();
        self.reopen_what_is_late();
        // last: a bottle whose lease ran out opens with this
        self.first_beat();
        Ok(())
    }

    /// Takes over a recorded attachment; its slot and verdict, or `None` when its cgroup is gone. What cannot be
    /// told or done ends the start: the guards that are pinned stay as they are.
    fn take_over(
        &mut self,
        attachment: Attachment,
        cause: Option<Cause>,
        pinned: Option<Pinned>,
    ) -> Result<Option<(u32, Option<Cause>)>, AdoptError> {
        if let Some(why) = gone(&attachment, pinned.as_ref())? {
            if let Some(pinned) = pinned {
                self.kernel.detach(&pinned.name, pinned.slot)?;
            }
            self.let_go(&attachment, cause, why);
            return Ok(None);
        }
        let mute = pinned.as_ref().map_or_else(|| is_mute(&attachment), |pinned| Ok(pinned.mute))?;
        let guard = Guard { mute, ..attachment.guard(self.listener) };
        let cut_in_kernel = pinned.as_ref().and_then(|pinned| pinned.cut);
        match pinned {
            Some(pinned) if is_of(&pinned, &attachment) => self.kernel.refresh(guard),
            Some(_) => {
                return Err(not_taken(&attachment, "what is pinned under its name guards something else"));
            }
            // pins do not survive a reboot: hooks on again, dropping until the verdict is set
            None => {
                let cgroup = Cgroup::open(Path::new(&attachment.cgroup));
                let cgroup = cgroup.map_err(|error| not_taken(&attachment, error))?;
                let attached = self.kernel.attach(&attachment.name, &cgroup, guard);
                attached.map_err(|error| not_taken(&attachment, error))?;
            }
        }
        let (slot, name) = (attachment.slot, attachment.name.clone());
        self.enter(attachment, Stage::Attached, mute);
        let verdict = match (cause, cut_in_kernel) {
            (None, Some(_)) => {
                let found = found_cut(format!("{name} was found cut in the kernel but not in the ledger"));
                Some(self.found_frozen(slot, found))
            }
            (Some(cause), Some(face)) => Some(Cause { face: cause.face.max(face), ..cause }),
            (cause, None) => cause,
        };
        Ok(Some((slot, verdict)))
    }

    /// A guard that the ledger knows nothing of is kept, closed: whom it guards cannot be decided, nor what it was to
    /// reach, so it reaches nothing until the egress room writes what `metered` lets through.
    fn take_over_unknown(&mut self, pinned: Pinned) -> Result<Option<(u32, Option<Cause>)>, AdoptError> {
        self.kernel.cut(pinned.slot);
        let unreadable = |error| AdoptError::Bottle {
            name: pinned.name.clone(),
            why: format!("whether its cgroup is there cannot be told: {error}"),
        };
        let is_lost = || Hierarchy::open().and_then(|hierarchy| hierarchy.has_lost(pinned.cgroup_id));
        if pinned.cgroup_id == 0 || is_lost().map_err(unreadable)? {
            self.kernel.detach(&pinned.name, pinned.slot)?;
            return Ok(None);
        }
        self.kernel.set_allowed(pinned.slot, &[])?;
        let path = cgroup::path_of_id(pinned.cgroup_id).ok_or_else(|| AdoptError::Bottle {
            name: pinned.name.clone(),
            why: format!(
                "the ledger does not know it, and its cgroup (id {}) cannot be found",
                pinned.cgroup_id
            ),
        })?;
        self.last_attachment += 1;
        let attachment = Attachment {
            id: self.last_attachment,
            name: pinned.name.clone(),
            agent: None,
            parent: None,
            ancestors: Vec::new(),
            cgroup: path.display().to_string(),
            cgroup_id: pinned.cgroup_id,
            owns_cgroup: false,
            container: None,
            slot: pinned.slot,
            generation: pinned.generation,
            policy: Policy::Cutoff,
            egress: Egress::Metered,
            launch_budget: Vec::new(),
            attached_at: now_ms(),
        };
        self.kernel.refresh(Guard { mute: pinned.mute, ..attachment.guard(self.listener) });
        let mut row = action(ActionKind::Attach, Some(pinned.name.clone()), None, "controller");
        row.detail = Some("found in the kernel but not in the ledger".into());
        self.submit_done(vec![Entry::Attach(attachment.clone()), Entry::Action(row)], After::Nothing);
        self.enter(attachment, Stage::Attached, pinned.mute);
        let cause = found_cut(format!("{} was found in the kernel but not in the ledger", pinned.name));
        Ok(Some((pinned.slot, Some(cause))))
    }

    /// Ends an attachment whose cgroup is gone; one that was cut and that the settings attach again is kept.
    fn let_go(&mut self, attachment: &Attachment, cause: Option<Cause>, why: &str) {
        match cause {
            Some(cause) if self.settings.awaited_cgroup(&attachment.name).is_some() => {
                let mut row = action(ActionKind::Detach, Some(attachment.name.clone()), None, "controller");
                row.detail = Some(KEPT.into());
                self.record(row);
                self.kept_cuts.insert(attachment.name.clone(), (attachment.id, cause.without_processes()));
            }
            cause => self.record_lost(attachment, cause, why),
        }
    }

    /// A bottle that was cut and whose cgroup was made anew is not cut any more: that is a failure, and said.
    fn record_lost(&mut self, attachment: &Attachment, cause: Option<Cause>, why: &str) {
        let mut row = action(ActionKind::Detach, Some(attachment.name.clone()), cause.clone(), "controller");
        row.done = cause.is_none();
        row.detail = Some(match cause {
            None => format!("{why}; the attachment is ended"),
            Some(_) => format!("{why}; the attachment is ended, and its cut with it"),
        });
        let entries = vec![Entry::Detach { attachment: attachment.id, at: now_ms() }, Entry::Action(row)];
        self.submit_done(entries, After::Nothing);
    }

    /// Every budget there is, whether or not a bottle is charged to it, and what was warned of it.
    fn load_budgets(&mut self, stated: Vec<Stated>, warned: Vec<(Owner, String, Warned)>) {
        for (owner, provider) in self.defined_owners() {
            self.account(&owner, &provider);
        }
        for Stated { owner, provider, statement, hour, .. } in stated {
            if self.counts_still(&owner) {
                let account = self.account(&owner, &provider);
                self.accounts.state(account, statement, hour);
            }
        }
        for (owner, provider, warned) in warned {
            if self.counts_still(&owner) {
                let account = self.account(&owner, &provider);
                self.accounts.was_warned(account, warned);
            }
        }
    }

    fn load_sums(&mut self, sums: Vec<Sum>, hours: Vec<HourSum>, own: Vec<Sum>) {
        for sum in sums.iter().filter(|sum| self.counts_still(&sum.owner)).collect::<Vec<_>>() {
            let account = self.account(&sum.owner, &sum.provider);
            self.accounts.load_total(account, &sum.tokens);
        }
        for sum in hours.iter().filter(|sum| self.counts_still(&sum.owner)).collect::<Vec<_>>() {
            let account = self.account(&sum.owner, &sum.provider);
            self.accounts.load_hour(account, &sum.tokens, sum.hour);
        }
        for sum in own {
            if let Owner::Bottle(name) = &sum.owner {
                self.usage.load(name, &sum);
            }
        }
    }

    /// Nothing is charged any more to the launch of an attachment that has ended.
    fn counts_still(&self, owner: &Owner) -> bool {
        !matches!(owner, Owner::Launch(id) if self.slot_of_attachment(*id).is_none())
    }

    /// A reservation that was never settled is charged in full, or by what was seen and may have been seen since.
    fn settle_orphan(&mut self, reservation: Reservation, seen: Tokens) {
        let seen = Tokens { output: seen.output.saturating_add(PROGRESS_GRAIN), ..seen };
        let settlement = orphan(reservation.id, seen, reservation.reserved_tokens, self.accounts.hour());
        let mut owners: Vec<Owner> = reservation.attachment.map(Owner::Launch).into_iter().collect();
        owners.extend(reservation.agent.map(Owner::Agent));
        owners.push(Owner::Bottle(reservation.bottle.clone()));
        owners.extend(reservation.ancestors.into_iter().map(Owner::Bottle));
        owners.push(Owner::Global);
        for owner in owners {
            if self.counts_still(&owner) {
                let account = self.account(&owner, &reservation.provider);
                self.accounts.charge(account, &settlement.tokens);
            }
        }
        self.usage.charge(&reservation.bottle, &reservation.provider, &settlement);
        self.submit_done(vec![Entry::Settle(settlement)], After::Nothing);
    }

    /// Sets what the kernel holds to the more closed of what was recorded, found and is used up.
    fn settle_verdict(&mut self, slot: u32, cause: Option<Cause>) {
        self.lend(slot);
        let Some(cause) = cause else {
            let crossing = self.crossing_at_start(slot);
            return self.open_first(slot, crossing);
        };
        let cause = Cause { face: self.face_for(slot, cause.face), ..cause };
        let passed = self.kernel.is_open(slot);
        self.store_cut(slot, cause.face);
        if cause.face == Face::Answered {
            // those to an earlier meter: nobody is there to end them
            self.abort(slot, Which::Metered);
        }
        let Some(bottle) = self.bottles.get_mut(&slot) else { return };
        bottle.cause = Some(cause.clone());
        bottle.verdict += 1;
        let verdict = Verdict { attachment: bottle.attachment.id, cause: Some(cause.clone()) };
        let mut row =
            action(ActionKind::Cut, Some(bottle.attachment.name.clone()), Some(cause), "controller");
        row.detail = Some(match passed {
            false => "taken over at start: stays cut".into(),
            true => "taken over at start: the kernel let it pass, the ledger says cut: stays cut".into(),
        });
        self.submit_done(vec![Entry::Verdict(verdict), Entry::Action(row)], After::Nothing);
        self.hold_again(slot);
    }

    /// A cut that was not recorded may have had a freeze with it.
    fn found_frozen(&self, slot: u32, cause: Cause) -> Cause {
        let frozen = self.bottles.get(&slot).is_some_and(|bottle| is_frozen(&bottle.attachment));
        let processes = if frozen { Processes::Frozen } else { Processes::Running };
        Cause { processes, ..cause }
    }

    /// A controller that died between the record of a thaw and doing it leaves frozen what is recorded as running. Others
    /// freeze too (`docker pause`), so it is not for us to thaw it: it is said.
    fn tell_who_stands_still(&mut self) {
        let runs = |bottle: &&Bottle| {
            bottle.cause.as_ref().is_none_or(|cause| cause.processes == Processes::Running)
        };
        let still = self.bottles.values().filter(runs).filter(|bottle| is_frozen(&bottle.attachment));
        for name in still.map(|bottle| bottle.attachment.name.clone()).collect::<Vec<_>>() {
            let detail = format!(
                "its processes stand still and nothing recorded has them do so: if it is no pause of somebody else's, {}",
                THAW_AGAIN.replace("NAME", &name)
            );
            self.warn(Some(name), detail, true);
        }
    }

    /// Accounts that are used up already have been acted upon: only a later crossing is news.
    fn mark_used_up(&mut self) {
        let accounts = &self.accounts;
        self.crossed.extend(accounts.ids().filter(|account| accounts.is_used_up(*account)));
    }

    /// How a bottle that was open stands to a budget that is used up. What the estimates of orphans have used up was
    /// crossed while nobody looked: the policy acts on it now, as it would have then.
    fn crossing_at_start(&mut self, slot: u32) -> Crossing {
        let binding = self.binding_accounts(slot);
        let news = |account| self.accounts.is_used_up(account) && !self.crossed.contains(&account);
        match binding.into_iter().any(|(_, account)| news(account)) {
            true => Crossing::now(),
            false => Crossing::Before,
        }
    }

    /// What was crossed while nobody looked is acted upon, and warned of.
    fn act_on_crossed(&mut self) {
        for account in self.accounts.ids() {
            self.cut_all_bound_by(account, Crossing::now());
        }
        self.warn_of_all();
    }
}

/// Why the attachment's cgroup is gone, if it is. The kernel knows best: a guard tells whether its cgroup lives.
fn gone(attachment: &Attachment, pinned: Option<&Pinned>) -> Result<Option<&'static str>, AdoptError> {
    match pinned {
        Some(pinned) if pinned.cgroup_id == 0 => return Ok(Some("its cgroup is gone")),
        Some(pinned) if is_of(pinned, attachment) => return Ok(None),
        Some(_) => return Err(not_taken(attachment, "what is pinned under its name guards something else")),
        None => {}
    }
    match Cgroup::open(Path::new(&attachment.cgroup)) {
        Ok(cgroup) if cgroup.id() == attachment.cgroup_id => Ok(None),
        Ok(_) => Ok(Some("another cgroup stands at its path")),
        Err(CgroupError::Missing(_)) => Ok(Some("its cgroup is gone")),
        Err(error) => Err(not_taken(attachment, error)),
    }
}

/// Whether somebody has told the bottle's processes to stand still; one that cannot be looked at was told nothing.
fn is_frozen(attachment: &Attachment) -> bool {
    let cgroup = Cgroup::open(Path::new(&attachment.cgroup)).ok();
    let cgroup = cgroup.filter(|cgroup| cgroup.id() == attachment.cgroup_id);
    cgroup.is_some_and(|cgroup| cgroup.is_frozen().unwrap_or(false))
}

/// As was judged when it was attached, where the kernel does not know that any more.
fn is_mute(attachment: &Attachment) -> Result<bool, AdoptError> {
    let pids = Cgroup::open(Path::new(&attachment.cgroup)).and_then(|cgroup| cgroup.pids());
    let pids = pids.map_err(|error| not_taken(attachment, error))?;
    Ok(!attachment.owns_cgroup && packets::holder(&pids, false).is_some())
}

fn is_of(pinned: &Pinned, attachment: &Attachment) -> bool {
    (pinned.slot, pinned.generation, pinned.cgroup_id)
        == (attachment.slot, attachment.generation, attachment.cgroup_id)
}

fn not_taken(attachment: &Attachment, why: impl std::fmt::Display) -> AdoptError {
    AdoptError::Bottle { name: attachment.name.clone(), why: why.to_string() }
}

/// The verdict of a guard that was found more closed than the ledger says.
fn found_cut(reason: String) -> Cause {
    Cause::operator("controller".into(), Some(reason))
}
