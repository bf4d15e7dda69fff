//! The responses of one WebSocket: which are under way, in which lane, and whose an event is.
//!
//! In a lane responses follow each other in the order in which they were asked for; lanes go on side by side. Each
//! response is an exchange of its own and is settled once. Not here: bytes, and waiting.
use std::collections::{HashMap, VecDeque};

use super::events::{Heard, Lane};
use crate::activity::Activity;
use crate::events::Event;
use crate::exchange::{Exchange, Facts, Step};
use crate::gate::Permit;
use crate::settle;
use crate::tokens::Ending;
use crate::usage::Shape;

/// Ids of responses that have ended which are remembered: their last events may come again.
const MAX_ENDED: usize = 64;

/// What stands behind a response.
pub enum Cost {
    /// The gate's leave.
    Metered(Box<Permit>),
    /// Its request says that nothing is generated.
    WarmUp(Box<Exchange>),
}

impl Cost {
    fn exchange(&mut self) -> &mut Exchange {
        match self {
            Self::Metered(permit) => permit.seen_now(),
            Self::WarmUp(exchange) => exchange,
        }
    }

    /// Its time begins, unless it has.
    fn sets_out(&mut self) {
        if let Self::Metered(permit) = self {
            permit.sets_out();
        }
    }
}

/// A response under way, or asked for.
struct Response {
    /// As the provider names it, once it has.
    id: Option<String>,
    cost: Cost,
    /// An error came while it was under way, which may have been its end.
    is_in_doubt: bool,
}

impl Response {
    fn new(id: Option<String>, cost: Cost) -> Self {
        Self { id, cost, is_in_doubt: false }
    }
}

/// A response that generates and for which the gate was not asked.
pub struct Unasked {
    lane: Lane,
    id: Option<String>,
    /// What was seen of it.
    exchange: Box<Exchange>,
    /// It has ended.
    pub is_over: bool,
}

impl Unasked {
    /// What was seen of it is charged to this permit.
    pub fn hand_to(&mut self, permit: &mut Permit) {
        std::mem::swap(&mut permit.exchange, &mut self.exchange);
        permit.sets_out();
        has_left(permit);
    }
}

/// Nothing of it is sure to be unsent from here on.
fn has_left(permit: &mut Permit) {
    let way_out = Activity::default();
    way_out.note();
    permit.way_out = Some(way_out);
}

/// What follows from an event.
pub enum Verdict {
    /// Nothing: it passes.
    Pass,
    /// A response has ended: it passes when that is durable.
    Settle(Box<Permit>),
    /// It passes when the gate gives leave, after all.
    Ask(Unasked),
    /// It may have figures in it, and is too long to be read.
    Hidden,
}

/// All responses of one WebSocket.
#[derive(Default)]
pub struct Session {
    lanes: HashMap<Lane, VecDeque<Response>>,
    ended: VecDeque<String>,
    /// How it ends, once a side has begun to close it.
    pub closing: Option<Ending>,
    /// A part of a message has passed to the client, and the rest has not.
    pub is_amid_message: bool,
}

impl Session {
    /// How many responses are under way or asked for.
    #[must_use]
    pub fn open_count(&self) -> usize {
        self.lanes.values().map(VecDeque::len).sum()
    }

    /// A request is about to leave.
    pub fn begin(&mut self, lane: Lane, mut cost: Cost) {
        if let Cost::Metered(permit) = &mut cost {
            has_left(permit);
        }
        cost.exchange().head(200, "text/event-stream", "");
        let lane = self.lanes.entry(lane).or_default();
        if lane.is_empty() {
            cost.sets_out();
        }
        lane.push_back(Response::new(None, cost));
    }

    /// Leave has come for a response under way.
    pub fn adopt(&mut self, unasked: Unasked, permit: Box<Permit>) {
        let response = Response::new(unasked.id, Cost::Metered(permit));
        self.lanes.entry(unasked.lane).or_default().push_front(response);
    }

    /// Takes an event of the server as it is about to pass. `midstream`: running counts are told.
    pub fn take(&mut self, event: Event<'_>, midstream: bool) -> Verdict {
        let heard = Heard::read(event);
        let Some((lane, at)) = self.place_of(&heard) else { return self.take_unasked(&heard, event) };
        let at = if heard.kind == "error" { at } else { at - self.end_in_doubt(&lane, at) };
        let Some(response) = self.lanes.get_mut(&lane).and_then(|lane| lane.get_mut(at)) else {
            return Verdict::Pass;
        };
        let step = response.take(&heard, event);
        if step.changed && midstream && !step.terminal {
            response.tell_progress();
        }
        match step {
            Step { terminal: true, .. } => self.over(lane, at),
            Step { hold: true, .. } => Verdict::Hidden,
            _ if response.generates_unasked() => self.ask_for(lane, at, false),
            _ => Verdict::Pass,
        }
    }

    /// Everything that is under way ends so.
    pub fn end_all(&mut self, ending: Ending) {
        for response in self.lanes.drain().flat_map(|(_, lane)| lane) {
            if let Cost::Metered(mut permit) = response.cost {
                let ending = if permit.may_have_left() { ending } else { Ending::Unsent };
                settle::end(&mut permit, ending);
            }
        }
    }

    /// Every response under way: its lane and its id.
    pub fn names(&self) -> impl Iterator<Item = (Option<&str>, Option<&str>)> {
        self.lanes.iter().flat_map(|(lane, responses)| {
            responses.iter().map(|response| (lane.as_deref(), response.id.as_deref()))
        })
    }

