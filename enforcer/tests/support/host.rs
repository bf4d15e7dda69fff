//! What a test makes on this host: a pin root and a cgroup.
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use enforcer::bottle::cgroup::{self, Cgroup, CgroupError};
use enforcer::kernel::loader::{Loader, unpin_all};
use enforcer::kernel::pins::Pins;
use enforcer::kernel::{Guard, Kernel as _, Place, namespace_cookie};

/// The slot of the test's bottle.
pub const SLOT: u32 = 1;
/// The id of the listener that stands in for the meter.
pub const LISTENER: u32 = 1;

/// A pin root and a cgroup, removed when dropped.
pub struct Host {
    /// Names the pin root.
    pub instance: String,
    /// The cgroup's directory.
    pub cgroup: PathBuf,
}

impl Host {
    /// A new one; `test` is part of its name.
    pub fn new(test: &str) -> Self {
        assert!(nix::unistd::geteuid().is_root(), "this test loads kernel programs: run it as root");
        let instance = format!("test-{test}-{}", std::process::id());
        let cgroup = cgroup::mount().unwrap().join(format!("enforcer-{instance}"));
        let host = Self { instance, cgroup };
        drop(Cgroup::create(&host.cgroup).unwrap());
        host
    }

    /// Loads the programs, or adopts what is pinned.
    pub fn load(&self) -> Loader {
        Loader::open(Some(&self.instance)).unwrap()
    }

    /// As [`Self::load`], by a controller of another build than the one before: it loads its programs, and puts them
    /// in place of that one's in every bottle.
    pub fn upgrade(&self) -> Loader {
        Pins::of(Some(&self.instance)).set_build(None).unwrap();
        self.load()
    }

    /// The cgroup.
    pub fn cgroup(&self) -> Cgroup {
        Cgroup::open(&self.cgroup).unwrap()
    }

    /// A loader with the host's cgroup attached as slot 1, not opened yet.
    pub fn attached(&self, meter: SocketAddr) -> Loader {
        let loader = self.load();
        let guard = guard(meter);
        loader.set_place(here(), &place(&guard)).unwrap();
        loader.attach("b", &self.cgroup(), guard).unwrap();
        loader
    }

    /// A loader with the host's cgroup attached as slot 1, open.
    pub fn opened(&self, guard: Guard) -> Loader {
        let loader = self.load();
        loader.set_place(here(), &place(&guard)).unwrap();
        loader.attach("b", &self.cgroup(), guard).unwrap();
        loader.open(guard.slot);
        loader
    }

    /// Where its pins are.
    pub fn pins(&self) -> PathBuf {
        Path::new("/sys/fs/bpf").join(format!("enforcer-{}", self.instance))
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let unpinned = unpin_all(Some(&self.instance)).map(drop);
        // the processes are the test's children, which have been ended: the kernel may still be emptying it
        let removed = retry(|| Cgroup::open(&self.cgroup).and_then(Cgroup::remove));
        if !std::thread::panicking() {
            unpinned.unwrap();
            removed.unwrap();
        }
    }
}

/// Tries again while a cgroup is busy.
pub fn retry(mut action: impl FnMut() -> Result<(), CgroupError>) -> Result<(), CgroupError> {
    for _ in 0..100 {
        match action() {
            Err(CgroupError::Busy(_)) => std::thread::sleep(std::time::Duration::from_millis(20)),
            result => return result,
        }
    }
    action()
}

/// The guard of slot 1.
pub fn guard(meter: SocketAddr) -> Guard {
    Guard::new(SLOT, 7, meter)
}

/// The place that goes with a guard.
pub fn place(guard: &Guard) -> Place {
    let Guard { meter, meter_ip6, lane, lane_ip6, .. } = *guard;
    Place { listener: LISTENER, meter, meter_ip6, lane, lane_ip6 }
}

/// Cookie of the network namespace that the test is in.
pub fn here() -> u64 {
    namespace_cookie(UdpSocket::bind("127.0.0.1:0").unwrap().as_fd()).unwrap()
}

/// Points the guard, and this network namespace, at another meter.
pub fn turn_to(loader: &Loader, guard: Guard) {
    loader.set_place(here(), &place(&guard)).unwrap();
    loader.refresh(guard);
}

/// A meter that nobody connects to.
pub fn no_meter() -> SocketAddr {
    "127.0.0.1:1".parse().unwrap()
}
