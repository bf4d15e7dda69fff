//! The kernel plane with eBPF: loads the programs once, attaches them to each bottle's cgroup, pins everything.
//!
//! It holds no verdict of its own: the table is the truth, and it outlives this process. Dropping a loader
//! changes nothing in the kernel.
mod adopt;

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::Ordering;
use std::time::Duration;

use aya::maps::{Array, IterableMap as _, MapData, RingBuf};
use enforcer_ebpf::{Bottle, LISTENER_HOST, SLOTS};

use super::allow::{AllowList, Allowed};
use super::families;
use super::hooks::{HOOKS, check_unguarded};
use super::log::{Log, Logged};
use super::maps::{Namespaces, Readers, Slots, lock, pinned, words};
use super::pins::{self, Pins};
use super::programs::Programs;
use super::refusal::{failed, not_attached};
use super::shapes::check_shapes;
use super::sock_diag::SockDiag;
use super::table::{self, Table};
use super::words::{Words, coarse_now};
use super::{Counters, Events, Face, Flow, FlowKey, Guard, Kernel, KernelError, Pinned, Place, sys};
use crate::bottle::cgroup::{self, Cgroup, Hierarchy};

/// The loaded programs and their maps.
pub struct Loader {
    pins: Pins,
    table: Table,
    heart: Words,
    last_listener: Words,
    slots: Mutex<Slots>,
    readers: Readers,
    namespaces: Namespaces,
    allowed: Mutex<AllowList>,
    /// Until they are taken.
    events: Mutex<Option<RingBuf<MapData>>>,
    programs: Programs,
    adopted: Vec<Pinned>,
}

impl Loader {
    /// Takes over what an earlier controller of this instance (`None`: the host's) pinned: its maps with every verdict
    /// in them, and its links, which from here on run this build's programs. These are loaded, unless it was this
    /// build that pinned what is there.
    ///
    /// # Errors
    /// `Unsupported` when the kernel or the host cannot do it, `Pins` when what is pinned has another shape or
    /// version, or is not whole.
    pub fn open(instance: Option<&str>) -> Result<Self, KernelError> {
        Self::open_to_log(instance, Log::Nothing)
    }

    /// As [`Self::open`]; the programs log what is said.
    ///
    /// # Errors
    /// As for [`Self::open`].
    pub fn open_to_log(instance: Option<&str>, log: Log) -> Result<Self, KernelError> {
        if !nix::unistd::geteuid().is_root() {
            return Err(KernelError::Unsupported {
                what: "loading kernel programs needs root".to_owned(),
                hint: "run it with sudo".to_owned(),
            });
        }
        pins::mount_bpffs()?;
        let pins = Pins::of(instance);
        let fresh = pins.prepare()?;
        Self::load(pins.clone(), log).or_else(|error| {
            if fresh {
                pins.remove_all()?;
            }
            Err(error)
        })
    }

    /// Opens the prepared directories.
    fn load(pins: Pins, log: Log) -> Result<Self, KernelError> {
        check_shapes(&pins)?;
        let programs = Programs::take(&pins, log)?;
        let bottles = pinned::<Array<MapData, Bottle>>(&pins, "BOTTLES")?;
        let table = Table::map(bottles.map().fd().as_fd()).map_err(|source| KernelError::Io {
            what: "cannot map the table of bottles".to_owned(),
            source,
        })?;
        // before the connections: no hook sends another to a listener of the earlier controller's meanwhile
        let namespaces = Namespaces::open(&pins)?;
        let mut slots = Slots::open(&pins)?;
        slots.forget_other_listeners()?;
        let mut loader = Self {
            table,
            heart: words(&pins, "HEART", 1)?,
            last_listener: words(&pins, "LAST_LISTENER", 1)?,
            slots: Mutex::new(slots),
            readers: Readers::open(&pins)?,
            namespaces,
            allowed: Mutex::new(AllowList::open(pinned(&pins, "ALLOW")?)?),
            events: Mutex::new(Some(pinned(&pins, "EVENTS")?)),
            pins,
            programs,
            adopted: Vec::new(),
        };
        loader.pins.sweep()?;
        loader.adopted = loader.adopt()?;
        loader.programs.pin(&loader.pins)?;
        Ok(loader)
    }

    /// Why bottles cannot be refused sockets of other families than the hooks see; none where they can.
    #[must_use]
    pub fn why_not_every_family(&self) -> Option<&str> {
        self.programs.why_not_every_family()
    }

