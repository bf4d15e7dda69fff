//! The gate: who is let in, who waits for what is reserved, and who is refused and why. What is let in is under way
//! (`requests`).
use std::collections::VecDeque;
use std::time::{Duration, Instant};

use meter_proxy::protocol::{BottleRef, Refusal, Reserve, ToMeter};

use super::durable::action;
use super::{Core, HOST_SLOT, Stage};
use crate::audit::ActionKind;
use crate::budget::{AccountId, Judgement, Path, Scope};
use crate::settings::{Gate, Unattached};

/// How long a request waits at the gate when only reservations of others stand in its way. Longer than most
/// non-streamed answers take, shorter than any client's own time limit.
const GATE_WAIT: Duration = Duration::from_secs(20);
/// Requests that may wait at the gate; more are refused at once.
const MAX_WAITING: usize = 4096;

/// A request that waits at the gate.
pub(super) struct Waiting {
    pub(super) request: Reserve,
    until: Instant,
    /// The budget whose reservations stand in its way.
    on: AccountId,
}

impl Core {
    pub(super) fn reserve(&mut self, mut request: Reserve) {
        if self.exchanges.contains_key(&request.exchange) {
            tracing::error!(
                exchange = request.exchange,
                "the meter reserves twice for one exchange; refused"
            );
            return;
        }
        if let Some(refusal) = self.refusal_before_budget(request.bottle) {
            return self.refuse(&request, refusal);
        }
        let path = self.path(request.bottle.slot, &request.provider);
        if self.settings.gate == Gate::Off {
            request.tokens = 0;
        }
        match (self.settings.gate, self.accounts.judge(&path)) {
            (Gate::Off, Judgement::Wait(..)) | (_, Judgement::Grant) => self.grant(request, path),
            (_, Judgement::Wait(_, on)) if self.waiting.len() < MAX_WAITING => {
                self.waiting.push_back(Waiting { request, until: Instant::now() + GATE_WAIT, on });
            }
            (_, Judgement::Wait(scope, id) | Judgement::Refuse(scope, id)) => {
                let refusal = self.budget_refusal(request.bottle.slot, scope, id);
                self.refuse(&request, refusal);
            }
        }
    }

    /// Why a request would be refused for good now; what others have reserved stands in nobody's way here.
    pub(super) fn refusal_now(&mut self, bottle: BottleRef, provider: &str) -> Option<Refusal> {
        if let Some(refusal) = self.refusal_before_budget(bottle) {
            return Some(refusal);
        }
        let path = self.path(bottle.slot, provider);
        match self.accounts.judge(&path) {
            Judgement::Refuse(scope, id) => Some(self.budget_refusal(bottle.slot, scope, id)),
            Judgement::Grant | Judgement::Wait(..) => None,
        }
    }

    pub(super) fn refusal_before_budget(&self, bottle: BottleRef) -> Option<Refusal> {
        if bottle.slot == HOST_SLOT {
            return match self.settings.unattached {
                Unattached::Meter => self.closed(),
                Unattached::Refuse => Some(Refusal::Unattached),
            };
        }
        match self.bottle(bottle) {
            Some(found) if found.stage == Stage::Attached => match self.shut_by(bottle.slot) {
                Some(cause) => {
                    Some(Refusal::Cut { bottle: found.attachment.name.clone(), cause: cause.to_string() })
                }
                None => self.closed(),
            },
            _ => Some(Refusal::Unattached),
        }
    }

    pub(super) fn budget_refusal(&self, slot: u32, scope: Scope, id: AccountId) -> Refusal {
        let figures = self.accounts.figures(id);
        Refusal::Budget {
            bottle: self.name_of(slot),
            provider: self.accounts.provider(id).to_owned(),
            scope: scope.as_str().into(),
            owner: self.owner_name(id),
            limit: figures.limit().unwrap_or(0),
            used: figures.used,
            reserved: figures.reserved,
            window: self.window_words(&figures),
            rule: self.settings.scope_rule.as_str().into(),
        }
    }

