//! The control API: its documents, the seam to the daemon, the server and the client.
//!
//! Whoever speaks HTTP stays in `server` and `client`; whoever decides implements [`Controller`].
pub mod api;
pub mod client;
pub mod env;
pub mod events;
mod routes;
pub mod server;
mod stream;
pub mod table;

use std::future::Future;

use serde::{Deserialize, Serialize};
use tokio::sync::broadcast;

use crate::audit;
use crate::core::BudgetOrder;
use crate::ledger::{FlowRow, UsageQuery, UsageRow};

/// What the server asks of the daemon. `by` is who asks, as the audit writes it (`uid:N`). Every
/// [`api::Problem`] carries the exit code that the command is to end with.
pub trait Controller: Send + Sync + 'static {
    /// The controller and every attached bottle.
    fn status(&self) -> impl Future<Output = api::Status> + Send;

    /// One attached bottle; a problem when there is none of that name.
    fn bottle(&self, name: &str) -> impl Future<Output = Result<api::Bottle, api::Problem>> + Send;

    /// Attaches a bottle, wholly or not at all.
    fn attach(
        &self,
        attach: api::Attach,
        by: &str,
    ) -> impl Future<Output = Result<api::Attached, api::Problem>> + Send;

    /// Ends an attachment; a cut bottle only with `force`.
    fn detach(
        &self,
        name: &str,
        force: bool,
        by: &str,
    ) -> impl Future<Output = Result<api::Detached, api::Problem>> + Send;

    /// Cuts one bottle.
    fn cut(
        &self,
        name: &str,
        cut: api::Cut,
        by: &str,
    ) -> impl Future<Output = Result<api::Bottle, api::Problem>> + Send;

    /// Cuts every attached bottle.
    fn cut_all(
        &self,
        cut: api::Cut,
        by: &str,
    ) -> impl Future<Output = Result<Vec<api::Bottle>, api::Problem>> + Send;

    /// Adds tokens and opens a cut bottle.
    fn restore(
        &self,
        name: &str,
        restore: api::Restore,
        by: &str,
    ) -> impl Future<Output = Result<api::Bottle, api::Problem>> + Send;

    /// Cuts a bottle and freezes its processes.
    fn freeze(
        &self,
        name: &str,
        reason: api::Reason,
        by: &str,
    ) -> impl Future<Output = Result<api::Bottle, api::Problem>> + Send;

    /// Lets the processes of a frozen bottle go on.
    fn thaw(&self, name: &str, by: &str) -> impl Future<Output = Result<api::Bottle, api::Problem>> + Send;

    /// Cuts a bottle and kills its processes, for good.
    fn kill(
        &self,
        name: &str,
        reason: api::Reason,
        by: &str,
    ) -> impl Future<Output = Result<api::Bottle, api::Problem>> + Send;

    /// Takes the settings file as it is now, whole or not at all.
    fn reload(&self, by: &str) -> impl Future<Output = Result<api::Reloaded, api::Problem>> + Send;

    /// Every budget there is.
    fn budgets(&self) -> impl Future<Output = Result<Vec<api::BudgetRow>, api::Problem>> + Send;

    /// Sets, adds to or clears a budget; it as it stands then, `None` when there is none any more.
    fn state_budget(
        &self,
        order: BudgetOrder,
        by: &str,
    ) -> impl Future<Output = Result<Option<api::BudgetRow>, api::Problem>> + Send;

    /// What the bottle needs to trust and reach the meter.
    fn environment(&self, name: &str) -> impl Future<Output = Result<api::Environment, api::Problem>> + Send;

    /// Settled usage.
    fn usage(&self, query: UsageQuery) -> impl Future<Output = Result<Vec<UsageRow>, api::Problem>> + Send;

    /// Single exchanges, those under way included.
    fn flows(&self, query: UsageQuery) -> impl Future<Output = Result<Vec<FlowRow>, api::Problem>> + Send;

    /// Audit rows with an id above `after`, oldest first, at most `limit`.
    fn audit(
        &self,
        after: i64,
        limit: u32,
    ) -> impl Future<Output = Result<Vec<audit::Row>, api::Problem>> + Send;

    /// Whether the process sits in an attached bottle. `true` also when that cannot be told.
    fn holds_process(&self, pid: i32) -> impl Future<Output = bool> + Send;

    /// What happens from now on.
    fn subscribe(&self) -> broadcast::Receiver<Event>;
}

/// One event of `GET /v1/events`: the SSE event's name and its JSON data.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", content = "data", rename_all = "lowercase")]
pub enum Event {
    /// A bottle as it is now: attached, cut, restored, gone.
    State(Box<api::Bottle>),
    /// An exchange was settled; `flows` is 1.
    Usage(Box<UsageRow>),
    /// A row was added to the audit.
    Audit(Box<audit::Row>),
    /// The kernel dropped or refused something of a bottle: the first after a cut, then at most one a second.
    Drop(Box<api::Dropped>),
    /// The reader was too slow and this many events are lost to it: read the status again.
    Lagged(u64),
}

/// Most audit rows in one answer.
pub const AUDIT_LIMIT_MAX: u32 = 10_000;
