//! The kernel plane with eBPF: loads the programs once, attaches them to each bottle's cgroup, pins everything.
//!
//! It holds no verdict of its own: the table is the truth, and it outlives this process. Dropping a loader
//! changes nothing in the kernel.
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::Ordering;
use std::time::Duration;

use aya::maps::{Array, IterableMap as _, MapData, RingBuf};
use aya::programs::ProgramFd;
use aya::{Btf, EbpfLoader};
use enforcer_ebpf::{Bottle, LISTENER_HOST, SLOTS};

use super::allow::{AllowList, Allowed};
use super::families;
use super::hooks::{HOOKS, Hook, OBJECT, check_unguarded, load_programs};
use super::maps::{Namespaces, Readers, Slots, lock, take, words};
use super::pins::{self, Pins};
use super::refusal::{failed, not_attached, refused};
use super::shapes::{HOMES, ORIGINALS, check_shapes};
use super::sock_diag::SockDiag;
use super::table::{self, Table};
use super::words::{Words, coarse_now};
use super::{Counters, Events, Face, Flow, FlowKey, Guard, Kernel, KernelError, Pinned, Place, sys};
use crate::bottle::cgroup::{self, Cgroup};

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
    /// In the order of `HOOKS`.
    programs: Vec<ProgramFd>,
    /// The optional hook, or why there is none.
    families: Result<ProgramFd, String>,
    adopted: Vec<Pinned>,
}

impl Loader {
    /// Loads the programs, taking over what an earlier controller of this instance (`None`: the host's) pinned:
    /// its maps with every verdict in them, and its links, which from here on run the programs loaded now.
    ///
    /// # Errors
    /// `Unsupported` when the kernel or the host cannot do it, `Pins` when what is pinned has another shape or
    /// version, or is not whole.
    pub fn open(instance: Option<&str>) -> Result<Self, KernelError> {
        if !nix::unistd::geteuid().is_root() {
            return Err(KernelError::Unsupported {
                what: "loading kernel programs needs root".to_owned(),
                hint: "run it with sudo".to_owned(),
            });
        }
        pins::mount_bpffs()?;
        let pins = Pins::of(instance);
        let fresh = pins.prepare()?;
        Self::load(pins.clone()).or_else(|error| {
            if fresh {
                pins.remove_all()?;
            }
            Err(error)
        })
    }

    /// Loads into the prepared directories.
    fn load(pins: Pins) -> Result<Self, KernelError> {
        check_shapes(&pins)?;
        // aya reads it too, and keeps it to itself; the optional hook needs it
        let btf = std::thread::spawn(|| Btf::from_sys_fs().ok());
        let mut ebpf = EbpfLoader::new()
            .default_map_pin_directory(pins.root())
            .map_pin_path(ORIGINALS, pins.root().join(ORIGINALS))
            .map_pin_path(HOMES, pins.root().join(HOMES))
            .load(OBJECT)
            .map_err(|error| refused("cannot load the kernel programs", &error))?;
        let programs = load_programs(&mut ebpf)?;
        let btf = btf.join().ok().flatten();
        let bottles = take::<Array<MapData, Bottle>>(&mut ebpf, "BOTTLES")?;
        let table = Table::map(bottles.map().fd().as_fd()).map_err(|source| KernelError::Io {
            what: "cannot map the table of bottles".to_owned(),
            source,
        })?;
        // before the connections: no hook sends another to a listener of the earlier controller's meanwhile
        let namespaces = Namespaces::take(&mut ebpf)?;
        let mut slots = Slots::take(&mut ebpf)?;
        slots.forget_other_listeners()?;
        let mut loader = Self {
            table,
            heart: words(&mut ebpf, "HEART", 1)?,
            last_listener: words(&mut ebpf, "LAST_LISTENER", 1)?,
            slots: Mutex::new(slots),
            readers: Readers::open(&pins)?,
            namespaces,
            allowed: Mutex::new(AllowList::open(take(&mut ebpf, "ALLOW")?)?),
            families: families::load(&mut ebpf, btf.as_ref()),
            events: Mutex::new(Some(take(&mut ebpf, "EVENTS")?)),
            pins,
            programs,
            adopted: Vec::new(),
        };
        loader.pins.sweep()?;
        loader.adopted = loader.adopt()?;
        loader.pin_programs()?;
        Ok(loader)
    }

