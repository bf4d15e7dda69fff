//! The attached bottles: puts hooks on and off around the core's decisions, and answers the control API.
//!
//! An attach is whole or nothing: cgroup checked, slot given (core), hooks on and dropping (kernel), recorded
//! (ledger), opened (core); each failure undoes what came before. Budgets and verdicts are the core's.
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use tokio::sync::{broadcast, oneshot};

use super::cgroup::{self, Cgroup, CgroupError};
use crate::audit;
use crate::control::api::{self, Problem};
use crate::control::{Controller, Event, env, events};
use crate::core::{Admission, BottleModel, Change, CoreHandle, Listener, Message};
use crate::egress::{Confined, Keeper, packets};
use crate::error::Failure;
use crate::kernel::Kernel;
use crate::ledger::{Attachment, FlowRow, LedgerError, Reader, UsageQuery, UsageRow};
use crate::meter::Meter;
use crate::settings::{self, Egress, Policy, Settings};

/// What the registry works with.
pub struct Parts {
    /// Sums and verdicts.
    pub core: CoreHandle,
    /// Hooks and counters.
    pub kernel: Arc<dyn Kernel>,
    /// What confined bottles reach.
    pub egress: Arc<Keeper>,
    /// Defaults.
    pub settings: Arc<Settings>,
    /// Where bottles are sent.
    pub listener: Listener,
    /// The meter process.
    pub meter: Arc<Meter>,
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

    async fn models(&self) -> Result<(Vec<BottleModel>, Option<String>), Problem> {
        Ok(self.parts.core.ask(|reply| Message::View { reply }).await?)
    }

    /// The bottles as `status` shows them: the core's figures with packets and processes.
    ///
    /// # Errors
    /// When the controller is stopping.
    pub async fn bottles(&self) -> Result<(Vec<api::Bottle>, Option<String>), Problem> {
        let (models, closed) = self.models().await?;
        let kernel = self.parts.kernel.clone();
        let bottles =
            blocking(move || models.into_iter().map(|model| show(kernel.as_ref(), model)).collect()).await?;
        Ok((bottles, closed))
    }

    /// Finds and checks the cgroup that is to be guarded; makes it for `run`, and says whether it did.
    async fn find_cgroup(&self, attach: &api::Attach) -> Result<(Cgroup, bool), Problem> {
        let place = self.place(attach)?;
        let bottles_dir = self.parts.bottles_dir.clone();
        let ours: Vec<u32> =
            [Some(std::process::id()), self.parts.meter.standing().pid].into_iter().flatten().collect();
        blocking(move || {
            let (cgroup, made) = match place {
                Place::Path(path) => Cgroup::open(&path).map(|cgroup| (cgroup, false)),
                Place::Pid(pid) => Cgroup::of_pid(pid).map(|cgroup| (cgroup, false)),
                Place::New(path) => make_anew(&path),
            }
            .map_err(problem)?;
            if is_ours(cgroup.path(), &bottles_dir) || ours.into_iter().any(|pid| cgroup.contains(pid)) {
                let path = cgroup.path().display();
                return Err(Problem::usage(format!("{path} holds the enforcer itself"))
                    .with_hint("give the bottle a cgroup of its own, or let enforcer run make one"));
            }
            Ok((cgroup, made))
        })
        .await?
    }

    fn place(&self, attach: &api::Attach) -> Result<Place, Problem> {
        match (&attach.cgroup, attach.pid, attach.create) {
            (Some(path), None, false) => Ok(Place::Path(PathBuf::from(path))),
            (None, Some(pid), false) => Ok(Place::Pid(pid)),
            (None, None, true) => Ok(Place::New(self.parts.bottles_dir.join(&attach.name))),
            _ => Err(Problem::usage("say which cgroup: exactly one of cgroup, pid and create")),
        }
    }

    fn policy(&self, attach: &api::Attach) -> Result<Policy, Problem> {
        let set = self.parts.settings.bottles.get(&attach.name).and_then(|bottle| bottle.shutdown);
        match attach.policy.as_deref() {
            None => Ok(set.unwrap_or(self.parts.settings.shutdown)),
            Some("cutoff") => Ok(Policy::Cutoff),
            Some(word @ ("freeze" | "kill")) => Err(not_yet(&format!("policy {word}"))),
            Some(other) => Err(Problem::usage(format!("{other} is no policy")).with_hint("policies: cutoff")),
        }
    }

    fn egress(&self, attach: &api::Attach) -> Result<Egress, Problem> {
        let set = self.parts.settings.bottles.get(&attach.name).and_then(|bottle| bottle.egress);
        match attach.egress.as_deref() {
            None => Ok(set.unwrap_or(self.parts.settings.egress)),
            Some(word) => Egress::from_word(word).ok_or_else(|| {
                Problem::usage(format!("{word} is no egress mode"))
                    .with_hint("egress modes: open, allowlist, metered")
            }),
        }
    }

