//! Attach and detach, as far as sums and verdicts are concerned; the hooks are put on and off by the registry.
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use meter_proxy::protocol::{ToLane, ToMeter, Upstream};
use tokio::sync::oneshot;

use super::durable::{After, action};
use super::processes::Asker;
use super::requests::reference;
use super::verdicts::{Crossing, unknown};
use super::{Bottle, Change, Core, Listener, Stage, answer};
use crate::audit::ActionKind;
use crate::bottle::engine::Container;
use crate::clock::now_ms;
use crate::control::api::Problem;
use crate::kernel::{Face, Guard};
use crate::lane::FIRST_OWN_SLOT;
use crate::ledger::{Attachment, AttachmentId, Entry, Verdict};
use crate::settings::{Egress, Policy};

/// Most bottles below one another; deeper chains in the settings are an error there.
const MAX_ANCESTORS: usize = 64;

/// What the audit says of a cut bottle whose cgroup is gone.
pub(super) const KEPT: &str = "its cgroup is gone; the attachment to the next one begins with its cut";

/// A bottle that asks to be attached; its cgroup has been checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admission {
    /// Name; checked.
    pub name: String,
    /// Agent's name.
    pub agent: Option<String>,
    /// Parent's name; by nesting or by the settings without it.
    pub parent: Option<String>,
    /// Absolute path of the cgroup.
    pub cgroup: String,
    /// Inode of the cgroup.
    pub cgroup_id: u64,
    /// Whether the cgroup is removed at detach.
    pub owns_cgroup: bool,
    /// The container that it was attached by.
    pub container: Option<Container>,
    /// What a crossed budget does to it.
    pub policy: Policy,
    /// What it may reach.
    pub egress: Egress,
    /// Launch-time budgets, tokens by provider.
    pub launch_budget: BTreeMap<String, u64>,
    /// Whether its cuts are silent ones: one of its processes rules over a network that leads out.
    pub mute: bool,
}

impl Attachment {
    /// What the kernel's entry for this attachment holds besides the verdict.
    #[must_use]
    pub fn guard(&self, listener: Listener) -> Guard {
        let (meter, meter_ip6) = listener.endpoints();
        let (lane, lane_ip6) = listener.lane_endpoints();
        let lockdown = self.egress != Egress::Open;
        Guard { meter_ip6, lane, lane_ip6, lockdown, ..Guard::new(self.slot, self.generation, meter) }
    }
}

impl Core {
    /// Gives the bottle a slot. Nothing passes in it before its attach is durable.
    pub(super) fn admit(&mut self, admission: Admission) -> Result<Attachment, Problem> {
        self.check_admission(&admission)?;
        let slot = self.free_slot()?;
        let parent = admission.parent.clone().or_else(|| self.parent_of(&admission));
        let ancestors = parent.as_deref().map(|parent| self.ancestors(parent)).unwrap_or_default();
        if ancestors.contains(&admission.name) {
            return Err(Problem::usage(format!("{} would be its own ancestor", admission.name))
                .with_hint(format!("its chain of parents is {}", ancestors.join(" → "))));
        }
        self.last_attachment += 1;
        self.last_generation += 1;
        let attachment = Attachment {
            id: self.last_attachment,
            name: admission.name,
            agent: admission.agent,
            parent,
            ancestors,
            cgroup: admission.cgroup,
            cgroup_id: admission.cgroup_id,
            owns_cgroup: admission.owns_cgroup,
            container: admission.container,
            slot,
            generation: self.last_generation,
            policy: admission.policy,
            egress: admission.egress,
            launch_budget: admission.launch_budget.into_iter().collect(),
            attached_at: now_ms(),
        };
        self.enter(attachment.clone(), Stage::Attaching, admission.mute);
        if let Some(bottle) = self.bottles.get_mut(&slot) {
            bottle.cause = self.kept_cuts.get(&attachment.name).map(|(_, cause)| cause.clone());
        }
        Ok(attachment)
    }

    pub(super) fn enter(&mut self, attachment: Attachment, stage: Stage, mute: bool) {
        let slot = attachment.slot;
        let bottle = Bottle {
            paths: std::collections::HashMap::new(),
            cause: None,
            verdict: 0,
            ordered: 0,
            orders: 0,
            stage,
            mute,
            attachment,
        };
        self.bottles.insert(slot, bottle);
        self.open_accounts(slot);
    }