    fn refuse(&mut self, request: &Reserve, refusal: Refusal) {
        self.record_refusal(request.bottle, &request.provider, &refusal);
        self.tell_meter(ToMeter::Refused { exchange: request.exchange, refusal });
    }

    /// Records that a request, a socket that requests were to come on, or the rest of an answer is refused; within
    /// bounds.
    pub(super) fn record_refusal(&mut self, bottle: BottleRef, provider: &str, refusal: &Refusal) {
        let bottle = self.name_of(bottle.slot);
        let counted = self.rows.count(&bottle, provider, ActionKind::Refuse, 1, Instant::now());
        let Some(left_out) = counted else { return };
        let mut row = action(ActionKind::Refuse, Some(bottle), None, "controller");
        row.detail = Some(match left_out {
            0 => refusal.to_string(),
            more => format!("{refusal} ({more} more refusals since the last row)"),
        });
        self.record(row);
    }

    /// Budgets or verdicts changed: whoever waits at the gate is judged again, first come first served.
    pub(super) fn admit_waiting(&mut self) {
        for waiting in std::mem::take(&mut self.waiting) {
            let still = self.judge_again(waiting);
            self.waiting.extend(still);
        }
    }

    /// Something was released on these accounts: who waits for one of them is judged again, until it is found spoken for,
    /// which it is for everybody behind. So a settlement costs as much as what it lets in, however many wait. (Whose
    /// other budget it uses up is cut, and answered with that; the host, which cannot be cut, when its wait is over.)
    pub(super) fn admit_released(&mut self, path: &Path) {
        let mut open: Vec<AccountId> = path.iter().map(|(_, account)| *account).collect();
        let mut seen = 0;
        while !open.is_empty() {
            let for_one = |waiting: &Waiting| open.contains(&waiting.on);
            let Some(next) = self.waiting.iter().skip(seen).position(for_one) else { return };
            seen += next;
            let Some(waiting) = self.waiting.remove(seen) else { return };
            if let Some(waiting) = self.judge_again(waiting) {
                open.retain(|account| *account != waiting.on);
                self.waiting.insert(seen, waiting);
                seen += 1;
            }
        }
    }

    /// Judges a waiting request again; gives it back if it still waits, and for what.
    fn judge_again(&mut self, waiting: Waiting) -> Option<Waiting> {
        let bottle = waiting.request.bottle;
        let path = self.path(bottle.slot, &waiting.request.provider);
        match (self.refusal_before_budget(bottle), self.accounts.judge(&path)) {
            (None, Judgement::Wait(_, on)) if self.settings.gate != Gate::Off => {
                Some(Waiting { on, ..waiting })
            }
            _ => {
                self.reserve(waiting.request);
                None
            }
        }
    }

    /// The verdict of one bottle changed: its own requests at the gate are judged again, and nobody else's, so that
    /// cutting many bottles does not judge every waiting request as often.
    pub(super) fn answer_waiting_of(&mut self, slot: u32) {
        let all = std::mem::take(&mut self.waiting);
        let (own, others): (VecDeque<_>, VecDeque<_>) =
            all.into_iter().partition(|waiting| waiting.request.bottle.slot == slot);
        self.waiting = others;
        own.into_iter().for_each(|waiting| self.reserve(waiting.request));
    }

    pub(super) fn give_up_waiting(&mut self) {
        let now = Instant::now();
        while self.waiting.front().is_some_and(|waiting| waiting.until <= now) {
            let Some(Waiting { request, .. }) = self.waiting.pop_front() else { return };
            let path = self.path(request.bottle.slot, &request.provider);
            match self.accounts.judge(&path) {
                Judgement::Wait(scope, id) | Judgement::Refuse(scope, id) => {
                    let refusal = self.budget_refusal(request.bottle.slot, scope, id);
                    self.refuse(&request, refusal);
                }
                Judgement::Grant => self.reserve(request),
            }
        }
    }
}
