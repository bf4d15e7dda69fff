//! The meter's messages: identify, reserve, progress, settle; and what becomes of them when the meter dies.
use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use enforcer_ebpf::LISTENER_HOST;
use meter_proxy::protocol::{
    BottleRef, Identity, Notice, Refusal, Reserve, Settle, ToController, ToMeter, Upstream,
};
use meter_proxy::tokens::{Ending, Provenance, Tokens};

use super::durable::{After, action};
use super::{Change, Core, HOST_SLOT, MeterLink, Stage};
use crate::audit::ActionKind;
use crate::budget::weights::Weights;
use crate::budget::window::Hour;
use crate::budget::{AccountId, Held, Judgement, Path, Scope};
use crate::clock::now_ms;
use crate::control::api::Problem;
use crate::kernel::{Flow, address_of};
use crate::ledger::{Attachment, Entry, ExchangeId, Reservation, Settlement, UsageRow};
use crate::settings::{Egress, Gate, Unattached};

/// How long a request waits at the gate when only reservations of others stand in its way. Longer than most
/// non-streamed answers take, shorter than any client's own time limit.
const GATE_WAIT: Duration = Duration::from_secs(20);
/// Requests that may wait at the gate; more are refused at once.
const MAX_WAITING: usize = 4096;
/// Growth of an exchange, in tokens, after which what was seen of it is written: what a crash may hide.
pub(super) const PROGRESS_GRAIN: u64 = 200;
/// In this time at most one row of the audit per bottle and provider says that a request was refused, and at most
/// [`NOTICES`] rows per bottle say what the meter noticed.
const ROWS_SPAN: Duration = Duration::from_secs(10);
/// See [`ROWS_SPAN`].
const NOTICES: u64 = 20;
/// What rows of notices are about; others are about a provider.
const NOTICE: &str = "notice";

/// One exchange under way.
pub(super) struct Live {
    pub(super) id: ExchangeId,
    pub(super) bottle: BottleRef,
    name: String,
    provider: String,
    path: Path,
    held: Held,
    reserved: u64,
    tokens: Tokens,
    /// Tokens that the ledger knows of while it is under way.
    written: u64,
    /// The reservation is durable and the meter was told.
    permitted: bool,
    /// The asker left before the reservation was durable.
    withdrawn: bool,
}

/// A request that waits at the gate.
pub(super) struct Waiting {
    request: Reserve,
    until: Instant,
    /// The budget whose reservations stand in its way.
    on: AccountId,
}

/// Bounds the rows that an agent can cause in the audit, by bottle and what they are about.
#[derive(Default)]
pub(super) struct RowLimit(HashMap<(String, String), Span>);

/// What was written and left out since a span began.
struct Span {
    began: Instant,
    kind: ActionKind,
    written: u64,
    left_out: u64,
}

impl Span {
    fn new(kind: ActionKind, began: Instant) -> Self {
        Self { began, kind, written: 0, left_out: 0 }
    }
}

/// Rows of one bottle that were left out and that no later row has told of.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct LeftOut {
    bottle: String,
    about: String,
    kind: ActionKind,
    rows: u64,
}

impl RowLimit {
    /// Counts a row; says how many were left out in the span before when this one may be written.
    fn count(&mut self, bottle: &str, about: &str, kind: ActionKind, most: u64, now: Instant) -> Option<u64> {
        let key = (bottle.to_owned(), about.to_owned());
        let span = self.0.entry(key).or_insert_with(|| Span::new(kind, now));
        let mut left_out = 0;
        if now.duration_since(span.began) >= ROWS_SPAN {
            left_out = span.left_out;
            *span = Span::new(kind, now);
        }
        if span.written >= most {
            span.left_out += 1;
            return None;
        }
        span.written += 1;
        Some(left_out)
    }