    /// What the programs log; `None` where they log nothing.
    ///
    /// # Errors
    /// When the kernel does not give it out.
    pub fn logged(&self) -> Result<Option<Logged>, KernelError> {
        self.programs.logged()
    }

    /// Attaches and pins every hook, and gives each its slot after that: one that is pinned without a slot drops, and
    /// a slot without a pin would stay in the cgroup's storage if this process died, for whoever is attached next.
    fn attach_hooks(
        &self,
        name: &str,
        cgroup: &Cgroup,
        slot: u32,
        slots: &mut Slots,
    ) -> Result<(), KernelError> {
        self.pins.add_bottle(name, slot)?;
        for (hook, program) in self.programs.each() {
            let link = sys::link_create(program.fd.as_fd(), cgroup.as_fd(), hook.attach_type)
                .map_err(|error| not_attached(cgroup.path(), error))?;
            let path = self.pins.link(name, hook.pin);
            sys::pin(link.as_fd(), &path).map_err(|source| failed("cannot pin", &path, source))?;
            if hook.slot {
                slots.assign(cgroup.id(), hook.attach_type, slot)?;
            }
        }
        Ok(())
    }

    /// Removes a bottle's hooks. Their storage outlives them while the cgroup does, so it forgets the slot first:
    /// else it would govern for a moment whoever is attached there next.
    ///
    /// Sockets can outlive their cgroup, in the hands of a process outside. Those have no other guard, and nobody could
    /// tell them any more: the hooks stay on, without a slot, and drop what they send until they are closed.
    fn remove_hooks(&self, name: &str, slots: &mut Slots) -> Result<(), KernelError> {
        let mut guarded = 0;
        for hook in HOOKS.iter().chain([&families::HOOK]).filter(|hook| hook.slot) {
            let path = self.pins.link(name, hook.pin);
            let link = match sys::open_pin(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                link => link.map_err(|source| failed("cannot open", &path, source))?,
            };
            let info = sys::link_info(link.as_fd()).map_err(|source| failed("cannot read", &path, source))?;
            slots.unassign(info.cgroup_id, hook.attach_type)?;
            guarded = info.cgroup_id;
        }
        let is_outlived = guarded != 0
            && Hierarchy::open().and_then(|hierarchy| hierarchy.has_lost(guarded)).map_err(|source| {
                KernelError::Io { what: format!("cannot tell whether the cgroup of {name} is there"), source }
            })?;
        if is_outlived {
            self.pins.set_aside(name, guarded)?;
        } else {
            self.pins.remove_bottle(name)?;
        }
        self.pins.sweep()
    }
}

impl Kernel for Loader {
    fn adopted(&self) -> Vec<Pinned> {
        self.adopted.clone()
    }

    fn attach(&self, name: &str, cgroup: &Cgroup, guard: Guard) -> Result<(), KernelError> {
        check_slot(guard.slot)?;
        check_meter(guard.meter)?;
        let mut slots = lock(&self.slots);
        check_unguarded(cgroup)?;
        self.pins.sweep()?;
        let directory = self.pins.bottle(name);
        if directory.exists() {
            return Err(KernelError::Pins { path: directory, what: "is pinned already".to_owned() });
        }
        if self.table.is_live(guard.slot) {
            let source = io::Error::from(io::ErrorKind::AlreadyExists);
            return Err(KernelError::Io { what: format!("slot {} is in use", guard.slot), source });
        }
        self.table.prepare(&guard, cgroup.id());
        slots.clear(guard.slot)?;
        lock(&self.allowed).set(guard.slot, &[])?;
        let attached = self.attach_hooks(name, cgroup, guard.slot, &mut slots);
        if attached.is_err() {
            self.table.retire(guard.slot);
            self.remove_hooks(name, &mut slots)?;
        }
        attached
    }

    fn refresh(&self, guard: Guard) {
        self.table.set_meter(&guard);
    }

    fn detach(&self, name: &str, slot: u32) -> Result<(), KernelError> {
        check_slot(slot)?;
        let mut slots = lock(&self.slots);
        self.table.retire(slot);
        self.remove_hooks(name, &mut slots)?;
        lock(&self.allowed).set(slot, &[])?;
        slots.clear(slot)
    }

    fn cut_as(&self, slot: u32, face: Face) {
        self.table.cut(slot, face);
    }

    fn open(&self, slot: u32) {
        self.table.open(slot);
    }

