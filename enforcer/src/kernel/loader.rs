//! The kernel plane with eBPF: loads the programs once, attaches them to each bottle's cgroup, pins everything.
//!
//! It holds no verdict of its own: the table is the truth, and it outlives this process. Dropping a loader
//! changes nothing in the kernel.
use std::error::Error;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

#[expect(deprecated, reason = "its successor CGRP_STORAGE cannot be used on the packet path")]
use aya::maps::CgroupStorage;
use aya::maps::cgroup_storage::CgroupStorageKey;
use aya::maps::{
    Array, HashMap, IterableMap as _, Map, MapData, MapError, MapInfo, MapType, PerCpuArray, PerCpuValues,
    RingBuf,
};
use aya::programs::{Program, ProgramError, ProgramFd, loaded_programs};
use aya::util::nr_cpus;
use aya::{Ebpf, EbpfLoader};
use enforcer_ebpf::{
    self as abi, ALLOW, AllowKey, AllowPorts, Bottle, EVENT_BYTES, EventState, FLOWS, FlowKey, LISTENER_HOST,
    NAMESPACES, Original, SLOTS,
};

use super::heart::Heart;
use super::pins::{self, Pins, failed};
use super::table::{self, Table, address_words};
use super::{Counters, Events, Face, Flow, Guard, Kernel, KernelError, Pinned, Place, sys};
use crate::bottle::cgroup::Cgroup;

/// The programs, as the build script compiled them.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/enforcer.bpf.o"));

/// One place where a program is attached to a bottle.
struct Hook {
    /// Name of its pin.
    pin: &'static str,
    /// The program's name in the object.
    program: &'static str,
    /// `enum bpf_attach_type`.
    attach_type: u32,
    /// Whether the program asks for its bottle's slot; the kernel keeps no storage for one that does not.
    slot: bool,
}

const HOOKS: [Hook; 11] = [
    hook("egress", "enforcer_egress", 1),
    hook("ingress", "enforcer_ingress", 0),
    hook("sock_ops", "enforcer_sock_ops", 3),
    hook("connect4", "enforcer_connect4", 10),
    hook("connect6", "enforcer_connect6", 11),
    hook("sendmsg4", "enforcer_sendmsg4", 14),
    hook("sendmsg6", "enforcer_sendmsg6", 15),
    hook("bind4", "enforcer_bind4", 8),
    hook("bind6", "enforcer_bind6", 9),
    Hook { slot: false, ..hook("getpeername4", "enforcer_getpeername4", 29) },
    Hook { slot: false, ..hook("getpeername6", "enforcer_getpeername6", 30) },
];

const fn hook(pin: &'static str, program: &'static str, attach_type: u32) -> Hook {
    Hook { pin, program, attach_type, slot: true }
}

/// A map as this controller's programs know it.
struct Shape {
    name: &'static str,
    map_type: MapType,
    key: usize,
    value: usize,
    entries: u32,
    flags: u32,
}

/// `BPF_F_MMAPABLE`.
pub(super) const MMAPABLE: u32 = 1 << 10;
/// `BPF_F_NO_PREALLOC`.
const NO_PREALLOC: u32 = 1;
/// Bytes before the data of an LPM trie's key: the prefix length.
const PREFIX: usize = 4;
/// `struct bpf_cgroup_storage_key`, with its padding.
const STORAGE_KEY: usize = 16;

/// The one map whose definition cannot say that it is pinned.
const ORIGINALS: &str = "ORIGINALS";

const SHAPES: [Shape; 11] = [
    shape("CG", MapType::CgroupStorage, STORAGE_KEY, size_of::<u32>(), 0, 0),
    shape("BOTTLES", MapType::Array, size_of::<u32>(), size_of::<Bottle>(), SLOTS, MMAPABLE),
    shape("COUNTERS", MapType::PerCpuArray, size_of::<u32>(), size_of::<Counters>(), SLOTS, 0),
    shape("FLOWS", MapType::Hash, size_of::<FlowKey>(), size_of::<Flow>(), FLOWS, 0),
    shape("FLOW_COUNTS", MapType::Array, size_of::<u32>(), size_of::<u64>(), SLOTS, 0),
    shape("NAMESPACES", MapType::Hash, size_of::<u64>(), size_of::<abi::Place>(), NAMESPACES, 0),
    shape("HEART", MapType::Array, size_of::<u32>(), size_of::<u64>(), 1, MMAPABLE),
    shape(
        "ALLOW",
        MapType::LpmTrie,
        PREFIX + size_of::<AllowKey>(),
        size_of::<AllowPorts>(),
        ALLOW,
        NO_PREALLOC,
    ),
    shape("EVENTS", MapType::RingBuf, 0, 0, EVENT_BYTES, 0),
    shape("EVENT_STATES", MapType::Array, size_of::<u32>(), size_of::<EventState>(), SLOTS, 0),
    shape(ORIGINALS, MapType::SkStorage, size_of::<i32>(), size_of::<Original>(), 0, NO_PREALLOC),
];

