//! Freeze, thaw and kill as far as verdicts are concerned: decided and recorded here, done by `policy`, which answers.
//! A bottle is cut before anything is ordered; it opens after its thaw is durable. Killed is final.
use std::time::{Duration, Instant};

use meter_proxy::protocol::Upstream;
use tokio::sync::oneshot;

use super::durable::{After, action};
use super::endings::Stands;
use super::verdicts::unknown;
use super::{Bottle, Change, Core, Stage, answer};
use crate::act::Which;
use crate::audit::{Action, ActionKind, Cause, Processes};
use crate::budget::{AccountId, Scope};
use crate::control::api::{self, Problem};
use crate::hooks::{About, Call, Called, Occasion};
use crate::kernel::Face;
use crate::ledger::{AttachmentId, Entry, Verdict};
use crate::policy::{Act, Acted, Order, Snapshot, Snapshotted};
use crate::settings::{self, Policy};

/// What helps where processes stand still that are not recorded as frozen.
pub(super) const THAW_AGAIN: &str = "enforcer freeze NAME, then enforcer thaw NAME, has them go on";

/// Who gives an order, when, and who waits for it.
pub(super) struct Asker {
    /// `controller` or `uid:N`.
    pub(super) by: String,
    /// When what led to it was received.
    pub(super) received: Instant,
    /// Told when it is done and recorded.
    pub(super) reply: Option<oneshot::Sender<Result<(), Problem>>>,
}

/// A thaw that is done once it is durable.
pub(super) struct Thaw {
    attachment: AttachmentId,
    /// The verdict's number when it was decided.
    verdict: u64,
    /// What stays of the verdict; `None`: the bottle opens.
    left: Option<Cause>,
}

impl Asker {
    /// The controller itself, for whom nobody waits.
    pub(super) fn controller(received: Instant) -> Self {
        Self { by: "controller".into(), received, reply: None }
    }

    fn refuse(self, problem: Problem) {
        if let Some(reply) = self.reply {
            answer(reply, Err(problem));
        }
    }
}

impl Core {
    /// Cuts the bottle and has its processes frozen; upstream is held, so that a thaw lets streams go on.
    pub(super) fn freeze_by_order(&mut self, name: &str, order: api::Reason, asker: Asker) {
        let (slot, standing) = match self.to_be_held(name) {
            Ok(found) => found,
            Err(problem) => return asker.refuse(problem),
        };
        if standing == Some(Processes::Killed) {
            return asker.refuse(killed(name));
        }
        self.hold_by_order(slot, Policy::Freeze, order, Upstream::Hold, asker);
    }

    /// Cuts the bottle and has its processes killed, and every socket that was theirs aborted.
    pub(super) fn kill_by_order(&mut self, name: &str, order: api::Reason, asker: Asker) {
        match self.to_be_held(name) {
            Ok((slot, _)) => self.hold_by_order(slot, Policy::Kill, order, Upstream::Close, asker),
            Err(problem) => asker.refuse(problem),
        }
    }

    /// The slot of a bottle whose processes may be acted on, and what stands decided for them.
    pub(super) fn to_be_held(&self, name: &str) -> Result<(u32, Option<Processes>), Problem> {
        let slot = self.slot_of(name).ok_or_else(|| unknown(name))?;
        let bottle = self.bottles.get(&slot).ok_or_else(|| unknown(name))?;
        match bottle.stage {
            Stage::Attached => Ok((slot, bottle.cause.as_ref().map(|cause| cause.processes))),
            Stage::Attaching => Err(Problem::failed(format!("{name} is still being attached"))),
            Stage::Detaching | Stage::Detached => Err(Problem::failed(format!("{name} is being detached"))),
        }
    }

    fn hold_by_order(
        &mut self,
        slot: u32,
        policy: Policy,
        order: api::Reason,
        upstream: Upstream,
        asker: Asker,
    ) {
        let cause = Cause { policy, face: Face::Silent, ..Cause::operator(asker.by.clone(), order.reason) };
        self.cut(slot, cause, upstream, asker.received, After::Nothing);
        self.hold(slot, asker);
    }

