//! The kernel plane in memory, for tests without root: the same promises, no packets.
use std::collections::BTreeMap;
use std::io::{self, PipeWriter, Write as _};
use std::net::SocketAddr;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use enforcer_ebpf::LISTENER_HOST;
use nix::fcntl::{FcntlArg, OFlag, fcntl};

use super::table::{address_words, flow_key};
use super::{
    Allowed, Counters, Event, Events, Face, Flow, FlowKey, Guard, Kernel, KernelError, Pinned, Place, events,
};
use crate::bottle::cgroup::Cgroup;

/// What the fake knows of a slot.
#[derive(Clone, Debug)]
struct Slot {
    name: String,
    guard: Guard,
    cgroup_id: u64,
    open: bool,
    face: Face,
    lease: Option<Duration>,
}

impl Slot {
    fn new(name: &str, guard: Guard, cgroup_id: u64, open: bool) -> Self {
        Self { name: name.to_owned(), guard, cgroup_id, open, face: Face::Silent, lease: None }
    }
}

#[derive(Debug, Default)]
struct State {
    slots: BTreeMap<u32, Slot>,
    flows: Vec<((SocketAddr, SocketAddr, u32), Flow)>,
    /// Cgroups of sockets that no hook remembers, by their two addresses.
    strangers: Vec<((SocketAddr, SocketAddr), PathBuf)>,
    places: BTreeMap<u64, Place>,
    allowed: BTreeMap<u32, Vec<Allowed>>,
    /// Whether [`Kernel::set_allowed`] fails.
    refuses_lists: bool,
    beats: u64,
    /// How many ids beside the host's were given.
    listeners: u32,
    /// Where events are written, once somebody reads them.
    events: Option<PipeWriter>,
}

/// A kernel plane in memory.
#[derive(Debug, Default)]
pub struct FakeKernel {
    adopted: Vec<Pinned>,
    state: Mutex<State>,
}

impl FakeKernel {
    /// Nothing pinned.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// As if an earlier controller had left these; their meter is unset until [`Kernel::refresh`].
    #[must_use]
    pub fn with_pinned(adopted: Vec<Pinned>) -> Self {
        let fake = Self { adopted, state: Mutex::default() };
        for pinned in &fake.adopted {
            let meter = SocketAddr::from(([0, 0, 0, 0], 0));
            let guard = Guard::new(pinned.slot, pinned.generation, meter);
            let slot = Slot::new(&pinned.name, guard, pinned.cgroup_id, pinned.cut.is_none());
            fake.state().slots.insert(pinned.slot, slot);
        }
        fake
    }

    /// A guard as [`Kernel::attach`] makes it, without a cgroup: for tests that have none to open.
    pub fn attach_id(&self, name: &str, cgroup_id: u64, guard: Guard) {
        self.state().slots.insert(guard.slot, Slot::new(name, guard, cgroup_id, false));
    }

    /// As if a hook had told this. Nobody reads it: it is lost.
    ///
    /// # Panics
    /// When the reader is that far behind.
    pub fn tell(&self, event: &Event) {
        if let Some(pipe) = &mut self.state().events {
            pipe.write_all(&events::encode(event))
                .unwrap_or_else(|error| panic!("an event is lost: {error}"));
        }
    }

    /// From now on no list can be written, as in a map that is full; what was to go from it is gone.
    pub fn refuse_lists(&self, refuse: bool) {
        self.state().refuses_lists = refuse;
    }

    /// What the slot is to guard, as it was told last.
    #[must_use]
    pub fn guard(&self, slot: u32) -> Option<Guard> {
        self.state().slots.get(&slot).map(|entry| entry.guard)
    }

    /// The face of the slot's cut; `None` when it is open.
    #[must_use]
    pub fn face(&self, slot: u32) -> Option<Face> {
        self.state().slots.get(&slot).filter(|entry| !entry.open).map(|entry| entry.face)
    }

    /// The slot's lease.
    #[must_use]
    pub fn lease(&self, slot: u32) -> Option<Duration> {
        self.state().slots.get(&slot).and_then(|entry| entry.lease)
    }

    /// How often the heart has beaten.
    #[must_use]
    pub fn beats(&self) -> u64 {
        self.state().beats
    }

    /// What the slot may reach under lockdown.
    #[must_use]
    pub fn allowed(&self, slot: u32) -> Vec<Allowed> {
        self.state().allowed.get(&slot).cloned().unwrap_or_default()
    }

    /// Where the meter is in each network namespace, by cookie.
    #[must_use]
    pub fn places(&self) -> BTreeMap<u64, Place> {
        self.state().places.clone()
    }

    /// As if a process of the slot, in the host's network namespace, had connected from `peer` to the meter at
    /// `local`, having asked for `asked`.
    ///
    /// # Panics
    /// When nothing is attached with this slot.
    pub fn connect(&self, slot: u32, peer: SocketAddr, local: SocketAddr, asked: SocketAddr) {
        let mut state = self.state();
        let Some(entry) = state.slots.get(&slot).cloned() else { panic!("slot {slot} is not attached") };
        let flow = Flow {
            original_ip: address_words(asked.ip()),
            original_port: asked.port().into(),
            slot,
            generation: entry.guard.generation,
            cgroup_id: entry.cgroup_id,
            ..Flow::default()
        };
        state.flows.push(((peer, local, LISTENER_HOST), flow));
    }

