//! The processes that the controller keeps running beside itself (the meter, the refusal lane): started, spoken to,
//! watched, reaped and started again, with a wait that grows.
//!
//! What is said to one and what its words mean is its own room's; here is only that it is there. The controller holds
//! their listening sockets (`listeners`), so that a restart refuses nobody, and signs their certificates (`signer`).
pub mod listeners;
pub mod signer;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use meter_proxy::protocol::{self, ProtocolError};
use serde::de::DeserializeOwned;
use tracing::level_filters::LevelFilter;

/// User and group of helpers when there is no user named `enforcer-meter`: an id that no distribution gives out.
const FALLBACK_ID: u32 = 64_911;
/// The helpers' user, if the operator made one.
const HELPER_USER: &str = "enforcer-meter";
/// First and longest wait before a helper that ended is started again.
const RESTART_WAIT: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));
/// A helper that lived this long starts again after the first wait.
const STEADY: Duration = Duration::from_secs(10);

/// What a helper is to the controller. All calls come from the threads of its supervisor.
pub trait Helper: Send + Sync + 'static {
    /// Its name in logs and of its threads.
    const NAME: &'static str;
    /// What it is told.
    type Order: Send + 'static;
    /// What it says.
    type Word: DeserializeOwned;

    /// Tells a process that has just started all that it is to know; changes from here on go into the `link`.
    ///
    /// # Errors
    /// When it is gone already.
    fn introduce(&self, socket: &OwnedFd, link: &Sender<Self::Order>) -> Result<(), ProtocolError>;

    /// Sends one order, with what belongs to it.
    ///
    /// # Errors
    /// When it is gone.
    fn send(&self, socket: &OwnedFd, order: &Self::Order) -> Result<(), ProtocolError>;

    /// It has been introduced and can be told more through `link`; `epoch` grows with each process.
    fn connected(&self, epoch: u64, link: &Sender<Self::Order>);

    /// It said something. Whether that was that it serves.
    fn heard(&self, epoch: u64, word: Self::Word, received: Instant, link: &Sender<Self::Order>) -> bool;

    /// It is reaped. Every copy of the link is to be dropped.
    fn lost(&self, epoch: u64);
}

/// How a helper's process is started.
#[derive(Clone, Debug)]
pub struct Launch {
    /// Path of its program.
    pub program: PathBuf,
    /// What comes before the options of its command line.
    pub role: Option<&'static str>,
    /// How much it logs, unless `ENFORCER_LOG` says more exactly.
    pub log: LevelFilter,
    /// `cgroup.procs` of the cgroup it is moved to; `None`: it stays in the controller's.
    pub cgroup_procs: Option<PathBuf>,
}

/// What the supervisor knows of the process, for `status`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// Process id while there is one.
    pub pid: Option<u32>,
    /// Whether it has said that it serves.
    pub serving: bool,
}

impl Standing {
    /// `serving`, `starting` or `down`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match (self.pid, self.serving) {
            (Some(_), true) => "serving",
            (Some(_), false) => "starting",
            (None, _) => "down",
        }
    }
}

/// Keeps one process of a helper running; see [`Supervisor::start`].
pub struct Supervisor {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Default)]
struct Shared {
    standing: Mutex<Standing>,
    changed: Condvar,
    stopping: AtomicBool,
    /// The controller's end of the socket, for the stop to close.
    socket: Mutex<Option<Arc<OwnedFd>>>,
}

impl Shared {
    fn set(&self, standing: Standing) {
        *self.standing.lock().unwrap_or_else(PoisonError::into_inner) = standing;
        self.changed.notify_all();
    }

    fn stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }
}

impl Supervisor {
    /// Starts the supervising thread, which starts the process and keeps one running.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn start<H: Helper>(helper: Arc<H>, launch: Launch) -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let supervised = shared.clone();
        let thread = std::thread::Builder::new()
            .name(H::NAME.into())
            .spawn(move || supervise(&helper, &launch, &supervised))?;
        Ok(Self { shared, thread: Mutex::new(Some(thread)) })
    }

    /// How the process is doing.
    #[must_use]
    pub fn standing(&self) -> Standing {
        *self.shared.standing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until it serves; `false` when it does not within the time.
    #[must_use]
    pub fn wait_until_serving(&self, at_most: Duration) -> bool {
        let standing = self.shared.standing.lock().unwrap_or_else(PoisonError::into_inner);
        let (standing, _) = self
            .shared
            .changed
            .wait_timeout_while(standing, at_most, |standing| !standing.serving)
            .unwrap_or_else(PoisonError::into_inner);
        standing.serving
    }

    /// Closes the socket, which ends the process, and waits for it (a second at most). Blocks.
    pub fn stop(&self) {
        self.shared.stopping.store(true, Ordering::Release);
        if let Some(socket) = self.shared.socket.lock().unwrap_or_else(PoisonError::into_inner).take() {
            hang_up(&socket);
        }
        self.shared.changed.notify_all();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("a supervisor panicked");
        }
    }
}

fn hang_up(socket: &OwnedFd) {
    if let Err(error) = rustix::net::shutdown(socket, rustix::net::Shutdown::Both) {
        tracing::debug!(%error, "a helper's socket was closed already");
    }
}