    /// Has done to the processes of a cut bottle what stands decided for them; of one that is being attached, once it
    /// is. Who was let go is held no more: nobody would be left to thaw it.
    pub(super) fn hold(&mut self, slot: u32, asker: Asker) {
        let Some(bottle) = self.bottles.get(&slot) else { return };
        if matches!(bottle.stage, Stage::Attaching | Stage::Detached) {
            return;
        }
        let act = match bottle.cause.as_ref().map(|cause| cause.processes) {
            Some(Processes::Frozen) => Act::Freeze { snapshot: self.snapshot(bottle) },
            Some(Processes::Killed) => {
                self.abort(slot, Which::All);
                Act::Kill
            }
            Some(Processes::Running) | None => return,
        };
        self.order(slot, act, asker);
    }

    /// The snapshot that the settings have for this bottle.
    fn snapshot(&self, bottle: &Bottle) -> Option<Snapshot> {
        match self.settings.bottles.get(&bottle.attachment.name)?.snapshot.as_ref()? {
            settings::Snapshot::Program(argv) => {
                let about = self.about(Some(&bottle.attachment.name), bottle.cause.as_ref());
                Some(Snapshot::Program(about.fill(argv)))
            }
            settings::Snapshot::Engine => Some(Snapshot::Engine(bottle.attachment.container.clone())),
        }
    }

    pub(super) fn order(&mut self, slot: u32, act: Act, asker: Asker) {
        self.give(slot, act, false, asker);
    }

    /// Has done again what an earlier controller may have left half done to processes: all of it may be repeated, but
    /// for a snapshot, of which nobody knows how far it was.
    pub(super) fn hold_again(&mut self, slot: u32) {
        let act = match self.bottles.get(&slot).and_then(|bottle| bottle.cause.as_ref()) {
            Some(cause) if cause.processes == Processes::Frozen => Act::Freeze { snapshot: None },
            Some(cause) if cause.processes == Processes::Killed => Act::Kill,
            _ => return,
        };
        self.give(slot, act, true, Asker::controller(Instant::now()));
    }

    fn give(&mut self, slot: u32, act: Act, again: bool, asker: Asker) {
        let Some(bottle) = self.bottles.get_mut(&slot) else { return };
        bottle.orders += 1;
        let attachment = &bottle.attachment;
        self.hand.act(Order {
            act,
            attachment: attachment.id,
            bottle: attachment.name.clone(),
            cgroup: attachment.cgroup.clone().into(),
            cgroup_id: attachment.cgroup_id,
            owns_cgroup: attachment.owns_cgroup,
            number: bottle.orders,
            again,
            cause: bottle.cause.clone(),
            by: asker.by,
            received: asker.received,
            reply: asker.reply,
        });
    }

    /// Lets frozen processes go on. The cut that came with an operator's freeze goes with it; any other stays.
    pub(super) fn thaw_by_order(&mut self, name: &str, asker: Asker) {
        match self.prepare_thaw(name, asker.received) {
            Ok(thaw) => self.submit_thaw(thaw, asker),
            Err(problem) => asker.refuse(problem),
        }
    }

    /// Decides what a thaw leaves, as things stand. What is thawed under a budget that is used up is cut for that
    /// before.
    fn prepare_thaw(&mut self, name: &str, received: Instant) -> Result<Thaw, Problem> {
        let (slot, standing) = self.to_be_held(name)?;
        match standing {
            Some(Processes::Frozen) => {}
            Some(Processes::Killed) => return Err(killed(name)),
            Some(Processes::Running) | None => {
                let problem = Problem::refused(format!("{name} is not frozen"));
                return Err(problem.with_hint("enforcer status shows its state"));
            }
        }
        if let Some(behind) = self.closed() {
            return Err(Problem::failed(behind.to_string()));
        }
        if let Some((scope, account)) = self.used_up(slot) {
            self.cut_beneath_freeze(slot, scope, account, received);
        }
        let of_budget = self.face_for(slot, self.settings.cut);
        let bottle = self.bottles.get_mut(&slot).ok_or_else(|| unknown(name))?;
        // a snapshot that ends from now on ends nobody
        bottle.orders += 1;
        let left = bottle.cause.clone().and_then(|cause| cause.thawed(of_budget));
        Ok(Thaw { attachment: bottle.attachment.id, verdict: bottle.verdict, left })
    }

