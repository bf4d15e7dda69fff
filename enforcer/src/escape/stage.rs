//! What the self-test plays on: a network of its own, a throwaway bottle in it, senders inside, a far end outside.
//!
//! Everything is gone when the stage is dropped. It tries and counts; what a count means is the judge's to say.
use std::fs::File;
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use enforcer_ebpf::LISTENER_HOST;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, setns, unshare};

use super::attempts::{Attempt, Stand};
use super::far_end::{FarEnd, Heard};
use super::sender::Word;
use super::{Family, State, network};
use crate::kernel::throwaway::{Throwaway, ThrowawayError};
use crate::kernel::{Guard, Kernel as _, KernelError, Place, namespace_cookie};

/// The slot of the bottle, in a table of its own.
const SLOT: u32 = 1;
/// The meter's port, where nobody listens: what is sent there is heard all the same.
const METER_PORT: u16 = 7080;
/// How long one sender may take for one step.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long a packet may be under way on `lo` after its sender has ended.
const UNDER_WAY: Duration = Duration::from_millis(4);

/// Why an attempt could not be made.
#[derive(Debug, thiserror::Error)]
pub enum StageError {
    /// There is no bottle to try in.
    #[error(transparent)]
    Bottle(#[from] ThrowawayError),
    /// It cannot be guarded.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The operating system said no, or a sender nothing.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// The answer.
        source: io::Error,
    },
}

fn failed(what: &str) -> impl FnOnce(io::Error) -> StageError {
    let what = what.to_owned();
    move |source| StageError::Io { what, source }
}

/// What came of one attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The sender's last word.
    pub word: Word,
    /// What the far end heard meanwhile.
    pub heard: Heard,
}

/// Runs `work` in a new network, on a thread of its own; what it starts is in there too.
///
/// # Errors
/// When the network cannot be made.
pub fn in_own_network<T: Send>(work: impl FnOnce() -> Result<T, StageError> + Send) -> Result<T, StageError> {
    on_a_thread(|| {
        unshare(CloneFlags::CLONE_NEWNET)
            .map_err(|errno| failed("a network namespace of its own")(errno.into()))?;
        network::set_up().map_err(failed("a network of its own"))?;
        work()
    })
}

/// Namespaces belong to threads; one that is in another is not used again.
fn on_a_thread<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        scope.spawn(work).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// A bottle and a far end in the calling thread's network.
pub struct Stage {
    program: PathBuf,
    bottle: Throwaway,
    far_end: FarEnd,
}

impl Stage {
    /// Sets the stage; the bottle is not guarded yet. `program` is this program: it is what the senders run.
    ///
    /// # Errors
    /// See [`StageError`]; nothing is left then.
    pub fn set(program: &Path) -> Result<Self, StageError> {
        let far_end = FarEnd::here().map_err(failed("a packet socket"))?;
        Ok(Self { program: program.to_owned(), bottle: Throwaway::make()?, far_end })
    }

    /// Guards the bottle as the controller does. It is closed until [`Self::put`].
    ///
    /// # Errors
    /// When the hooks cannot be attached.
    pub fn guard(&self) -> Result<(), StageError> {
        let socket = UdpSocket::bind("127.0.0.1:0").map_err(failed("a socket"))?;
        let cookie = namespace_cookie(socket.as_fd()).map_err(failed("the namespace's cookie"))?;
        let guard = guard(false);
        let Guard { meter, meter_ip6, lane, lane_ip6, .. } = guard;
        let place = Place { listener: LISTENER_HOST, meter, meter_ip6, lane, lane_ip6 };
        self.bottle.loader.set_place(cookie, &place)?;
        Ok(self.bottle.loader.attach("escape", &self.bottle.cgroup, guard)?)
    }

    /// Opens or cuts the bottle.
    pub fn put(&self, state: State) {
        self.bottle.loader.refresh(guard(state == State::Metered));
        match state {
            State::Open | State::Metered => self.bottle.loader.open(SLOT),
            State::Cut => self.bottle.loader.cut(SLOT),
        }
    }

