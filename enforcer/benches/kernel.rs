//! What the kernel plane costs: loading, attaching, a packet, a connection with and without the redirect, and the
//! flip from the store to the last packet.
//!
//! Run by `cargo xtask bench kernel`, as root, in a network namespace of its own. Prints figures and judges none of
//! them; needs no harness.
#![allow(clippy::unwrap_used, reason = "a benchmark that cannot go on has nothing to report")]
#[allow(dead_code, reason = "the tests use the rest of it")]
#[path = "../tests/support/network.rs"]
mod network;

use std::fs::OpenOptions;
use std::io::Read as _;
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use aya::programs::{ProgramInfo, loaded_programs};
use aya::sys::{Stats, enable_stats};
use enforcer::bottle::cgroup::{self, Cgroup};
use enforcer::kernel::loader::{Loader, unpin_all};
use enforcer::kernel::{Guard, Kernel as _, Place, namespace_cookie};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::{ForkResult, Pid, fork};
use rustix::net::{AddressFamily, SocketType, sockopt};

const LOADS: usize = 50;
const BOTTLES: u32 = 1_000;
/// Times that so many bottles are adopted.
const ADOPTIONS: usize = 20;
const FLIPS: usize = 2_000;
/// Connections of one kind in a row; the kinds take turns, so that they see the same machine.
const CONNECTS: usize = 500;
const TURNS: usize = 20;
const LOOKUPS: usize = 10_000;
/// Packets are counted for this long.
const PACKETS_FOR: Duration = Duration::from_secs(2);

fn main() {
    network::in_own_network(|| {
        let bench = Bench::new();
        bench.load();
        bench.attach();
        bench.connect();
        bench.identity();
        bench.packet_and_flip();
    });
}

/// The pins and cgroups of this run, removed at its end.
struct Bench {
    instance: String,
    cgroup: PathBuf,
}

impl Bench {
    fn new() -> Self {
        let instance = format!("bench-{}", std::process::id());
        let cgroup = cgroup::mount().unwrap().join(format!("enforcer-{instance}"));
        drop(Cgroup::create(&cgroup).unwrap());
        Self { instance, cgroup }
    }

    fn open(&self) -> Loader {
        Loader::open(Some(&self.instance)).unwrap()
    }

    fn load(&self) {
        let rounds = (0..LOADS).map(|_| {
            unpin_all(Some(&self.instance)).unwrap();
            nanoseconds(|| drop(self.open()))
        });
        report("load and pin the programs", rounds.collect());
    }

    fn attach(&self) {
        let loader = self.open();
        let cgroups: Vec<Cgroup> =
            (1..=BOTTLES).map(|n| Cgroup::create(&self.cgroup.join(n.to_string())).unwrap()).collect();
        let rounds = (1..=BOTTLES).zip(&cgroups).map(|(slot, cgroup)| {
            nanoseconds(|| loader.attach(&slot.to_string(), cgroup, guard(slot)).unwrap())
        });
        report("attach a bottle", rounds.collect());
        drop(loader);
        let adopting = (0..ADOPTIONS).map(|_| nanoseconds(|| drop(self.open())));
        report(&format!("adopt {BOTTLES} bottles"), adopting.collect());
        let loader = self.open();
        let rounds =
            (1..=BOTTLES).map(|slot| nanoseconds(|| loader.detach(&slot.to_string(), slot).unwrap()));
        report("detach a bottle", rounds.collect());
        drop(loader);
        let adopting = (0..ADOPTIONS).map(|_| nanoseconds(|| drop(self.open())));
        report("adopt no bottle", adopting.collect());
    }