    fn cut_beneath_freeze(&mut self, slot: u32, scope: Scope, account: AccountId, received: Instant) {
        let cause = self.bottles.get(&slot).and_then(|bottle| bottle.cause.as_ref());
        if cause.is_some_and(Cause::is_freeze) {
            let cause = self.budget_cause(Policy::Cutoff, scope, account, None);
            self.cut_by_budget(slot, cause, received);
        }
    }

    fn submit_thaw(&mut self, thaw: Thaw, asker: Asker) {
        let entry = Verdict { attachment: thaw.attachment, cause: thaw.left.clone() };
        self.submit(vec![Entry::Verdict(entry)], After::Thawed { thaw: Box::new(thaw), asker });
    }

    /// The thaw is durable: it is done if it was decided on what still holds, and decided again if it was not.
    pub(super) fn thawed(&mut self, thaw: Thaw, result: Result<(), Problem>, asker: Asker) {
        let Thaw { attachment, verdict, left } = thaw;
        if let Err(problem) = result {
            self.record_standing_of(attachment);
            return asker.refuse(problem);
        }
        match self.end_verdict(attachment, verdict, left) {
            Ok((slot, _)) => {
                self.order(slot, Act::Thaw, asker);
                self.publish(Change::State);
            }
            Err(Stands::Nothing) => asker.refuse(Problem::failed("the bottle was detached meanwhile")),
            Err(Stands::Another(slot)) => self.thaw_again(slot, verdict, asker),
        }
    }

    /// Tokens were added, a budget was used up or somebody gave another order while a thaw was being written.
    fn thaw_again(&mut self, slot: u32, verdict: u64, asker: Asker) {
        if self.is_ordered_since(slot, verdict) {
            let problem = self.stays_cut(slot, "it was cut again while it was being thawed");
            return asker.refuse(problem);
        }
        match self.prepare_thaw(&self.name_of(slot), asker.received) {
            Ok(thaw) => self.submit_thaw(thaw, asker),
            Err(problem) => {
                self.record_standing(slot);
                asker.refuse(problem);
            }
        }
    }

    /// The processes of a bottle that is let go, or restored, are not left frozen.
    pub(super) fn thaw_with(&mut self, slot: u32, cause: Option<&Cause>, asker: Asker) {
        match cause.map(|cause| cause.processes) {
            Some(Processes::Frozen) => self.order(slot, Act::Thaw, asker),
            _ => {
                if let Some(reply) = asker.reply {
                    answer(reply, Ok(()));
                }
            }
        }
    }

    /// An order for processes was done, or not: recorded, told to who waits, and to the hook.
    pub(super) fn acted(&mut self, acted: Acted) {
        let Acted { order, result, took } = acted;
        let (kind, occasion) = match order.act {
            Act::Freeze { .. } => (ActionKind::Freeze, Some(Occasion::Freeze)),
            Act::End => (ActionKind::Snapshot, None),
            Act::Thaw => (ActionKind::Thaw, None),
            Act::Kill => (ActionKind::Kill, Some(Occasion::Kill)),
        };
        let is_here = self.slot_of_attachment(order.attachment).is_some();
        if let Some(occasion) = occasion.filter(|_| is_here && result.is_ok() && !order.again) {
            self.call_hook(occasion, Some(&order.bottle), order.cause.as_ref());
        }
        let mut row =
            outcome(action(kind, Some(order.bottle.clone()), order.cause, &order.by), &result, took);
        if order.again {
            row.detail = row.detail.map(|detail| format!("taken over at start: {detail}"));
        }
        let after = match (order.reply, result) {
            (Some(reply), Ok(_)) => After::Report { reply },
            (Some(reply), Err(why)) => {
                let problem = Problem::failed(format!("{}: {}: {why}", order.bottle, kind.as_str()));
                answer(
                    reply,
                    Err(match order.act {
                        // it is not recorded as frozen any more
                        Act::Thaw => problem.with_hint(THAW_AGAIN.replace("NAME", &order.bottle)),
                        _ => problem,
                    }),
                );
                After::Nothing
            }
            (None, _) => After::Nothing,
        };
        self.submit_done(vec![Entry::Action(row)], after);
        self.publish(Change::State);
    }