    fn check_admission(&self, admission: &Admission) -> Result<(), Problem> {
        for bottle in self.bottles.values().map(|bottle| &bottle.attachment) {
            if bottle.name == admission.name {
                return Err(Problem::usage(format!("a bottle named {} is attached already", bottle.name))
                    .with_hint(format!("choose another name, or enforcer detach {}", bottle.name)));
            }
            if bottle.cgroup_id == admission.cgroup_id {
                return Err(Problem::usage(format!(
                    "{} is attached already, as bottle {}",
                    admission.cgroup, bottle.name
                )));
            }
        }
        if let Some(parent) = &admission.parent
            && self.slot_of(parent).is_none()
            && !self.settings.bottles.contains_key(parent)
        {
            return Err(Problem::usage(format!(
                "there is no bottle {parent} to be the parent of {}",
                admission.name
            ))
            .with_hint("a parent is an attached bottle or one that the settings define"));
        }
        admission.launch_budget.keys().try_for_each(|provider| self.check_provider(provider))
    }

    fn free_slot(&self) -> Result<u32, Problem> {
        (1..FIRST_OWN_SLOT)
            .find(|slot| !self.bottles.contains_key(slot))
            .ok_or_else(|| Problem::host(format!("all {} slots are taken", FIRST_OWN_SLOT - 1)))
    }

    /// The bottle that the cgroup is nested in (the innermost), else the one that the settings extend.
    fn parent_of(&self, admission: &Admission) -> Option<String> {
        let cgroup = Path::new(&admission.cgroup);
        self.bottles
            .around(cgroup)
            .next()
            .map(|outer| outer.attachment.name.clone())
            .or_else(|| self.settings.bottles.get(&admission.name)?.extends.clone())
    }

    /// The parent and its ancestors, nearest first: as attached, else as the settings define them.
    fn ancestors(&self, parent: &str) -> Vec<String> {
        let mut names: Vec<String> = Vec::new();
        let mut next = Some(parent.to_owned());
        while let Some(name) = next.filter(|name| !names.contains(name) && names.len() < MAX_ANCESTORS) {
            next = match self.slot_of(&name).and_then(|slot| self.bottles.get(&slot)) {
                Some(bottle) => bottle.attachment.parent.clone(),
                None => self.settings.bottles.get(&name).and_then(|bottle| bottle.extends.clone()),
            };
            names.push(name);
        }
        names
    }

    /// The hooks are on and drop everything: record the attach, then open.
    pub(super) fn guarded(
        &mut self,
        id: AttachmentId,
        by: &str,
        found: &[String],
        reply: oneshot::Sender<Result<(), Problem>>,
    ) {
        let Some(bottle) = self.slot_of_attachment(id).and_then(|slot| self.bottles.get(&slot)) else {
            return answer(reply, Err(Problem::failed("the bottle is not being attached any more")));
        };
        if let Some(behind) = self.closed() {
            return answer(reply, Err(Problem::failed(behind.to_string())));
        }
        let attachment = bottle.attachment.clone();
        let mut row = action(ActionKind::Attach, Some(attachment.name.clone()), None, by);
        row.detail = Some([std::slice::from_ref(&attachment.cgroup), found].concat().join("; "));
        let mut entries = vec![Entry::Attach(attachment.clone()), Entry::Action(row)];
        if let Some((before, cause)) = self.kept_cuts.get(&attachment.name) {
            // at no moment does the ledger know of neither cut
            entries.insert(0, Entry::Detach { attachment: *before, at: now_ms() });
            entries.push(Entry::Verdict(Verdict { attachment: id, cause: Some(cause.clone()) }));
        }
        self.submit(entries, After::Attached { attachment: id, reply });
    }

    pub(super) fn attached(
        &mut self,
        id: AttachmentId,
        result: Result<(), Problem>,
        reply: oneshot::Sender<Result<(), Problem>>,
    ) {
        let Some(slot) = self.slot_of_attachment(id) else {
            return answer(reply, Err(Problem::failed("the bottle is not being attached any more")));
        };
        if result.is_ok() {
            self.lend(slot);
            self.mute_around(slot);
            self.open_first(slot, Crossing::Before);
            self.publish(Change::State);
        }
        answer(reply, result);
    }

    /// Who rules over a bottle's network is in the bottles around it too: no cut of those is answered either.
    fn mute_around(&mut self, slot: u32) {
        let Some(inner) = self.bottles.get(&slot).filter(|inner| inner.mute) else { return };
        let cgroup = PathBuf::from(&inner.attachment.cgroup);
        let around = self.bottles.around(&cgroup).filter(|outer| !outer.mute);
        let around: Vec<u32> = around.map(|outer| outer.attachment.slot).collect();
        let mut answered = Vec::new();
        for slot in around {
            let Some(outer) = self.bottles.get_mut(&slot) else { continue };
            outer.mute = true;
            self.kernel.refresh(Guard { mute: true, ..outer.attachment.guard(self.listener) });
            let cause = outer.cause.clone().filter(|cause| cause.face == Face::Answered);
            answered.extend(cause.map(|cause| (slot, cause)));
        }
        for (slot, cause) in answered {
            self.cut(slot, cause, Upstream::Close, Instant::now(), After::Nothing);
        }
    }