    /// Whose the event is: a response that it names, else by its lane.
    fn place_of(&self, heard: &Heard) -> Option<(Lane, usize)> {
        if let Some(id) = &heard.response {
            let with_id = |response: &Response| response.id.as_ref() == Some(id);
            if let Some(place) = self.find(with_id) {
                return Some(place);
            }
            if self.ended.contains(id) {
                return None;
            }
        }
        let lane = self.lanes.get(&heard.lane);
        let unnamed = lane.and_then(|lane| lane.iter().position(|response| response.id.is_none()));
        let at = match (heard.kind.as_str(), &heard.response) {
            // a status turns a message down: a request, while an earlier one of its lane may be answered, or something
            // that the client sent to provoke it, while all go on
            ("error", _) if heard.status.is_some() => unnamed,
            ("error", _) => unnamed.or((lane.is_some()).then_some(0)),
            (_, Some(_)) => unnamed,
            (_, None) => lane.map(|_| 0),
        };
        let in_lane = at.map(|at| (heard.lane.clone(), at));
        // some servers name no lane
        let anywhere = || self.find(|response| response.id.is_none());
        let named_no_lane = heard.lane.is_none() && lane.is_none() && heard.response.is_some();
        in_lane.or_else(|| named_no_lane.then(anywhere).flatten())
    }

    fn find(&self, wanted: impl Fn(&Response) -> bool) -> Option<(Lane, usize)> {
        self.lanes
            .iter()
            .find_map(|(lane, responses)| responses.iter().position(&wanted).map(|at| (lane.clone(), at)))
    }

    /// A response has ended: it is settled, and remembered.
    fn over(&mut self, lane: Lane, at: usize) -> Verdict {
        let generated = self.response(&lane, at).is_some_and(Response::generates_unasked);
        if generated {
            return self.ask_for(lane, at, true);
        }
        match self.remove(&lane, at) {
            Some(Response { cost: Cost::Metered(permit), .. }) => Verdict::Settle(permit),
            _ => Verdict::Pass,
        }
    }

    /// Takes a response out until the gate has given leave for it.
    fn ask_for(&mut self, lane: Lane, at: usize, is_over: bool) -> Verdict {
        match self.remove(&lane, at) {
            Some(Response { id, cost: Cost::WarmUp(exchange), .. }) => {
                Verdict::Ask(Unasked { lane, id, exchange, is_over })
            }
            _ => Verdict::Pass,
        }
    }

    /// An event of no response that was asked for: one that the provider began by itself, or nothing.
    fn take_unasked(&mut self, heard: &Heard, event: Event<'_>) -> Verdict {
        if heard.kind == "error"
            && let Some(response) = self.lanes.get_mut(&heard.lane).and_then(VecDeque::front_mut)
        {
            response.is_in_doubt = true;
        }
        let known = heard.response.as_ref().is_none_or(|id| self.ended.contains(id));
        if known || !heard.kind.starts_with("response.") {
            return Verdict::Pass;
        }
        let facts = Facts { streamed: true, has_stored_input: true, ..Facts::default() };
        let mut exchange = Box::new(Exchange::new(Shape::OpenaiResponses, facts));
        exchange.head(200, "text/event-stream", "");
        let is_over = exchange.feed_event(event).terminal;
        if is_over {
            self.remember(heard.response.clone());
        }
        Verdict::Ask(Unasked { lane: heard.lane.clone(), id: heard.response.clone(), exchange, is_over })
    }

    /// The response at `at` goes on, so those before it whose end was in doubt have ended; how many. Their ids are not
    /// remembered: should one go on all the same, it is asked for anew.
    fn end_in_doubt(&mut self, lane: &Lane, at: usize) -> usize {
        let Some(responses) = self.lanes.get_mut(lane) else { return 0 };
        let ended = responses.iter().take(at).take_while(|response| response.is_in_doubt).count();
        for response in responses.drain(..ended) {
            if let Cost::Metered(mut permit) = response.cost {
                settle::end(&mut permit, Ending::UpstreamBroke);
            }
        }
        ended
    }

    fn response(&mut self, lane: &Lane, at: usize) -> Option<&mut Response> {
        self.lanes.get_mut(lane)?.get_mut(at)
    }

    fn remove(&mut self, lane: &Lane, at: usize) -> Option<Response> {
        let responses = self.lanes.get_mut(lane)?;
        let response = responses.remove(at)?;
        if responses.is_empty() {
            self.lanes.remove(lane);
        }
        self.remember(response.id.clone());
        Some(response)
    }

    fn remember(&mut self, id: Option<String>) {
        self.ended.extend(id);
        if self.ended.len() > MAX_ENDED {
            self.ended.pop_front();
        }
    }
}

impl Response {
    fn take(&mut self, heard: &Heard, event: Event<'_>) -> Step {
        let is_refused = heard.kind == "error" && self.id.is_none();
        if self.id.is_none() {
            self.id.clone_from(&heard.response);
        }
        // one behind others in its lane begins with its first event
        self.cost.sets_out();
        if let (true, Some(status)) = (is_refused, heard.status) {
            // the provider turned the request down before it began
            self.cost.exchange().head(status, "text/event-stream", "");
            if let Cost::Metered(permit) = &mut self.cost {
                permit.status = Some(status);
            }
        }
        self.cost.exchange().feed_event(event)
    }

    fn tell_progress(&mut self) {
        if let Cost::Metered(permit) = &mut self.cost {
            permit.tell_progress();
        }
    }

    /// Whether a warm-up turns out to be none.
    fn generates_unasked(&mut self) -> bool {
        matches!(&self.cost, Cost::WarmUp(exchange) if exchange.tokens().output > 0)
    }
}