    /// From the call to its return, over `lo`, so without any network's own time.
    fn connect(&self) {
        let loader = self.open();
        let cgroup = Cgroup::open(&self.cgroup).unwrap();
        let far = TcpListener::bind((network::PUBLIC4, 443)).unwrap();
        let meter = TcpListener::bind("127.0.0.1:0").unwrap();
        let on = Guard { meter: meter.local_addr().unwrap(), ..guard(1) };
        let off = Guard { redirect: false, ..on };
        point_here(&loader, &meter);
        loader.attach("c", &cgroup, on).unwrap();
        loader.open(1);
        let inside = Some(self.cgroup.as_path());
        let to = far.local_addr().unwrap();
        let kinds = [
            ("connect, outside every bottle", None, off, &far),
            ("connect, in a bottle without the redirect", inside, off, &far),
            ("connect, redirected", inside, on, &meter),
        ];
        let mut rounds = [const { Vec::new() }; 3];
        for _ in 0..TURNS {
            for ((_, cgroup, guard, listener), rounds) in kinds.iter().zip(&mut rounds) {
                loader.refresh(*guard);
                rounds.extend(connects(*cgroup, to, listener));
            }
        }
        for ((what, ..), rounds) in kinds.iter().zip(rounds) {
            report(what, rounds);
        }
        loader.detach("c", 1).unwrap();
    }

    /// The kernel plane's part of identity: looking up a connection that lives.
    fn identity(&self) {
        let loader = self.open();
        let cgroup = Cgroup::open(&self.cgroup).unwrap();
        let meter = TcpListener::bind("127.0.0.1:0").unwrap();
        let local = meter.local_addr().unwrap();
        point_here(&loader, &meter);
        loader.attach("i", &cgroup, Guard { meter: local, ..guard(1) }).unwrap();
        loader.open(1);
        let client = Inside::start(&self.cgroup, || {
            let mut stream = TcpStream::connect((network::PUBLIC4, 443)).unwrap();
            // stays until it is ended
            stream.read_exact(&mut [0]).unwrap();
        });
        let (_stream, peer) = meter.accept().unwrap();
        let rounds = (0..LOOKUPS).map(|_| nanoseconds(|| assert!(loader.flow(peer, local, 1).is_some())));
        report("look up whose a connection is", rounds.collect());
        drop(client);
        loader.detach("i", 1).unwrap();
    }

    fn packet_and_flip(&self) {
        let loader = self.open();
        let cgroup = Cgroup::open(&self.cgroup).unwrap();
        loader.attach("b", &cgroup, guard(1)).unwrap();
        loader.open(1);
        let receiver = UdpSocket::bind("127.0.0.1:0").unwrap();
        let times = shared::<Times>();
        let sender = Inside::sending(&self.cgroup, receiver.local_addr().unwrap(), times);
        std::thread::sleep(Duration::from_millis(200));
        packet("egress of an open bottle, redirect on");
        loader.set_lease(1, Some(Duration::from_secs(60)));
        loader.beat();
        packet("egress of an open bottle, redirect on, with a lease");
        loader.set_lease(1, None);
        loader.refresh(Guard { redirect: false, ..guard(1) });
        packet("egress of an open bottle, redirect off");
        loader.refresh(guard(1));
        let mut leaked = 0;
        let rounds = (0..FLIPS).map(|_| {
            loader.open(1);
            std::thread::sleep(Duration::from_micros(500));
            let before = now();
            loader.cut(1);
            let after = now();
            std::thread::sleep(Duration::from_micros(500));
            leaked += usize::from(times.began.load(Ordering::SeqCst) > after);
            times.returned.load(Ordering::SeqCst).saturating_sub(before)
        });
        report("flip: before the store to the return of the last send", rounds.collect());
        println!(
            "flip: rounds with a send that began after the cut had returned, and passed: {leaked} of {FLIPS}"
        );
        drop(sender);
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        unpin_all(Some(&self.instance)).unwrap();
        Cgroup::open(&self.cgroup).unwrap().remove().unwrap();
    }
}

/// Time in the egress program by the kernel's own statistics (which add some 30 ns to every run).
fn packet(what: &str) {
    let egress = || -> ProgramInfo {
        let newest = loaded_programs()
            .filter_map(Result::ok)
            .filter(|program| program.name_as_str() == Some("enforcer_egress"));
        newest.max_by_key(ProgramInfo::id).unwrap()
    };
    let statistics = enable_stats(Stats::RunTime).unwrap();
    let before = egress();
    std::thread::sleep(PACKETS_FOR);
    let after = egress();
    drop(statistics);
    let runs = after.run_count() - before.run_count();
    let time = after.run_time() - before.run_time();
    println!("{what}: mean {} ns a packet, n {runs}", time.as_nanos() / u128::from(runs.max(1)));
}

