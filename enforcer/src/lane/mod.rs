//! The refusal lane as the controller sees it: the process that tells the agents of answered cuts why, in a cgroup that
//! our own hooks guard, with listening sockets in every network namespace that bottles are in.
//!
//! It is known to the kernel only while it serves: without it, an answered cut is a silent one. What it answers is the
//! core's to say.
mod guard;
pub mod sockets;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use enforcer_ebpf::LISTENER_HOST;
use meter_proxy::protocol::{self, LaneConfig, LaneToController, ProtocolError, ToLane};
use tracing::level_filters::LevelFilter;

use self::guard::Guards;
pub use self::guard::{FIRST_OWN_SLOT, is_own_guard};
use self::sockets::Inside;
use crate::bottle::cgroup::CgroupError;
use crate::bottle::home::Home;
use crate::bottle::namespaces::Namespaces;
use crate::core::{CoreHandle, LaneAddress, Message, Why};
use crate::helpers::listeners::{Listeners, Sockets};
use crate::helpers::signer::Signer;
use crate::helpers::{Helper, Launch, Standing, Supervisor};
use crate::kernel::{Kernel, KernelError};
use crate::settings::Live;

/// What can go wrong with the lane.
#[derive(Debug, thiserror::Error)]
pub enum LaneError {
    /// Its cgroup cannot be opened.
    #[error("the refusal lane's cgroup: {0}")]
    Cgroup(#[from] CgroupError),
    /// Its cgroup cannot be guarded.
    #[error("the refusal lane cannot be guarded: {0}")]
    Kernel(#[from] KernelError),
    /// Its sockets cannot be made.
    #[error("the refusal lane cannot listen: {0}")]
    Sockets(String),
    /// A thread or a child cannot be started.
    #[error("the refusal lane cannot be started: {0}")]
    Start(#[from] io::Error),
}

/// A guarded place for the lane, and its sockets in the host's network namespace; nobody answers yet.
pub struct Berth {
    guards: Guards,
    inside: Inside,
    sockets_procs: PathBuf,
    process_procs: PathBuf,
}

impl Berth {
    /// Guards the lane's cgroup and opens its sockets there.
    ///
    /// # Errors
    /// See [`LaneError`].
    pub fn prepare(kernel: Arc<dyn Kernel>, home: &Home) -> Result<Self, LaneError> {
        let guards = Guards::put_on(kernel, home)?;
        let sockets_procs = home.lane().join("cgroup.procs");
        let inside = sockets::make(&sockets_procs, None, 0)?;
        guards.let_speak(inside.address);
        let process_procs = home.lane_process().join("cgroup.procs");
        Ok(Self { guards, inside, sockets_procs, process_procs })
    }

    /// Where the lane listens.
    #[must_use]
    pub fn address(&self) -> LaneAddress {
        self.inside.address
    }
}

/// What the lane works with.
pub struct Parts {
    /// Path of its program.
    pub program: PathBuf,
    /// How much it logs.
    pub log: LevelFilter,
    /// What it is told first.
    pub settings: Live,
    /// Who knows why.
    pub core: CoreHandle,
    /// Who signs its certificates.
    pub signer: Signer,
    /// Who tells the kernel that it serves.
    pub namespaces: Arc<Namespaces>,
}

/// The running lane; see [`Lane::start`].
pub struct Lane {
    supervisor: Supervisor,
    guards: Guards,
    part: Arc<Part>,
    port: u16,
    sockets_procs: PathBuf,
}

/// The lane's side of its supervisor.
struct Part {
    settings: Live,
    /// The running lane, to be told more.
    link: Mutex<Option<Sender<ToLane>>>,
    core: CoreHandle,
    signer: Signer,
    namespaces: Arc<Namespaces>,
    listeners: Listeners<ToLane>,
}

impl Lane {
    /// Starts the supervisor, which starts the process and keeps one running.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn start(berth: Berth, parts: Parts) -> Result<Self, LaneError> {
        let Parts { program, log, settings, core, signer, namespaces } = parts;
        let Berth { guards, inside, sockets_procs, process_procs } = berth;
        let listeners = Listeners::new(|id| ToLane::Listen { id }, |id| ToLane::Unlisten { id });
        listeners.add(LISTENER_HOST, inside.sockets);
        let part = Arc::new(Part { settings, link: Mutex::new(None), core, signer, namespaces, listeners });
        let launch = Launch { program, role: Some("lane"), log, cgroup_procs: Some(process_procs) };
        let supervisor = Supervisor::start(part.clone(), launch)?;
        Ok(Self { supervisor, guards, part, port: inside.address.ip4.port(), sockets_procs })
    }

    /// Tells the running lane of the providers that the settings have now; every later one is told at its start.
    pub fn configure(&self) {
        if let Some(link) = &*self.part.link()
            && link.send(ToLane::Config(self.part.config())).is_err()
        {
            tracing::debug!("the lane is gone; the next one is told");
        }
    }

    /// How the process is doing.
    #[must_use]
    pub fn standing(&self) -> Standing {
        self.supervisor.standing()
    }

    /// Waits until it serves; `false` when it does not within the time.
    #[must_use]
    pub fn wait_until_serving(&self, at_most: Duration) -> bool {
        self.supervisor.wait_until_serving(at_most)
    }

    /// Opens sockets in a network namespace, at the port that they have everywhere, and has this lane and every later
    /// one answer there under this id, until [`Self::unlisten`]. Blocks for as long as a child takes to start.
    ///
    /// # Errors
    /// When the child cannot be started, or the port is taken there.
    pub fn listen_in(&self, namespace: BorrowedFd<'_>, id: u32) -> Result<LaneAddress, LaneError> {
        let inside = sockets::make(&self.sockets_procs, Some(namespace), self.port)?;
        self.part.listeners.add(id, inside.sockets);
        Ok(inside.address)
    }

    /// Closes the sockets of this id, here and in the lane.
    pub fn unlisten(&self, id: u32) {
        self.part.listeners.remove(id);
    }

    /// Ends the process (a second at most) and takes its guards off: there is nobody left to be guarded. Blocks.
    ///
    /// # Errors
    /// When the guards stay.
    pub fn stop(&self) -> Result<(), LaneError> {
        self.supervisor.stop();
        self.guards.take_off()
    }
}

impl Part {
    fn config(&self) -> LaneConfig {
        LaneConfig { providers: self.settings.borrow().providers.clone() }
    }

    fn link(&self) -> MutexGuard<'_, Option<Sender<ToLane>>> {
        self.link.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Helper for Part {
    const NAME: &'static str = "lane";
    type Order = ToLane;
    type Word = LaneToController;

    fn introduce(&self, socket: &OwnedFd, link: &Sender<ToLane>) -> Result<(), ProtocolError> {
        for (id, sockets) in self.listeners.begin(link.clone()) {
            send(socket, &ToLane::Listen { id }, &sockets)?;
        }
        let mut own_link = self.link();
        *own_link = Some(link.clone());
        protocol::send(socket.as_fd(), &ToLane::Config(self.config()), &[])
    }

    /// A listener goes with its sockets. One that was taken away again is not sent at all.
    fn send(&self, socket: &OwnedFd, order: &ToLane) -> Result<(), ProtocolError> {
        match order {
            ToLane::Listen { id } => {
                self.listeners.of(*id).map_or(Ok(()), |sockets| send(socket, order, &sockets))
            }
            _ => protocol::send(socket.as_fd(), order, &[]),
        }
    }

    fn connected(&self, epoch: u64, link: &Sender<ToLane>) {
        self.core.tell(Message::LaneUp { epoch, link: link.clone() });
    }

    fn heard(&self, epoch: u64, word: LaneToController, _: Instant, link: &Sender<ToLane>) -> bool {
        match word {
            LaneToController::Ready { .. } => {
                self.namespaces.lane(true);
                return true;
            }
            LaneToController::Why { question, peer, local, listener } => {
                self.core.tell(Message::Why { epoch, why: Why { question, peer, local, listener } });
            }
            LaneToController::Sign { question, host } => {
                let link = link.clone();
                self.signer.ask(host, move |leaf| link.send(ToLane::Signed { question, leaf }).is_ok());
            }
        }
        false
    }

    /// The kernel forgets it soon after, by way of the queue of who keeps the namespaces. What is sent there meanwhile
    /// waits in the sockets, which are the controller's, and is answered by the next lane or by nobody.
    fn lost(&self, epoch: u64) {
        self.namespaces.lane(false);
        *self.link() = None;
        self.listeners.end();
        self.core.tell(Message::LaneLost { epoch });
    }
}

fn send(socket: &OwnedFd, order: &ToLane, sockets: &Sockets) -> Result<(), ProtocolError> {
    let sockets: Vec<_> = sockets.iter().map(AsFd::as_fd).collect();
    protocol::send(socket.as_fd(), order, &sockets)
}
