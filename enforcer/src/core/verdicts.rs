//! Cuts. A cut is stored, then told, then done to sockets and committed. Of two faces of a cut the more closed one
//! stands. Not here: how it ends (`endings`).
use std::collections::HashMap;
use std::path::Path;
use std::time::Instant;

use meter_proxy::protocol::{BottleRef, ToMeter, Upstream};
use tokio::sync::oneshot;

use super::durable::{After, Committed, action};
use super::processes::Asker;
use super::requests::reference;
use super::windows::window_words;
use super::{Bottle, Change, Core, Stage, answer};
use crate::act::{Abort, Which};
use crate::audit::{ActionKind, Cause, CauseKind, Processes};
use crate::budget::{self, AccountId, Figures, Judgement, Scope};
use crate::clock::{now_ms, rfc3339};
use crate::control::api::{self, Problem};
use crate::hooks::Occasion;
use crate::kernel::Face;
use crate::ledger::{Entry, ExchangeId, Verdict};
use crate::settings::Policy;

/// When a budget was crossed that a bottle is cut for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Crossing {
    /// Now: the bottle's policy acts.
    Now {
        /// The exchange that crossed.
        flow: Option<ExchangeId>,
        /// When its figures were received.
        received: Instant,
    },
    /// Before the bottle was attached, or its controller started: it is cut, and no more. A new bottle has used nothing
    /// of that budget, and its agent is to read why it cannot work, which nobody can who stands still or is killed; an
    /// old one was dealt with when it crossed, and an operator may have opened it since.
    Before,
}

impl Crossing {
    /// Found now, by no exchange of its own.
    pub(super) fn now() -> Self {
        Self::Now { flow: None, received: Instant::now() }
    }
}

/// By slot, the budgets that bind a bottle and are used up.
type UsedUp = HashMap<u32, Vec<(Scope, AccountId)>>;

/// What the audit says of a cut that was to be answered and is not.
const MUTED: &str =
    "silent: a process of it rules over a network that leads out, and could misuse the lane's address";

impl Core {
    /// Cuts whatever a charge to these accounts has put over its budget: every bottle that a newly crossed
    /// account governs, and in any case the bottle that was charged.
    pub(super) fn cut_where_crossed(
        &mut self,
        path: &budget::Path,
        charged: BottleRef,
        flow: ExchangeId,
        received: Instant,
    ) {
        let crossing = Crossing::Now { flow: Some(flow), received };
        for (_, account) in path {
            self.cut_all_bound_by(*account, crossing);
        }
        if let Judgement::Refuse(scope, account) = self.accounts.judge(path)
            && self.bottle(charged).is_some()
        {
            self.cut_for_budget(charged.slot, scope, account, crossing);
        }
    }

    /// Cuts every bottle that this budget binds, if it is used up now and was not before.
    pub(super) fn cut_all_bound_by(&mut self, account: AccountId, crossing: Crossing) {
        if !self.accounts.is_used_up(account) {
            // what was seen of an exchange was more than was billed: the next crossing is news
            self.crossed.remove(&account);
            return;
        }
        if !self.crossed.insert(account) {
            return;
        }
        let provider = self.accounts.provider(account).to_owned();
        let mut bound = Vec::new();
        for slot in self.payers(account) {
            let path = self.path(slot, &provider);
            if let Some((scope, _)) = self.accounts.binding(&path).find(|(_, binding)| *binding == account) {
                self.store_crossing(slot, crossing);
                bound.push((slot, scope));
            }
        }
        // every store is done before anything is told or written
        for (slot, scope) in bound {
            self.cut_for_budget(slot, scope, account, crossing);
        }
    }

    /// Of each of these bottles, the budgets that bind it and are used up.
    pub(super) fn used_up_by_slot(&mut self, slots: Vec<u32>) -> UsedUp {
        let used_up = |core: &mut Self, slot| {
            let binding = core.binding_accounts(slot).into_iter();
            binding.filter(|(_, account)| core.accounts.is_used_up(*account)).collect()
        };
        slots.into_iter().map(|slot| (slot, used_up(self, slot))).collect()
    }

