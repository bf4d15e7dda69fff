//! The meter as the controller sees it: a helper with the bottles' listeners, whose words are the core's to judge.
//!
//! When its process ends, the core settles what was under way. Certificates are signed beside the core.
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use enforcer_ebpf::LISTENER_HOST;
use meter_proxy::protocol::{self, Config, ProtocolError, ToController, ToMeter};
use tracing::level_filters::LevelFilter;

use crate::core::{CoreHandle, Message};
use crate::helpers::listeners::{self, Listeners, Sockets};
pub use crate::helpers::listeners::{HostListeners, listen};
use crate::helpers::signer::Signer;
use crate::helpers::{Helper, Launch, Standing, Supervisor};

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

/// How the meter is started.
pub struct Options {
    /// Path of its program.
    pub program: PathBuf,
    /// How much it logs.
    pub log: LevelFilter,
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
    supervisor: Supervisor,
    part: Arc<Part>,
}

/// The meter's side of its supervisor.
struct Part {
    told: Mutex<Told>,
    core: CoreHandle,
    signer: Signer,
    listeners: Listeners<ToMeter>,
}

/// What the meter is told of the settings, and the running one to tell.
struct Told {
    config: Config,
    link: Option<Sender<ToMeter>>,
}

impl Meter {
    /// Starts the supervisor, which starts the child and keeps one running.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn start(options: Options, core: CoreHandle, signer: Signer) -> Result<Self, MeterError> {
        let Options { program, log, cgroup_procs, config, sockets } = options;
        let listeners = Listeners::new(|id| ToMeter::Listen { id }, |id| ToMeter::Unlisten { id });
        listeners.add(LISTENER_HOST, sockets.into_iter().map(OwnedFd::from).collect());
        let told = Mutex::new(Told { config, link: None });
        let part = Arc::new(Part { told, core, signer, listeners });
        let launch = Launch { program, role: None, log, cgroup_procs };
        Ok(Self { supervisor: Supervisor::start(part.clone(), launch)?, part })
    }

    /// Whether it is to trust the same certificates already.
    #[must_use]
    pub fn has_roots(&self, config: &Config) -> bool {
        self.part.told().config.extra_roots_pem == config.extra_roots_pem
    }

    /// Has this meter and every later one work by another configuration.
    pub fn configure(&self, config: Config) {
        let mut told = self.part.told();
        told.config = config;
        let Told { config, link } = &*told;
        if let Some(link) = link
            && link.send(ToMeter::Config(config.clone())).is_err()
        {
            tracing::debug!("the meter is gone; the next one is told");
        }
    }

    /// How the child is doing.
    #[must_use]
    pub fn standing(&self) -> Standing {
        self.supervisor.standing()
    }

    /// Has this meter and every later one accept from these sockets too, until [`Self::unlisten`]. A connection may
    /// be made when this returns: it waits in its socket's queue until the meter has read that it is to take it.
    pub fn listen(&self, id: u32, sockets: Vec<TcpListener>) {
        self.part.listeners.add(id, sockets.into_iter().map(OwnedFd::from).collect());
    }

    /// Closes the sockets of this id, here and in the meter.
    pub fn unlisten(&self, id: u32) {
        self.part.listeners.remove(id);
    }

    /// A listening socket of this id; none when it was taken away.
    #[must_use]
    pub fn sockets_of(&self, id: u32) -> Option<Sockets> {
        self.part.listeners.of(id)
    }

    /// Waits until the meter serves; `false` when it does not within the time.
    #[must_use]
    pub fn wait_until_serving(&self, at_most: Duration) -> bool {
        self.supervisor.wait_until_serving(at_most)
    }

    /// Closes the socket, which ends the child, and waits for it (a second at most). Blocks.
    pub fn stop(&self) {
        self.supervisor.stop();
    }
}

impl Part {
    fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Helper for Part {
    const NAME: &'static str = "meter";
    type Order = ToMeter;
    type Word = ToController;

    fn introduce(&self, socket: &OwnedFd, link: &Sender<ToMeter>) -> Result<(), ProtocolError> {
        listeners::hand_over(socket, &self.listeners.begin(link.clone()))?;
        let mut told = self.told();
        told.link = Some(link.clone());
        protocol::send(socket.as_fd(), &ToMeter::Config(told.config.clone()), &[])
    }

    /// A listener goes with its sockets. One that was taken away again is not sent at all.
    fn send(&self, socket: &OwnedFd, order: &ToMeter) -> Result<(), ProtocolError> {
        let sockets = match order {
            ToMeter::Listen { id } => match self.listeners.of(*id) {
                Some(sockets) => sockets,
                None => return Ok(()),
            },
            _ => Sockets::default(),
        };
        let sockets: Vec<_> = sockets.iter().map(AsFd::as_fd).collect();
        protocol::send(socket.as_fd(), order, &sockets)
    }

    fn connected(&self, epoch: u64, link: &Sender<ToMeter>) {
        self.core.tell(Message::MeterUp { epoch, link: link.clone() });
    }

    fn heard(&self, epoch: u64, word: ToController, received: Instant, link: &Sender<ToMeter>) -> bool {
        match word {
            ToController::Ready { .. } => return true,
            ToController::Sign { question, host } => {
                let link = link.clone();
                self.signer.ask(host, move |leaf| link.send(ToMeter::Signed { question, leaf }).is_ok());
            }
            message => self.core.tell(Message::Meter { epoch, message, received }),
        }
        false
    }

    fn lost(&self, epoch: u64) {
        self.told().link = None;
        self.listeners.end();
        self.core.tell(Message::MeterLost { epoch });
    }
}
