//! The refusal lane's questions: whose connection it is, and why it may not go on. Answered from memory.
//!
//! What the agent reads is composed by the lane, in the shape of its provider.
use std::net::SocketAddr;

use meter_proxy::protocol::{LaneAnswer, Refusal, ToLane};

use super::requests::{original, reference};
use super::{Core, Stage};
use crate::audit::{Cause, CauseKind};
use crate::kernel::Face;

/// One question of the lane's.
#[derive(Clone, Copy, Debug)]
pub struct Why {
    /// Number to answer to.
    pub question: u64,
    /// The client's end.
    pub peer: SocketAddr,
    /// The lane's end.
    pub local: SocketAddr,
    /// Id of the listening socket.
    pub listener: u32,
}

impl Core {
    pub(super) fn why(&self, epoch: u64, why: &Why) {
        if self.lane.as_ref().is_some_and(|(current, _)| *current == epoch) {
            let answer = self.because(why);
            self.tell_lane(ToLane::Because { question: why.question, answer });
        }
    }

    /// None where nobody is to be told anything: the connection is no bottle's, or its bottle is open or cut silently.
    fn because(&self, why: &Why) -> Option<LaneAnswer> {
        let flow = self.kernel.flow(why.peer, why.local, why.listener)?;
        let found = self.bottles.get(&flow.slot)?;
        let is_current = found.attachment.generation == flow.generation && found.stage == Stage::Attached;
        if !is_current || self.face_of(flow.slot) != Some(Face::Answered) {
            return None;
        }
        let name = found.attachment.name.clone();
        Some(LaneAnswer {
            bottle: reference(&found.attachment),
            refusal: refusal(&name, self.shut_by(flow.slot)?),
            name,
            original: original(&flow, why.local),
        })
    }

    pub(super) fn lane_lost(&mut self, epoch: u64) {
        if self.lane.as_ref().is_some_and(|(current, _)| *current == epoch) {
            self.lane = None;
            let detail = "the refusal lane ended: until it serves again, answered cuts are silent ones";
            self.warn(None, detail.into(), true);
        }
    }

    /// Ends the lane's connections of this bottle and of those nested in its cgroup.
    pub(super) fn end_lane_below(&self, slot: u32) {
        let Some(bottle) = self.bottles.get(&slot) else { return };
        for slot in self.slots_below(&bottle.attachment.cgroup) {
            if let Some(bottle) = self.bottles.get(&slot) {
                self.tell_lane(ToLane::Opened { bottle: reference(&bottle.attachment) });
            }
        }
    }

    pub(super) fn tell_lane(&self, message: ToLane) {
        if let Some((_, link)) = &self.lane
            && link.send(message).is_err()
        {
            tracing::debug!("the lane is gone; its loss is about to be noticed");
        }
    }
}

/// The cause of a cut as an agent is told it.
fn refusal(bottle: &str, cause: &Cause) -> Refusal {
    let Cause { kind, provider, scope, owner, limit, used, window, rule, .. } = cause;
    match (kind, provider, scope, owner, limit, used) {
        (CauseKind::Budget, Some(provider), Some(scope), Some(owner), Some(limit), Some(used)) => {
            Refusal::Budget {
                bottle: bottle.to_owned(),
                provider: provider.clone(),
                scope: scope.clone(),
                owner: owner.clone(),
                limit: *limit,
                used: *used,
                reserved: 0,
                window: window.clone().unwrap_or_else(|| "total".into()),
                rule: rule.clone().unwrap_or_else(|| "nearest".into()),
            }
        }
        _ => Refusal::Cut { bottle: bottle.to_owned(), cause: cause.to_string() },
    }
}
