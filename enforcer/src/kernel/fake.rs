//! The kernel plane in memory, for tests without root: the same promises, no packets.
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::table::address_words;
use super::{Counters, Flow, Guard, Kernel, KernelError, Pinned};
use crate::bottle::cgroup::Cgroup;

/// What the fake knows of a slot.
#[derive(Clone, Debug)]
struct Slot {
    name: String,
    guard: Guard,
    cgroup_id: u64,
    open: bool,
}

#[derive(Debug, Default)]
struct State {
    slots: BTreeMap<u32, Slot>,
    flows: Vec<((SocketAddr, SocketAddr, u32), Flow)>,
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
            let guard = Guard::new(pinned.slot, pinned.generation, meter, 0);
            let (name, cgroup_id, open) = (pinned.name.clone(), pinned.cgroup_id, !pinned.cut);
            fake.state().slots.insert(pinned.slot, Slot { name, guard, cgroup_id, open });
        }
        fake
    }

    /// A guard as [`Kernel::attach`] makes it, without a cgroup: for tests that have none to open.
    pub fn attach_id(&self, name: &str, cgroup_id: u64, guard: Guard) {
        self.state().slots.insert(guard.slot, Slot { name: name.to_owned(), guard, cgroup_id, open: false });
    }

    /// As if a process of the slot had connected from `peer` to the meter at `local`, having asked for `asked`.
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
        state.flows.push(((peer, local, entry.guard.listener), flow));
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_open(&self, slot: u32, open: bool) {
        if let Some(entry) = self.state().slots.get_mut(&slot) {
            entry.open = open;
        }
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

    fn cut(&self, slot: u32) {
        self.set_open(slot, false);
    }

    fn open(&self, slot: u32) {
        self.set_open(slot, true);
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
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_is_closed_until_opened_and_its_flows_end_with_it() {
        let kernel = FakeKernel::new();
        let meter: SocketAddr = "127.0.0.1:7080".parse().unwrap();
        let peer: SocketAddr = "127.0.0.1:40000".parse().unwrap();
        kernel.attach_id("b1", 7, Guard::new(1, 3, meter, 1));
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
}