    /// Refuses to confine processes that could send past every hook; warns of what cannot be known. `run` keeps its
    /// command from it by itself.
    fn check_confinement(&self, attach: &api::Attach, pids: &[u32]) -> Result<Option<String>, Problem> {
        let mode = self.egress(attach)?;
        if mode == Egress::Open || attach.create || self.parts.kernel.refuses_packet_sockets() {
            return Ok(None);
        }
        let (name, mode) = (&attach.name, mode.as_str());
        match packets::holder(pids) {
            Some(holder) => Err(Problem::host(format!(
                "{name} cannot be confined (egress {mode}): {holder}, and this kernel has no hook on packet sockets"
            ))
            .with_hint("start it with enforcer run, or without the capability (docker run --cap-drop NET_RAW)")),
            None if pids.is_empty() => Ok(Some(format!(
                "{name} has no processes yet: one that comes with CAP_NET_RAW could send past egress {mode} by packet \
                 sockets, on which this kernel has no hook"
            ))),
            None => Ok(None),
        }
    }

    /// Hooks on, what it may reach written, recorded, open; or nothing. What the operator should know of its egress.
    async fn guard(&self, attachment: &Attachment, cgroup: Cgroup, by: &str) -> Result<Vec<String>, Problem> {
        let guard = attachment.guard(self.parts.listener);
        let (kernel, name) = (self.parts.kernel.clone(), attachment.name.clone());
        let forget = Message::Forget { attachment: attachment.id };
        if let Err(problem) = blocking(move || kernel.attach(&name, &cgroup, guard).map_err(problem)).await? {
            // nothing is attached or pinned; what is pinned under this name is another's
            self.parts.core.tell(forget);
            return Err(problem);
        }
        let (id, by) = (attachment.id, by.to_owned());
        let (slot, name, mode) = (attachment.slot, attachment.name.clone(), attachment.egress);
        let confined = self.parts.egress.confine(Confined { slot, name, mode }).await.map_err(problem);
        let recorded = match confined {
            Ok(warnings) => {
                self.ask(|reply| Message::Guarded { attachment: id, by, reply }).await.map(|()| warnings)
            }
            Err(problem) => Err(problem),
        };
        if recorded.is_err() {
            // a slot whose hooks are still on is not given away: it stays closed, and taken
            self.take_off(attachment).await?;
            self.parts.core.tell(forget);
        }
        recorded
    }

    async fn take_off(&self, attachment: &Attachment) -> Result<(), Problem> {
        let (kernel, egress) = (self.parts.kernel.clone(), self.parts.egress.clone());
        let (name, slot) = (attachment.name.clone(), attachment.slot);
        blocking(move || kernel.detach(&name, slot).and_then(|()| egress.release(slot)).map_err(problem))
            .await?
    }

    async fn admit(&self, attach: &api::Attach, cgroup: &Cgroup) -> Result<Attachment, Problem> {
        let admission = Admission {
            name: attach.name.clone(),
            agent: attach.agent.clone(),
            parent: attach.parent.clone(),
            cgroup: cgroup.path().display().to_string(),
            cgroup_id: cgroup.id(),
            owns_cgroup: attach.create,
            policy: self.policy(attach)?.as_str().into(),
            egress: self.egress(attach)?,
            launch_budget: attach.budget.clone(),
        };
        self.ask(|reply| Message::Admit { admission, reply }).await
    }

    async fn attach_whole(&self, attach: api::Attach, by: &str) -> Result<api::Attached, Problem> {
        check_names(&attach)?;
        check_tokens(&attach.budget)?;
        self.policy(&attach)?;
        self.egress(&attach)?;
        self.end_if_gone(&attach.name).await?;
        let (cgroup, made) = self.find_cgroup(&attach).await?;
        let pids = cgroup.pids().map_err(problem)?;
        let unconfined = self.check_confinement(&attach, &pids)?;
        // one that was there already may be another bottle's: it is left alone
        let made = made.then(|| cgroup.path().to_owned());
        let outcome = match self.admit(&attach, &cgroup).await {
            Ok(attachment) => self.guard(&attachment, cgroup, by).await,
            Err(problem) => Err(problem),
        };
        let unreached = match outcome {
            Ok(unreached) => unreached,
            Err(problem) => {
                if let Some(path) = made {
                    remove_cgroup(path).await;
                }
                return Err(problem);
            }
        };
        for detail in unconfined.iter().chain(&unreached).cloned() {
            self.parts.core.tell(Message::Warn { bottle: Some(attach.name.clone()), detail, failed: false });
        }
        let mut warnings = warnings(&attach.name, pids.len());
        warnings.extend(unconfined.into_iter().chain(unreached));
        Ok(api::Attached { bottle: self.bottle(&attach.name).await?, warnings })
    }

