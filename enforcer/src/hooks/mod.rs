//! Hooks: programs of the settings that are told what happened to a bottle. They decide nothing, hold nothing up, and
//! run a few at a time within bounds; what they said is in the audit.
//!
//! `child` runs one program, `words` fills its arguments in. When a hook is called is the core's to say.
pub mod child;
pub mod words;

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::sync::{Semaphore, mpsc};

pub use self::words::About;
use crate::core::{CoreHandle, Message};

/// Hooks that run at the same time.
const AT_ONCE: usize = 4;
/// Most that wait for their turn; more are not run, and the audit says so.
const MAX_WAITING: usize = 256;
/// How long a hook may take.
const LIMIT: Duration = Duration::from_secs(10);

/// What a hook is called at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Occasion {
    /// A budget is used up to a share that the settings name.
    Warn,
    /// A bottle was cut.
    Cut,
    /// Its processes stand still.
    Freeze,
    /// Its processes are killed.
    Kill,
}

impl Occasion {
    /// The word used in settings and in the audit.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Warn => "warn",
            Self::Cut => "cut",
            Self::Freeze => "freeze",
            Self::Kill => "kill",
        }
    }
}

/// One call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// What happened.
    pub occasion: Occasion,
    /// Program and arguments, as the settings have them.
    pub argv: Vec<String>,
    /// What it is told.
    pub about: About,
}

/// How a call ended: for the audit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Called {
    /// What happened.
    pub occasion: Occasion,
    /// To which bottle; empty where it is none.
    pub bottle: String,
    /// What the hook said, or why it did not do what it was to do.
    pub result: Result<String, String>,
    /// From its start to its end.
    pub took: Duration,
}

/// Calls hooks; never waits.
#[derive(Clone, Debug)]
pub struct Hooks(mpsc::Sender<Call>);

impl Hooks {
    /// Has a hook called, soon; `false`: too many wait already.
    #[must_use]
    pub fn fire(&self, call: Call) -> bool {
        self.0.try_send(call).is_ok()
    }
}

/// The end to call by, and the one that calls come from.
#[must_use]
pub fn calls() -> (Hooks, mpsc::Receiver<Call>) {
    let (sender, calls) = mpsc::channel(MAX_WAITING);
    (Hooks(sender), calls)
}

/// Runs what is called until nobody can call any more. Those that run then are killed with the runtime.
pub async fn run(mut calls: mpsc::Receiver<Call>, core: CoreHandle) {
    let turns = Arc::new(Semaphore::new(AT_ONCE));
    while let Some(call) = calls.recv().await {
        let Ok(turn) = turns.clone().acquire_owned().await else { return };
        let core = core.clone();
        tokio::spawn(async move {
            core.tell(Message::Called(answered(call, LIMIT).await));
            drop(turn);
        });
    }
}

async fn answered(call: Call, limit: Duration) -> Called {
    let began = Instant::now();
    let result = child::run(&call.about.fill(&call.argv), limit).await;
    Called {
        occasion: call.occasion,
        bottle: call.about.bottle,
        result: result.map_err(|error| error.to_string()),
        took: began.elapsed(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_beyond_the_bound_are_refused_and_not_waited_for() {
        let (hooks, calls) = calls();
        let call = Call { occasion: Occasion::Cut, argv: vec!["/bin/true".into()], about: About::default() };
        let taken = (0..MAX_WAITING + 10).filter(|_| hooks.fire(call.clone())).count();
        assert_eq!(taken, MAX_WAITING);
        drop(calls);
        assert!(!hooks.fire(call));
    }
}
