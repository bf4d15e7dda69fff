//! The meter as the controller sees it: a child process, its listeners and its socket.
//!
//! The controller holds the listening sockets (`listeners`) and hands them over, so a restart of the meter refuses
//! nobody. The child is watched: when it ends, the core settles what was under way, and another one is started. What its
//! messages mean is the core's business; only certificates are signed here, by `signer`.
mod listeners;
mod signer;

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use meter_proxy::protocol::{self, Config, ProtocolError, ToController, ToMeter};

pub use self::listeners::{HostListeners, listen};
use self::listeners::{Listeners, Sockets};
use self::signer::Signer;
use crate::ca::Ca;
use crate::core::{CoreHandle, Message};

/// User and group of the meter when there is no user named `enforcer-meter`: an id that no distribution gives out.
const FALLBACK_ID: u32 = 64_911;
/// The meter's user, if the operator made one.
const METER_USER: &str = "enforcer-meter";
/// First and longest wait before a meter that ended is started again.
const RESTART_WAIT: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));
/// A meter that lived this long starts again after the first wait.
const STEADY: Duration = Duration::from_secs(10);

/// What can go wrong with the meter.
#[derive(Debug, thiserror::Error)]
pub enum MeterError {
    /// The listener cannot be opened.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// As set.
        address: SocketAddr,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The program is not where it should be.
    #[error("the meter's program is not at {0}")]
    Missing(PathBuf),
    /// The thread or the child cannot be started.
    #[error("the meter cannot be started: {0}")]
    Start(#[from] io::Error),
}

/// What the meter's supervisor knows of the child, for `status`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// Process id while there is one.
    pub pid: Option<u32>,
    /// Whether it has said that it accepts.
    pub serving: bool,
}

/// How the meter is started.
pub struct Options {
    /// Path of its program.
    pub program: PathBuf,
    /// `cgroup.procs` of the cgroup it is moved to; `None`: it stays in the controller's.
    pub cgroup_procs: Option<PathBuf>,
    /// What it is told first.
    pub config: Config,
    /// The listening sockets of the host's network namespace.
    pub sockets: Vec<TcpListener>,
}

/// The meter's program: beside this one.
///
/// # Errors
/// When it is not there.
pub fn program() -> Result<PathBuf, MeterError> {
    let path = std::env::current_exe()?.with_file_name("meter-proxy");
    if path.is_file() { Ok(path) } else { Err(MeterError::Missing(path)) }
}

/// The running meter; see [`Meter::start`].
pub struct Meter {
    shared: Arc<Shared>,
    supervisor: Mutex<Option<JoinHandle<()>>>,
}

struct Shared {
    standing: Mutex<Standing>,
    changed: Condvar,
    stopping: AtomicBool,
    /// The controller's end of the socket, for the stop to close.
    socket: Mutex<Option<Arc<OwnedFd>>>,
    listeners: Listeners,
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

impl Meter {
    /// Starts the supervisor, which starts the child and keeps one running.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn start(mut options: Options, core: CoreHandle, ca: Arc<Ca>) -> Result<Self, MeterError> {
        let sockets = std::mem::take(&mut options.sockets);
        let shared = Arc::new(Shared {
            standing: Mutex::default(),
            changed: Condvar::new(),
            stopping: AtomicBool::new(false),
            socket: Mutex::new(None),
            listeners: Listeners::new(sockets),
        });
        let signer = Signer::start(ca, options.config.providers.clone())?;
        let supervised = shared.clone();
        let supervisor = std::thread::Builder::new()
            .name("meter".into())
            .spawn(move || supervise(&options, &core, &signer, &supervised))?;
        Ok(Self { shared, supervisor: Mutex::new(Some(supervisor)) })
    }

