//! What `doctor` reports: whether this host can guard a bottle, each feature probed by doing it.
//!
//! The trial has pins and a cgroup of its own, named after this process, and removes them. It compares no
//! version numbers and touches no bottle.
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd as _;
use std::path::Path;
use std::time::{Duration, Instant};

use aya::maps::{Array, IterableMap as _, MapData};
use enforcer_ebpf::{Bottle, LISTENER_HOST, SLOTS};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork};
use rustix::net::{AddressFamily, SocketType};

use super::loader::{Loader, unpin_all};
use super::table::{Table, address_words};
use super::{Flow, Guard, Kernel as _, KernelError, Place, namespace_cookie, pins};
use crate::bottle::cgroup::{self, Cgroup, CgroupError};

/// The slot of the trial's bottle, in a table of its own.
const SLOT: u32 = 1;
/// How long a packet over loopback may take.
const ARRIVAL: Duration = Duration::from_millis(300);
/// An address of the documentation ranges: nobody's.
const ELSEWHERE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
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
    const NAMES: [&str; 6] = ["programs", "attach", "cut", "identity", "redirect", "refusals"];
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
    let loaded =
        "cgroup_skb, sock_ops, sock_addr, CGROUP_STORAGE and SK_STORAGE are accepted and pinned".to_owned();
    let mut probes = vec![probe(NAMES[0], true, Ok(loaded))];
    match trial.attach() {
        Ok(detail) => {
            probes.push(probe(NAMES[1], true, Ok(detail)));
            probes.push(probe(NAMES[2], true, trial.cut()));
            probes.push(probe(NAMES[3], true, trial.identity()));
            probes.push(probe(NAMES[4], true, trial.redirect()));
            probes.push(probe(NAMES[5], true, trial.refusals()));
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
    let array = Array::<MapData, Bottle>::create(SLOTS, super::maps::MMAPABLE)
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
        let here = namespace_cookie(self.listener.as_fd())?;
        self.loader.set_place(here, &Place::new(LISTENER_HOST, meter))?;
        self.loader.attach("doctor", &self.cgroup, Guard::new(SLOT, 1, meter))?;
        Ok("packets, connect, sendmsg, getpeername, bind and sock_ops attach to a cgroup".to_owned())
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
        let flow = self.accepted_flow();
        ended_well(client)?;
        match flow? {
            Some(flow) if flow.slot == SLOT && flow.cgroup_id == self.cgroup.id() => {
                Ok("a connection to the meter is known as its bottle's".to_owned())
            }
            _ => Err(failure("a connection to the meter is not known as its bottle's".to_owned())),
        }
    }

    /// What is known of the next connection to the listener; closes it.
    fn accepted_flow(&self) -> io::Result<Option<Flow>> {
        let (_stream, peer) = accept(&self.listener)?;
        Ok(self.loader.flow(peer, self.listener.local_addr()?, LISTENER_HOST))
    }

    /// A real connection to an address that is not ours must arrive at the listener and not know it.
    fn redirect(&self) -> Outcome {
        self.loader.open(SLOT);
        for asked in [SocketAddr::from((ELSEWHERE, 443)), (ELSEWHERE.to_ipv6_mapped(), 443).into()] {
            let client = self.fork_inside(|| {
                let mut stream = connect_from_loopback(asked)?;
                let deceived = stream.peer_addr()? == asked;
                // ends when the other side has looked the connection up
                let ended = stream.read(&mut [0]).map(drop);
                if deceived { ended } else { Err(ErrorKind::InvalidData.into()) }
            })?;
            let flow = self.accepted_flow();
            let deceived = ended_well(client)?;
            let original = flow?.map(|flow| (flow.original_ip, flow.original_port));
            if original != Some((address_words(asked.ip()), 443)) {
                return Err(failure(format!(
                    "a redirected connection to {asked} arrives without its address"
                )));
            }
            if !deceived {
                return Err(failure(format!("a redirected connection to {asked} names another peer")));
            }
        }
        Ok("connections to :443 of public addresses arrive at the meter, with the address asked for"
            .to_owned())
    }

    /// What a bottle must not do has to fail at once.
    fn refusals(&self) -> Outcome {
        let meter = self.listener.local_addr()?;
        let elsewhere = SocketAddr::from((ELSEWHERE, 443));
        self.loader.open(SLOT);
        let squatting = self.fork_inside(|| refused(TcpListener::bind(meter)))?;
        let quic = self
            .fork_inside(|| refused(UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?.send_to(b"x", elsewhere)))?;
        let open = [
            (ended_well(squatting)?, "a bottle can bind the meter's port"),
            (ended_well(quic)?, "a bottle can send QUIC past the meter"),
        ];
        self.loader.cut(SLOT);
        let connecting = self.fork_inside(|| refused(connect_from_loopback(meter)))?;
        let cut = [(ended_well(connecting)?, "a cut bottle's connection is not refused at once")];
        match open.iter().chain(&cut).find(|(held, _)| !held) {
            Some((_, what)) => Err(failure((*what).to_owned())),
            None => Ok("a cut bottle's connect, QUIC and the meter's port get EPERM".to_owned()),
        }
    }

    /// Runs an action in a new process inside the bottle; it must neither allocate nor lock.
    fn fork_inside(&self, action: impl FnOnce() -> io::Result<()>) -> io::Result<Pid> {
        let procs: File = OpenOptions::new().write(true).open(self.cgroup.path().join("cgroup.procs"))?;
        // SAFETY: the child only makes system calls (write, socket, bind, sendto, connect, getpeername, poll, read)
        // without allocating, and then ends without running any destructor of the parent's.
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
            Err(error) if error.kind() == ErrorKind::WouldBlock && Instant::now() < end => {
                std::thread::sleep(Duration::from_millis(1));
            }
            result => return result,
        }
    }
}

/// Connects from 127.0.0.1 or its v4-mapped form: what is not redirected then fails (EINVAL), and never leaves this
/// machine. Does not allocate.
fn connect_from_loopback(to: SocketAddr) -> io::Result<TcpStream> {
    let (family, from) = match to {
        SocketAddr::V4(_) => (AddressFamily::INET, IpAddr::V4(Ipv4Addr::LOCALHOST)),
        SocketAddr::V6(_) => (AddressFamily::INET6, IpAddr::V6(Ipv4Addr::LOCALHOST.to_ipv6_mapped())),
    };
    let socket = rustix::net::socket(family, SocketType::STREAM, None)?;
    rustix::net::bind(&socket, &SocketAddr::new(from, 0))?;
    rustix::net::connect(&socket, &to)?;
    Ok(socket.into())
}

/// Whether something was refused as it should be.
fn refused<T>(outcome: io::Result<T>) -> io::Result<()> {
    match outcome {
        Err(error) if error.kind() == ErrorKind::PermissionDenied => Ok(()),
        Err(error) => Err(error),
        Ok(_) => Err(ErrorKind::Other.into()),
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