    /// Forgets spans that ended long ago; what they left out.
    fn prune(&mut self, now: Instant) -> Vec<LeftOut> {
        let over = self.0.extract_if(|_, span| now.duration_since(span.began) >= 6 * ROWS_SPAN);
        let left = over.filter(|(_, span)| span.left_out > 0);
        left.map(|((bottle, about), span)| LeftOut { bottle, about, kind: span.kind, rows: span.left_out })
            .collect()
    }
}

impl Core {
    pub(super) fn is_current(&self, epoch: u64) -> bool {
        self.meter.as_ref().is_some_and(|(current, _)| *current == epoch)
    }

    pub(super) fn meter_up(&mut self, epoch: u64, link: MeterLink) {
        self.meter = Some((epoch, link));
        for (_, bottle) in self.bottles.iter().filter(|(slot, _)| self.shut_by(**slot).is_some()) {
            self.tell_meter(ToMeter::Cut {
                bottle: reference(&bottle.attachment),
                upstream: Upstream::Close,
            });
        }
        self.publish(Change::State);
    }

    /// The meter settles what it has to close; bottles stay as they are.
    pub(super) fn close_upstreams(&self) {
        for bottle in self.bottles.values() {
            self.tell_meter(ToMeter::Cut {
                bottle: reference(&bottle.attachment),
                upstream: Upstream::Close,
            });
        }
    }

    pub(super) fn meter_said(&mut self, epoch: u64, message: ToController, received: Instant) {
        if !self.is_current(epoch) {
            return;
        }
        match message {
            ToController::Identify { question, peer, local, listener } => {
                let identity = self.identify(peer, local, listener);
                self.tell_meter(ToMeter::Identified { question, identity });
            }
            ToController::Reserve(request) => self.reserve(request),
            ToController::Judge { question, bottle, provider } => {
                let refusal = self.refusal_now(bottle, &provider);
                self.tell_meter(ToMeter::Judged { question, refusal });
            }
            ToController::Withdraw { exchange } => self.withdraw(exchange),
            ToController::Progress { exchange, tokens } => self.progress(exchange, tokens, received),
            ToController::Settle(settle) => self.settle(epoch, settle, received),
            ToController::Notice(notice) => self.notice(ActionKind::Meter, notice),
            // answered before the core, by the room that owns the socket
            ToController::Ready { .. } | ToController::Sign { .. } => {}
        }
    }

    fn identify(&self, peer: SocketAddr, local: SocketAddr, listener: u32) -> Option<Identity> {
        if let Some(flow) = self.kernel.flow(peer, local, listener) {
            let bottle = BottleRef { slot: flow.slot, generation: flow.generation };
            let found = self.bottle(bottle).filter(|found| found.stage == Stage::Attached)?;
            return Some(Identity {
                bottle,
                name: found.attachment.name.clone(),
                original: original(&flow, local),
                egress: self.egress_around(&found.attachment.cgroup),
            });
        }
        self.is_of_host(peer, local, listener).then(|| Identity {
            bottle: BottleRef { slot: HOST_SLOT, generation: 0 },
            name: "host".into(),
            original: None,
            egress: Egress::Open,
        })
    }

    /// Whether a connection that no hook remembers is one of the host's own that is to be metered. A bottle's may be
    /// unknown too: made before the attach, or one more than are remembered; so its socket is looked at. What cannot be
    /// told is nobody's. Other listeners stand where bottles live: no process of the host is known there.
    fn is_of_host(&self, peer: SocketAddr, local: SocketAddr, listener: u32) -> bool {
        if self.settings.unattached != Unattached::Meter || listener != LISTENER_HOST {
            return false;
        }
        let cgroup = self.kernel.made_in(peer, local);
        cgroup.is_some_and(|cgroup| self.bottles.around(&cgroup).next().is_none())
    }

    /// The closest mode of the bottles whose cgroups hold this one: as the kernel, all of them must let it pass.
    fn egress_around(&self, cgroup: &str) -> Egress {
        let around = self.bottles.around(std::path::Path::new(cgroup));
        around.map(|outer| outer.attachment.egress).max().unwrap_or(Egress::Metered)
    }

