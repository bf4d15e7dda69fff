//! Bottles that the settings give a cgroup: attached as soon as it is there, and again when it was made anew.
//!
//! Watches the directories above each (inotify), and looks once a second besides. How a bottle is attached is the
//! registry's; here is only when. A bottle that an operator detached stays so until its cgroup is another one.
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::io::Errno;
use tokio::io::unix::AsyncFd;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::cgroup::{self, CgroupError};
use super::registry::Registry;
use crate::control::Controller as _;
use crate::control::api;
use crate::settings::Live;

/// How often is looked without a reason: for what no watch tells (another bottle let go of the cgroup, a watch that
/// could not be had).
const LOOK: Duration = Duration::from_secs(1);
/// Least time between two looks, so that a storm of new directories costs little.
const PAUSE: Duration = Duration::from_millis(5);
/// A refused attach is tried again after this long although nothing seems to have changed.
const RETRY: Duration = Duration::from_secs(5);

/// The bottles that wait, or have what they waited for.
pub struct Awaited {
    registry: Arc<Registry>,
    settings: Live,
    /// `None` where the host has none to give: then is looked once a second alone.
    inotify: Option<Arc<AsyncFd<OwnedFd>>>,
    /// Nothing above it is watched.
    mount: PathBuf,
    watches: BTreeSet<i32>,
    bottles: Vec<Bottle>,
}

struct Bottle {
    name: String,
    path: PathBuf,
    standing: Standing,
}

/// Names and cgroups of what is attached: while it stays the same, a refusal does too.
type World = Vec<(String, u64)>;

/// What became of the cgroup that was seen last.
#[derive(Debug, PartialEq, Eq)]
enum Standing {
    /// There was none.
    Absent,
    /// It was attached, by whomever; it may have been detached since.
    Met(u64),
    /// It was not attached.
    Refused { cgroup: u64, why: String, world: World, at: Instant },
}

impl Awaited {
    /// The settings' bottles that have a cgroup; those that are nested in others come after them. Needs a tokio
    /// runtime.
    ///
    /// # Errors
    /// When there is no cgroup v2 on this host.
    pub fn new(registry: Arc<Registry>) -> Result<Self, CgroupError> {
        let mut awaited = Self {
            settings: registry.settings_changes(),
            registry,
            inotify: None,
            mount: cgroup::mount()?,
            watches: BTreeSet::new(),
            bottles: Vec::new(),
        };
        awaited.follow_settings();
        Ok(awaited)
    }

    /// Makes the bottles those that the settings have now; what was met of one that stays is remembered.
    fn follow_settings(&mut self) {
        self.settings.mark_unchanged();
        let mut before = std::mem::take(&mut self.bottles);
        for (name, path) in self.registry.awaited() {
            let known = before.iter().position(|bottle| bottle.name == name && bottle.path == path);
            self.bottles.push(match known {
                Some(index) => before.swap_remove(index),
                None => Bottle { name, path, standing: Standing::Absent },
            });
        }
        self.bottles.sort_by(|a, b| a.path.cmp(&b.path));
        if !self.bottles.is_empty() && self.inotify.is_none() {
            self.inotify = open_inotify();
        }
    }

    /// Goes on looking until told to stop.
    #[must_use]
    pub fn start(mut self, stop: CancellationToken) -> JoinHandle<()> {
        tokio::spawn(async move {
            while stop.run_until_cancelled(self.something_new()).await.is_some() {
                if self.settings.has_changed().unwrap_or(false) {
                    self.follow_settings();
                }
                self.look().await;
                tokio::time::sleep(PAUSE).await;
            }
        })
    }

    /// Attaches what is there and was not met yet. Watches are placed before, so that nothing comes unseen.
    pub async fn look(&mut self) {
        let paths: Vec<PathBuf> = self.bottles.iter().map(|bottle| bottle.path.clone()).collect();
        let (inotify, mount) = (self.inotify.clone(), self.mount.clone());
        let before = std::mem::take(&mut self.watches);
        let looked = tokio::task::spawn_blocking(move || {
            let place = |inotify: Arc<AsyncFd<OwnedFd>>| {
                place_watches(inotify.get_ref().as_fd(), &paths, &mount, &before)
            };
            let watches = inotify.map(place);
            let seen: Vec<Option<u64>> = paths.iter().map(|path| identity(path)).collect();
            (watches.unwrap_or_default(), seen)
        });
        let Ok((watches, seen)) = looked.await else {
            tracing::error!("the cgroups of the settings could not be looked for");
            return;
        };
        self.watches = watches;
        for (index, cgroup) in seen.into_iter().enumerate() {
            self.meet(index, cgroup).await;
        }
    }