    /// Why bottles cannot be refused sockets of other families than the hooks see; none where they can.
    #[must_use]
    pub fn why_not_every_family(&self) -> Option<&str> {
        self.families.as_ref().err().map(String::as_str)
    }

    /// What a bottle is given: each hook and its program.
    fn hooks(&self) -> impl Iterator<Item = (&'static Hook, &ProgramFd)> {
        let optional = self.families.as_ref().ok().map(|program| (&families::HOOK, program));
        HOOKS.iter().zip(&self.programs).chain(optional)
    }

    /// Takes over every pinned guard.
    fn adopt(&self) -> Result<Vec<Pinned>, KernelError> {
        let mut adopted: Vec<Pinned> = Vec::new();
        for name in self.pins.bottles()? {
            let wrong = |what: String| KernelError::Pins { path: self.pins.bottle(&name), what };
            if self.is_unfinished(&name)? {
                // its storage too: it would govern for a moment whoever is attached there next
                self.remove_hooks(&name, &mut lock(&self.slots))?;
                continue;
            }
            let slot = self.pins.slot(&name)?;
            if let Some(other) = adopted.iter().find(|other| other.slot == slot) {
                return Err(wrong(format!("has slot {slot}, as has {}", other.name)));
            }
            adopted.push(self.adopt_bottle(name, slot)?);
        }
        Ok(adopted)
    }

    /// Whether a controller died while attaching or detaching this bottle: a hook is missing, and the slot is not
    /// in use. A hook missing from a slot in use is an error, found when it is opened.
    fn is_unfinished(&self, name: &str) -> Result<bool, KernelError> {
        let links = self.pins.links(name)?;
        let pinned = HOOKS.iter().filter(|hook| links.iter().any(|link| link == hook.pin)).count();
        if pinned == 0 || pinned == HOOKS.len() {
            return Ok(pinned == 0);
        }
        let slot = self.pins.slot(name)?;
        check_slot(slot)?;
        Ok(!self.table.is_live(slot))
    }

    /// Runs the programs loaded now behind a bottle's links; its verdict stays what the table says. A controller that
    /// died while attaching or detaching it may have left hooks without their slot: they are given it.
    fn adopt_bottle(&self, name: String, slot: u32) -> Result<Pinned, KernelError> {
        check_slot(slot)?;
        let mut cgroup_id = None;
        for (hook, program) in self.hooks() {
            let path = self.pins.link(&name, hook.pin);
            // the bottle may be older than the kernel's readiness for the optional hook
            if hook.pin == families::HOOK.pin && !path.exists() {
                continue;
            }
            let wrong = |error: io::Error| KernelError::Pins { path: path.clone(), what: error.to_string() };
            let link = sys::open_pin(&path).map_err(wrong)?;
            if cgroup_id.is_none() {
                // all of a bottle's links are made for one cgroup
                cgroup_id = Some(sys::link_info(link.as_fd()).map_err(wrong)?.cgroup_id);
            }
            match (sys::link_update(link.as_fd(), program.as_fd()), cgroup_id) {
                // its cgroup is gone: nothing runs there any more
                (Err(error), _) if error.raw_os_error() == Some(libc::ENOLINK) => cgroup_id = Some(0),
                (Ok(()), Some(id)) if hook.slot => lock(&self.slots).assign(id, hook.attach_type, slot)?,
                (result, _) => result.map_err(wrong)?,
            }
        }
        let cgroup_id = cgroup_id.unwrap_or(0);
        let generation = self.table.generation(slot);
        let mute = self.table.is_mute(slot);
        Ok(Pinned { name, slot, generation, cgroup_id, cut: self.table.face(slot), mute })
    }

    /// Pins the programs in place of the earlier ones.
    fn pin_programs(&self) -> Result<(), KernelError> {
        for (hook, program) in self.hooks() {
            let path = self.pins.program(hook.program);
            match std::fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(failed("cannot remove", &path, error));
                }
                _ => {}
            }
            sys::pin(program.as_fd(), &path).map_err(|source| failed("cannot pin", &path, source))?;
        }
        Ok(())
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
        for (hook, program) in self.hooks() {
            let link = sys::link_create(program.as_fd(), cgroup.as_fd(), hook.attach_type)
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
            && cgroup::is_gone(guarded).map_err(|source| KernelError::Io {
                what: format!("cannot tell whether the cgroup of {name} is there"),
                source,
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
        self.families.is_ok()
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
