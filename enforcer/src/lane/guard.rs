//! The lane's cgroup, guarded by our own hooks. Its sockets are made in `lane`: they speak from the lane's address and
//! port to loopback and back, and nothing else. Its process is in `lane/process`, which is cut for ever: whatever socket
//! it made there, nothing would leave.
//!
//! Both guards are pinned as those of bottles, under names that no bottle can have.
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

/// Puts both guards on, or takes over those of an earlier controller. Nothing speaks yet: there is no address.
pub(super) fn put_on(kernel: &dyn Kernel, home: &Home) -> Result<(), LaneError> {
    // raw and packet sockets too are refused to the process
    let process = Guard { lockdown: true, ..guard(PROCESS.1, None) };
    put_on_one(kernel, PROCESS.0, &Cgroup::open(&home.lane_process())?, process)?;
    put_on_one(kernel, SOCKETS.0, &Cgroup::open(&home.lane())?, guard(SOCKETS.1, None))?;
    kernel.cut(PROCESS.1);
    kernel.open(SOCKETS.1);
    Ok(())
}

/// Lets the lane's sockets speak from this address.
pub(super) fn let_speak(kernel: &dyn Kernel, address: LaneAddress) {
    kernel.refresh(guard(SOCKETS.1, Some(address)));
}

/// Takes both off. There is no lane any more.
pub(super) fn take_off(kernel: &dyn Kernel) -> Result<(), LaneError> {
    for (name, slot) in [SOCKETS, PROCESS] {
        kernel.detach(name, slot)?;
    }
    Ok(())
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