    /// Attaches one bottle if it is due.
    async fn meet(&mut self, index: usize, cgroup: Option<u64>) {
        let bottle = &mut self.bottles[index];
        let Some(cgroup) = cgroup else {
            bottle.standing = Standing::Absent;
            return;
        };
        if bottle.standing == Standing::Met(cgroup) {
            return;
        }
        // a controller that is stopping attaches nothing
        let Ok(world) = self.registry.attached().await else { return };
        if world.iter().any(|(name, attached)| *name == bottle.name && *attached == cgroup) {
            bottle.standing = Standing::Met(cgroup);
            return;
        }
        if !bottle.standing.is_due(cgroup, &world, Instant::now()) {
            return;
        }
        let attach = api::Attach {
            name: bottle.name.clone(),
            cgroup: Some(bottle.path.display().to_string()),
            ..api::Attach::default()
        };
        bottle.standing = match self.registry.attach(attach, "controller").await {
            Ok(attached) => {
                tracing::info!(
                    bottle = bottle.name,
                    cgroup = attached.bottle.cgroup,
                    "attached, as the settings say"
                );
                attached.warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
                Standing::Met(cgroup)
            }
            Err(problem) => {
                if !bottle.standing.is_known(cgroup, &problem.error) {
                    tracing::warn!(bottle = bottle.name, "not attached: {}", problem.error);
                    self.registry.record_not_attached(&bottle.name, &problem.error);
                }
                Standing::Refused { cgroup, why: problem.error, world, at: Instant::now() }
            }
        };
    }

    /// Returns when a watched directory or the settings changed, or a second later; while no bottle waits, only the
    /// settings can give a reason.
    async fn something_new(&mut self) {
        let (waits, inotify) = (!self.bottles.is_empty(), self.inotify.clone());
        let changed = async {
            match &inotify {
                Some(inotify) => drain(inotify).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            // each is a reason to look; settings that cannot change any more are none
            Ok(()) = self.settings.changed() => self.settings.mark_changed(),
            () = changed, if waits => {}
            () = tokio::time::sleep(LOOK), if waits => {}
            else => std::future::pending().await,
        }
    }
}

impl Standing {
    /// Whether the cgroup that is there now is to be attached.
    fn is_due(&self, now_there: u64, world: &World, now: Instant) -> bool {
        match self {
            Self::Absent => true,
            Self::Met(met) => *met != now_there,
            Self::Refused { cgroup, world: then, at, .. } => {
                *cgroup != now_there || then != world || now.duration_since(*at) >= RETRY
            }
        }
    }

    /// Whether this refusal has been told already.
    fn is_known(&self, now_there: u64, words: &str) -> bool {
        matches!(self, Self::Refused { cgroup, why, .. } if *cgroup == now_there && why == words)
    }
}

fn open_inotify() -> Option<Arc<AsyncFd<OwnedFd>>> {
    let opened = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).map_err(io::Error::from);
    // SAFETY: the descriptor is owned by the `AsyncFd`, which nothing here closes or replaces it in.
    match opened.and_then(|inotify| Ok(unsafe { AsyncFd::register(inotify) }?)) {
        Ok(inotify) => Some(Arc::new(inotify)),
        Err(error) => {
            tracing::warn!(%error, "no inotify; the cgroups of the settings are looked for once a second");
            None
        }
    }
}

/// Waits until there are events, and takes them all: which they are does not matter.
async fn drain(inotify: &AsyncFd<OwnedFd>) {
    let Ok(mut ready) = inotify.readable().await else { return };
    let mut buffer = [MaybeUninit::uninit(); 4096];
    let mut events = inotify::Reader::new(inotify.get_ref(), &mut buffer);
    while events.next().is_ok() {}
    ready.clear_ready();
}