    pub(super) fn not_attached(&mut self, name: String, why: String) {
        let mut row = action(ActionKind::Attach, Some(name), None, "controller");
        row.done = false;
        row.detail = Some(why);
        self.record(row);
    }

    /// Opens a bottle for the first time, unless it was cut while it was being attached, or cuts it at once when a
    /// budget that binds it is used up, which was crossed as told.
    pub(super) fn open_first(&mut self, slot: u32, crossing: Crossing) {
        let used_up = self.used_up(slot);
        let Some(bottle) = self.bottles.get_mut(&slot) else { return };
        bottle.stage = Stage::Attached;
        self.kept_cuts.remove(&bottle.attachment.name);
        if let Some(cause) = bottle.cause.take() {
            self.cut(slot, cause, Upstream::Close, Instant::now(), After::Nothing);
            return self.hold(slot, Asker::controller(Instant::now()));
        }
        match used_up {
            Some((scope, account)) => self.cut_for_budget(slot, scope, account, crossing),
            None => self.kernel.open(slot),
        }
    }

    /// Records that the bottle is let go. A repeated order finds it recorded and only takes the hooks off.
    pub(super) fn release(
        &mut self,
        name: &str,
        force: bool,
        keep_cut: bool,
        by: String,
        reply: oneshot::Sender<Result<Attachment, Problem>>,
    ) {
        let found = self.slot_of(name).and_then(|slot| self.bottles.get_mut(&slot));
        let Some(bottle) = found else { return answer(reply, Err(unknown(name))) };
        let attachment = bottle.attachment.clone();
        match bottle.stage {
            Stage::Attaching => {
                return answer(reply, Err(Problem::failed(format!("{name} is still being attached"))));
            }
            Stage::Detaching => {
                return answer(reply, Err(Problem::failed(format!("{name} is being detached"))));
            }
            Stage::Detached => return answer(reply, Ok(attachment)),
            Stage::Attached => {}
        }
        if bottle.cause.is_some() && !force {
            let problem = Problem::refused(format!("{name} is cut; a detach would open it"))
                .with_hint(format!("enforcer detach {name} --force"));
            return answer(reply, Err(problem));
        }
        bottle.stage = Stage::Detaching;
        let has_cut = bottle.cause.is_some();
        let slot = attachment.slot;
        self.answer_waiting_of(slot);
        self.tell_meter(ToMeter::Detached { bottle: reference(&attachment) });
        self.tell_lane(ToLane::Opened { bottle: reference(&attachment) });
        let keep_cut = keep_cut && has_cut;
        let mut row = action(ActionKind::Detach, Some(name.to_owned()), None, &by);
        row.detail = keep_cut.then(|| KEPT.into());
        let mut entries = vec![Entry::Action(row)];
        if !keep_cut {
            entries.push(Entry::Detach { attachment: attachment.id, at: now_ms() });
        }
        self.submit(entries, After::Released { attachment: Box::new(attachment), keep_cut, by, reply });
    }

    pub(super) fn released(
        &mut self,
        attachment: Attachment,
        keep_cut: bool,
        by: String,
        result: Result<(), Problem>,
        reply: oneshot::Sender<Result<Attachment, Problem>>,
    ) {
        if let Some(bottle) = self.bottles.get_mut(&attachment.slot) {
            bottle.stage = if result.is_ok() { Stage::Detached } else { Stage::Attached };
            let cause = bottle.cause.clone();
            match (&result, cause) {
                // what ended or was cut meanwhile is stored only now
                (Err(_), None) => self.kernel.open(attachment.slot),
                (Err(_), Some(cause)) => self.store_cut(attachment.slot, cause.face),
                (Ok(()), Some(cause)) if keep_cut => {
                    let kept = (attachment.id, cause.without_processes());
                    self.kept_cuts.insert(attachment.name.clone(), kept);
                }
                (Ok(()), cause) => {
                    let asker = Asker { by, ..Asker::controller(Instant::now()) };
                    self.thaw_with(attachment.slot, cause.as_ref(), asker);
                }
            }
        }
        answer(reply, result.map(|()| attachment));
    }

    pub(super) fn forget(&mut self, id: AttachmentId) {
        let Some(gone) = self.slot_of_attachment(id).and_then(|slot| self.bottles.remove(slot)) else {
            return;
        };
        self.hand.forget(id);
        self.close_accounts(gone.attachment.slot, gone.paths.into_values());
        // what was shut by this bottle's verdict is not any more
        self.tell_meter_below(&gone.attachment.cgroup, Upstream::Hold);
        self.publish(Change::State);
    }
}