    /// Cuts those of these bottles that a budget binds which is used up only since `before`: one that an operator opened
    /// although its budget was used up before stays as it is.
    pub(super) fn cut_newly_used_up(&mut self, before: UsedUp) {
        let crossing = Crossing::now();
        let slots = before.keys().copied().collect();
        let mut news = Vec::new();
        for (slot, used_up) in self.used_up_by_slot(slots) {
            for (scope, account) in used_up {
                self.crossed.insert(account);
                if !before.get(&slot).is_some_and(|before| before.contains(&(scope, account))) {
                    self.store_crossing(slot, crossing);
                    news.push((slot, scope, account));
                }
            }
        }
        for (slot, scope, account) in news {
            self.cut_for_budget(slot, scope, account, crossing);
        }
    }

    /// Stores the cut that a crossing asks for. One for a budget that stands already stays as it is.
    pub(super) fn store_crossing(&self, slot: u32, crossing: Crossing) {
        if !self.is_cut_for_budget(slot) {
            self.store_cut(slot, self.face_with(self.policy_at(slot, crossing)));
        }
    }

    fn is_cut_for_budget(&self, slot: u32) -> bool {
        let cause = self.bottles.get(&slot).and_then(|bottle| bottle.cause.as_ref());
        cause.is_some_and(|cause| cause.kind == CauseKind::Budget)
    }

    /// What is done to a bottle beyond the cut.
    pub(super) fn policy_at(&self, slot: u32, crossing: Crossing) -> Policy {
        match (crossing, self.bottles.get(&slot)) {
            (Crossing::Now { .. }, Some(bottle)) => bottle.attachment.policy,
            (Crossing::Before, _) | (_, None) => Policy::Cutoff,
        }
    }

    /// Nobody reads an answer whose processes stand still or are gone.
    fn face_with(&self, policy: Policy) -> Face {
        if policy == Policy::Cutoff { self.settings.cut } else { Face::Silent }
    }

    /// Cuts a bottle for a budget that binds it, by the budget's figures as they are.
    pub(super) fn cut_for_budget(&mut self, slot: u32, scope: Scope, account: AccountId, crossing: Crossing) {
        let (flow, received) = match crossing {
            Crossing::Now { flow, received } => (flow, received),
            Crossing::Before => (None, Instant::now()),
        };
        let cause = self.budget_cause(self.policy_at(slot, crossing), scope, account, flow);
        self.cut_by_budget(slot, cause, received);
    }

    /// Cuts a bottle with a budget's cause, and has done to its processes what the cause asks for.
    pub(super) fn cut_by_budget(&mut self, slot: u32, cause: Cause, received: Instant) {
        let Some(bottle) = self.bottles.get(&slot) else { return };
        if self.is_cut_for_budget(slot) {
            // an opening under way looks at what is used up once it is durable
            return;
        }
        let more = bottle.cause.as_ref().is_none_or(|standing| standing.processes < cause.policy.into());
        self.cut(slot, cause, Upstream::Close, received, After::Nothing);
        if more {
            self.hold(slot, Asker::controller(received));
        }
    }

    /// Stores a cut. A bottle whose hooks are being put on or off has no lane: nothing of it is in use.
    pub(super) fn store_cut(&self, slot: u32, face: Face) {
        let Some(bottle) = self.bottles.get(&slot) else { return };
        let face = self.face_for(slot, face);
        let standing = bottle.cause.as_ref().map_or(face, |cause| cause.face.max(face));
        let in_use = bottle.stage == Stage::Attached;
        self.kernel.cut_as(slot, if in_use { standing } else { Face::Silent });
    }

    /// What a cut of this bottle looks like where it was to look so.
    pub(super) fn face_for(&self, slot: u32, wanted: Face) -> Face {
        let mute = self.bottles.get(&slot).is_some_and(|bottle| bottle.mute);
        if mute { Face::Silent } else { wanted }
    }

    pub(super) fn budget_cause(
        &self,
        policy: Policy,
        scope: Scope,
        account: AccountId,
        flow: Option<ExchangeId>,
    ) -> Cause {
        self.cause_by(policy, scope, account, &self.accounts.figures(account), flow)
    }

