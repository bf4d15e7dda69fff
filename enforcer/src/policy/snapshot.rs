//! A snapshot of a frozen bottle: one program, run to its end. What follows is the core's to say.
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Act, Order, Snapshotted};
use crate::bottle::engine::Container;
use crate::clock::{now_ms, rfc3339};
use crate::hooks::child;

/// How long a snapshot may take.
const LIMIT: Duration = Duration::from_secs(15 * 60);
/// Repository of the images that are made of containers.
const REPOSITORY: &str = "enforcer-snapshot";

/// What is to be kept of a bottle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Snapshot {
    /// What this program keeps; its arguments are filled in.
    Program(Vec<String>),
    /// An image of this container, by its engine. `None`: the bottle was attached by no engine.
    Engine(Option<Container>),
}

/// A snapshot that is being taken.
pub(super) struct Taking {
    snapshot: Snapshot,
    attachment: i64,
    bottle: String,
    number: u64,
    by: String,
    began: Instant,
}

impl Taking {
    /// The one that belongs to an order, if one does.
    pub(super) fn after(order: &Order) -> Option<Arc<Self>> {
        let Act::Freeze { snapshot: Some(snapshot) } = &order.act else { return None };
        Some(Arc::new(Self {
            snapshot: snapshot.clone(),
            attachment: order.attachment,
            bottle: order.bottle.clone(),
            number: order.number,
            by: order.by.clone(),
            began: Instant::now(),
        }))
    }

    /// Takes it; when this is dropped before, what takes it is killed.
    pub(super) async fn take(self: Arc<Self>) -> Snapshotted {
        let result = match self.program() {
            Ok((argv, kept)) => match child::run(&argv, LIMIT).await {
                Ok(words) if words.is_empty() => Ok(kept),
                Ok(words) => Ok(format!("{kept}: {words}")),
                Err(error) => Err(error.to_string()),
            },
            Err(why) => Err(why),
        };
        self.ended(result)
    }

    /// The program with its arguments, and what it keeps, in words.
    fn program(&self) -> Result<(Vec<String>, String), String> {
        match &self.snapshot {
            Snapshot::Program(argv) => Ok((argv.clone(), "taken".into())),
            Snapshot::Engine(None) => Err("the bottle was attached by no engine that could take one".into()),
            Snapshot::Engine(Some(container)) => {
                let image = image(&self.bottle, &rfc3339(now_ms()));
                let argv = container.commit(&image);
                let argv = argv.ok_or("the container's engine is not on the daemon's PATH any more")?;
                Ok((argv, format!("image {image}")))
            }
        }
    }

    pub(super) fn interrupted(&self) -> Snapshotted {
        self.ended(Err("interrupted by a newer order".into()))
    }

    fn ended(&self, result: Result<String, String>) -> Snapshotted {
        Snapshotted {
            attachment: self.attachment,
            bottle: self.bottle.clone(),
            number: self.number,
            by: self.by.clone(),
            result,
            took: self.began.elapsed(),
        }
    }
}

/// Name of an image. A tag takes every character of a bottle's name, and no colon.
fn image(bottle: &str, at: &str) -> String {
    let at: String = at.chars().filter(char::is_ascii_alphanumeric).collect();
    format!("{REPOSITORY}:{bottle}-{at}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_bears_the_bottle_s_name_and_the_time() {
        let image = image("_My.Bottle-1", "2026-01-31T12:00:00.123Z");
        assert_eq!(image, "enforcer-snapshot:_My.Bottle-1-20260131T120000123Z");
    }
}