    async fn detach_whole(&self, name: String, force: bool, by: String) -> Result<(), Problem> {
        let attachment = self.ask(|reply| Message::Release { name, force, by, reply }).await?;
        self.take_off(&attachment).await?;
        self.parts.core.tell(Message::Forget { attachment: attachment.id });
        if attachment.owns_cgroup {
            remove_cgroup(PathBuf::from(&attachment.cgroup)).await;
        }
        Ok(())
    }

    /// A bottle whose cgroup is gone holds its name no longer than until it is asked for again.
    async fn end_if_gone(&self, name: &str) -> Result<(), Problem> {
        let (bottles, _) = self.bottles().await?;
        if bottles.iter().any(|bottle| bottle.name == name && bottle.state == api::State::Gone) {
            self.detach_whole(name.to_owned(), true, "controller".into()).await?;
        }
        Ok(())
    }
}

enum Place {
    Path(PathBuf),
    Pid(u32),
    New(PathBuf),
}

impl Controller for Registry {
    async fn status(&self) -> api::Status {
        let (bottles, closed) = match self.bottles().await {
            Ok(found) => found,
            Err(problem) => (Vec::new(), Some(problem.error)),
        };
        let standing = self.parts.meter.standing();
        let state = match (standing.pid, standing.serving) {
            (Some(_), true) => "serving",
            (Some(_), false) => "starting",
            (None, _) => "down",
        };
        api::Status {
            daemon: api::Daemon {
                pid: std::process::id(),
                version: env!("CARGO_PKG_VERSION").into(),
                meter: api::Meter {
                    pid: standing.pid,
                    listen: self.parts.listener.address.to_string(),
                    state: state.into(),
                },
                kernel: api::Programs { programs: "attached".into(), lease_s: None },
                closed,
            },
            bottles,
        }
    }

    async fn bottle(&self, name: &str) -> Result<api::Bottle, Problem> {
        let (bottles, _) = self.bottles().await?;
        bottles.into_iter().find(|bottle| bottle.name == name).ok_or_else(|| {
            Problem::usage(format!("there is no bottle {name}"))
                .with_hint("enforcer status lists the attached bottles")
        })
    }

    /// Whole even when the asker leaves in the middle: a task of its own.
    async fn attach(&self, attach: api::Attach, by: &str) -> Result<api::Attached, Problem> {
        let (registry, by) = (self.clone(), by.to_owned());
        tokio::spawn(async move { registry.attach_whole(attach, &by).await }).await.map_err(failed)?
    }

    async fn detach(&self, name: &str, force: bool, by: &str) -> Result<(), Problem> {
        let (registry, name, by) = (self.clone(), name.to_owned(), by.to_owned());
        tokio::spawn(async move { registry.detach_whole(name, force, by).await }).await.map_err(failed)?
    }

    async fn cut(&self, name: &str, cut: api::Cut, by: &str) -> Result<api::Bottle, Problem> {
        check_cut(&cut)?;
        let received = Instant::now();
        self.ask(|reply| Message::Cut { name: name.into(), order: cut, by: by.into(), received, reply })
            .await?;
        self.bottle(name).await
    }

