//! A bottle that nobody else knows: pins and a cgroup of its own, removed when dropped, also after a failure.
//!
//! `doctor` tries the real programs on it. It is named after this process and touches no other bottle.
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use super::KernelError;
use super::loader::{Loader, unpin_all};
use super::pins::{BPFFS, Pins};
use crate::bottle::cgroup::{self, Cgroup, CgroupError};

/// How long ended processes may take to leave a cgroup.
const LEAVING: Duration = Duration::from_secs(2);

/// Why there is no such bottle.
#[derive(Debug, thiserror::Error)]
pub enum ThrowawayError {
    /// Its cgroup cannot be made.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// The programs cannot be loaded.
    #[error(transparent)]
    Kernel(#[from] KernelError),
}

/// The programs, loaded and not attached yet, and a cgroup for them.
pub struct Throwaway {
    /// The programs and their maps.
    pub loader: Loader,
    /// The cgroup.
    pub cgroup: Cgroup,
    instance: String,
}

impl Throwaway {
    /// Makes one, and removes what a process that was killed over this has left.
    ///
    /// # Errors
    /// When the cgroup cannot be made or the programs be loaded; nothing is left then.
    pub fn make() -> Result<Self, ThrowawayError> {
        sweep();
        let instance = instance(std::process::id());
        let cgroup = Cgroup::create(&cgroup::mount()?.join(directory(&instance)))?;
        match Loader::open(Some(&instance)) {
            Ok(loader) => Ok(Self { loader, cgroup, instance }),
            Err(error) => {
                clean_up(&instance, cgroup.path());
                Err(error.into())
            }
        }
    }

    /// Loads the programs once more, as a controller of another build does that takes over.
    ///
    /// # Errors
    /// See [`Loader::open`].
    pub fn reload(&self) -> Result<Loader, KernelError> {
        Pins::of(Some(&self.instance)).set_build(None)?;
        Loader::open(Some(&self.instance))
    }
}

impl Drop for Throwaway {
    fn drop(&mut self) {
        clean_up(&self.instance, self.cgroup.path());
    }
}

fn instance(pid: u32) -> String {
    format!("doctor-{pid}")
}

/// The name of its cgroup, and of its directory of pins.
fn directory(instance: &str) -> String {
    format!("enforcer-{instance}")
}

/// Removes what a process left that is gone.
fn sweep() {
    let Ok(entries) = fs::read_dir(BPFFS) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let pid = name.to_str().and_then(|name| name.strip_prefix(&directory("doctor-")));
        let Some(pid) = pid.and_then(|pid| pid.parse().ok()) else { continue };
        if !Path::new("/proc").join(format!("{pid}")).exists() {
            remove_left(pid);
        }
    }
}

fn remove_left(pid: u32) {
    let instance = instance(pid);
    match cgroup::mount() {
        Ok(mount) => clean_up(&instance, &mount.join(directory(&instance))),
        Err(error) => tracing::warn!(%error, "the trial that process {pid} left stays"),
    }
}

/// Removes pins and cgroup; what cannot be removed is logged.
fn clean_up(instance: &str, cgroup: &Path) {
    if let Err(error) = unpin_all(Some(instance)) {
        tracing::warn!(%error, "cannot remove the pins of the trial");
    }
    let end = Instant::now() + LEAVING;
    loop {
        match Cgroup::open(cgroup).and_then(Cgroup::remove) {
            Ok(()) | Err(CgroupError::Missing(_)) => return,
            // its processes have been ended; the kernel may still be emptying it
            Err(CgroupError::Busy(_)) if Instant::now() < end => std::thread::sleep(Duration::from_millis(5)),
            Err(error) => return tracing::warn!(%error, "cannot remove the cgroup of the trial"),
        }
    }
}