    /// As if a socket made in this cgroup of the host were connected from `peer` to the meter at `local`, and no hook
    /// had seen it.
    pub fn connect_unseen(&self, cgroup: &Path, peer: SocketAddr, local: SocketAddr) {
        self.state().strangers.push(((peer, local), cgroup.to_owned()));
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kernel for FakeKernel {
    fn adopted(&self) -> Vec<Pinned> {
        self.adopted.clone()
    }

    fn attach(&self, name: &str, cgroup: &Cgroup, guard: Guard) -> Result<(), KernelError> {
        if self.state().slots.values().any(|slot| slot.cgroup_id == cgroup.id()) {
            return Err(KernelError::AlreadyAttached(cgroup.path().to_owned()));
        }
        self.attach_id(name, cgroup.id(), guard);
        Ok(())
    }

    fn refresh(&self, guard: Guard) {
        if let Some(entry) = self.state().slots.get_mut(&guard.slot) {
            entry.guard = guard;
        }
    }

    fn detach(&self, name: &str, slot: u32) -> Result<(), KernelError> {
        let mut state = self.state();
        state.slots.retain(|number, entry| *number != slot || entry.name != name);
        state.flows.retain(|(_, flow)| flow.slot != slot);
        Ok(())
    }

    fn cut_as(&self, slot: u32, face: Face) {
        if let Some(entry) = self.state().slots.get_mut(&slot) {
            (entry.open, entry.face) = (false, face);
        }
    }

    fn open(&self, slot: u32) {
        if let Some(entry) = self.state().slots.get_mut(&slot) {
            entry.open = true;
        }
    }

    fn set_lease(&self, slot: u32, lease: Option<Duration>) {
        if let Some(entry) = self.state().slots.get_mut(&slot) {
            entry.lease = lease;
        }
    }

    fn beat(&self) {
        self.state().beats += 1;
    }

    fn silence(&self) -> Option<Duration> {
        (self.state().beats > 0).then_some(Duration::ZERO)
    }

    fn new_listener(&self) -> Option<u32> {
        let mut state = self.state();
        state.listeners += 1;
        Some(LISTENER_HOST + state.listeners)
    }

    fn set_place(&self, cookie: u64, place: &Place) -> Result<(), KernelError> {
        self.state().places.insert(cookie, *place);
        Ok(())
    }

    fn remove_place(&self, cookie: u64) -> Result<(), KernelError> {
        self.state().places.remove(&cookie);
        Ok(())
    }

    fn set_allowed(&self, slot: u32, allowed: &[Allowed]) -> Result<(), KernelError> {
        let mut state = self.state();
        if state.refuses_lists {
            state.allowed.remove(&slot);
            let source = io::ErrorKind::StorageFull.into();
            return Err(KernelError::Io { what: "the allow-list".to_owned(), source });
        }
        state.allowed.insert(slot, allowed.to_vec());
        Ok(())
    }

    fn refuses_packet_sockets(&self) -> bool {
        false
    }

    fn events(&self) -> Result<Events, KernelError> {
        let failed = |source| KernelError::Io { what: "a pipe for events".to_owned(), source };
        let mut state = self.state();
        if state.events.is_some() {
            return Err(failed(io::ErrorKind::ResourceBusy.into()));
        }
        let (reader, writer) = io::pipe().map_err(failed)?;
        fcntl(reader.as_fd(), FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).map_err(|error| failed(error.into()))?;
        state.events = Some(writer);
        Ok(Events::of_pipe(reader))
    }

    fn is_open(&self, slot: u32) -> bool {
        self.state().slots.get(&slot).is_some_and(|entry| entry.open)
    }

    fn counters(&self, _slot: u32) -> Result<Counters, KernelError> {
        Ok(Counters::default())
    }

    fn flow(&self, peer: SocketAddr, local: SocketAddr, listener: u32) -> Option<Flow> {
        let state = self.state();
        let (_, flow) = state.flows.iter().find(|(key, _)| *key == (peer, local, listener))?;
        let current =
            state.slots.get(&flow.slot).is_some_and(|slot| slot.guard.generation == flow.generation);
        current.then_some(*flow)
    }

    fn made_in(&self, peer: SocketAddr, local: SocketAddr) -> Option<PathBuf> {
        let state = self.state();
        let found = state.strangers.iter().find(|(socket, _)| *socket == (peer, local))?;
        Some(found.1.clone())
    }

    fn flows_of(&self, slot: u32) -> Result<Vec<(FlowKey, Flow)>, KernelError> {
        let state = self.state();
        let of_slot = state.flows.iter().filter(|(_, flow)| flow.slot == slot);
        Ok(of_slot
            .map(|((peer, local, listener), flow)| (flow_key(*peer, *local, *listener), *flow))
            .collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_is_closed_until_opened_and_its_flows_end_with_it() {
        let kernel = FakeKernel::new();
        let meter: SocketAddr = "127.0.0.1:7080".parse().unwrap();
        let peer: SocketAddr = "127.0.0.1:40000".parse().unwrap();
        kernel.attach_id("b1", 7, Guard::new(1, 3, meter));
        assert!(!kernel.is_open(1));
        kernel.open(1);
        assert!(kernel.is_open(1));
        kernel.connect(1, peer, meter, meter);
        assert_eq!(kernel.flow(peer, meter, 1).map(|flow| (flow.slot, flow.generation)), Some((1, 3)));
        assert_eq!(kernel.flow(peer, meter, 2), None);
        kernel.detach("b1", 1).unwrap();
        assert_eq!(kernel.flow(peer, meter, 1), None);
        assert!(!kernel.is_open(1));
    }

    #[test]
    fn events_are_read_once_each_and_by_one_reader() {
        let kernel = FakeKernel::new();
        let told = Event { kind: 4, slot: 1, cookie: 77, port: 443, ..Event::default() };
        let mut events = kernel.events().unwrap();
        assert!(kernel.events().is_err());
        assert_eq!(events.next_event(), None);
        kernel.tell(&told);
        assert_eq!(events.next_event(), Some(told));
        assert_eq!(events.next_event(), None);
    }
}