/// Watches the directories above each path, and gives up the watches of before that are not needed any more.
fn place_watches(
    inotify: BorrowedFd<'_>,
    paths: &[PathBuf],
    mount: &Path,
    before: &BTreeSet<i32>,
) -> BTreeSet<i32> {
    let mut placed = BTreeSet::new();
    for path in paths {
        if let Err(error) = watch_above(inotify, path, mount, &mut placed) {
            tracing::debug!(%error, path = %path.display(), "no watch; it is looked for once a second");
        }
    }
    for watch in before.difference(&placed) {
        match inotify::remove_watch(inotify, *watch) {
            Ok(()) | Err(Errno::INVAL) => {}
            Err(error) => tracing::debug!(%error, "a watch stays"),
        }
    }
    placed
}

/// Watches every directory that exists above a path, the highest first: whatever changes below a watch that is placed
/// is news. The end of a directory is told by the one above it alone: cgroups do not tell their own.
fn watch_above(
    inotify: BorrowedFd<'_>,
    path: &Path,
    mount: &Path,
    placed: &mut BTreeSet<i32>,
) -> io::Result<()> {
    let levels: Vec<&Path> = path.ancestors().skip(1).take_while(|level| level.starts_with(mount)).collect();
    let flags = WatchFlags::CREATE | WatchFlags::DELETE | WatchFlags::ONLYDIR;
    for level in levels.into_iter().rev() {
        match inotify::add_watch(inotify, level, flags) {
            Ok(watch) => placed.insert(watch),
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
    }
    Ok(())
}

/// Inode of what stands at a path; `None` when nothing does. What cannot be told is 0, which no cgroup has: the
/// attach finds out, and says why it does not work.
fn identity(path: &Path) -> Option<u64> {
    match fs::symlink_metadata(path) {
        Ok(metadata) => Some(metadata.ino()),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => None,
        Err(_) => Some(0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_new_is_due_and_a_refusal_when_something_changed() {
        let now = Instant::now();
        let world = vec![("a".to_owned(), 1)];
        assert!(Standing::Absent.is_due(5, &world, now));
        assert!(!Standing::Met(5).is_due(5, &world, now), "an operator may have detached it");
        assert!(Standing::Met(5).is_due(6, &world, now), "made anew");
        let refused = Standing::Refused { cgroup: 5, why: "no".into(), world: world.clone(), at: now };
        assert!(!refused.is_due(5, &world, now));
        assert!(refused.is_due(6, &world, now), "made anew");
        assert!(refused.is_due(5, &vec![], now), "another bottle was detached");
        assert!(refused.is_due(5, &world, now + RETRY));
        assert!(refused.is_known(5, "no") && !refused.is_known(5, "never") && !refused.is_known(6, "no"));
    }

    #[tokio::test]
    async fn a_change_of_what_is_above_is_news_and_of_nothing_else() {
        let top = tempfile::tempdir().unwrap();
        let [a, aside] = ["a", "aside"].map(|name| top.path().join(name));
        let path = a.join("b/c");
        fs::create_dir_all(&a).unwrap();
        fs::create_dir(&aside).unwrap();
        let inotify = open_inotify().unwrap();
        let place = |paths: &[PathBuf], before: &BTreeSet<i32>| {
            place_watches(inotify.get_ref().as_fd(), paths, top.path(), before)
        };
        let news = async || tokio::time::timeout(Duration::from_millis(200), drain(&inotify)).await.is_ok();
        let first = place(&[path.clone(), aside.join("x")], &BTreeSet::new());
        assert_eq!(first.len(), 3, "top, a and aside");
        assert!(!news().await);
        fs::create_dir(a.join("b")).unwrap();
        assert!(news().await);
        let second = place(std::slice::from_ref(&path), &first);
        assert_eq!((second.len(), first.intersection(&second).count()), (3, 2), "top, a and b");
        // the end of a watch is an event itself
        assert!(news().await);
        fs::create_dir(aside.join("x")).unwrap();
        assert!(!news().await, "that watch was given up");
        fs::create_dir(&path).unwrap();
        assert!(news().await);
        assert_eq!(identity(&path), Some(fs::metadata(&path).unwrap().ino()));
        fs::remove_dir_all(&a).unwrap();
        assert!(news().await);
        assert_eq!(identity(&path), None);
    }
}
