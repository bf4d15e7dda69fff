//! Which cgroup an attach means, in one of the ways to say it; the one of a `run` is made here, and removed.
use std::path::{Path, PathBuf};

use super::{Registry, blocking, problem};
use crate::bottle::cgroup::{Cgroup, CgroupError};
use crate::bottle::engine::{self, Container, Engine, Named};
use crate::control::api::{self, Problem};

impl Registry {
    /// Finds and checks the cgroup that is to be guarded; makes it for `run`, and says whether it did.
    pub(super) async fn find_cgroup(&self, attach: &api::Attach) -> Result<Found, Problem> {
        let place = self.place(attach).await?;
        let bottles_dir = self.parts.bottles_dir.clone();
        let ours: Vec<u32> =
            [Some(std::process::id()), self.parts.meter.standing().pid, self.parts.lane.standing().pid]
                .into_iter()
                .flatten()
                .collect();
        blocking(move || {
            let found = |cgroup| Found { cgroup, made: false, container: None };
            let found = match place {
                Place::Path(path) => Cgroup::open(&path).map(found),
                Place::Pid(pid) => Cgroup::of_pid(pid).map(found),
                Place::Named(Named { cgroup, container }) => {
                    Cgroup::open(&cgroup).map(|cgroup| Found { container, ..found(cgroup) })
                }
                Place::New(path) => make_anew(&path),
            }
            .map_err(problem)?;
            let cgroup = &found.cgroup;
            if is_ours(cgroup.path(), &bottles_dir) || ours.into_iter().any(|pid| cgroup.contains(pid)) {
                let path = cgroup.path().display();
                return Err(Problem::usage(format!("{path} holds the enforcer itself"))
                    .with_hint("give the bottle a cgroup of its own, or let enforcer run make one"));
            }
            Ok(found)
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
                Ok(Place::Named(engine::cgroup_of(engine, id).await.map_err(problem)?))
            }
            _ => Err(Problem::usage(
                "say which cgroup: exactly one of cgroup, pid, docker, podman, unit and create",
            )),
        }
    }
}

/// The cgroup that is to be guarded.
pub(super) struct Found {
    pub(super) cgroup: Cgroup,
    /// Whether it was made for it now.
    pub(super) made: bool,
    /// The container that it is of.
    pub(super) container: Option<Container>,
}

enum Place {
    Named(Named),
    Path(PathBuf),
    Pid(u32),
    New(PathBuf),
}

/// The cgroup of a bottle that `run` makes, and whether it was made now: one that an earlier bottle of that name left
/// empty is taken over.
fn make_anew(path: &Path) -> Result<Found, CgroupError> {
    let (cgroup, made) = match Cgroup::create(path) {
        Err(CgroupError::Exists(_)) => (Cgroup::open(path)?, false),
        made => (made?, true),
    };
    if !made && cgroup.populated()? {
        return Err(CgroupError::Busy(path.to_owned()));
    }
    Ok(Found { cgroup, made, container: None })
}

/// Whether a cgroup holds the enforcer's own directories, or is one of them.
fn is_ours(cgroup: &Path, bottles_dir: &Path) -> bool {
    let in_home = bottles_dir.parent().is_some_and(|home| cgroup.starts_with(home));
    bottles_dir.starts_with(cgroup) || (in_home && !cgroup.starts_with(bottles_dir))
}

/// Removes a cgroup that was made for a bottle; one that still holds processes is left, and said.
pub(super) async fn remove_cgroup(path: PathBuf) {
    let shown = path.display().to_string();
    let removed = blocking(move || Cgroup::open(&path).and_then(Cgroup::remove)).await;
    match removed {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(%error, "the cgroup {shown} stays"),
        Err(problem) => tracing::warn!(problem.error, "the cgroup {shown} stays"),
    }
}

/// The engines that are asked, and for what.
pub(super) fn named(attach: &api::Attach) -> Vec<(Engine, &str)> {
    let ids =
        [(Engine::Docker, &attach.docker), (Engine::Podman, &attach.podman), (Engine::Systemd, &attach.unit)];
    ids.into_iter().filter_map(|(engine, id)| Some((engine, id.as_deref()?))).collect()
}
