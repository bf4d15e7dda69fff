//! What `doctor` reports: whether this host can guard a bottle, each feature probed by doing it.
//!
//! The trial has pins and a cgroup of its own, named after this process, and removes them. It compares no
//! version numbers and touches no bottle.
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd as _;
use std::path::Path;
use std::time::{Duration, Instant};

use aya::maps::{Array, IterableMap as _, MapData};
use enforcer_ebpf::{Bottle, LISTENER_HOST, SLOTS};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork};

use super::loader::{Loader, unpin_all};
use super::table::Table;
use super::{Guard, Kernel as _, KernelError, pins};
use crate::bottle::cgroup::{self, Cgroup, CgroupError};

/// The slot of the trial's bottle, in a table of its own.
const SLOT: u32 = 1;
/// How long a packet over loopback may take.
const ARRIVAL: Duration = Duration::from_millis(300);
/// CAP_NET_ADMIN and CAP_BPF, bits of `CapEff`.
const NEEDED_CAPABILITIES: u64 = 1 << 12 | 1 << 39;

/// One line of the report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    /// The feature.
    pub name: &'static str,
    /// Whether it works here.
    pub ok: bool,
    /// Whether nothing can be guarded without it.
    pub required: bool,
    /// What was found.
    pub detail: String,
    /// What to do when it does not work.
    pub hint: Option<String>,
}

/// Why a probe failed.
struct Failure {
    what: String,
    hint: Option<String>,
}

type Outcome = Result<String, Failure>;

/// Probes every feature, in the order in which they build on each other.
#[must_use]
pub fn probes() -> Vec<Probe> {
    let mut probes = vec![
        probe("root", true, privileges()),
        probe("cgroup v2", true, cgroup_mount()),
        probe("bpffs", true, bpffs()),
        probe("BTF", false, btf()),
        probe("mmapable arrays", true, mmapable_arrays()),
    ];
    probes.extend(trial_probes());
    probes
}

fn probe(name: &'static str, required: bool, outcome: Outcome) -> Probe {
    match outcome {
        Ok(detail) => Probe { name, ok: true, required, detail, hint: None },
        Err(Failure { what, hint }) => Probe { name, ok: false, required, detail: what, hint },
    }
}

/// The probes that need a bottle, on a throwaway one.
fn trial_probes() -> Vec<Probe> {
    const NAMES: [&str; 4] = ["programs", "attach", "cut", "identity"];
    let not_tried = |names: &[&'static str], after: &str| -> Vec<Probe> {
        let outcome = || Err(failure(format!("not tried: {after} failed")));
        names.iter().map(|name| probe(name, true, outcome())).collect()
    };
    let trial = match Trial::start() {
        Ok(trial) => trial,
        Err(failure) => {
            let mut probes = vec![probe(NAMES[0], true, Err(failure))];
            probes.extend(not_tried(&NAMES[1..], NAMES[0]));
            return probes;
        }
    };
    let loaded = "cgroup_skb, sock_ops and CGROUP_STORAGE are accepted and pinned".to_owned();
    let mut probes = vec![probe(NAMES[0], true, Ok(loaded))];
    match trial.attach() {
        Ok(detail) => {
            probes.push(probe(NAMES[1], true, Ok(detail)));
            probes.push(probe(NAMES[2], true, trial.cut()));
            probes.push(probe(NAMES[3], true, trial.identity()));
        }
        Err(failure) => {
            probes.push(probe(NAMES[1], true, Err(failure)));
            probes.extend(not_tried(&NAMES[2..], NAMES[1]));
        }
    }
    probes
}

fn privileges() -> Outcome {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = line.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    let root = nix::unistd::geteuid().is_root();
    if root && effective & NEEDED_CAPABILITIES == NEEDED_CAPABILITIES {
        return Ok("root, with CAP_BPF and CAP_NET_ADMIN".to_owned());
    }
    let what = if root { "root without CAP_BPF or CAP_NET_ADMIN" } else { "not root" };
    Err(Failure { what: what.to_owned(), hint: Some("run it with sudo, on the host itself".to_owned()) })
}

fn cgroup_mount() -> Outcome {
    Ok(format!("mounted at {}", cgroup::mount()?.display()))
}

fn bpffs() -> Outcome {
    pins::mount_bpffs()?;
    Ok(format!("mounted at {}", pins::BPFFS))
}

fn btf() -> Outcome {
    let path = "/sys/kernel/btf/vmlinux";
    if Path::new(path).exists() {
        return Ok(path.to_owned());
    }
    let hint = "a kernel built with CONFIG_DEBUG_INFO_BTF gives better messages".to_owned();
    Err(Failure { what: format!("{path} is missing"), hint: Some(hint) })
}

/// Makes the table of bottles, maps it, and flips a verdict in it.
fn mmapable_arrays() -> Outcome {
    let array = Array::<MapData, Bottle>::create(SLOTS, super::loader::MMAPABLE)
        .map_err(|error| failure(error.to_string()))?;
    let table = Table::map(array.map().fd().as_fd())?;
    table.open(SLOT);
    let seen = array.get(&SLOT, 0).map_err(|error| failure(error.to_string()))?;
    if seen.flags == 0 {
        return Err(failure("a store into the mapped table does not reach the map".to_owned()));
    }
    Ok("a verdict is one store".to_owned())
}

/// A bottle for the length of the probes.
struct Trial {
    instance: String,
    cgroup: Cgroup,
    loader: Loader,
    /// The meter's stand-in.
    listener: TcpListener,
}