    /// How the child is doing.
    #[must_use]
    pub fn standing(&self) -> Standing {
        *self.shared.standing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has this meter and every later one accept from these sockets too, until [`Self::unlisten`]. A connection may
    /// be made when this returns: it waits in its socket's queue until the meter has read that it is to take it.
    pub fn listen(&self, id: u32, sockets: Vec<TcpListener>) {
        self.shared.listeners.add(id, sockets);
    }

    /// Closes the sockets of this id, here and in the meter.
    pub fn unlisten(&self, id: u32) {
        self.shared.listeners.remove(id);
    }

    /// Waits until the meter serves; `false` when it does not within the time.
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

    /// Closes the socket, which ends the child, and waits for it (a second at most). Blocks.
    pub fn stop(&self) {
        self.shared.stopping.store(true, Ordering::Release);
        if let Some(socket) = self.shared.socket.lock().unwrap_or_else(PoisonError::into_inner).take() {
            hang_up(&socket);
        }
        self.shared.changed.notify_all();
        let supervisor = self.supervisor.lock().unwrap_or_else(PoisonError::into_inner).take();
        if supervisor.is_some_and(|supervisor| supervisor.join().is_err()) {
            tracing::error!("the meter's supervisor panicked");
        }
    }
}

fn hang_up(socket: &OwnedFd) {
    if let Err(error) = rustix::net::shutdown(socket, rustix::net::Shutdown::Both) {
        tracing::debug!(%error, "the meter's socket was closed already");
    }
}

fn supervise(options: &Options, core: &CoreHandle, signer: &Signer, shared: &Arc<Shared>) {
    let mut wait = RESTART_WAIT.0;
    for epoch in 1.. {
        let started = Instant::now();
        if let Err(error) = live(epoch, options, core, signer, shared) {
            tracing::error!(%error, "the meter could not be started");
        }
        shared.set(Standing::default());
        if shared.stopping() {
            return;
        }
        if started.elapsed() >= STEADY {
            wait = RESTART_WAIT.0;
        }
        tracing::warn!(wait_ms = wait.as_millis(), "the meter ended; it is started again");
        let standing = shared.standing.lock().unwrap_or_else(PoisonError::into_inner);
        drop(shared.changed.wait_timeout_while(standing, wait, |_| !shared.stopping()));
        if shared.stopping() {
            return;
        }
        wait = (wait * 2).min(RESTART_WAIT.1);
    }
}

/// One life of a meter process, from start to reaping. Only when it is reaped is it lost: until then it may still
/// forward.
fn live(
    epoch: u64,
    options: &Options,
    core: &CoreHandle,
    signer: &Signer,
    shared: &Arc<Shared>,
) -> Result<(), MeterError> {
    let (ours, theirs) = protocol::pair()?;
    let ours = Arc::new(ours);
    let mut child = spawn(options, theirs)?;
    shared.set(Standing { pid: Some(child.id()), serving: false });
    *shared.socket.lock().unwrap_or_else(PoisonError::into_inner) = Some(ours.clone());
    if shared.stopping() {
        hang_up(&ours);
    }
    let (link, orders) = channel();
    let spoken = introduce(&options.config, &ours, &shared.listeners.begin(link.clone()))
        .and_then(|()| start_sender(&ours, orders, shared));
    let sender = spoken.inspect(|_| {
        core.tell(Message::MeterUp { epoch, link: link.clone() });
        Conversation { epoch, core, signer, shared, socket: &ours, link, pid: child.id() }.listen();
    });
    shared.listeners.end();
    shared.socket.lock().unwrap_or_else(PoisonError::into_inner).take();
    hang_up(&ours);
    reap(&mut child);
    // the core drops its end of the link with this, and the sender ends
    core.tell(Message::MeterLost { epoch });
    if sender?.join().is_err() {
        tracing::error!("the thread that sends to the meter panicked");
    }
    Ok(())
}

fn spawn(options: &Options, socket: OwnedFd) -> Result<Child, MeterError> {
    let (uid, gid) = identity();
    let child = Command::new(&options.program)
        .args(["--uid", &uid.to_string(), "--gid", &gid.to_string()])
        .stdin(Stdio::from(socket))
        .stdout(Stdio::null())
        .spawn()?;
    if let Some(procs) = &options.cgroup_procs
        && let Err(error) = std::fs::write(procs, child.id().to_string())
    {
        let mut child = child;
        reap(&mut child);
        return Err(error.into());
    }
    Ok(child)
}

/// The user and group that the meter drops to.
fn identity() -> (u32, u32) {
    match nix::unistd::User::from_name(METER_USER) {
        Ok(Some(user)) => (user.uid.as_raw(), user.gid.as_raw()),
        _ => (FALLBACK_ID, FALLBACK_ID),
    }
}

/// Hands over the listeners and the configuration.
fn introduce(config: &Config, socket: &OwnedFd, all: &[(u32, Sockets)]) -> Result<(), MeterError> {
    listeners::hand_over(socket, all)
        .and_then(|()| protocol::send(socket.as_fd(), &ToMeter::Config(config.clone()), &[]))
        .map_err(|error| io::Error::other(error).into())
}

/// A thread that sends what is put into the link, in order.
fn start_sender(
    socket: &Arc<OwnedFd>,
    orders: Receiver<ToMeter>,
    shared: &Arc<Shared>,
) -> Result<JoinHandle<()>, MeterError> {
    let (socket, shared) = (socket.clone(), shared.clone());
    let sending = std::thread::Builder::new().name("meter-tx".into());
    Ok(sending.spawn(move || send_orders(&socket, &orders, &shared.listeners))?)
}

fn send_orders(socket: &OwnedFd, orders: &Receiver<ToMeter>, listeners: &Listeners) {
    for order in orders {
        if let Err(error) = send_order(socket, &order, listeners) {
            tracing::debug!(%error, "an order did not reach the meter; its loss is about to be noticed");
            hang_up(socket);
            return;
        }
    }
}

/// Sends one order, a listener's with its sockets. One that was taken away again is not sent at all.
fn send_order(socket: &OwnedFd, order: &ToMeter, listeners: &Listeners) -> Result<(), ProtocolError> {
    let sockets = match order {
        ToMeter::Listen { id } => match listeners.of(*id) {
            Some(sockets) => sockets,
            None => return Ok(()),
        },
        _ => Sockets::default(),
    };
    let sockets: Vec<_> = sockets.iter().map(AsFd::as_fd).collect();
    protocol::send(socket.as_fd(), order, &sockets)
}

/// What the supervisor hears from one meter process.
struct Conversation<'a> {
    epoch: u64,
    core: &'a CoreHandle,
    signer: &'a Signer,
    shared: &'a Shared,
    socket: &'a OwnedFd,
    link: Sender<ToMeter>,
    pid: u32,
}

