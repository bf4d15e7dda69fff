//! The lane's cgroup, guarded by our own hooks. Its sockets are made in `lane`: they speak from the lane's address and
//! port to loopback and back, and nothing else. Its process is in `lane/process`, which is cut for ever: whatever socket
//! it made there, nothing would leave.
//!
//! Both guards are pinned as those of bottles, under names that no bottle can have.
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use enforcer_ebpf::SLOTS;

use super::LaneError;
use crate::bottle::cgroup::Cgroup;
use crate::bottle::home::Home;
use crate::core::LaneAddress;
use crate::kernel::{Guard, Kernel};

/// From this slot on, slots are no bottle's.
pub const FIRST_OWN_SLOT: u32 = SLOTS - 2;
/// Name and slot of the guard on the lane's sockets.
const SOCKETS: (&str, u32) = (".lane", FIRST_OWN_SLOT);
/// Name and slot of the guard on its process.
const PROCESS: (&str, u32) = (".lane-process", FIRST_OWN_SLOT + 1);
/// These slots are given to nobody else.
const GENERATION: u32 = 1;

/// Whether a guard of this name is the lane's: no bottle's name begins so.
#[must_use]
pub fn is_own_guard(name: &str) -> bool {
    name.starts_with('.')
}

/// Both guards; off again with the last of what they guard.
pub(super) struct Guards {
    kernel: Arc<dyn Kernel>,
    on: AtomicBool,
}

impl Guards {
    /// Puts both on, or takes over those of an earlier controller. Nothing speaks yet: there is no address.
    pub(super) fn put_on(kernel: Arc<dyn Kernel>, home: &Home) -> Result<Self, LaneError> {
        let guards = Self { kernel, on: AtomicBool::new(true) };
        let kernel = guards.kernel.as_ref();
        // raw and packet sockets too are refused to the process
        let process = Guard { lockdown: true, ..guard(PROCESS.1, None) };
        put_on_one(kernel, PROCESS.0, &Cgroup::open(&home.lane_process())?, process)?;
        put_on_one(kernel, SOCKETS.0, &Cgroup::open(&home.lane())?, guard(SOCKETS.1, None))?;
        kernel.cut(PROCESS.1);
        kernel.open(SOCKETS.1);
        Ok(guards)
    }

    /// Lets the lane's sockets speak from this address.
    pub(super) fn let_speak(&self, address: LaneAddress) {
        self.kernel.refresh(guard(SOCKETS.1, Some(address)));
    }

    /// Takes both off. There is no lane any more.
    pub(super) fn take_off(&self) -> Result<(), LaneError> {
        if !self.on.load(Ordering::Acquire) {
            return Ok(());
        }
        // both are tried before the first failure is told
        let off = [SOCKETS, PROCESS].map(|(name, slot)| self.kernel.detach(name, slot));
        off.into_iter().collect::<Result<(), _>>()?;
        self.on.store(false, Ordering::Release);
        Ok(())
    }
}

impl Drop for Guards {
    /// After a start that failed.
    fn drop(&mut self) {
        if let Err(error) = self.take_off() {
            tracing::error!(%error, "the lane's guards stay, and are taken over at the next start");
        }
    }
}

fn put_on_one(kernel: &dyn Kernel, name: &str, cgroup: &Cgroup, guard: Guard) -> Result<(), LaneError> {
    match kernel.adopted().into_iter().find(|pinned| pinned.name == name) {
        Some(pinned) if (pinned.cgroup_id, pinned.slot) == (cgroup.id(), guard.slot) => kernel.refresh(guard),
        // of a cgroup that is gone
        Some(pinned) => {
            kernel.detach(name, pinned.slot)?;
            kernel.attach(name, cgroup, guard)?;
        }
        None => kernel.attach(name, cgroup, guard)?,
    }
    Ok(())
}

fn guard(slot: u32, lane: Option<LaneAddress>) -> Guard {
    // neither meets the meter
    let no_meter = ([127, 0, 0, 1], 0).into();
    Guard {
        lane: lane.map(|lane| lane.ip4),
        lane_ip6: lane.and_then(|lane| lane.ip6),
        redirect: false,
        is_lane: true,
        ..Guard::new(slot, GENERATION, no_meter)
    }
}
