//! Attach and detach: whole or nothing, around the core's decisions.
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use super::asked::{check_names, check_tokens};
use super::cgroups::{Found, named, remove_cgroup};
use super::confine::{Judged, check_sockets};
use super::{Registry, blocking, problem};
use crate::bottle::cgroup::Cgroup;
use crate::bottle::engine::Container;
use crate::bottle::namespaces::Watched;
use crate::bottle::sockets;
use crate::control::Controller as _;
use crate::control::api::{self, Problem};
use crate::core::{Admission, Listener, Message};
use crate::egress::Confined;
use crate::kernel::Guard;
use crate::ledger::Attachment;
use crate::settings::Unattached;

impl Registry {
    /// Hooks on, its network namespaces served, what it may reach written, recorded, open; or nothing. Says what the
    /// operator should know: sockets that were there before (with `hard`, those of them that were made outside are
    /// aborted), what cannot be confined, namespaces that stay closed, names that lead nowhere yet.
    async fn guard(
        &self,
        attachment: &Attachment,
        cgroup: Cgroup,
        hard: bool,
        judged: Judged,
        by: &str,
    ) -> Result<Vec<String>, Problem> {
        let guard = Guard { mute: judged.mute, ..attachment.guard(self.parts.listener) };
        let (kernel, name) = (self.parts.kernel.clone(), attachment.name.clone());
        let forget = Message::Forget { attachment: attachment.id };
        let Listener { address, beside, .. } = self.parts.listener;
        let hosts = (self.settings().unattached == Unattached::Meter)
            .then(|| [Some(address), beside].into_iter().flatten().collect::<Vec<_>>());
        let guarded = blocking(move || {
            kernel.attach(&name, &cgroup, guard).map_err(problem)?;
            let sockets = sockets::examine(&cgroup, hard);
            let ended = hosts.and_then(|meter| end_hosts(&cgroup, &meter));
            Ok((cgroup, sockets, ended))
        });
        let (cgroup, sockets, ended) = match guarded.await? {
            Ok(guarded) => guarded,
            Err(problem) => {
                // nothing is attached or pinned; what is pinned under this name is another's
                self.parts.core.tell(forget);
                return Err(problem);
            }
        };
        let recorded = match check_sockets(attachment, &sockets) {
            Ok(()) => {
                let found =
                    sockets.lines(&attachment.name).into_iter().chain(ended).chain(judged.warnings).collect();
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

    async fn admit(
        &self,
        attach: &api::Attach,
        cgroup: &Cgroup,
        container: Option<Container>,
        mute: bool,
    ) -> Result<Attachment, Problem> {
        let admission = Admission {
            name: attach.name.clone(),
            agent: attach.agent.clone(),
            parent: attach.parent.clone(),
            cgroup: cgroup.path().display().to_string(),
            cgroup_id: cgroup.id(),
            owns_cgroup: attach.create,
            container,
            policy: self.policy(attach)?,
            egress: self.egress(attach)?,
            launch_budget: attach.budget.clone(),
            mute,
        };
        self.ask(|reply| Message::Admit { admission, reply }).await
    }

    pub(super) async fn attach_whole(&self, attach: api::Attach, by: &str) -> Result<api::Attached, Problem> {
        check_names(&attach)?;
        check_tokens(&attach.budget)?;
        self.policy(&attach)?;
        self.egress(&attach)?;
        self.end_if_gone(&attach.name).await?;
        let Found { cgroup, made, container } = self.find_cgroup(&attach).await?;
        let (registry, asked) = (self.clone(), attach.clone());
        let judged = blocking(move || {
            let pids = cgroup.pids().map_err(problem)?;
            Ok::<_, Problem>((registry.judge(&asked, &pids)?, cgroup))
        });
        let (judged, cgroup) = judged.await??;
        // one that was there already may be another bottle's: it is left alone
        let made = made.then(|| cgroup.path().to_owned());
        let outcome = match self.admit(&attach, &cgroup, container, judged.mute).await {
            Ok(attachment) => self.guard(&attachment, cgroup, attach.hard, judged, by).await,
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
    pub(super) async fn detach_whole(
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
        let warnings = self.awaited_cgroup(&attachment.name).filter(|awaited| *awaited == path).map(|_| {
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

    /// A bottle whose cgroup is gone holds its name no longer than until it is asked for again. Where that is done by
    /// the settings, a cut goes over to the new one: nobody has restored it.
    async fn end_if_gone(&self, name: &str) -> Result<(), Problem> {
        let found = self.find(name).await?;
        // of a killed one, the cgroup of our own making is gone
        let is_gone = |bottle: api::Bottle| match bottle.state {
            api::State::Gone => true,
            api::State::Killed => !Path::new(&bottle.cgroup).exists(),
            _ => false,
        };
        if found.is_some_and(is_gone) {
            let keep_cut = self.awaited_cgroup(name).is_some();
            self.detach_whole(name.to_owned(), true, keep_cut, "controller".into()).await?;
        }
        Ok(())
    }
}

/// Ends what the meter took for the host's; what the operator should know of it.
fn end_hosts(cgroup: &Cgroup, meter: &[SocketAddr]) -> Option<String> {
    match sockets::abort_hosts(cgroup, meter) {
        Ok(0) => None,
        Ok(many) => Some(format!("{many} connections to the meter that counted as the host's were aborted")),
        Err(error) => Some(format!(
            "connections to the meter that were there before may go on as the host's: they cannot be aborted: {error}"
        )),
    }
}
