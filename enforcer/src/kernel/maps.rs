//! What is read and written in maps by calls.
//!
//! Verdicts and single words are written through shared memory instead: see `table` and `words`.
use std::os::fd::AsFd as _;
use std::sync::atomic::Ordering;
use std::sync::{Mutex, MutexGuard, PoisonError};

#[expect(deprecated, reason = "its successor CGRP_STORAGE cannot be used on the packet path")]
use aya::maps::CgroupStorage;
use aya::maps::cgroup_storage::CgroupStorageKey;
use aya::maps::{Array, HashMap, IterableMap as _, Map, MapData, MapError, PerCpuArray, PerCpuValues};
use aya::util::nr_cpus;
use enforcer_ebpf::{self as abi, Counters, EventState, FLOWS, Flow, FlowKey, LISTENER_HOST, SLOTS};

use super::KernelError;
use super::pins::Pins;
use super::refusal::{is_not_found, refused};
use super::sys;
use super::words::Words;

/// What attaching and detaching write; one at a time.
#[expect(deprecated, reason = "as above")]
pub struct Slots {
    storage: CgroupStorage<MapData, u32>,
    counters: PerCpuArray<MapData, Counters>,
    flows: HashMap<MapData, FlowKey, Flow>,
    flow_counts: Words,
    event_states: Array<MapData, EventState>,
}

impl Slots {
    /// Opens the maps.
    pub fn open(pins: &Pins) -> Result<Self, KernelError> {
        Ok(Self {
            storage: pinned(pins, "CG")?,
            counters: pinned(pins, "COUNTERS")?,
            flows: pinned(pins, "FLOWS")?,
            flow_counts: words(pins, "FLOW_COUNTS", SLOTS)?,
            event_states: pinned(pins, "EVENT_STATES")?,
        })
    }

    /// Tells the program at one attach point its slot.
    pub fn assign(&mut self, cgroup_id: u64, attach_type: u32, slot: u32) -> Result<(), KernelError> {
        let written = self.storage.insert(CgroupStorageKey::new(cgroup_id, attach_type), slot, 0);
        written.map_err(|error| refused("cannot write a hook's slot", &error))
    }

    /// As [`Self::assign`] with no slot; an attach point that is not there is no error.
    pub fn unassign(&mut self, cgroup_id: u64, attach_type: u32) -> Result<(), KernelError> {
        match self.storage.insert(CgroupStorageKey::new(cgroup_id, attach_type), 0, 0) {
            Err(error) if is_not_found(&error) => Ok(()),
            result => result.map_err(|error| refused("cannot clear a hook's slot", &error)),
        }
    }

    /// Zeroes a slot's counters and forgets its connections, whatever their count: a hook that was running when the
    /// slot was retired may add one after this. What it adds is of an older generation, so nobody's, and goes when
    /// the slot is given away again, which clears it once more.
    pub fn clear(&mut self, slot: u32) -> Result<(), KernelError> {
        let clear = |error: MapError| refused("cannot clear the slot", &error);
        self.counters.set(slot, zeroes()?, 0).map_err(clear)?;
        self.event_states.set(slot, EventState::default(), 0).map_err(clear)?;
        self.remove_flows(|_, flow| flow.slot == slot).map_err(clear)?;
        if let Some(count) = self.flow_counts.get(slot) {
            count.store(0, Ordering::SeqCst);
        }
        Ok(())
    }

    /// Whether connections of the slot are remembered.
    pub fn has_flows(&self, slot: u32) -> bool {
        self.flow_counts.get(slot).is_some_and(|count| count.load(Ordering::SeqCst) != 0)
    }

    /// Forgets the connections to an earlier controller's listeners in other namespaces than the host's: they have
    /// ended with its meter.
    pub fn forget_other_listeners(&mut self) -> Result<(), KernelError> {
        let forgotten = self.remove_flows(|key, _| key.listener != LISTENER_HOST);
        forgotten.map_err(|error| refused("cannot forget connections", &error))
    }

    /// Removes the connections of which this holds. The hooks may be adding and removing others meanwhile.
    fn remove_flows(&mut self, which: impl Fn(&FlowKey, &Flow) -> bool) -> Result<(), MapError> {
        let mut found = Vec::new();
        for entry in self.flows.iter() {
            let (key, flow) = entry?;
            if which(&key, &flow) {
                found.push((key, flow.slot));
            }
        }
        for (key, slot) in found {
            match self.flows.remove(&key) {
                // it has been closed meanwhile, and its hook has counted that
                Err(error) if is_not_found(&error) => {}
                result => {
                    result?;
                    if let Some(count) = self.flow_counts.get(slot) {
                        count.fetch_sub(1, Ordering::SeqCst);
                    }
                }
            }
        }
        Ok(())
    }
}

