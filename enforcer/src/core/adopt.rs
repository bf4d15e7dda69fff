//! Start-up: brings together what the ledger recorded and what the kernel still holds. The more closed one wins,
//! and the audit says so. Runs before the thread starts, so nothing is decided on half a state.
use std::collections::HashMap;
use std::path::Path;
use std::time::Instant;

use meter_proxy::tokens::Tokens;

use super::durable::{After, action};
use super::requests::orphan;
use super::{Core, Stage};
use crate::audit::{ActionKind, Cause};
use crate::bottle::cgroup::{self, Cgroup};
use crate::clock::now_ms;
use crate::kernel::{Guard, KernelError, Pinned};
use crate::ledger::{Attachment, Entry, Owner, Reservation, Snapshot, Sum, Verdict};

/// What can go wrong while an earlier controller's state is taken over.
#[derive(Debug, thiserror::Error)]
pub enum AdoptError {
    /// A guard that nobody needs any more cannot be removed, or one cannot be put back.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The thread cannot be started.
    #[error("the core cannot be started: {0}")]
    Thread(#[from] std::io::Error),
}

impl Core {
    pub(super) fn adopt(&mut self, snapshot: Snapshot) -> Result<(), AdoptError> {
        self.last_exchange = snapshot.last_exchange;
        self.last_attachment = snapshot.last_attachment;
        self.last_generation = snapshot.last_generation;
        self.added =
            snapshot.added.into_iter().map(|(owner, provider, tokens)| ((owner, provider), tokens)).collect();

        let mut pinned: HashMap<String, Pinned> =
            self.kernel.adopted().into_iter().map(|pinned| (pinned.name.clone(), pinned)).collect();
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

        self.load_sums(snapshot.sums, snapshot.own);
        for reservation in snapshot.orphans {
            self.settle_orphan(reservation);
        }
        for (slot, cause) in verdicts {
            self.settle_verdict(slot, cause);
        }
        self.mark_crossed();
        Ok(())
    }

    /// Takes over a recorded attachment; its slot and verdict, or `None` when its cgroup is gone.
    fn take_over(
        &mut self,
        attachment: Attachment,
        cause: Option<Cause>,
        pinned: Option<Pinned>,
    ) -> Result<Option<(u32, Option<Cause>)>, AdoptError> {
        let exists = Cgroup::open(Path::new(&attachment.cgroup))
            .is_ok_and(|cgroup| cgroup.id() == attachment.cgroup_id);
        if !exists {
            if let Some(pinned) = pinned {
                self.kernel.detach(&pinned.name, pinned.slot)?;
            }
            self.record_lost(&attachment, "its cgroup is gone");
            return Ok(None);
        }
        let slot = attachment.slot;
        let guard = self.guard(&attachment);
        let matches = pinned.as_ref().is_some_and(|pinned| {
            (pinned.slot, pinned.generation, pinned.cgroup_id)
                == (slot, attachment.generation, attachment.cgroup_id)
        });
        let cut_in_kernel = matches && pinned.as_ref().is_some_and(|pinned| pinned.cut);
        if matches {
            self.kernel.refresh(guard);
        } else {
            if let Some(stale) = pinned {
                self.kernel.detach(&stale.name, stale.slot)?;
            }
            if let Err(error) = self.guard_again(&attachment, guard) {
                self.record_lost(&attachment, &error);
                return Ok(None);
            }
        }
        let name = attachment.name.clone();
        self.enter(attachment, Stage::Attached);
        let verdict = match (cause, cut_in_kernel) {
            (None, true) => {
                Some(found_cut(format!("{name} was found cut in the kernel but not in the ledger")))
            }
            (cause, _) => cause,
        };
        Ok(Some((slot, verdict)))
    }

    /// Puts the hooks on again after a reboot (pins do not survive one). Everything drops until the verdict is set.
    fn guard_again(&self, attachment: &Attachment, guard: Guard) -> Result<(), String> {
        let cgroup = Cgroup::open(Path::new(&attachment.cgroup)).map_err(|error| error.to_string())?;
        self.kernel.attach(&attachment.name, &cgroup, guard).map_err(|error| error.to_string())
    }