    /// A snapshot was taken, or not. Only when it was, and nothing else was ordered since, are the processes ended.
    pub(super) fn snapshotted(&mut self, taken: Snapshotted) {
        let Snapshotted { attachment, bottle, number, by, mut result, took } = taken;
        let slot = self.slot_of_attachment(attachment);
        let still = slot.and_then(|slot| self.bottles.get(&slot)).is_some_and(|bottle| {
            let frozen = bottle.cause.as_ref().is_some_and(|cause| cause.processes == Processes::Frozen);
            bottle.orders == number && bottle.stage == Stage::Attached && frozen
        });
        if result.is_ok() && !still {
            result = Err("taken, but something else was ordered meanwhile: nothing is ended".into());
        }
        let ends = result.is_ok();
        let row = outcome(action(ActionKind::Snapshot, Some(bottle), None, &by), &result, took);
        self.record(row);
        if let Some(slot) = slot.filter(|_| ends) {
            self.order(slot, Act::End, Asker { by, ..Asker::controller(Instant::now()) });
        }
    }

    /// Calls the hook for this occasion, where the settings have one.
    pub(super) fn call_hook(&mut self, occasion: Occasion, bottle: Option<&str>, cause: Option<&Cause>) {
        let Some(argv) = self.settings.hooks.get(&occasion) else { return };
        let call = Call { occasion, argv: argv.clone(), about: self.about(bottle, cause) };
        if !self.hooks.fire(call) {
            let detail = format!("the {} hook was not called: too many wait already", occasion.as_str());
            let row = action(ActionKind::Hook, bottle.map(str::to_owned), None, "controller");
            self.record(Action { done: false, detail: Some(detail), ..row });
        }
    }

    /// What a program is told of a bottle, or of none, and of why.
    fn about(&self, bottle: Option<&str>, cause: Option<&Cause>) -> About {
        let attached = bottle.and_then(|name| self.bottles.get(&self.slot_of(name)?));
        About {
            bottle: bottle.unwrap_or_default().to_owned(),
            cgroup: attached.map(|bottle| bottle.attachment.cgroup.clone()).unwrap_or_default(),
            provider: cause.and_then(|cause| cause.provider.clone()).unwrap_or_default(),
            cause: cause.map(ToString::to_string).unwrap_or_default(),
        }
    }

    /// A hook ended.
    pub(super) fn called(&mut self, called: Called) {
        let Called { occasion, bottle, result, took } = called;
        let said = |words: String| match words.as_str() {
            "" => occasion.as_str().to_owned(),
            words => format!("{}: {words}", occasion.as_str()),
        };
        let result = result.map(said).map_err(said);
        let bottle = Some(bottle).filter(|bottle| !bottle.is_empty());
        let row = action(ActionKind::Hook, bottle, None, "controller");
        self.record(outcome(row, &result, took));
    }
}

/// The row with what became of it.
fn outcome(row: Action, result: &Result<String, String>, took: Duration) -> Action {
    let (Ok(words) | Err(words)) = result;
    let took_us = Some(u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
    Action { done: result.is_ok(), detail: (!words.is_empty()).then(|| words.clone()), took_us, ..row }
}

/// Why nothing more can be had of a killed bottle.
pub(super) fn killed(name: &str) -> Problem {
    Problem::refused(format!("{name} was killed, which is final: nothing is left of it to go on")).with_hint(
        format!(
            "enforcer detach {name} --force gives its name free; start it anew with enforcer run or attach"
        ),
    )
}