    async fn cut_all(&self, cut: api::Cut, by: &str) -> Result<Vec<api::Bottle>, Problem> {
        check_cut(&cut)?;
        let received = Instant::now();
        let (models, _) = self.models().await?;
        let mut answers = Vec::new();
        for model in models {
            let (reply, answer) = oneshot::channel();
            let (name, order, by) = (model.attachment.name, cut.clone(), by.to_owned());
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

    async fn environment(&self, name: &str) -> Result<api::Environment, Problem> {
        self.bottle(name).await?;
        let Parts { listener, ca_certificate, ca_bundle, .. } = self.parts.as_ref();
        Ok(api::Environment { variables: env::variables(listener.address, ca_certificate, ca_bundle) })
    }

    async fn usage(&self, query: UsageQuery) -> Result<Vec<UsageRow>, Problem> {
        self.query(move |reader| reader.usage(&query)).await
    }

    async fn flows(&self, query: UsageQuery) -> Result<Vec<FlowRow>, Problem> {
        self.query(move |reader| reader.flows(&query)).await
    }

    async fn audit(&self, after: i64, limit: u32) -> Result<Vec<audit::Row>, Problem> {
        self.query(move |reader| reader.audit(after, limit)).await
    }

    /// A process whose cgroup cannot be told is taken for one of a bottle.
    async fn holds_process(&self, pid: i32) -> bool {
        let Ok(pid) = u32::try_from(pid) else { return true };
        let found = blocking(move || cgroup::path_of(pid)).await;
        let (Ok((models, _)), Ok(Ok(path))) = (self.models().await, found) else { return true };
        models.iter().any(|model| path.starts_with(&model.attachment.cgroup))
    }

    fn subscribe(&self) -> broadcast::Receiver<Event> {
        self.events.subscribe()
    }
}

/// One bottle as `status` shows it.
fn show(kernel: &dyn Kernel, model: BottleModel) -> api::Bottle {
    let BottleModel { attachment, cause, usage, budget } = model;
    let cgroup = Cgroup::open(Path::new(&attachment.cgroup));
    // what cannot be opened for another reason is not gone
    let gone = match &cgroup {
        Ok(found) => found.id() != attachment.cgroup_id,
        Err(error) => matches!(error, CgroupError::Missing(_)),
    };
    let pids =
        cgroup.ok().filter(|_| !gone).and_then(|cgroup| cgroup.pids().ok()).map_or(0, |pids| pids.len());
    let state = match (gone, &cause) {
        (true, _) => api::State::Gone,
        (false, Some(_)) => api::State::Cut,
        (false, None) => api::State::Open,
    };
    let packets = kernel.counters(attachment.slot).unwrap_or_else(|error| {
        tracing::warn!(bottle = attachment.name, %error, "packets cannot be read");
        enforcer_ebpf::Counters::default()
    });
    api::Bottle {
        name: attachment.name,
        agent: attachment.agent,
        parent: attachment.parent,
        cgroup: attachment.cgroup,
        pids,
        state,
        face: cause.is_some().then(|| "silent".into()),
        cause,
        policy: attachment.policy,
        egress: attachment.egress.as_str().into(),
        usage,
        budget,
        kernel: api::Packets {
            passed_packets: packets.passed_packets,
            passed_bytes: packets.passed_bytes,
            dropped_packets: packets.dropped_packets,
            dropped_bytes: packets.dropped_bytes,
        },
    }
}

/// The cgroup of a bottle that `run` makes, and whether it was made now: one that an earlier bottle of that name left
/// empty is taken over.
fn make_anew(path: &Path) -> Result<(Cgroup, bool), CgroupError> {
    match Cgroup::create(path) {
        Err(CgroupError::Exists(_)) => {
            let left = Cgroup::open(path)?;
            if left.populated()? { Err(CgroupError::Busy(path.to_owned())) } else { Ok((left, false)) }
        }
        made => made.map(|cgroup| (cgroup, true)),
    }
}

/// Whether a cgroup holds the enforcer's own directories, or is one of them.
fn is_ours(cgroup: &Path, bottles_dir: &Path) -> bool {
    let in_home = bottles_dir.parent().is_some_and(|home| cgroup.starts_with(home));
    bottles_dir.starts_with(cgroup) || (in_home && !cgroup.starts_with(bottles_dir))
}

fn failed(error: tokio::task::JoinError) -> Problem {
    Problem::failed(format!("the controller failed: {error}"))
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Problem> {
    tokio::task::spawn_blocking(work).await.map_err(failed)
}

/// Removes a cgroup that was made for a bottle; one that still holds processes is left, and said.
async fn remove_cgroup(path: PathBuf) {
    let shown = path.display().to_string();
    let removed = blocking(move || Cgroup::open(&path).and_then(Cgroup::remove)).await;
    match removed {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(%error, "the cgroup {shown} stays"),
        Err(problem) => tracing::warn!(problem.error, "the cgroup {shown} stays"),
    }
}

fn check_names(attach: &api::Attach) -> Result<(), Problem> {
    let names = [Some(&attach.name), attach.agent.as_ref(), attach.parent.as_ref()];
    names
        .into_iter()
        .flatten()
        .try_for_each(|name| settings::check_name(name).map_err(|error| Problem::usage(error.to_string())))
}

fn check_tokens(budget: &BTreeMap<String, u64>) -> Result<(), Problem> {
    budget.iter().try_for_each(|(provider, &tokens)| {
        settings::check_tokens(tokens).map_err(|error| Problem::usage(format!("{provider}: {error}")))
    })
}

fn check_cut(cut: &api::Cut) -> Result<(), Problem> {
    match (cut.face.as_deref(), cut.hard) {
        (None | Some("silent"), false) => Ok(()),
        (_, true) => Err(not_yet("a hard cut")),
        (Some("answered"), _) => Err(not_yet("an answered cut")),
        (Some(other), _) => {
            Err(Problem::usage(format!("{other} is no face of a cut")).with_hint("faces: silent"))
        }
    }
}

fn not_yet(what: &str) -> Problem {
    Problem::usage(format!("{what} is not yet in this version"))
}

/// The room's error in the API's words.
fn problem(error: impl Into<Failure>) -> Problem {
    error.into().into()
}

fn warnings(name: &str, pids: usize) -> Vec<String> {
    if pids == 0 {
        return Vec::new();
    }
    vec![format!(
        "{pids} processes were in {name} already: sockets they made before they joined its cgroup are not governed"
    )]
}
