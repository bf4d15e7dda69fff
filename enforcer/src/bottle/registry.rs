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
use super::engine::{self, Engine};
use super::namespaces::{Namespaces, Watched};
use super::sockets;
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
        let place = self.place(attach).await?;
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

    /// Where the cgroup is, in one of the ways to say it. Engines are asked.
    async fn place(&self, attach: &api::Attach) -> Result<Place, Problem> {
        let places = [
            attach.cgroup.as_ref().map(|path| Place::Path(PathBuf::from(path))),
            attach.pid.map(Place::Pid),
            attach.create.then(|| Place::New(self.parts.bottles_dir.join(&attach.name))),
        ];
        let mut places = places.into_iter().flatten();
        match (places.next(), places.next(), named(attach).as_slice()) {
            (Some(place), None, []) => Ok(place),
            (None, None, &[(engine, id)]) => {
                Ok(Place::Path(engine::cgroup_of(engine, id).await.map_err(problem)?))
            }
            _ => Err(Problem::usage(
                "say which cgroup: exactly one of cgroup, pid, docker, podman, unit and create",
            )),
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

    /// Hooks on, its network namespaces served, what it may reach written, recorded, open; or nothing. Says what the
    /// operator should know: sockets that were there before (with `hard`, those of them that were made outside are
    /// aborted), what cannot be confined, namespaces that stay closed, names that lead nowhere yet.
    async fn guard(
        &self,
        attachment: &Attachment,
        cgroup: Cgroup,
        hard: bool,
        unconfined: Option<String>,
        by: &str,
    ) -> Result<Vec<String>, Problem> {
        let guard = attachment.guard(self.parts.listener);
        let (kernel, name) = (self.parts.kernel.clone(), attachment.name.clone());
        let forget = Message::Forget { attachment: attachment.id };
        let guarded = blocking(move || {
            kernel.attach(&name, &cgroup, guard).map_err(problem)?;
            Ok((sockets::examine(&cgroup, hard), cgroup))
        });
        let (sockets, cgroup) = match guarded.await? {
            Ok(guarded) => guarded,
            Err(problem) => {
                // nothing is attached or pinned; what is pinned under this name is another's
                self.parts.core.tell(forget);
                return Err(problem);
            }
        };
        let recorded = match check_sockets(attachment, &sockets) {
            Ok(()) => {
                let found = sockets.lines(&attachment.name).into_iter().chain(unconfined).collect();
                self.complete(attachment, cgroup, found, by).await
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

    /// What follows once the hooks are on and drop everything. `found` grows by what is found meanwhile.
    async fn complete(
        &self,
        attachment: &Attachment,
        cgroup: Cgroup,
        mut found: Vec<String>,
        by: &str,
    ) -> Result<Vec<String>, Problem> {
        let Attachment { slot, generation, name, .. } = attachment.clone();
        let confined = Confined { slot, name: name.clone(), mode: attachment.egress };
        found.extend(self.parts.egress.confine(confined).await.map_err(problem)?);
        found.extend(self.parts.namespaces.watch(Watched { slot, generation, name, cgroup }).await);
        let (attachment, by, said) = (attachment.id, by.to_owned(), found.clone());
        self.ask(|reply| Message::Guarded { attachment, by, found: said, reply }).await?;
        Ok(found)
    }

    async fn take_off(&self, attachment: &Attachment) -> Result<(), Problem> {
        let (kernel, egress) = (self.parts.kernel.clone(), self.parts.egress.clone());
        let (name, slot) = (attachment.name.clone(), attachment.slot);
        blocking(move || kernel.detach(&name, slot).and_then(|()| egress.release(slot)).map_err(problem))
            .await??;
        self.parts.namespaces.forget(slot);
        Ok(())
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
            Ok(attachment) => self.guard(&attachment, cgroup, attach.hard, unconfined, by).await,
            Err(problem) => Err(problem),
        };
        let mut warnings = match outcome {
            Ok(found) => found,
            Err(problem) => {
                if let Some(path) = made {
                    remove_cgroup(path).await;
                }
                return Err(problem);
            }
        };
        warnings.extend(named(&attach).into_iter().filter_map(|(engine, id)| engine.warning(id)));
        Ok(api::Attached { bottle: self.bottle(&attach.name).await?, warnings })
    }

    /// With `keep_cut`, the next attachment of that name begins as this one ends.
    async fn detach_whole(
        &self,
        name: String,
        force: bool,
        keep_cut: bool,
        by: String,
    ) -> Result<api::Detached, Problem> {
        let attachment = self.ask(|reply| Message::Release { name, force, keep_cut, by, reply }).await?;
        self.take_off(&attachment).await?;
        self.parts.core.tell(Message::Forget { attachment: attachment.id });
        let path = PathBuf::from(attachment.cgroup);
        let warnings = self.awaited_cgroup(&attachment.name).filter(|awaited| **awaited == path).map(|_| {
            format!(
                "{} stays detached until {} is made anew or the daemon is started again: the settings name that cgroup",
                attachment.name,
                path.display()
            )
        });
        if attachment.owns_cgroup {
            remove_cgroup(path).await;
        }
        Ok(api::Detached { warnings: warnings.into_iter().collect() })
    }

    /// Name and cgroup id of every attached bottle.
    ///
    /// # Errors
    /// When the controller is stopping.
    pub(super) async fn attached(&self) -> Result<Vec<(String, u64)>, Problem> {
        let (models, _) = self.models().await?;
        let attachments = models.into_iter().map(|model| model.attachment);
        Ok(attachments.map(|attachment| (attachment.name, attachment.cgroup_id)).collect())
    }

    /// Has the audit say that a bottle of the settings was not attached.
    pub(super) fn record_not_attached(&self, name: &str, why: &str) {
        self.parts.core.tell(Message::NotAttached { name: name.to_owned(), why: why.to_owned() });
    }

    /// Bottles that the settings give a cgroup, with it.
    pub(super) fn awaited(&self) -> impl Iterator<Item = (String, PathBuf)> {
        let bottles = self.parts.settings.bottles.iter();
        bottles.filter_map(|(name, bottle)| Some((name.clone(), bottle.cgroup.clone()?)))
    }

    /// The cgroup that the settings have this bottle attached to, whenever it is there.
    fn awaited_cgroup(&self, name: &str) -> Option<&PathBuf> {
        self.parts.settings.bottles.get(name)?.cgroup.as_ref()
    }

    /// A bottle whose cgroup is gone holds its name no longer than until it is asked for again. Where that is done by
    /// the settings, a cut goes over to the new one: nobody has restored it.
    async fn end_if_gone(&self, name: &str) -> Result<(), Problem> {
        let (bottles, _) = self.bottles().await?;
        if bottles.iter().any(|bottle| bottle.name == name && bottle.state == api::State::Gone) {
            let keep_cut = self.awaited_cgroup(name).is_some();
            self.detach_whole(name.to_owned(), true, keep_cut, "controller".into()).await?;
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
                kernel: api::Programs {
                    programs: "attached".into(),
                    lease_s: self.parts.settings.lease.map(|lease| lease.as_secs()),
                },
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

    async fn detach(&self, name: &str, force: bool, by: &str) -> Result<api::Detached, Problem> {
        let (registry, name, by) = (self.clone(), name.to_owned(), by.to_owned());
        let detached = tokio::spawn(async move { registry.detach_whole(name, force, false, by).await });
        detached.await.map_err(failed)?
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
        // right in every network namespace: the hooks send who asks for this address to the meter that is there
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

/// Refuses to confine a bottle whose processes hold what could send past every hook already.
fn check_sockets(attachment: &Attachment, sockets: &sockets::Report) -> Result<(), Problem> {
    let past = sockets.past_every_hook().filter(|_| attachment.egress != Egress::Open);
    past.map_or(Ok(()), |past| {
        let (name, mode) = (&attachment.name, attachment.egress.as_str());
        Err(Problem::host(format!("{name} cannot be confined (egress {mode}): {past}"))
            .with_hint("start it with enforcer run, or attach it before its processes open sockets"))
    })
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

/// The engines that are asked, and for what.
fn named(attach: &api::Attach) -> Vec<(Engine, &str)> {
    let ids =
        [(Engine::Docker, &attach.docker), (Engine::Podman, &attach.podman), (Engine::Systemd, &attach.unit)];
    ids.into_iter().filter_map(|(engine, id)| Some((engine, id.as_deref()?))).collect()
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