    fn is_open(&self, slot: u32) -> bool {
        self.table.is_open(slot)
    }

    fn set_lease(&self, slot: u32, lease: Option<Duration>) {
        let nanoseconds = |lease: Duration| u64::try_from(lease.as_nanos()).unwrap_or(u64::MAX).max(1);
        self.table.set_lease(slot, lease.map_or(0, nanoseconds));
    }

    fn beat(&self) {
        if let Some(heart) = self.heart.get(0) {
            heart.store(coarse_now(), Ordering::SeqCst);
        }
    }

    fn silence(&self) -> Option<Duration> {
        let last = self.heart.get(0)?.load(Ordering::SeqCst);
        (last != 0).then(|| Duration::from_nanos(coarse_now().saturating_sub(last)))
    }

    fn new_listener(&self) -> Option<u32> {
        let next =
            |last: u64| last.max(LISTENER_HOST.into()).checked_add(1).filter(|next| *next <= u32::MAX.into());
        let word = self.last_listener.get(0)?;
        let last = word.fetch_update(Ordering::SeqCst, Ordering::SeqCst, next).ok()?;
        next(last).and_then(|given| u32::try_from(given).ok())
    }

    fn set_place(&self, cookie: u64, place: &Place) -> Result<(), KernelError> {
        check_meter(place.meter)?;
        self.namespaces.set(cookie, table::place(place))
    }

    fn remove_place(&self, cookie: u64) -> Result<(), KernelError> {
        self.namespaces.remove(cookie)
    }

    fn set_allowed(&self, slot: u32, allowed: &[Allowed]) -> Result<(), KernelError> {
        check_slot(slot)?;
        lock(&self.allowed).set(slot, allowed)
    }

    fn refuses_packet_sockets(&self) -> bool {
        self.why_not_every_family().is_none()
    }

    fn events(&self) -> Result<Events, KernelError> {
        lock(&self.events).take().map(Events::of_ring).ok_or_else(|| KernelError::Io {
            what: "the kernel's events are read already".to_owned(),
            source: io::ErrorKind::ResourceBusy.into(),
        })
    }

    fn counters(&self, slot: u32) -> Result<Counters, KernelError> {
        self.readers.counters(slot)
    }

    fn flow(&self, peer: SocketAddr, local: SocketAddr, listener: u32) -> Option<Flow> {
        let flow = self.readers.flow(&table::flow_key(peer, local, listener))?;
        check_slot(flow.slot).ok()?;
        let current = self.table.is_live(flow.slot) && self.table.generation(flow.slot) == flow.generation;
        current.then_some(flow)
    }

    fn made_in(&self, peer: SocketAddr, local: SocketAddr) -> Option<PathBuf> {
        let socket = SockDiag::open().and_then(|mut diag| diag.connected(peer, local));
        let socket = socket.inspect_err(|error| tracing::warn!(%error, %peer, "whose it is cannot be told"));
        cgroup::path_of_id(socket.ok()??.cgroup?)
    }

    fn flows_of(&self, slot: u32) -> Result<Vec<(FlowKey, Flow)>, KernelError> {
        check_slot(slot)?;
        // looking through the connections of all bottles takes long
        if lock(&self.slots).has_flows(slot) { self.readers.flows_of(slot) } else { Ok(Vec::new()) }
    }
}

/// Removes every pin of an instance, and with them every guard: their bottles are open from then on. Returns how
/// many bottles there were; no pins at all is no error.
///
/// # Errors
/// When a pin cannot be removed.
pub fn unpin_all(instance: Option<&str>) -> Result<usize, KernelError> {
    Pins::of(instance).remove_all()
}

fn check_slot(slot: u32) -> Result<(), KernelError> {
    if (1..SLOTS).contains(&slot) {
        return Ok(());
    }
    let source = io::Error::from(io::ErrorKind::InvalidInput);
    Err(KernelError::Io { what: format!("slot {slot} is not in 1..{SLOTS}"), source })
}

/// The programs compare addresses, so the meter's must be a definite one.
fn check_meter(meter: SocketAddr) -> Result<(), KernelError> {
    if !meter.ip().to_canonical().is_unspecified() {
        return Ok(());
    }
    Err(KernelError::Unsupported {
        what: format!("a meter that listens on {meter} cannot tell the connections of bottles"),
        hint: "give `listen` a definite address, such as 127.0.0.1:7080".to_owned(),
    })
}