    /// The same by other figures than the account has now.
    pub(super) fn cause_by(
        &self,
        policy: Policy,
        scope: Scope,
        account: AccountId,
        figures: &Figures,
        flow: Option<ExchangeId>,
    ) -> Cause {
        Cause {
            kind: CauseKind::Budget,
            provider: Some(self.accounts.provider(account).to_owned()),
            scope: Some(scope.as_str().into()),
            owner: Some(self.owner_name(account)),
            limit: figures.limit(),
            used: Some(figures.used),
            window: Some(self.window_words(figures)),
            rule: Some(self.settings.scope_rule.as_str().into()),
            flow,
            at: rfc3339(now_ms()),
            by: "controller".into(),
            reason: None,
            held: false,
            freeze: None,
            face: self.face_with(policy),
            policy,
            processes: Processes::Running,
        }
    }

    /// A budget's window as people read it: `daily until 2026-02-01T00:00Z`.
    pub(super) fn window_words(&self, figures: &Figures) -> String {
        window_words(figures.window(), self.accounts.hour())
    }

    /// Stores the cut, tells the meter, aborts connections, commits. A bottle that is cut already keeps its first
    /// cause. What is to be done to its processes is decided with it; the caller has it done (`hold`).
    pub(super) fn cut(
        &mut self,
        slot: u32,
        cause: Cause,
        upstream: Upstream,
        received: Instant,
        after: After,
    ) {
        let Some(bottle) = self.bottles.get(&slot) else { return };
        let before = bottle.cause.as_ref().map(|cause| cause.face);
        self.store_cut(slot, cause.face);
        let took = received.elapsed();
        let wanted = cause.face;
        let cause = Cause { face: self.face_for(slot, wanted), ..cause };
        let muted = (cause.face != wanted).then_some(MUTED);
        let Some(bottle) = self.bottles.get_mut(&slot) else { return };
        bottle.verdict += 1;
        if cause.kind == CauseKind::Operator {
            bottle.ordered = bottle.verdict;
        }
        let standing = cause.clone().joined_to(bottle.cause.take());
        bottle.cause = Some(standing.clone());
        let (name, attachment) = (bottle.attachment.name.clone(), bottle.attachment.id);
        let attaching = bottle.stage == Stage::Attaching;
        self.tell_meter_of(slot, upstream);
        self.show_face(slot, before, standing.face);
        self.answer_waiting_of(slot);
        if attaching {
            // the attachment is not in the ledger yet: `open_first` finds the cause and records the cut
            return self.committed(Committed { after, owed: Vec::new(), audited: false, result: Ok(()) });
        }
        let by = cause.by.clone();
        let mut row = action(ActionKind::Cut, Some(name.clone()), Some(cause), &by);
        row.took_us = Some(u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
        let again = before.map(|_| format!("was cut already, and is now {}", standing.face.as_str()));
        let details: Vec<String> = again.into_iter().chain(muted.map(str::to_owned)).collect();
        row.detail = (!details.is_empty()).then(|| details.join("; "));
        if before.is_none() {
            self.call_hook(Occasion::Cut, Some(&name), Some(&standing));
        }
        let verdict = Entry::Verdict(Verdict { attachment, cause: Some(standing) });
        self.submit_done(vec![verdict, Entry::Action(row)], after);
        self.publish(Change::State);
    }

    pub(super) fn cut_by_order(
        &mut self,
        name: &str,
        order: api::Cut,
        by: String,
        received: Instant,
        reply: oneshot::Sender<Result<(), Problem>>,
    ) {
        let Some(slot) = self.slot_of(name) else { return answer(reply, Err(unknown(name))) };
        let face = order.face.unwrap_or(Face::Silent);
        let cause = Cause { face, ..Cause::operator(by, order.reason) };
        let hold = self.face_for(slot, face) == Face::Silent && !order.hard;
        let upstream = if hold { Upstream::Hold } else { Upstream::Close };
        self.cut(slot, cause, upstream, received, After::Report { reply });
        if order.hard {
            self.abort(slot, Which::All);
        }
    }

    /// What follows from a cut's face once it is stored: the connections to the meter of a bottle that is answered now are
    /// aborted, so that its agent asks again and hears why; a silent one's to the lane are ended.
    pub(super) fn show_face(&self, slot: u32, before: Option<Face>, now: Face) {
        match (before, now) {
            (Some(Face::Answered), Face::Silent) => self.end_lane_below(slot),
            (None | Some(Face::Silent), Face::Answered) => self.abort(slot, Which::Metered),
            _ => {}
        }
    }

    /// Has connections of the bottle, and of those nested in its cgroup, aborted on another thread.
    pub(super) fn abort(&self, slot: u32, which: Which) {
        let Some(Bottle { attachment, .. }) = self.bottles.get(&slot) else { return };
        self.actor.abort(Abort {
            bottle: attachment.name.clone(),
            slot,
            cgroup: attachment.cgroup.clone().into(),
            cgroup_id: attachment.cgroup_id,
            slots: self.generations_below(&attachment.cgroup),
            which,
        });
    }

    /// Slots of the bottles at and below this cgroup, with their generations.
    fn generations_below(&self, cgroup: &str) -> Vec<(u32, u32)> {
        let generation = |slot: u32| Some((slot, self.bottles.get(&slot)?.attachment.generation));
        self.slots_below(cgroup).into_iter().filter_map(generation).collect()
    }

    /// Slots of the bottles at and below this cgroup.
    pub(super) fn slots_below(&self, cgroup: &str) -> Vec<u32> {
        self.bottles.below(Path::new(cgroup))
    }

    pub(super) fn check_provider(&self, provider: &str) -> Result<(), Problem> {
        if self.settings.providers.iter().any(|known| known.name == provider) {
            return Ok(());
        }
        let known: Vec<&str> = self.settings.providers.iter().map(|known| known.name.as_str()).collect();
        Err(Problem::usage(format!("there is no provider {provider}"))
            .with_hint(format!("known providers: {}", known.join(", "))))
    }

    /// Tells the meter how this bottle and those nested in its cgroup stand now.
    pub(super) fn tell_meter_of(&self, slot: u32, upstream: Upstream) {
        if let Some(changed) = self.bottles.get(&slot) {
            self.tell_meter_below(&changed.attachment.cgroup, upstream);
        }
    }

    /// Tells the meter how the bottles at and below this cgroup stand now.
    pub(super) fn tell_meter_below(&self, cgroup: &str, upstream: Upstream) {
        for slot in self.slots_below(cgroup) {
            let Some(bottle) = self.bottles.get(&slot) else { continue };
            let bottle = reference(&bottle.attachment);
            self.tell_meter(match self.shut_by(slot) {
                Some(_) => ToMeter::Cut { bottle, upstream },
                None => ToMeter::Open { bottle },
            });
        }
    }

    /// Why nothing of this bottle passes: its own verdict, or that of a bottle whose cgroup holds it.
    pub(super) fn shut_by(&self, slot: u32) -> Option<&Cause> {
        self.cuts_around(slot).next()
    }

    /// What the bottle sees of all the cuts that shut it; `None`: it is open.
    pub(super) fn face_of(&self, slot: u32) -> Option<Face> {
        self.cuts_around(slot).map(|cause| cause.face).max()
    }

    /// What stands decided for its processes by all the cuts that shut it.
    pub(super) fn processes_of(&self, slot: u32) -> Processes {
        self.cuts_around(slot).map(|cause| cause.processes).max().unwrap_or_default()
    }

    /// The verdicts of this bottle and of those whose cgroups hold it, where they are cut: its own first.
    fn cuts_around(&self, slot: u32) -> impl Iterator<Item = &Cause> {
        let own = self.bottles.get(&slot);
        let outer = own.into_iter().flat_map(move |own| {
            let around = self.bottles.around(Path::new(&own.attachment.cgroup));
            around.filter(move |outer| outer.attachment.id != own.attachment.id)
        });
        own.into_iter().chain(outer).filter_map(|bottle| bottle.cause.as_ref())
    }
}

pub(super) fn unknown(name: &str) -> Problem {
    Problem::usage(format!("there is no bottle {name}"))
        .with_hint("enforcer status lists the attached bottles")
}