    fn reserve(&mut self, mut request: Reserve) {
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
    fn refusal_now(&mut self, bottle: BottleRef, provider: &str) -> Option<Refusal> {
        if let Some(refusal) = self.refusal_before_budget(bottle) {
            return Some(refusal);
        }
        let path = self.path(bottle.slot, provider);
        match self.accounts.judge(&path) {
            Judgement::Refuse(scope, id) => Some(self.budget_refusal(bottle.slot, scope, id)),
            Judgement::Grant | Judgement::Wait(..) => None,
        }
    }

    fn refusal_before_budget(&self, bottle: BottleRef) -> Option<Refusal> {
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

    fn budget_refusal(&self, slot: u32, scope: Scope, id: AccountId) -> Refusal {
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
        let bottle = self.name_of(request.bottle.slot);
        if let Some(left_out) =
            self.rows.count(&bottle, &request.provider, ActionKind::Refuse, 1, Instant::now())
        {
            let mut row = action(ActionKind::Refuse, Some(bottle), None, "controller");
            row.detail = Some(match left_out {
                0 => refusal.to_string(),
                more => format!("{refusal} ({more} more refusals since the last row)"),
            });
            self.record(row);
        }
        self.tell_meter(ToMeter::Refused { exchange: request.exchange, refusal });
    }

    fn grant(&mut self, request: Reserve, path: Path) {
        let Some((epoch, _)) = self.meter else { return };
        self.last_exchange += 1;
        let reservation = self.reservation(&request);
        let held = self.accounts.reserve(&path, request.tokens);
        self.exchanges.insert(
            request.exchange,
            Live {
                id: self.last_exchange,
                bottle: request.bottle,
                name: reservation.bottle.clone(),
                provider: request.provider,
                path,
                held,
                reserved: request.tokens,
                tokens: Tokens::default(),
                written: 0,
                permitted: false,
                withdrawn: false,
            },
        );
        let after = After::Permit { epoch, exchange: request.exchange, id: self.last_exchange };
        self.submit(vec![Entry::Reserve(reservation)], after);
    }

    fn reservation(&self, request: &Reserve) -> Reservation {
        let attachment = self.bottle(request.bottle).map(|bottle| &bottle.attachment);
        Reservation {
            id: self.last_exchange,
            attachment: attachment.map(|attachment| attachment.id),
            bottle: self.name_of(request.bottle.slot),
            agent: attachment.and_then(|attachment| attachment.agent.clone()),
            ancestors: attachment.map(|attachment| attachment.ancestors.clone()).unwrap_or_default(),
            provider: request.provider.clone(),
            endpoint: request.endpoint.clone(),
            model: request.model.clone(),
            reserved_tokens: request.tokens,
            hour: self.accounts.hour(),
            started_at: now_ms(),
        }
    }

    /// The reservation's commit came back: the request may leave, unless the bottle was cut meanwhile.
    pub(super) fn reserved(
        &mut self,
        epoch: u64,
        exchange: u64,
        id: ExchangeId,
        result: Result<(), Problem>,
    ) {
        if !self.is_current(epoch) {
            // the meter that asked died before it was told: the request never left
            if result.is_ok() {
                let settlement = unsent(id, self.accounts.hour());
                self.submit_done(vec![Entry::Settle(settlement)], After::Nothing);
            }
            return;
        }
        let Some(live) = self.exchanges.get(&exchange) else { return };
        if let Err(problem) = result {
            // not durable, so there is nothing to settle
            let path = live.path.clone();
            self.accounts.settle(&path, live.held, &Tokens::default());
            self.exchanges.remove(&exchange);
            let refusal = Refusal::Closed { reason: problem.error };
            self.tell_meter(ToMeter::Refused { exchange, refusal });
            return self.admit_released(&path);
        }
        let withdrawn = live.withdrawn;
        let refusal = self.refusal_before_budget(live.bottle);
        if withdrawn || refusal.is_some() {
            self.settle_unsent(exchange);
            if let Some(refusal) = refusal.filter(|_| !withdrawn) {
                self.tell_meter(ToMeter::Refused { exchange, refusal });
            }
            return;
        }
        if let Some(live) = self.exchanges.get_mut(&exchange) {
            live.permitted = true;
        }
        self.tell_meter(ToMeter::Permit { exchange });
    }

    /// Settles an exchange whose request never left.
    fn settle_unsent(&mut self, exchange: u64) {
        let Some(live) = self.exchanges.remove(&exchange) else { return };
        let settlement = unsent(live.id, self.accounts.hour());
        self.charge(&live, &settlement);
        self.submit_done(vec![Entry::Settle(settlement)], After::Nothing);
        self.admit_released(&live.path);
    }

    fn withdraw(&mut self, exchange: u64) {
        self.waiting.retain(|waiting| waiting.request.exchange != exchange);
        match self.exchanges.get_mut(&exchange) {
            // the permit is on its way; the meter settles it as unsent
            Some(live) if live.permitted => {}
            Some(live) => live.withdrawn = true,
            None => {}
        }
    }

    fn progress(&mut self, exchange: u64, tokens: Tokens, received: Instant) {
        let Some(live) = self.exchanges.get_mut(&exchange) else { return };
        live.tokens = tokens;
        live.held = self.accounts.progress(&live.path, live.held, &tokens);
        let (path, bottle, id, name) = (live.path.clone(), live.bottle, live.id, live.name.clone());
        let seen_tokens = tokens.total();
        let news = seen_tokens >= live.written.saturating_add(PROGRESS_GRAIN);
        if news {
            live.written = seen_tokens;
        }
        self.cut_where_crossed(&path, bottle, id, received);
        self.stop_where_crossed(bottle);
        self.warn_where_due(&path, &name, id);
        if news {
            self.submit(vec![Entry::Progress { exchange: id, seen: tokens }], After::Nothing);
        }
    }

    fn settle(&mut self, epoch: u64, settle: Settle, received: Instant) {
        let under_way = self.exchanges.get(&settle.exchange).is_some_and(|live| live.permitted);
        let live = if under_way { self.exchanges.remove(&settle.exchange) } else { None };
        let Some(live) = live else {
            tracing::warn!(exchange = settle.exchange, "the meter settled an exchange that is not under way");
            return;
        };
        let settlement = Settlement {
            id: live.id,
            tokens: settle.tokens,
            provenance: settle.provenance,
            ending: settle.ending,
            http_status: settle.http_status,
            model: settle.model,
            raw: settle.raw,
            hour: self.accounts.hour(),
            ended_at: now_ms(),
        };
        self.charge(&live, &settlement);
        self.cut_where_crossed(&live.path, live.bottle, live.id, received);
        self.stop_where_crossed(live.bottle);
        self.warn_where_due(&live.path, &live.name, live.id);
        self.publish(Change::Usage(Box::new(usage_row(&live, &settlement, self.accounts.weights()))));
        self.submit_done(
            vec![Entry::Settle(settlement)],
            After::Settled { epoch, exchange: settle.exchange },
        );
        self.admit_released(&live.path);
    }

    /// The host is no bottle and cannot be cut: what it has under way on a budget that is used up is stopped by the
    /// meter, whose gate refuses the rest.
    fn stop_where_crossed(&self, charged: BottleRef) {
        if charged.slot != HOST_SLOT {
            return;
        }
        let under_way =
            self.exchanges.iter().filter(|(_, live)| live.bottle.slot == HOST_SLOT && live.permitted);
        for (exchange, live) in under_way {
            if let Judgement::Refuse(scope, id) = self.accounts.judge(&live.path) {
                let refusal = self.budget_refusal(HOST_SLOT, scope, id);
                self.tell_meter(ToMeter::Refused { exchange: *exchange, refusal });
            }
        }
    }

    /// Moves an exchange from its accounts' in-flight to their settled figures.
    fn charge(&mut self, live: &Live, settlement: &Settlement) {
        self.accounts.settle(&live.path, live.held, &settlement.tokens);
        self.usage.charge(&live.name, &live.provider, settlement);
    }

    /// Records what was noticed, within bounds.
    pub(super) fn notice(&mut self, kind: ActionKind, notice: Notice) {
        let bottle = notice.bottle.map(|bottle| self.name_of(bottle.slot));
        let about = bottle.as_deref().unwrap_or_default();
        let Some(left_out) = self.rows.count(about, NOTICE, kind, NOTICES, Instant::now()) else { return };
        let mut row = action(kind, bottle, None, "controller");
        row.detail = Some(match left_out {
            0 => notice.detail,
            more => format!("{} ({more} more notices since the last row)", notice.detail),
        });
        self.record(row);
    }

    /// Closes what was left out of the audit, where no row has come since that could tell it.
    pub(super) fn tell_left_out(&mut self, now: Instant) {
        for LeftOut { bottle, about, kind, rows } in self.rows.prune(now) {
            let mut row = action(kind, Some(bottle).filter(|bottle| !bottle.is_empty()), None, "controller");
            row.detail = Some(match about.as_str() {
                NOTICE => format!("{rows} more notices since the last row"),
                provider => format!("{rows} more refusals ({provider}) since the last row"),
            });
            self.record(row);
        }
    }

    /// Budgets or verdicts changed: whoever waits at the gate is judged again, first come first served.
    pub(super) fn admit_waiting(&mut self) {
        for waiting in std::mem::take(&mut self.waiting) {
            self.judge_again(waiting);
        }
    }

    /// Something was released on these accounts: who waits for one of them is judged again, until it is found spoken for,
    /// which it is for everybody behind. So a settlement costs as much as what it lets in, however many wait. (Whose
    /// other budget it uses up is cut, and answered with that.)
    fn admit_released(&mut self, path: &Path) {
        let mut open: Vec<AccountId> = path.iter().map(|(_, account)| *account).collect();
        for waiting in std::mem::take(&mut self.waiting) {
            if !open.contains(&waiting.on) {
                self.waiting.push_back(waiting);
            } else if let Some(full) = self.judge_again(waiting) {
                open.retain(|account| *account != full);
            }
        }
    }

    /// Judges a waiting request again; the budget that it still waits for.
    fn judge_again(&mut self, waiting: Waiting) -> Option<AccountId> {
        let bottle = waiting.request.bottle;
        let path = self.path(bottle.slot, &waiting.request.provider);
        match (self.refusal_before_budget(bottle), self.accounts.judge(&path)) {
            (None, Judgement::Wait(_, on)) => {
                self.waiting.push_back(Waiting { on, ..waiting });
                Some(on)
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
            let refusal = match self.accounts.judge(&path) {
                Judgement::Wait(scope, id) | Judgement::Refuse(scope, id) => {
                    self.budget_refusal(request.bottle.slot, scope, id)
                }
                Judgement::Grant => {
                    Refusal::Closed { reason: "the budget changed while the request waited".into() }
                }
            };
            self.refuse(&request, refusal);
        }
    }

    /// Every exchange of a meter that died is settled: never refunded, the reservation at least.
    pub(super) fn meter_lost(&mut self, epoch: u64) {
        if !self.is_current(epoch) {
            return;
        }
        self.meter = None;
        self.waiting.clear();
        let received = Instant::now();
        for (_, live) in std::mem::take(&mut self.exchanges) {
            if !live.permitted {
                // never left; its commit's answer settles it
                self.accounts.settle(&live.path, live.held, &Tokens::default());
                continue;
            }
            let settlement = orphan(live.id, live.tokens, live.reserved, self.accounts.hour());
            self.charge(&live, &settlement);
            self.cut_where_crossed(&live.path, live.bottle, live.id, received);
            self.warn_where_due(&live.path, &live.name, live.id);
            self.submit_done(vec![Entry::Settle(settlement)], After::Nothing);
        }
        let mut row = action(ActionKind::Meter, None, None, "controller");
        row.detail = Some("the meter process ended; what was under way is charged as estimated".into());
        row.done = false;
        self.record(row);
        self.publish(Change::State);
    }
}

/// The settlement of an exchange that nobody can account for any more: what was seen, its output doubled because
/// the running count errs low by up to that, the reservation for an input that the provider had not told yet, and
/// never less than the reservation.
pub(super) fn orphan(id: ExchangeId, seen: Tokens, reserved: u64, hour: Hour) -> Settlement {
    let mut tokens = Tokens { output: seen.output.saturating_mul(2), ..seen };
    if tokens.all_input() == 0 {
        tokens.input = reserved;
    }
    tokens.output = tokens.output.saturating_add(reserved.saturating_sub(tokens.total()));
    Settlement {
        id,
        tokens,
        provenance: Provenance::Estimated,
        ending: Ending::Orphaned,
        http_status: None,
        model: None,
        raw: None,
        hour,
        ended_at: now_ms(),
    }
}

/// One settled exchange as `GET /v1/events` shows it.
fn usage_row(live: &Live, settlement: &Settlement, weights: &Weights) -> UsageRow {
    let tokens = &settlement.tokens;
    let total = weights.total(tokens);
    UsageRow {
        bottle: Some(live.name.clone()),
        provider: Some(live.provider.clone()),
        model: settlement.model.clone(),
        flows: 1,
        input: tokens.input,
        cache_write: tokens.cache_write,
        cache_read: tokens.cache_read,
        output: tokens.output,
        reasoning: tokens.reasoning,
        cache_write_5m: tokens.cache_write_5m,
        cache_write_1h: tokens.cache_write_1h,
        tool_prompt: tokens.tool_prompt,
        total,
        estimated: if settlement.provenance == Provenance::Reported { 0 } else { total },
        ..UsageRow::default()
    }
}

/// The settlement of an exchange whose request never left.
fn unsent(id: ExchangeId, hour: Hour) -> Settlement {
    Settlement {
        id,
        tokens: Tokens::default(),
        provenance: Provenance::Reported,
        ending: Ending::Unsent,
        http_status: None,
        model: None,
        raw: None,
        hour,
        ended_at: now_ms(),
    }
}

pub(super) fn reference(attachment: &Attachment) -> BottleRef {
    BottleRef { slot: attachment.slot, generation: attachment.generation }
}

/// Where a redirected connection was going; `None` when the program connected to the meter by itself.
pub(super) fn original(flow: &Flow, local: SocketAddr) -> Option<SocketAddr> {
    let port = u16::try_from(flow.original_port).ok()?;
    let original = SocketAddr::new(address_of(&flow.original_ip), port);
    (original != SocketAddr::new(local.ip().to_canonical(), local.port())).then_some(original)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_left_out_is_told_by_the_next_row_or_by_one_of_its_own() {
        let mut rows = RowLimit::default();
        let began = Instant::now();
        let count =
            |rows: &mut RowLimit, after| rows.count("b", "claude", ActionKind::Refuse, 1, began + after);
        assert_eq!(count(&mut rows, Duration::ZERO), Some(0));
        assert_eq!(count(&mut rows, Duration::ZERO), None);
        assert_eq!(count(&mut rows, ROWS_SPAN), Some(1), "the next row tells it");
        assert_eq!(count(&mut rows, ROWS_SPAN), None);
        assert_eq!(rows.prune(began + 6 * ROWS_SPAN), []);
        let left = LeftOut { bottle: "b".into(), about: "claude".into(), kind: ActionKind::Refuse, rows: 1 };
        assert_eq!(rows.prune(began + 7 * ROWS_SPAN), [left]);
        assert_eq!(rows.prune(began + 7 * ROWS_SPAN), [], "once");
    }
}