    /// A guard that the ledger knows nothing of is kept, closed: whom it guards cannot be decided.
    fn take_over_unknown(&mut self, pinned: Pinned) -> Result<Option<(u32, Option<Cause>)>, AdoptError> {
        self.kernel.cut(pinned.slot);
        let path = if pinned.cgroup_id == 0 { None } else { cgroup::find(pinned.cgroup_id) };
        let Some(path) = path else {
            self.kernel.detach(&pinned.name, pinned.slot)?;
            return Ok(None);
        };
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
            slot: pinned.slot,
            generation: pinned.generation,
            policy: "cutoff".into(),
            launch_budget: Vec::new(),
            attached_at: now_ms(),
        };
        self.kernel.refresh(self.guard(&attachment));
        let mut row = action(ActionKind::Attach, Some(pinned.name.clone()), None, "controller");
        row.detail = Some("found in the kernel but not in the ledger".into());
        self.submit_done(vec![Entry::Attach(attachment.clone()), Entry::Action(row)], After::Nothing);
        self.enter(attachment, Stage::Attached);
        let cause = found_cut(format!("{} was found in the kernel but not in the ledger", pinned.name));
        Ok(Some((pinned.slot, Some(cause))))
    }

    fn guard(&self, attachment: &Attachment) -> Guard {
        Guard::new(attachment.slot, attachment.generation, self.listener.address, self.listener.id)
    }

    fn record_lost(&self, attachment: &Attachment, why: &str) {
        let mut row = action(ActionKind::Detach, Some(attachment.name.clone()), None, "controller");
        row.detail = Some(format!("{why}; the attachment is ended"));
        let entries = vec![Entry::Detach { attachment: attachment.id, at: now_ms() }, Entry::Action(row)];
        self.submit_done(entries, After::Nothing);
    }

    fn load_sums(&mut self, sums: Vec<Sum>, own: Vec<Sum>) {
        for sum in sums {
            let ended = matches!(sum.owner, Owner::Launch(id) if self.slot_of_attachment(id).is_none());
            if !ended {
                let account = self.account(&sum.owner, &sum.provider);
                self.accounts.load_settled(account, sum.tokens.total());
            }
        }
        for sum in own {
            if let Owner::Bottle(name) = &sum.owner {
                let usage =
                    self.usage.entry(name.clone()).or_default().entry(sum.provider.clone()).or_default();
                usage.load(&sum);
            }
        }
    }

    /// A reservation that was never settled is charged in full: the answer to it was not seen.
    fn settle_orphan(&mut self, reservation: Reservation) {
        let settlement = orphan(reservation.id, Tokens::default(), reservation.reserved_tokens);
        let mut owners: Vec<Owner> = reservation.attachment.map(Owner::Launch).into_iter().collect();
        owners.extend(reservation.agent.map(Owner::Agent));
        owners.push(Owner::Bottle(reservation.bottle.clone()));
        owners.extend(reservation.ancestors.into_iter().map(Owner::Bottle));
        owners.push(Owner::Global);
        for owner in owners {
            let account = self.account(&owner, &reservation.provider);
            self.accounts.load_settled(account, settlement.tokens.total());
        }
        let usage =
            self.usage.entry(reservation.bottle).or_default().entry(reservation.provider).or_default();
        usage.charge(&settlement.tokens, settlement.provenance);
        self.submit_done(vec![Entry::Settle(settlement)], After::Nothing);
    }

    /// Sets what the kernel holds to the more closed of what was recorded, found and is used up.
    fn settle_verdict(&mut self, slot: u32, cause: Option<Cause>) {
        let Some(cause) = cause else { return self.open_first(slot) };
        self.kernel.cut(slot);
        let Some(bottle) = self.bottles.get_mut(&slot) else { return };
        bottle.cause = Some(cause.clone());
        bottle.verdict += 1;
        let verdict = Verdict { attachment: bottle.attachment.id, cause: Some(cause.clone()) };
        let mut row =
            action(ActionKind::Cut, Some(bottle.attachment.name.clone()), Some(cause), "controller");
        row.detail = Some("taken over at start: stays cut".into());
        self.submit_done(vec![Entry::Verdict(verdict), Entry::Action(row)], After::Nothing);
    }

    /// Accounts that are used up already have had their bottles cut: only a new crossing is news.
    fn mark_crossed(&mut self) {
        let received = Instant::now();
        for account in self.accounts.used_up() {
            self.crossed.insert(account);
            self.cut_all_governed_by(account, None, received);
        }
    }
}

/// The verdict of a guard that was found more closed than the ledger says.
fn found_cut(reason: String) -> Cause {
    Cause::operator("controller".into(), Some(reason))
}