impl Conversation<'_> {
    /// Passes every message on until the socket ends.
    fn listen(self) {
        let mut buffer = Vec::new();
        loop {
            let received = protocol::receive::<ToController>(self.socket.as_fd(), &mut buffer);
            match received {
                Ok(Some((message, _))) => self.pass_on(message, Instant::now()),
                Ok(None) => return,
                Err(error) => {
                    tracing::error!(%error, "the meter is not understood; it is started again");
                    return;
                }
            }
        }
    }

    fn pass_on(&self, message: ToController, received: Instant) {
        match message {
            ToController::Ready { .. } => {
                self.shared.set(Standing { pid: Some(self.pid), serving: true });
                tracing::info!(pid = self.pid, "the meter serves");
            }
            ToController::Sign { question, host } => self.signer.ask(question, host, &self.link),
            message => self.core.tell(Message::Meter { epoch: self.epoch, message, received }),
        }
    }
}

/// The socket is closed, so the child ends by itself; one that does not within a second is killed.
fn reap(child: &mut Child) {
    let until = Instant::now() + Duration::from_secs(1);
    while Instant::now() < until {
        match child.try_wait() {
            Ok(Some(status)) => return tracing::info!(%status, "the meter ended"),
            Ok(None) => std::thread::sleep(Duration::from_millis(5)),
            Err(error) => return tracing::error!(%error, "the meter cannot be waited for"),
        }
    }
    if let Err(error) = child.kill().and_then(|()| child.wait()) {
        tracing::error!(%error, "the meter cannot be killed");
    }
}