/// When the last packet that passed began and ended, monotonic nanoseconds, written by the sender.
struct Times {
    began: AtomicU64,
    returned: AtomicU64,
}

/// Memory shared with a child: a `T` of atomic words.
fn shared<T>() -> &'static T {
    let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS;
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a fresh mapping, never unmapped, zeroed, and large enough; zero is a value of the atomic words.
    unsafe {
        let address = libc::mmap(std::ptr::null_mut(), size_of::<T>(), protection, flags, -1, 0);
        assert_ne!(address, libc::MAP_FAILED);
        &*address.cast::<T>()
    }
}

/// How long each of some connections took, nanoseconds, made by a process in the cgroup to whoever listens there.
fn connects(cgroup: Option<&Path>, to: SocketAddr, listener: &TcpListener) -> Vec<u64> {
    let times = shared::<[AtomicU64; CONNECTS]>();
    let procs =
        cgroup.map(|cgroup| OpenOptions::new().write(true).open(cgroup.join("cgroup.procs")).unwrap());
    // SAFETY: as in `Inside::start`.
    match unsafe { fork() }.unwrap() {
        ForkResult::Parent { child } => {
            assert_eq!(waitpid(child, None).unwrap(), WaitStatus::Exited(child, 0));
        }
        ForkResult::Child => {
            if let Some(procs) = procs {
                nix::unistd::write(&procs, b"0").unwrap();
            }
            for time in times {
                let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
                // closed by a reset: no port waits for late packets
                sockopt::set_socket_linger(&socket, Some(Duration::ZERO)).unwrap();
                time.store(nanoseconds(|| rustix::net::connect(&socket, &to).unwrap()), Ordering::SeqCst);
                drop(listener.accept().unwrap());
            }
            // SAFETY: ends the process at once.
            unsafe { libc::_exit(0) }
        }
    }
    times.iter().map(|time| time.load(Ordering::SeqCst)).collect()
}

/// A process in a cgroup, ended when dropped.
struct Inside(Pid);

impl Inside {
    fn start(cgroup: &Path, action: impl FnOnce()) -> Self {
        let procs = OpenOptions::new().write(true).open(cgroup.join("cgroup.procs")).unwrap();
        // SAFETY: this process has one other thread, which waits and holds no lock.
        match unsafe { fork() }.unwrap() {
            ForkResult::Parent { child } => Self(child),
            ForkResult::Child => {
                nix::unistd::write(&procs, b"0").unwrap();
                action();
                // SAFETY: ends the process at once.
                unsafe { libc::_exit(0) }
            }
        }
    }

    /// Sends datagrams as fast as it can.
    fn sending(cgroup: &Path, to: SocketAddr, times: &'static Times) -> Self {
        Self::start(cgroup, || {
            let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
            loop {
                let began = now();
                if socket.send_to(b"x", to).is_ok() {
                    times.returned.store(now(), Ordering::SeqCst);
                    times.began.store(began, Ordering::SeqCst);
                }
            }
        })
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        kill(self.0, Signal::SIGKILL).unwrap();
        waitpid(self.0, None).unwrap();
    }
}

fn guard(slot: u32) -> Guard {
    Guard::new(slot, 1, SocketAddr::from(([127, 0, 0, 1], 1)))
}

/// Makes a listener the meter of this network namespace.
fn point_here(loader: &Loader, meter: &TcpListener) {
    let place = Place::new(1, meter.local_addr().unwrap());
    loader.set_place(namespace_cookie(meter.as_fd()).unwrap(), &place).unwrap();
}

fn now() -> u64 {
    let time = Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC).unwrap());
    u64::try_from(time.as_nanos()).unwrap()
}

fn nanoseconds(action: impl FnOnce()) -> u64 {
    let start = Instant::now();
    action();
    u64::try_from(start.elapsed().as_nanos()).unwrap()
}

/// Prints median and 99th percentile.
fn report(what: &str, mut rounds: Vec<u64>) {
    rounds.sort_unstable();
    let at = |percent: usize| Duration::from_nanos(rounds[(rounds.len() - 1) * percent / 100]);
    println!("{what}: median {:?}, p99 {:?}, n {}", at(50), at(99), rounds.len());
}