    /// Has a new sender make an attempt.
    ///
    /// # Errors
    /// When it could not be made. Whether it got out is in the outcome.
    pub fn attempt(&self, attempt: &Attempt, family: Family) -> Result<Outcome, StageError> {
        let mut sender = Sender::start(&self.program, attempt, family, self.bottle.cgroup.path())
            .map_err(failed("a sender"))?;
        let word = sender.listen().map_err(failed(attempt.name))?;
        if word != Word::Ready {
            return Ok(Outcome { word, heard: Heard::default() });
        }
        let own = (attempt.stand == Stand::OwnNetwork).then(|| sender.far_end()).transpose();
        let own = own.map_err(failed(attempt.name))?;
        // what came before belongs to nobody's attempt
        self.heard(own.as_ref())?;
        let word = sender.go().map_err(failed(attempt.name))?;
        std::thread::sleep(UNDER_WAY);
        Ok(Outcome { word, heard: self.heard(own.as_ref())? })
    }

    fn heard(&self, own: Option<&FarEnd>) -> Result<Heard, StageError> {
        let here = self.far_end.heard(METER_PORT);
        let there = own.map_or(Ok(Heard::default()), |own| own.heard(METER_PORT));
        Ok(here.map_err(failed("the far end"))? + there.map_err(failed("the far end"))?)
    }
}

fn guard(lockdown: bool) -> Guard {
    let meter = SocketAddr::from((Ipv4Addr::LOCALHOST, METER_PORT));
    let meter_ip6 = network::has_ip6().then_some(Ipv6Addr::LOCALHOST);
    Guard { meter_ip6, lockdown, ..Guard::new(SLOT, 1, meter) }
}

/// A process that makes one attempt; ended when dropped.
struct Sender {
    child: Child,
    orders: ChildStdin,
    words: ChildStdout,
}

impl Sender {
    fn start(program: &Path, attempt: &Attempt, family: Family, cgroup: &Path) -> io::Result<Self> {
        let mut command = Command::new(program);
        command.args(["probe-sender", "--attempt", attempt.name, "--family", family.name()]);
        command.arg("--cgroup").arg(cgroup).args(["--meter-port", &METER_PORT.to_string()]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn()?;
        match (child.stdin.take(), child.stdout.take()) {
            (Some(orders), Some(words)) => Ok(Self { child, orders, words }),
            _ => Err(ErrorKind::BrokenPipe.into()),
        }
    }

    /// Lets it try; its last word.
    fn go(&mut self) -> io::Result<Word> {
        self.orders.write_all(b"\n")?;
        self.listen()
    }

    /// Its next word.
    fn listen(&mut self) -> io::Result<Word> {
        let end = Instant::now() + PATIENCE;
        let mut line = Vec::new();
        while line.last() != Some(&b'\n') {
            self.wait_readable(end)?;
            let mut byte = [0];
            self.words.read_exact(&mut byte)?;
            line.extend(byte);
        }
        Ok(serde_json::from_slice(&line)?)
    }

    fn wait_readable(&self, end: Instant) -> io::Result<()> {
        let left = end.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).map_err(io::Error::other)?;
        let mut words = [PollFd::new(self.words.as_fd(), PollFlags::POLLIN)];
        if poll(&mut words, timeout)? == 0 { Err(ErrorKind::TimedOut.into()) } else { Ok(()) }
    }

    /// Makes a network in the sender's own namespace as here, and listens there too.
    fn far_end(&self) -> io::Result<FarEnd> {
        let namespace = File::open(format!("/proc/{}/ns/net", self.child.id()))?;
        on_a_thread(|| {
            setns(&namespace, CloneFlags::CLONE_NEWNET)?;
            network::set_up()?;
            FarEnd::here()
        })
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        // one that has ended by itself is waited for all the same
        if let Err(error) = self.child.kill().and_then(|()| self.child.wait()) {
            tracing::warn!(%error, "a sender of the self-test stays");
        }
    }
}