const fn shape(
    name: &'static str,
    map_type: MapType,
    key: usize,
    value: usize,
    entries: u32,
    flags: u32,
) -> Shape {
    Shape { name, map_type, key, value, entries, flags }
}

/// The maps that are read and written by calls.
#[expect(deprecated, reason = "as above")]
struct Maps {
    storage: CgroupStorage<MapData, u32>,
    counters: PerCpuArray<MapData, Counters>,
    flows: HashMap<MapData, FlowKey, Flow>,
    flow_counts: Array<MapData, u64>,
    event_states: Array<MapData, EventState>,
}

/// The loaded programs and their maps.
pub struct Loader {
    pins: Pins,
    table: Table,
    heart: Heart,
    maps: Mutex<Maps>,
    namespaces: Mutex<HashMap<MapData, u64, abi::Place>>,
    /// Until they are taken.
    events: Mutex<Option<RingBuf<MapData>>>,
    /// In the order of `HOOKS`.
    programs: Vec<ProgramFd>,
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
        let mut ebpf = EbpfLoader::new()
            .default_map_pin_directory(pins.root())
            .map_pin_path(ORIGINALS, pins.root().join(ORIGINALS))
            .load(OBJECT)
            .map_err(|error| refused("cannot load the kernel programs", &error))?;
        let programs = load_programs(&mut ebpf)?;
        let bottles = take::<Array<MapData, Bottle>>(&mut ebpf, "BOTTLES")?;
        let table = Table::map(bottles.map().fd().as_fd()).map_err(|source| KernelError::Io {
            what: "cannot map the table of bottles".to_owned(),
            source,
        })?;
        let maps = Maps {
            storage: take(&mut ebpf, "CG")?,
            counters: take(&mut ebpf, "COUNTERS")?,
            flows: take(&mut ebpf, "FLOWS")?,
            flow_counts: take(&mut ebpf, "FLOW_COUNTS")?,
            event_states: take(&mut ebpf, "EVENT_STATES")?,
        };
        let heart = take::<Array<MapData, u64>>(&mut ebpf, "HEART")?;
        let heart = Heart::map(heart.map().fd().as_fd())
            .map_err(|source| KernelError::Io { what: "cannot map the heartbeat".to_owned(), source })?;
        let namespaces = Mutex::new(take(&mut ebpf, "NAMESPACES")?);
        let events = Mutex::new(Some(take(&mut ebpf, "EVENTS")?));
        let maps = Mutex::new(maps);
        let mut loader = Self { pins, table, heart, maps, namespaces, events, programs, adopted: Vec::new() };
        loader.forget_places()?;
        loader.adopted = loader.adopt()?;
        loader.pin_programs()?;
        Ok(loader)
    }

    /// Takes away an earlier controller's places, and the connections that went to its listeners in other
    /// namespaces: they have ended with its meter, and their ids will be given to others.
    fn forget_places(&self) -> Result<(), KernelError> {
        let clear = |error: MapError| refused("cannot clear the namespaces", &error);
        let mut namespaces = lock(&self.namespaces);
        let cookies: Vec<u64> = namespaces.keys().collect::<Result<_, _>>().map_err(clear)?;
        for cookie in cookies {
            namespaces.remove(&cookie).map_err(clear)?;
        }
        remove_flows(&mut self.maps().flows, |key, _| key.listener != LISTENER_HOST)
    }

    /// Takes over every pinned guard.
    fn adopt(&self) -> Result<Vec<Pinned>, KernelError> {
        let mut adopted: Vec<Pinned> = Vec::new();
        for name in self.pins.bottles()? {
            let wrong = |what: String| KernelError::Pins { path: self.pins.bottle(&name), what };
            if self.is_unfinished(&name)? {
                // its storage too: it would govern for a moment whoever is attached there next
                self.remove_hooks(&name, &mut self.maps())?;
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
        let pinned = HOOKS.iter().filter(|hook| self.pins.link(name, hook.pin).exists()).count();
        if pinned == 0 || pinned == HOOKS.len() {
            return Ok(pinned == 0);
        }
        let slot = self.pins.slot(name)?;
        check_slot(slot)?;
        Ok(!self.table.is_live(slot))
    }

    /// Runs the programs loaded now behind a bottle's links; its verdict stays what the table says.
    fn adopt_bottle(&self, name: String, slot: u32) -> Result<Pinned, KernelError> {
        check_slot(slot)?;
        let mut cgroup_id = 0;
        for (hook, program) in HOOKS.iter().zip(&self.programs) {
            let path = self.pins.link(&name, hook.pin);
            let wrong = |error: io::Error| KernelError::Pins { path: path.clone(), what: error.to_string() };
            let link = sys::open_pin(&path).map_err(wrong)?;
            cgroup_id = sys::link_info(link.as_fd()).map_err(wrong)?.cgroup_id;
            match sys::link_update(link.as_fd(), program.as_fd()) {
                // its cgroup is gone: nothing runs there any more
                Err(error) if error.raw_os_error() == Some(libc::ENOLINK) => cgroup_id = 0,
                result => result.map_err(wrong)?,
            }
        }
        let generation = self.table.generation(slot);
        Ok(Pinned { name, slot, generation, cgroup_id, cut: !self.table.is_open(slot) })
    }

    /// Pins the programs in place of the earlier ones.
    fn pin_programs(&self) -> Result<(), KernelError> {
        for (hook, program) in HOOKS.iter().zip(&self.programs) {
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

    fn maps(&self) -> MutexGuard<'_, Maps> {
        lock(&self.maps)
    }

    /// Attaches and pins every hook; each finds its slot as soon as its pin is there.
    fn attach_hooks(
        &self,
        name: &str,
        cgroup: &Cgroup,
        slot: u32,
        maps: &mut Maps,
    ) -> Result<(), KernelError> {
        self.pins.add_bottle(name, slot)?;
        for (hook, program) in HOOKS.iter().zip(&self.programs) {
            let link = sys::link_create(program.as_fd(), cgroup.as_fd(), hook.attach_type)
                .map_err(|error| not_attached(cgroup.path(), error))?;
            if hook.slot {
                let key = CgroupStorageKey::new(cgroup.id(), hook.attach_type);
                let written = maps.storage.insert(key, slot, 0);
                written.map_err(|error| refused("cannot write a hook's slot", &error))?;
            }
            let path = self.pins.link(name, hook.pin);
            sys::pin(link.as_fd(), &path).map_err(|source| failed("cannot pin", &path, source))?;
        }
        Ok(())
    }

    /// Removes a bottle's hooks. Their storage outlives them while the cgroup does, so it forgets the slot first:
    /// else it would govern for a moment whoever is attached there next.
    fn remove_hooks(&self, name: &str, maps: &mut Maps) -> Result<(), KernelError> {
        for hook in HOOKS.iter().filter(|hook| hook.slot) {
            let path = self.pins.link(name, hook.pin);
            let link = match sys::open_pin(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                link => link.map_err(|source| failed("cannot open", &path, source))?,
            };
            let info = sys::link_info(link.as_fd()).map_err(|source| failed("cannot read", &path, source))?;
            let key = CgroupStorageKey::new(info.cgroup_id, hook.attach_type);
            match maps.storage.insert(key, 0, 0) {
                Err(MapError::KeyNotFound) => {}
                Err(error) if is_not_found(&error) => {}
                result => result.map_err(|error| refused("cannot clear a hook's slot", &error))?,
            }
        }
        self.pins.remove_bottle(name)
    }
}

impl Kernel for Loader {
    fn adopted(&self) -> Vec<Pinned> {
        self.adopted.clone()
    }

    fn attach(&self, name: &str, cgroup: &Cgroup, guard: Guard) -> Result<(), KernelError> {
        check_slot(guard.slot)?;
        check_meter(guard.meter)?;
        let mut maps = self.maps();
        check_unguarded(cgroup)?;
        let directory = self.pins.bottle(name);
        if directory.exists() {
            return Err(KernelError::Pins { path: directory, what: "is pinned already".to_owned() });
        }
        if self.table.is_live(guard.slot) {
            let source = io::Error::from(io::ErrorKind::AlreadyExists);
            return Err(KernelError::Io { what: format!("slot {} is in use", guard.slot), source });
        }
        self.table.prepare(&guard, cgroup.id());
        clear_slot(&mut maps, guard.slot)?;
        let attached = self.attach_hooks(name, cgroup, guard.slot, &mut maps);
        if attached.is_err() {
            self.table.retire(guard.slot);
            self.remove_hooks(name, &mut maps)?;
        }
        attached
    }

    fn refresh(&self, guard: Guard) {
        self.table.set_meter(&guard);
    }

    fn detach(&self, name: &str, slot: u32) -> Result<(), KernelError> {
        check_slot(slot)?;
        let mut maps = self.maps();
        self.table.retire(slot);
        self.remove_hooks(name, &mut maps)?;
        clear_slot(&mut maps, slot)
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
        self.heart.beat();
    }

    fn set_place(&self, cookie: u64, place: &Place) -> Result<(), KernelError> {
        check_meter(place.meter)?;
        let written = lock(&self.namespaces).insert(cookie, table::place(place), 0);
        written.map_err(|error| refused("cannot write where the meter is", &error))
    }

    fn remove_place(&self, cookie: u64) -> Result<(), KernelError> {
        match lock(&self.namespaces).remove(&cookie) {
            Err(error) if is_not_found(&error) => Ok(()),
            result => result.map_err(|error| refused("cannot clear where the meter is", &error)),
        }
    }

    fn events(&self) -> Result<Events, KernelError> {
        lock(&self.events).take().map(Events::of_ring).ok_or_else(|| KernelError::Io {
            what: "the kernel's events are read already".to_owned(),
            source: io::ErrorKind::ResourceBusy.into(),
        })
    }

    fn counters(&self, slot: u32) -> Result<Counters, KernelError> {
        let per_cpu = self.maps().counters.get(&slot, 0);
        let per_cpu = per_cpu.map_err(|error| refused("cannot read the counters", &error))?;
        Ok(per_cpu.iter().fold(Counters::default(), |sum, cpu| Counters {
            passed_packets: sum.passed_packets + cpu.passed_packets,
            passed_bytes: sum.passed_bytes + cpu.passed_bytes,
            dropped_packets: sum.dropped_packets + cpu.dropped_packets,
            dropped_bytes: sum.dropped_bytes + cpu.dropped_bytes,
        }))
    }

    fn flow(&self, peer: SocketAddr, local: SocketAddr, listener: u32) -> Option<Flow> {
        let key = FlowKey {
            source_ip: address_words(peer.ip()),
            destination_ip: address_words(local.ip()),
            source_port: peer.port().into(),
            destination_port: local.port().into(),
            listener,
            pad: 0,
        };
        // an error is as good as no entry: a connection of nobody is refused
        let flow = self.maps().flows.get(&key, 0).ok()?;
        check_slot(flow.slot).ok()?;
        let current = self.table.is_live(flow.slot) && self.table.generation(flow.slot) == flow.generation;
        current.then_some(flow)
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

/// Refuses pinned maps of another shape: aya would take them over unseen.
fn check_shapes(pins: &Pins) -> Result<(), KernelError> {
    for shape in &SHAPES {
        let path = pins.root().join(shape.name);
        if !path.exists() {
            continue;
        }
        let wrong = |what: String| KernelError::Pins { path: path.clone(), what };
        let info = MapInfo::from_pin(&path).map_err(|error| wrong(chain(&error)))?;
        if let Some(difference) = shape.difference(&info) {
            return Err(wrong(difference));
        }
    }
    Ok(())
}

impl Shape {
    /// How a map differs from this, if it does.
    fn difference(&self, there: &MapInfo) -> Option<String> {
        let map_type = there.map_type().ok();
        let is = |found: u32, wanted: usize| usize::try_from(found).is_ok_and(|found| found == wanted);
        let same = map_type == Some(self.map_type)
            && is(there.key_size(), self.key)
            && is(there.value_size(), self.value)
            && there.max_entries() == self.entries
            && there.map_flags() == self.flags;
        (!same).then(|| {
            format!(
                "the pinned map is {map_type:?} with {} byte keys, {} byte values, {} entries, flags {:#x}; \
                 wanted {:?}, {}, {}, {}, {:#x}",
                there.key_size(),
                there.value_size(),
                there.max_entries(),
                there.map_flags(),
                self.map_type,
                self.key,
                self.value,
                self.entries,
                self.flags,
            )
        })
    }
}

/// Loads the program of every hook.
fn load_programs(ebpf: &mut Ebpf) -> Result<Vec<ProgramFd>, KernelError> {
    HOOKS.iter().map(|hook| load_program(ebpf, hook.program)).collect()
}

fn load_program(ebpf: &mut Ebpf, name: &str) -> Result<ProgramFd, KernelError> {
    let program = ebpf.program_mut(name).ok_or_else(|| KernelError::Unsupported {
        what: format!("the embedded object has no program {name}"),
        hint: "this build is broken: build it again".to_owned(),
    })?;
    let loaded = match program {
        Program::CgroupSkb(program) => program.load(),
        Program::SockOps(program) => program.load(),
        Program::CgroupSockAddr(program) => program.load(),
        _ => Ok(()),
    };
    let what = format!("the kernel refuses the program {name}");
    loaded.map_err(|error| match &error {
        ProgramError::LoadError { io_error, verifier_log } => {
            tracing::debug!(program = name, %verifier_log, "refused by the verifier");
            refused(&what, io_error)
        }
        error => refused(&what, error),
    })?;
    let fd = program.fd().map_err(|error| refused(&what, &error))?;
    fd.try_clone().map_err(|source| KernelError::Io { what, source })
}

/// Takes a map out of the loaded object.
fn take<M: TryFrom<Map, Error = MapError>>(ebpf: &mut Ebpf, name: &str) -> Result<M, KernelError> {
    let map = ebpf.take_map(name).ok_or_else(|| KernelError::Unsupported {
        what: format!("the embedded object has no map {name}"),
        hint: "this build is broken: build it again".to_owned(),
    })?;
    M::try_from(map).map_err(|error| refused(&format!("cannot use the map {name}"), &error))
}

/// Refuses a cgroup that carries one of our programs, of this controller or of another.
fn check_unguarded(cgroup: &Cgroup) -> Result<(), KernelError> {
    let egress = &HOOKS[0];
    let ids = sys::attached_programs(cgroup.as_fd(), egress.attach_type)
        .map_err(|source| failed("cannot read the programs of", cgroup.path(), source))?;
    if ids.is_empty() {
        return Ok(());
    }
    for program in loaded_programs() {
        // one that has gone since its id was listed is not attached either
        let Ok(program) = program else { continue };
        if ids.contains(&program.id()) && program.name_as_str() == Some(egress.program) {
            return Err(KernelError::AlreadyAttached(cgroup.path().to_owned()));
        }
    }
    Ok(())
}

/// Zeroes a slot's counters and forgets its connections.
fn clear_slot(maps: &mut Maps, slot: u32) -> Result<(), KernelError> {
    let clear = |error: MapError| refused("cannot clear the slot", &error);
    let cpus = nr_cpus().map_err(|(what, source)| KernelError::Io { what: what.to_owned(), source })?;
    let zero = PerCpuValues::try_from(vec![Counters::default(); cpus])
        .map_err(|source| KernelError::Io { what: "cannot count CPUs".to_owned(), source })?;
    maps.counters.set(slot, zero, 0).map_err(clear)?;
    maps.event_states.set(slot, EventState::default(), 0).map_err(clear)?;
    remove_flows(&mut maps.flows, |_, flow| flow.slot == slot)?;
    maps.flow_counts.set(slot, 0, 0).map_err(clear)
}

/// Forgets the connections of which this holds.
fn remove_flows(
    flows: &mut HashMap<MapData, FlowKey, Flow>,
    which: impl Fn(&FlowKey, &Flow) -> bool,
) -> Result<(), KernelError> {
    let keys: Vec<FlowKey> = flows
        .iter()
        .filter_map(|entry| entry.ok().filter(|(key, flow)| which(key, flow)))
        .map(|(key, _)| key)
        .collect();
    for key in keys {
        match flows.remove(&key) {
            Err(error) if is_not_found(&error) => {}
            result => result.map_err(|error| refused("cannot forget a connection", &error))?,
        }
    }
    Ok(())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
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

/// A failed attachment, with what is usually behind it.
fn not_attached(cgroup: &Path, error: io::Error) -> KernelError {
    if error.raw_os_error() == Some(libc::EPERM) {
        return KernelError::Unsupported {
            what: format!("the kernel refuses to attach to {}: {error}", cgroup.display()),
            hint: "a program is attached exclusively to a cgroup above it (see `bpftool cgroup tree`), \
                   or CAP_BPF and CAP_NET_ADMIN are missing"
                .to_owned(),
        };
    }
    failed("cannot attach to", cgroup, error)
}

/// A refusal of the kernel or of aya, with the cause's own words.
fn refused(what: &str, error: &(dyn Error + 'static)) -> KernelError {
    let hint =
        "see `enforcer doctor`; cgroup v2, BPF and BTF are needed, and root with CAP_BPF and CAP_NET_ADMIN";
    KernelError::Unsupported { what: format!("{what}: {}", chain(error)), hint: hint.to_owned() }
}

/// An error and its causes on one line.
fn chain(error: &(dyn Error + 'static)) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        line = format!("{line}: {error}");
        cause = error.source();
    }
    line
}

/// Whether the kernel said ENOENT.
fn is_not_found(error: &MapError) -> bool {
    match error {
        MapError::KeyNotFound | MapError::ElementNotFound => true,
        MapError::SyscallError(error) => error.io_error.kind() == io::ErrorKind::NotFound,
        _ => false,
    }
}