fn supervise<H: Helper>(helper: &Arc<H>, launch: &Launch, shared: &Shared) {
    let mut wait = RESTART_WAIT.0;
    for epoch in 1.. {
        let started = Instant::now();
        if let Err(error) = live(epoch, helper, launch, shared) {
            tracing::error!(%error, "the {} could not be started", H::NAME);
        }
        shared.set(Standing::default());
        if shared.stopping() {
            return;
        }
        if started.elapsed() >= STEADY {
            wait = RESTART_WAIT.0;
        }
        tracing::warn!(wait_ms = wait.as_millis(), "the {} ended; it is started again", H::NAME);
        let standing = shared.standing.lock().unwrap_or_else(PoisonError::into_inner);
        drop(shared.changed.wait_timeout_while(standing, wait, |_| !shared.stopping()));
        if shared.stopping() {
            return;
        }
        wait = (wait * 2).min(RESTART_WAIT.1);
    }
}

/// One life of a process, from start to reaping. Only when it is reaped is it lost: until then it may still do what it
/// was started for.
fn live<H: Helper>(epoch: u64, helper: &Arc<H>, launch: &Launch, shared: &Shared) -> io::Result<()> {
    let (ours, theirs) = protocol::pair()?;
    let ours = Arc::new(ours);
    let mut child = spawn(launch, theirs)?;
    shared.set(Standing { pid: Some(child.id()), serving: false });
    *shared.socket.lock().unwrap_or_else(PoisonError::into_inner) = Some(ours.clone());
    if shared.stopping() {
        hang_up(&ours);
    }
    let (link, orders) = channel();
    let spoken = helper.introduce(&ours, &link).map_err(io::Error::other);
    let sender = spoken.and_then(|()| start_sender(helper, &ours, orders)).inspect(|_| {
        helper.connected(epoch, &link);
        Conversation { epoch, helper: helper.as_ref(), shared, link, pid: child.id() }.listen(&ours);
    });
    shared.socket.lock().unwrap_or_else(PoisonError::into_inner).take();
    hang_up(&ours);
    reap(&mut child, H::NAME);
    // every end of the link is dropped with this, and the sender ends
    helper.lost(epoch);
    if sender?.join().is_err() {
        tracing::error!("the thread that sends to the {} panicked", H::NAME);
    }
    Ok(())
}

fn spawn(launch: &Launch, socket: OwnedFd) -> io::Result<Child> {
    let (uid, gid) = identity();
    let mut child = Command::new(&launch.program)
        .args(launch.role)
        .args(["--uid", &uid.to_string(), "--gid", &gid.to_string(), "--log", &launch.log.to_string()])
        .stdin(Stdio::from(socket))
        .stdout(Stdio::null())
        .spawn()?;
    if let Some(procs) = &launch.cgroup_procs
        && let Err(error) = std::fs::write(procs, child.id().to_string())
    {
        reap(&mut child, "process");
        return Err(error);
    }
    Ok(child)
}

/// The user and group that helpers drop to.
fn identity() -> (u32, u32) {
    match nix::unistd::User::from_name(HELPER_USER) {
        Ok(Some(user)) => (user.uid.as_raw(), user.gid.as_raw()),
        _ => (FALLBACK_ID, FALLBACK_ID),
    }
}

/// A thread that sends what is put into the link, in order.
fn start_sender<H: Helper>(
    helper: &Arc<H>,
    socket: &Arc<OwnedFd>,
    orders: Receiver<H::Order>,
) -> io::Result<JoinHandle<()>> {
    let (helper, socket) = (helper.clone(), socket.clone());
    let sending = std::thread::Builder::new().name(format!("{}-tx", H::NAME));
    sending.spawn(move || {
        for order in orders {
            if let Err(error) = helper.send(&socket, &order) {
                tracing::debug!(%error, "an order did not reach the {}; its loss is about to be noticed", H::NAME);
                hang_up(&socket);
                return;
            }
        }
    })
}

/// What the supervisor hears from one process.
struct Conversation<'a, H: Helper> {
    epoch: u64,
    helper: &'a H,
    shared: &'a Shared,
    link: Sender<H::Order>,
    pid: u32,
}

impl<H: Helper> Conversation<'_, H> {
    /// Passes every word on until the socket ends.
    fn listen(self, socket: &OwnedFd) {
        let mut buffer = Vec::new();
        loop {
            match protocol::receive::<H::Word>(socket.as_fd(), &mut buffer) {
                Ok(Some((word, _))) => self.pass_on(word),
                Ok(None) => return,
                Err(error) => {
                    tracing::error!(%error, "the {} is not understood; it is started again", H::NAME);
                    return;
                }
            }
        }
    }

    fn pass_on(&self, word: H::Word) {
        if self.helper.heard(self.epoch, word, Instant::now(), &self.link) {
            self.shared.set(Standing { pid: Some(self.pid), serving: true });
            tracing::info!(pid = self.pid, "the {} serves", H::NAME);
        }
    }
}

/// The socket is closed, so the child ends by itself; one that does not within a second is killed.
fn reap(child: &mut Child, name: &str) {
    let until = Instant::now() + Duration::from_secs(1);
    while Instant::now() < until {
        match child.try_wait() {
            Ok(Some(status)) => return tracing::info!(%status, "the {name} ended"),
            Ok(None) => std::thread::sleep(Duration::from_millis(5)),
            Err(error) => return tracing::error!(%error, "the {name} cannot be waited for"),
        }
    }
    if let Err(error) = child.kill().and_then(|()| child.wait()) {
        tracing::error!(%error, "the {name} cannot be killed");
    }
}