impl Trial {
    fn start() -> Result<Self, Failure> {
        let instance = format!("doctor-{}", std::process::id());
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let cgroup = Cgroup::create(&cgroup::mount()?.join(format!("enforcer-{instance}")))?;
        match Loader::open(Some(&instance)) {
            Ok(loader) => Ok(Self { instance, cgroup, loader, listener }),
            Err(error) => {
                clean_up(&instance, cgroup.path());
                Err(error.into())
            }
        }
    }

    fn attach(&self) -> Outcome {
        let meter = self.listener.local_addr()?;
        let guard = Guard::new(SLOT, 1, meter, LISTENER_HOST);
        self.loader.attach("doctor", &self.cgroup, guard)?;
        Ok("egress, ingress and sock_ops attach to a cgroup".to_owned())
    }

    /// A real sender in the bottle must be heard while it is open, and not while it is cut.
    fn cut(&self) -> Outcome {
        for open in [true, false, true] {
            if open {
                self.loader.open(SLOT);
            } else {
                self.loader.cut(SLOT);
            }
            if self.hears()? != open {
                let what = if open {
                    "a packet of an open bottle is lost"
                } else {
                    "a packet of a cut bottle passes"
                };
                return Err(failure(what.to_owned()));
            }
        }
        Ok("a sender in a cut bottle is not heard, in an open one it is".to_owned())
    }

    /// Whether a datagram from inside the bottle arrives outside.
    fn hears(&self) -> io::Result<bool> {
        let receiver = UdpSocket::bind("127.0.0.1:0")?;
        receiver.set_read_timeout(Some(ARRIVAL))?;
        let address = receiver.local_addr()?;
        let sender = self.fork_inside(|| {
            let from = SocketAddr::from(([127, 0, 0, 1], 0));
            UdpSocket::bind(from)?.send_to(b"x", address).map(drop)
        })?;
        let heard = receiver.recv(&mut [0; 8]).is_ok();
        let sent = ended_well(sender)?;
        Ok(heard && sent)
    }

    /// A real connection from inside the bottle must be known as the bottle's.
    fn identity(&self) -> Outcome {
        self.loader.open(SLOT);
        let meter = self.listener.local_addr()?;
        let client = self.fork_inside(|| {
            let mut stream = TcpStream::connect_timeout(&meter, ARRIVAL)?;
            stream.read(&mut [0]).map(drop)
        })?;
        let flow = accept(&self.listener).map(|(stream, peer)| {
            let flow = self.loader.flow(peer, meter, LISTENER_HOST);
            drop(stream);
            flow
        });
        ended_well(client)?;
        match flow? {
            Some(flow) if flow.slot == SLOT && flow.cgroup_id == self.cgroup.id() => {
                Ok("a connection to the meter is known as its bottle's".to_owned())
            }
            _ => Err(failure("a connection to the meter is not known as its bottle's".to_owned())),
        }
    }

    /// Runs an action in a new process inside the bottle; it must neither allocate nor lock.
    fn fork_inside(&self, action: impl FnOnce() -> io::Result<()>) -> io::Result<Pid> {
        let procs: File = OpenOptions::new().write(true).open(self.cgroup.path().join("cgroup.procs"))?;
        // SAFETY: the child only makes system calls (write, socket, bind, sendto, connect, poll, read) without
        // allocating, and then ends without running any destructor of the parent's.
        match unsafe { fork() }? {
            ForkResult::Parent { child } => Ok(child),
            ForkResult::Child => {
                let joined = nix::unistd::write(&procs, b"0").map_err(io::Error::from);
                let failed = joined.and_then(|_| action()).is_err();
                // SAFETY: ends the process at once.
                unsafe { libc::_exit(i32::from(failed)) }
            }
        }
    }
}

impl Drop for Trial {
    fn drop(&mut self) {
        clean_up(&self.instance, self.cgroup.path());
    }
}

/// Removes what the trial made; what cannot be removed is logged.
fn clean_up(instance: &str, cgroup: &Path) {
    if let Err(error) = unpin_all(Some(instance)) {
        tracing::warn!(%error, "cannot remove the pins of the trial");
    }
    if let Err(error) = Cgroup::open(cgroup).and_then(Cgroup::remove) {
        tracing::warn!(%error, "cannot remove the cgroup of the trial");
    }
}

/// Accepts one connection, waiting as long as a packet may take.
fn accept(listener: &TcpListener) -> io::Result<(TcpStream, SocketAddr)> {
    listener.set_nonblocking(true)?;
    let end = Instant::now() + ARRIVAL;
    loop {
        match listener.accept() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && Instant::now() < end => {
                std::thread::sleep(Duration::from_millis(1));
            }
            result => return result,
        }
    }
}

/// Waits for a process of ours; whether it ended without an error.
fn ended_well(child: Pid) -> io::Result<bool> {
    Ok(matches!(waitpid(child, None)?, WaitStatus::Exited(_, 0)))
}

fn failure(what: String) -> Failure {
    Failure { what, hint: None }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        failure(error.to_string())
    }
}

impl From<CgroupError> for Failure {
    fn from(error: CgroupError) -> Self {
        failure(error.to_string())
    }
}

impl From<KernelError> for Failure {
    fn from(error: KernelError) -> Self {
        match error {
            KernelError::Unsupported { what, hint } => Self { what, hint: Some(hint) },
            other => failure(other.to_string()),
        }
    }
}
