//! The meter's messages, and what is under way by them: identified, permitted, in progress, settled; and what becomes of
//! it when the meter dies. Not here: what is let in (`gate`).
use std::net::SocketAddr;
use std::time::Instant;

use enforcer_ebpf::LISTENER_HOST;
use meter_proxy::protocol::{BottleRef, Identity, Refusal, Reserve, Settle, ToController, ToMeter, Upstream};
use meter_proxy::tokens::{Ending, Provenance, Tokens};

use super::durable::{After, action};
use super::{Change, Core, HOST_SLOT, MeterLink, Stage};
use crate::audit::ActionKind;
use crate::budget::weights::Weights;
use crate::budget::window::Hour;
use crate::budget::{Held, Judgement, Path};
use crate::clock::now_ms;
use crate::control::api::Problem;
use crate::kernel::{Flow, address_of};
use crate::ledger::{Attachment, Entry, ExchangeId, Reservation, Settlement, UsageRow};
use crate::settings::{Egress, Unattached};

/// Growth of an exchange, in tokens, after which what was seen of it is written: what a crash may hide.
pub(super) const PROGRESS_GRAIN: u64 = 200;

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
    /// The audit has that it is to stop though its bottle is open.
    stop_recorded: bool,
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
                if let Some(refusal) = &refusal {
                    self.record_refusal(bottle, &provider, refusal);
                }
                self.tell_meter(ToMeter::Judged { question, refusal });
            }
            ToController::Withdraw { exchange } => self.withdraw(exchange),
            ToController::Progress(counts) => {
                for (exchange, tokens) in counts {
                    self.progress(exchange, tokens, received);
                }
            }
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

    pub(super) fn grant(&mut self, request: Reserve, path: Path) {
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
                stop_recorded: false,
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
        // figures that weigh less than what was reserved for them release the rest
        self.admit_released(&path);
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
            ending: self.known_ending(live.bottle, settle.ending),
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

    /// How an exchange ended: the meter may see the aborted connection of a cut bottle before it hears of the cut.
    fn known_ending(&self, bottle: BottleRef, seen: Ending) -> Ending {
        match seen {
            Ending::ClientGone if self.bottle(bottle).is_some() && self.shut_by(bottle.slot).is_some() => {
                Ending::Cut
            }
            seen => seen,
        }
    }

    /// The host is no bottle and cannot be cut: what it has under way on a budget that is used up is stopped by the
    /// meter, whose gate refuses the rest.
    fn stop_where_crossed(&mut self, charged: BottleRef) {
        if charged.slot != HOST_SLOT {
            return;
        }
        let under_way =
            self.exchanges.iter().filter(|(_, live)| live.bottle.slot == HOST_SLOT && live.permitted);
        let crossed = under_way.filter_map(|(exchange, live)| match self.accounts.judge(&live.path) {
            Judgement::Refuse(scope, id) => Some((*exchange, scope, id)),
            Judgement::Grant | Judgement::Wait(..) => None,
        });
        for (exchange, scope, id) in crossed.collect::<Vec<_>>() {
            let refusal = self.budget_refusal(HOST_SLOT, scope, id);
            self.record_stop(exchange, &refusal);
            // again with each figure: the meter hears it once the answer has begun
            self.tell_meter(ToMeter::Refused { exchange, refusal });
        }
    }

    /// Records, once, that an exchange under way is to stop.
    fn record_stop(&mut self, exchange: u64, refusal: &Refusal) {
        let Some(live) = self.exchanges.get_mut(&exchange).filter(|live| !live.stop_recorded) else { return };
        live.stop_recorded = true;
        let (bottle, provider) = (live.bottle, live.provider.clone());
        self.record_refusal(bottle, &provider, refusal);
    }

    /// Moves an exchange from its accounts' in-flight to their settled figures.
    fn charge(&mut self, live: &Live, settlement: &Settlement) {
        self.accounts.settle(&live.path, live.held, &settlement.tokens);
        self.usage.charge(&live.name, &live.provider, settlement);
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
