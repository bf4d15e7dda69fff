//! The control socket: bound so that nobody else can, served to root and the socket's group alone.
//!
//! Who may ask is decided here; what is asked, in `routes`. A process that sits in a bottle is refused
//! whatever its uid. Its limit: `SO_PEERCRED` names the process that connected, as it was then; a helper
//! outside that passes an open connection into a bottle is not seen.
use std::convert::Infallible;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use nix::sys::stat::{Mode, umask};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::Controller;
use super::routes::{self, Caller};

/// Connections served at once; more wait in the kernel's queue.
const MAX_CONNECTIONS: usize = 256;
/// Longest wait for a request's head; an idle kept connection is closed after it too.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest wait, at shutdown, for requests under way.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);
/// Pause after a failed accept (descriptors exhausted), so that the loop does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// `NGROUPS_MAX` of linux/limits.h: most supplementary groups of a process.
const MAX_GROUPS: usize = 65_536;
/// `SO_PEERGROUPS` of asm-generic/socket.h, which libc does not name.
const SO_PEERGROUPS: libc::c_int = 59;

/// Why the control socket cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// Another daemon serves there.
    #[error("a daemon serves {0} already")]
    InUse(PathBuf),
    /// Something that is no stale socket, or a place where others can write.
    #[error("the control socket {path}: {what}")]
    Unsafe {
        /// The socket's path.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// The operating system said no.
    #[error("the control socket {path}: {what}: {source}")]
    Io {
        /// The socket's path.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// The answer.
        source: io::Error,
    },
}

/// A bound control socket.
#[derive(Debug)]
pub struct Server {
    listener: UnixListener,
    path: PathBuf,
    group: Option<u32>,
}

impl Server {
    /// Binds `path` with mode 0660, owned by `group` when one is given (without one only root is served).
    /// The socket file of a dead daemon is replaced; a last missing directory is made. Needs a tokio runtime.
    ///
    /// # Errors
    /// When a daemon answers there already, when the path is anything but a socket, when somebody else than
    /// this process's user could change its directory, or when the kernel refuses.
    pub fn bind(path: &Path, group: Option<u32>) -> Result<Self, ServerError> {
        let io_error = |what| {
            let path = path.to_owned();
            move |source| ServerError::Io { path, what, source }
        };
        prepare_directory(path)?;
        remove_stale(path)?;
        let listener = bind_closed(path).map_err(io_error("bind"))?;
        let server = Self { listener, path: path.to_owned(), group };
        std::os::unix::fs::lchown(path, None, group).map_err(io_error("change its group"))?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o660)).map_err(io_error("change its mode"))?;
        Ok(server)
    }

    /// Where it listens.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Serves until `shutdown`, then lets requests under way end and removes the socket file.
    pub async fn serve<C: Controller>(self, controller: Arc<C>, shutdown: CancellationToken) {
        let connections = TaskTracker::new();
        let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        while let Some((stream, slot)) = self.accept(&slots, &shutdown).await {
            let caller = identify(&stream, self.group);
            connections.spawn(serve_connection(stream, slot, caller, controller.clone(), shutdown.clone()));
        }
        drop(self);
        connections.close();
        if tokio::time::timeout(DRAIN_TIMEOUT, connections.wait()).await.is_err() {
            tracing::warn!(open = connections.len(), "control connections are dropped at shutdown");
        }
    }

    /// The next connection with its slot; `None` at shutdown.
    async fn accept(
        &self,
        slots: &Arc<Semaphore>,
        shutdown: &CancellationToken,
    ) -> Option<(UnixStream, OwnedSemaphorePermit)> {
        let next = async {
            let slot = slots.clone().acquire_owned().await.ok()?;
            loop {
                match self.listener.accept().await {
                    Ok((stream, _)) => return Some((stream, slot)),
                    Err(error) => {
                        tracing::warn!(%error, "a control connection was not accepted");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                }
            }
        };
        shutdown.run_until_cancelled(next).await.flatten()
    }
}

impl Drop for Server {
    /// Also when it never came to serve: a failed start leaves no socket file.
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "the control socket's file stays");
        }
    }
}