/// What is read while bottles are attached and detached: handles of their own, without a lock.
pub struct Readers {
    counters: PerCpuArray<MapData, Counters>,
    /// All that the kernel could have.
    cpus: usize,
    flows: HashMap<MapData, FlowKey, Flow>,
}

impl Readers {
    /// Opens the maps a second time.
    pub fn open(pins: &Pins) -> Result<Self, KernelError> {
        Ok(Self { counters: pinned(pins, "COUNTERS")?, cpus: cpus()?, flows: pinned(pins, "FLOWS")? })
    }

    /// The slot's counters, summed over CPUs. Read by a call of its own: aya counts the CPUs again at each.
    pub fn counters(&self, slot: u32) -> Result<Counters, KernelError> {
        let sums = sys::sum_per_cpu(self.counters.map().fd().as_fd(), slot, self.cpus);
        let [passed_packets, passed_bytes, dropped_packets, dropped_bytes] =
            sums.map_err(|source| KernelError::Io { what: "cannot read the counters".to_owned(), source })?;
        Ok(Counters { passed_packets, passed_bytes, dropped_packets, dropped_bytes })
    }

    /// What is remembered of the slot's connections. Others may come and go meanwhile; one may be there twice.
    pub fn flows_of(&self, slot: u32) -> Result<Vec<(FlowKey, Flow)>, KernelError> {
        let most = 2 * usize::try_from(FLOWS).unwrap_or(usize::MAX);
        let mut found = Vec::new();
        // where keys come and go the walk may begin anew: it is bounded
        for entry in self.flows.iter().take(most) {
            let (key, flow) = entry.map_err(|error| refused("cannot read connections", &error))?;
            if flow.slot == slot {
                found.push((key, flow));
            }
        }
        Ok(found)
    }

    /// What is remembered of a connection. An error is as good as nothing: a connection of nobody is refused.
    pub fn flow(&self, key: &FlowKey) -> Option<Flow> {
        self.flows.get(key, 0).ok()
    }
}

/// Where the meter is, by the cookie of the network namespace.
pub struct Namespaces(Mutex<HashMap<MapData, u64, abi::Place>>);

impl Namespaces {
    /// Opens the map, and takes an earlier controller's places away.
    pub fn open(pins: &Pins) -> Result<Self, KernelError> {
        let mut map: HashMap<_, u64, abi::Place> = pinned(pins, "NAMESPACES")?;
        let clear = |error: MapError| refused("cannot clear the network namespaces", &error);
        let cookies: Vec<u64> = map.keys().collect::<Result<_, _>>().map_err(clear)?;
        for cookie in cookies {
            map.remove(&cookie).map_err(clear)?;
        }
        Ok(Self(Mutex::new(map)))
    }

    /// Writes a place.
    pub fn set(&self, cookie: u64, place: abi::Place) -> Result<(), KernelError> {
        let written = lock(&self.0).insert(cookie, place, 0);
        written.map_err(|error| refused("cannot write where the meter is", &error))
    }

    /// Takes a place away; one that is not there is no error.
    pub fn remove(&self, cookie: u64) -> Result<(), KernelError> {
        match lock(&self.0).remove(&cookie) {
            Err(error) if is_not_found(&error) => Ok(()),
            result => result.map_err(|error| refused("cannot clear where the meter is", &error)),
        }
    }
}

/// Opens an array of words, mapped.
pub fn words(pins: &Pins, name: &str, count: u32) -> Result<Words, KernelError> {
    let map = pinned::<Array<MapData, u64>>(pins, name)?;
    Words::map(map.map().fd().as_fd(), count)
        .map_err(|source| KernelError::Io { what: format!("cannot map {name}"), source })
}

/// Opens a pinned map.
pub fn pinned<M: TryFrom<Map, Error = MapError>>(pins: &Pins, name: &str) -> Result<M, KernelError> {
    let map = MapData::from_pin(pins.root().join(name)).and_then(Map::from_map_data).and_then(M::try_from);
    map.map_err(|error| refused(&format!("cannot open the map {name}"), &error))
}

fn cpus() -> Result<usize, KernelError> {
    nr_cpus().map_err(|(what, source)| KernelError::Io { what: what.to_owned(), source })
}

fn zeroes() -> Result<PerCpuValues<Counters>, KernelError> {
    PerCpuValues::try_from(vec![Counters::default(); cpus()?])
        .map_err(|source| KernelError::Io { what: "cannot count CPUs".to_owned(), source })
}

/// A lock whose holder cannot have left anything half done.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
