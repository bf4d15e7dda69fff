//! `GET /v1/events`: what changed in the core, with what a reader wants to know of it. Decides nothing.
use std::collections::HashMap;

use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;
use tokio::time::{Instant, timeout_at};

use super::{Controller as _, Event, api};
use crate::bottle::registry::Registry;
use crate::core::Change;

/// Events that a reader may be behind before it loses some.
pub const KEPT: usize = 1_024;
/// Audit rows that one change may bring.
const ROWS: u32 = 1_000;
/// Looking at bottles takes no more than about this part of one core: with many, several changes are told together.
const BUSY_PART: u32 = 10;

/// Turns changes into events until the core ends.
pub async fn publish(
    registry: Registry,
    mut changes: broadcast::Receiver<Change>,
    events: broadcast::Sender<Event>,
) {
    let mut publisher = Publisher { registry, events, known: HashMap::new(), last_row: 0 };
    publisher.catch_up().await;
    // when bottles may be looked at again, and whether they are to be
    let (mut next, mut due) = (Instant::now(), false);
    loop {
        if due && Instant::now() >= next {
            next = publisher.look().await;
            due = false;
        }
        let change = match due {
            true => timeout_at(next, changes.recv()).await,
            false => Ok(changes.recv().await),
        };
        match change {
            Ok(Ok(Change::Usage(row))) => publisher.send(Event::Usage(row)),
            Ok(Ok(Change::Dropped(dropped))) => publisher.send(Event::Drop(dropped)),
            Ok(Ok(Change::State)) => due = true,
            Ok(Err(RecvError::Lagged(_))) => {
                due = true;
                publisher.rows().await;
            }
            Ok(Ok(Change::Audit)) => publisher.rows().await,
            Ok(Err(RecvError::Closed)) => return,
            Err(_elapsed) => {}
        }
    }
}

struct Publisher {
    registry: Registry,
    events: broadcast::Sender<Event>,
    /// Bottles as they were told last, by name.
    known: HashMap<String, api::Bottle>,
    last_row: i64,
}

impl Publisher {
    fn send(&self, event: Event) {
        // an error only says that nobody listens
        drop(self.events.send(event));
    }

    /// What was there before the first change is no news.
    async fn catch_up(&mut self) {
        match self.registry.newest_audit_row().await {
            Ok(id) => self.last_row = id,
            Err(problem) => tracing::warn!(problem.error, "events may begin with old rows of the audit"),
        }
        if let Ok((bottles, _)) = self.registry.bottles().await {
            self.known = bottles.into_iter().map(|bottle| (bottle.name.clone(), bottle)).collect();
        }
    }

    /// Tells what is new of the bottles; when to look again at the earliest.
    async fn look(&mut self) -> Instant {
        let started = Instant::now();
        self.states().await;
        Instant::now() + started.elapsed() * BUSY_PART
    }

    /// Tells the bottles that differ from what was told last, packets and processes aside, and those that are gone.
    async fn states(&mut self) {
        let Ok((bottles, _)) = self.registry.bottles().await else { return };
        let now: HashMap<String, api::Bottle> =
            bottles.into_iter().map(|bottle| (bottle.name.clone(), bottle)).collect();
        let mut before = std::mem::replace(&mut self.known, now);
        for (name, bottle) in &self.known {
            let told = before.remove(name);
            if told.is_none_or(|told| steady(&told) != steady(bottle)) {
                self.send(Event::State(Box::new(bottle.clone())));
            }
        }
        for (_, gone) in before {
            self.send(Event::State(Box::new(api::Bottle { state: api::State::Gone, ..gone })));
        }
    }

    async fn rows(&mut self) {
        match self.registry.audit(self.last_row, ROWS).await {
            Ok(rows) => {
                for row in rows {
                    self.last_row = row.id;
                    self.send(Event::Audit(Box::new(row)));
                }
            }
            Err(problem) => tracing::warn!(problem.error, "audit rows cannot be read for the events"),
        }
    }
}

/// The bottle without what changes all the time.
fn steady(bottle: &api::Bottle) -> api::Bottle {
    api::Bottle { kernel: api::Packets::default(), pids: 0, ..bottle.clone() }
}