/// Serves the requests of one connection.
async fn serve_connection<C: Controller>(
    stream: UnixStream,
    slot: OwnedSemaphorePermit,
    caller: Caller,
    controller: Arc<C>,
    shutdown: CancellationToken,
) {
    let service = service_fn(|request| {
        let (controller, shutdown, caller) = (controller.clone(), shutdown.clone(), caller.clone());
        async move { Ok::<_, Infallible>(routes::answer(controller, caller, request, shutdown).await) }
    });
    let mut connection = std::pin::pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .serve_connection(TokioIo::new(stream), service)
    );
    let ended = match shutdown.run_until_cancelled(connection.as_mut()).await {
        Some(ended) => ended,
        None => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a control connection ended early");
    }
    drop(slot);
}

/// Binds with mode 0600, so that nobody connects between bind and chown. The mask is the whole process's: a
/// file that another thread makes meanwhile is at worst too closed; two binds take turns.
fn bind_closed(path: &Path) -> io::Result<UnixListener> {
    static TURN: Mutex<()> = Mutex::new(());
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let old_mask = umask(Mode::from_bits_truncate(0o177));
    let bound = UnixListener::bind(path);
    umask(old_mask);
    drop(turn);
    bound
}

/// Makes the socket's directory when only the last step is missing, and refuses one that others can write.
fn prepare_directory(path: &Path) -> Result<(), ServerError> {
    let unsafe_place = |what: String| ServerError::Unsafe { path: path.to_owned(), what };
    let directory = path
        .parent()
        .filter(|directory| directory.is_absolute())
        .ok_or_else(|| unsafe_place("its path must be absolute".to_owned()))?;
    if let Err(source) = DirBuilder::new().mode(0o755).create(directory)
        && source.kind() != io::ErrorKind::AlreadyExists
    {
        return Err(ServerError::Io { path: path.to_owned(), what: "make its directory", source });
    }
    let found = fs::symlink_metadata(directory).map_err(|source| ServerError::Io {
        path: path.to_owned(),
        what: "look at its directory",
        source,
    })?;
    let mine = found.uid() == nix::unistd::geteuid().as_raw();
    if !found.is_dir() || !mine || found.mode() & 0o022 != 0 {
        return Err(unsafe_place(format!(
            "{} must be a directory of this user that nobody else can write, and no link",
            directory.display()
        )));
    }
    Ok(())
}

/// Removes the socket file of a daemon that is gone; refuses anything else that is in the way.
fn remove_stale(path: &Path) -> Result<(), ServerError> {
    let io_error = |what, source| ServerError::Io { path: path.to_owned(), what, source };
    let found = match fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(io_error("look at it", source)),
    };
    if !found.file_type().is_socket() {
        let what = "something that is no socket is in its place".to_owned();
        return Err(ServerError::Unsafe { path: path.to_owned(), what });
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => Err(ServerError::InUse(path.to_owned())),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(|source| io_error("remove the stale one", source))
        }
        Err(source) => Err(io_error("ask who serves it", source)),
    }
}

/// Who is at the other end, and whether the socket's rule lets them ask at all.
fn identify(stream: &UnixStream, group: Option<u32>) -> Caller {
    let Ok(credentials) = stream.peer_cred() else {
        return Caller { uid: None, pid: 0, permitted: false };
    };
    let uid = credentials.uid();
    let permitted =
        uid == 0 || group.is_some_and(|group| is_member(stream.as_fd(), credentials.gid(), group));
    Caller { uid: Some(uid), pid: credentials.pid().unwrap_or(0), permitted }
}

/// Whether the peer's primary or supplementary groups hold `group`; `false` when that cannot be read.
fn is_member(socket: BorrowedFd<'_>, primary: u32, group: u32) -> bool {
    primary == group || peer_groups(socket).is_ok_and(|groups| groups.contains(&group))
}

/// Supplementary groups of the peer when it connected.
fn peer_groups(socket: BorrowedFd<'_>) -> io::Result<Vec<u32>> {
    let mut groups = vec![0_u32; MAX_GROUPS];
    let mut bytes = libc::socklen_t::try_from(MAX_GROUPS * size_of::<u32>()).map_err(io::Error::other)?;
    // SAFETY: `groups` is writable for `bytes` bytes and the kernel writes no more than that; `bytes` is a
    // valid socklen_t for the length of what was written.
    let refused = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_PEERGROUPS,
            groups.as_mut_ptr().cast(),
            &raw mut bytes,
        )
    };
    if refused != 0 {
        return Err(io::Error::last_os_error());
    }
    groups.truncate(usize::try_from(bytes).map_err(io::Error::other)? / size_of::<u32>());
    Ok(groups)
}
