//! Where Enforcer itself sits in the cgroup tree: a directory of its own beside all bottles.
//!
//! `MOUNT/enforcer[-INSTANCE]/{controller,meter,lane/process,bottles/…}`. Under systemd the controller stays in its unit's
//! cgroup, which is its own already. No bottle may contain any of it; the registry checks that.
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::cgroup::{self, CgroupError};

/// What can go wrong while the directories are made.
#[derive(Debug, thiserror::Error)]
pub enum HomeError {
    /// There is no usable cgroup v2 mount.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// A directory cannot be made, entered or removed.
    #[error("{path}: {source}")]
    Io {
        /// Which.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
}

/// The directories, and where the controller came from.
#[derive(Debug)]
pub struct Home {
    root: PathBuf,
    origin: Option<PathBuf>,
}

impl Home {
    /// Makes the directories and moves this process into its own, unless a service manager gave it one.
    ///
    /// # Errors
    /// When there is no cgroup v2 mount or it cannot be written.
    pub fn enter(instance: Option<&str>, managed: bool) -> Result<Self, HomeError> {
        let mount = cgroup::mount()?;
        let mut home = Self { root: mount.join(directory(instance)), origin: None };
        let meter = home.root.join("meter");
        for dir in [home.root.clone(), meter, home.lane(), home.lane_process(), home.bottles()] {
            make(&dir)?;
        }
        if !managed {
            let own = home.root.join("controller");
            make(&own)?;
            home.origin = Some(cgroup::path_of(std::process::id())?);
            enter(&own)?;
        }
        Ok(home)
    }

    /// `cgroup.procs` of the meter's cgroup.
    #[must_use]
    pub fn meter_procs(&self) -> PathBuf {
        self.root.join("meter/cgroup.procs")
    }

    /// The refusal lane's cgroup: its sockets are made in it.
    #[must_use]
    pub fn lane(&self) -> PathBuf {
        self.root.join("lane")
    }

    /// The cgroup of the lane's process, below [`Self::lane`].
    #[must_use]
    pub fn lane_process(&self) -> PathBuf {
        self.lane().join("process")
    }

    /// The directory that `run`'s bottles are made in.
    #[must_use]
    pub fn bottles(&self) -> PathBuf {
        self.root.join("bottles")
    }
}

impl Drop for Home {
    /// Goes back to where the controller came from and removes what is empty, also after a start that failed.
    /// Bottles that are left stay.
    fn drop(&mut self) {
        if let Some(origin) = &self.origin
            && let Err(error) = enter(origin)
        {
            tracing::debug!(%error, "the cgroup that the controller came from is gone");
        }
        for dir in ["controller", "meter", "lane/process", "lane", "bottles", ""] {
            remove(&self.root.join(dir));
        }
    }
}

fn directory(instance: Option<&str>) -> String {
    instance.map_or_else(|| "enforcer".into(), |instance| format!("enforcer-{instance}"))
}

fn make(dir: &Path) -> Result<(), HomeError> {
    match fs::create_dir(dir) {
        Err(source) if source.kind() != io::ErrorKind::AlreadyExists => {
            Err(HomeError::Io { path: dir.to_owned(), source })
        }
        _ => Ok(()),
    }
}

fn enter(dir: &Path) -> Result<(), HomeError> {
    let path = dir.join("cgroup.procs");
    fs::write(&path, "0").map_err(|source| HomeError::Io { path, source })
}

/// An empty directory goes; one that holds processes or bottles stays, which is no error.
fn remove(dir: &Path) {
    if let Err(error) = fs::remove_dir(dir) {
        tracing::debug!(dir = %dir.display(), %error, "this cgroup stays");
    }
}
