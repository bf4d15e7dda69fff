//! The attached bottles: puts hooks on and off around the core's decisions, and answers the control API.
//!
//! An attach is whole or nothing: cgroup checked, slot given (core), hooks on and dropping (kernel), recorded
//! (ledger), opened (core); each failure undoes what came before. Budgets and verdicts are the core's. `answers` says
//! who answers which question, `asked` checks its words, `cgroups` finds the cgroup, `confine` judges who is in it,
//! `attach` does it and undoes it, `show` is what `status` shows. What concerns one bottle looks at no other.
mod answers;
mod asked;
mod attach;
mod budgets;
mod cgroups;
mod confine;
mod show;

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{broadcast, oneshot};

use super::namespaces::Namespaces;
use crate::control::api::Problem;
use crate::control::{Event, events};
use crate::core::{Change, CoreHandle, Listener, Message};
use crate::egress::Keeper;
use crate::error::Failure;
use crate::kernel::Kernel;
use crate::lane::Lane;
use crate::ledger::{LedgerError, Reader, UnixMs};
use crate::meter::Meter;
use crate::reload::Reload;
use crate::settings::{Live, Settings};

/// What the registry works with.
pub struct Parts {
    /// Sums and verdicts.
    pub core: CoreHandle,
    /// Hooks and counters.
    pub kernel: Arc<dyn Kernel>,
    /// What confined bottles reach.
    pub egress: Arc<Keeper>,
    /// Defaults, as they stand.
    pub settings: Live,
    /// Who takes changed settings.
    pub reload: Arc<Reload>,
    /// Where bottles are sent.
    pub listener: Listener,
    /// The meter process.
    pub meter: Arc<Meter>,
    /// The refusal lane's process.
    pub lane: Arc<Lane>,
    /// The meter in other network namespaces.
    pub namespaces: Arc<Namespaces>,
    /// The cgroup below which `run` makes bottles.
    pub bottles_dir: PathBuf,
    /// The public CA certificate.
    pub ca_certificate: PathBuf,
    /// The system's roots and the CA certificate in one file.
    pub ca_bundle: PathBuf,
}

/// The control API's answers. See the module's head. Clones are the same registry.
#[derive(Clone)]
pub struct Registry {
    parts: Arc<Parts>,
    reader: Arc<Mutex<Box<dyn Reader>>>,
    events: broadcast::Sender<Event>,
}

impl Registry {
    /// A registry, and the task that turns the core's changes into events of the API. Needs a tokio runtime.
    #[must_use]
    pub fn start(parts: Parts, reader: Box<dyn Reader>, changes: broadcast::Receiver<Change>) -> Arc<Self> {
        let (events, _) = broadcast::channel(events::KEPT);
        let registry =
            Self { parts: Arc::new(parts), reader: Arc::new(Mutex::new(reader)), events: events.clone() };
        tokio::spawn(events::publish(registry.clone(), changes, events));
        Arc::new(registry)
    }

    async fn ask<T>(
        &self,
        question: impl FnOnce(oneshot::Sender<Result<T, Problem>>) -> Message,
    ) -> Result<T, Problem> {
        self.parts.core.ask(question).await?
    }

    /// Runs a query of the ledger off the async threads.
    async fn query<T: Send + 'static>(
        &self,
        query: impl FnOnce(&mut dyn Reader) -> Result<T, LedgerError> + Send + 'static,
    ) -> Result<T, Problem> {
        let reader = self.reader.clone();
        blocking(move || {
            let mut reader = reader.lock().unwrap_or_else(PoisonError::into_inner);
            query(reader.as_mut()).map_err(|error| Problem::failed(error.to_string()))
        })
        .await?
    }

    /// Id of the newest row of the audit; 0 for none.
    ///
    /// # Errors
    /// When the ledger refuses.
    pub async fn newest_audit_row(&self) -> Result<i64, Problem> {
        self.query(|reader| reader.newest_audit_row()).await
    }

    /// Start of the oldest settled exchange that is kept by itself.
    ///
    /// # Errors
    /// When the ledger refuses.
    pub async fn oldest_settled(&self) -> Result<Option<UnixMs>, Problem> {
        self.query(|reader| reader.oldest_settled()).await
    }

    /// The beginning of this time in which no more than about so many settled exchanges began.
    ///
    /// # Errors
    /// When the ledger refuses.
    pub async fn beginning_of(&self, time: Range<UnixMs>, most: u32) -> Result<Range<UnixMs>, Problem> {
        self.query(move |reader| reader.beginning_of(&time, most)).await
    }

    /// How long single exchanges are kept, by the settings.
    #[must_use]
    pub fn retention(&self) -> Duration {
        self.settings().retention
    }

    /// Has the exchanges that began in this time rolled up.
    pub fn roll_up(&self, time: Range<UnixMs>) {
        self.parts.core.tell(Message::RollUp(time));
    }

    /// Has the audit say that a bottle of the settings was not attached.
    pub(super) fn record_not_attached(&self, name: &str, why: &str) {
        self.parts.core.tell(Message::NotAttached { name: name.to_owned(), why: why.to_owned() });
    }

    /// Bottles that the settings give a cgroup, with it.
    pub(super) fn awaited(&self) -> Vec<(String, PathBuf)> {
        let settings = self.settings();
        let bottles = settings.bottles.iter();
        bottles.filter_map(|(name, bottle)| Some((name.clone(), bottle.cgroup.clone()?))).collect()
    }

    /// The settings as they stand.
    fn settings(&self) -> Arc<Settings> {
        self.parts.settings.borrow().clone()
    }

    /// Follows the settings.
    pub(super) fn settings_changes(&self) -> Live {
        self.parts.settings.clone()
    }

    /// The cgroup that the settings have this bottle attached to, whenever it is there.
    fn awaited_cgroup(&self, name: &str) -> Option<PathBuf> {
        self.settings().awaited_cgroup(name).map(Path::to_owned)
    }
}

fn failed(error: tokio::task::JoinError) -> Problem {
    Problem::failed(format!("the controller failed: {error}"))
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Problem> {
    tokio::task::spawn_blocking(work).await.map_err(failed)
}

/// The room's error in the API's words.
fn problem(error: impl Into<Failure>) -> Problem {
    error.into().into()
}
