//! The control API's questions, and who answers each.
use std::time::Instant;

use tokio::sync::{broadcast, oneshot};

use super::asked::check_tokens;
use super::{Parts, Registry, blocking, failed};
use crate::audit;
use crate::bottle::cgroup;
use crate::control::api::{self, Problem};
use crate::control::{Controller, Event, env};
use crate::core::{BudgetOrder, Message};
use crate::ledger::{FlowRow, UsageQuery, UsageRow};

impl Controller for Registry {
    async fn status(&self) -> api::Status {
        let (bottles, closed) = match self.bottles().await {
            Ok(found) => found,
            Err(problem) => (Vec::new(), Some(problem.error)),
        };
        let (meter, lane) = (self.parts.meter.standing(), self.parts.lane.standing());
        api::Status {
            daemon: api::Daemon {
                pid: std::process::id(),
                version: env!("CARGO_PKG_VERSION").into(),
                meter: api::Meter {
                    pid: meter.pid,
                    listen: self.parts.listener.address.to_string(),
                    state: meter.as_str().into(),
                },
                lane: api::Lane { pid: lane.pid, state: lane.as_str().into() },
                kernel: api::Programs {
                    programs: "attached".into(),
                    lease_s: self.settings().lease.map(|lease| lease.as_secs()),
                },
                closed,
            },
            bottles,
        }
    }

    async fn bottle(&self, name: &str) -> Result<api::Bottle, Problem> {
        self.find(name).await?.ok_or_else(|| {
            Problem::usage(format!("there is no bottle {name}"))
                .with_hint("enforcer status lists the attached bottles")
        })
    }

    /// Whole even when the asker leaves in the middle: a task of its own.
    async fn attach(&self, attach: api::Attach, by: &str) -> Result<api::Attached, Problem> {
        let (registry, by) = (self.clone(), by.to_owned());
        tokio::spawn(async move { registry.attach_whole(attach, &by).await }).await.map_err(failed)?
    }

    async fn detach(&self, name: &str, force: bool, by: &str) -> Result<api::Detached, Problem> {
        let (registry, name, by) = (self.clone(), name.to_owned(), by.to_owned());
        let detached = tokio::spawn(async move { registry.detach_whole(name, force, false, by).await });
        detached.await.map_err(failed)?
    }

    async fn cut(&self, name: &str, cut: api::Cut, by: &str) -> Result<api::Bottle, Problem> {
        let received = Instant::now();
        self.ask(|reply| Message::Cut { name: name.into(), order: cut, by: by.into(), received, reply })
            .await?;
        self.bottle(name).await
    }

    async fn cut_all(&self, cut: api::Cut, by: &str) -> Result<Vec<api::Bottle>, Problem> {
        let received = Instant::now();
        let mut answers = Vec::new();
        for (name, _) in self.attached().await? {
            let (reply, answer) = oneshot::channel();
            let (order, by) = (cut.clone(), by.to_owned());
            self.parts.core.tell(Message::Cut { name, order, by, received, reply });
            answers.push(answer);
        }
        let mut outcomes = Vec::new();
        for answer in answers {
            outcomes.push(answer.await.map_err(|_| crate::core::CoreGone)?);
        }
        let bottles = self.bottles().await?.0;
        // a bottle that was detached meanwhile is no reason to call the order failed
        let failed =
            outcomes.into_iter().find_map(|outcome| outcome.err().filter(|problem| problem.exit_code != 2));
        failed.map_or(Ok(bottles), Err)
    }

    async fn restore(&self, name: &str, restore: api::Restore, by: &str) -> Result<api::Bottle, Problem> {
        check_tokens(&restore.add)?;
        self.ask(|reply| Message::Restore { name: name.into(), order: restore, by: by.into(), reply })
            .await?;
        self.bottle(name).await
    }

    async fn freeze(&self, name: &str, order: api::Reason, by: &str) -> Result<api::Bottle, Problem> {
        let received = Instant::now();
        self.ask(|reply| Message::Freeze { name: name.into(), order, by: by.into(), received, reply })
            .await?;
        self.bottle(name).await
    }

    async fn thaw(&self, name: &str, by: &str) -> Result<api::Bottle, Problem> {
        let received = Instant::now();
        self.ask(|reply| Message::Thaw { name: name.into(), by: by.into(), received, reply }).await?;
        self.bottle(name).await
    }

    /// The bottle as it was killed, also when whoever ran it has detached it meanwhile.
    async fn kill(&self, name: &str, order: api::Reason, by: &str) -> Result<api::Bottle, Problem> {
        let received = Instant::now();
        let before = self.bottle(name).await?;
        self.ask(|reply| Message::Kill { name: name.into(), order, by: by.into(), received, reply }).await?;
        let now = self.find(name).await?;
        Ok(now.unwrap_or(api::Bottle { state: api::State::Killed, pids: 0, ..before }))
    }

    async fn reload(&self, by: &str) -> Result<api::Reloaded, Problem> {
        let (reload, by) = (self.parts.reload.clone(), by.to_owned());
        // whole even when the asker leaves in the middle
        tokio::spawn(async move { reload.now(&by).await }).await.map_err(failed)?
    }

    async fn environment(&self, name: &str) -> Result<api::Environment, Problem> {
        self.bottle(name).await?;
        let Parts { listener, ca_certificate, ca_bundle, .. } = self.parts.as_ref();
        // right in every network namespace: the hooks send who asks for this address to the meter that is there
        Ok(api::Environment {
            variables: env::variables(listener.address, ca_certificate, ca_bundle),
            config: env::config_lines(listener.address),
        })
    }

    async fn budgets(&self) -> Result<Vec<api::BudgetRow>, Problem> {
        Ok(self.parts.core.ask(|reply| Message::Budgets { reply }).await?)
    }

    async fn state_budget(&self, order: BudgetOrder, by: &str) -> Result<Option<api::BudgetRow>, Problem> {
        self.stated(order, by).await
    }

    async fn usage(&self, query: UsageQuery) -> Result<Vec<UsageRow>, Problem> {
        let weights = self.parts.settings.borrow().weights;
        let rows = self.query(move |reader| reader.usage(&query, &weights)).await?;
        self.name_governing(rows).await
    }

    async fn flows(&self, query: UsageQuery) -> Result<Vec<FlowRow>, Problem> {
        let weights = self.parts.settings.borrow().weights;
        self.query(move |reader| reader.flows(&query, &weights)).await
    }

    async fn audit(&self, after: i64, limit: u32) -> Result<Vec<audit::Row>, Problem> {
        self.query(move |reader| reader.audit(after, limit)).await
    }

    /// A process whose cgroup cannot be told is taken for one of a bottle.
    async fn holds_process(&self, pid: i32) -> bool {
        let Ok(pid) = u32::try_from(pid) else { return true };
        let found = blocking(move || cgroup::path_of(pid)).await;
        let Ok(Ok(cgroup)) = found else { return true };
        self.parts.core.ask(|reply| Message::Holds { cgroup, reply }).await.unwrap_or(true)
    }

    fn subscribe(&self) -> broadcast::Receiver<Event> {
        self.events.subscribe()
    }
}
