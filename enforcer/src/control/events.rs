//! `GET /v1/events`: what changed in the core, with what a reader wants to know of it. Decides nothing.
use std::collections::HashMap;

use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;

use super::{Controller as _, Event, api};
use crate::bottle::registry::Registry;
use crate::core::Change;

/// Events that a reader may be behind before it loses some.
pub const KEPT: usize = 1_024;
/// Audit rows that one change may bring.
const ROWS: u32 = 1_000;

/// Turns changes into events until the core ends.
pub async fn publish(
    registry: Registry,
    mut changes: broadcast::Receiver<Change>,
    events: broadcast::Sender<Event>,
) {
    let mut publisher = Publisher { registry, events, known: HashMap::new(), last_row: 0 };
    publisher.catch_up().await;
    loop {
        match changes.recv().await {
            Ok(Change::Usage(row)) => publisher.send(Event::Usage(row)),
            Ok(Change::Dropped(dropped)) => publisher.send(Event::Drop(dropped)),
            Ok(Change::State) => publisher.states().await,
            Err(RecvError::Lagged(_)) => {
                publisher.states().await;
                publisher.rows().await;
            }
            Ok(Change::Audit) => publisher.rows().await,
            Err(RecvError::Closed) => return,
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
