//! The connections to the meter, as the programs remember them: added, counted, taken away.
//!
//! When a connection is one, and when it ends, is `sock_ops`'s to say.
use aya_ebpf::bindings::BPF_NOEXIST;
use enforcer_ebpf::{FLAG_LIVE, FLOWS_PER_BOTTLE, Flow, FlowKey};

use crate::{BOTTLES, FLOW_COUNTS, FLOWS, add, read};

/// Remembers the connection as its bottle's; whether it was added. Where another socket's entry is there that is
/// not stale, one of the two is not where it says: it is taken away, and both are nobody's.
#[inline(always)]
pub fn remember(key: &FlowKey, flow: &Flow) -> bool {
    // SAFETY: the entry is only read; one removed meanwhile yields another connection's cookie, never ours.
    if let Some(there) = unsafe { FLOWS.get(key) } {
        let (cookie, is_taken) = (there.cookie, is_current(there.slot, there.generation));
        if cookie == flow.cookie {
            return false;
        }
        forget(key, cookie);
        if is_taken {
            return false;
        }
    }
    // may be passed by as many connections as there are CPUs, each having read the count before the others
    if !is_current(flow.slot, flow.generation) || !has_room(flow.slot) {
        return false;
    }
    let added = FLOWS.insert(key, flow, u64::from(BPF_NOEXIST)).is_ok();
    if added {
        count(flow.slot, 1);
    }
    added
}

/// Removes the entry if it is this socket's.
#[inline(always)]
pub fn forget(key: &FlowKey, cookie: u64) {
    // SAFETY: as in `remember`.
    let Some(there) = (unsafe { FLOWS.get(key) }) else { return };
    let slot = there.slot;
    if there.cookie == cookie && FLOWS.remove(key).is_ok() {
        count(slot, u64::MAX);
    }
}

/// Whether the slot may hold one more connection. (The count of a slot may be below zero for a moment, when an entry
/// of the bottle that had it before is found to be stale.)
#[inline(always)]
pub fn has_room(slot: u32) -> bool {
    FLOW_COUNTS.get(slot).is_some_and(|count| (read(count) as i64) < i64::from(FLOWS_PER_BOTTLE))
}

/// Whether the slot is still the bottle's that had it then.
#[inline(always)]
pub fn is_current(slot: u32, generation: u32) -> bool {
    BOTTLES
        .get(slot)
        .is_some_and(|bottle| read(&bottle.flags) & FLAG_LIVE != 0 && read(&bottle.generation) == generation)
}

/// Adds to the slot's count, wrapping (`u64::MAX` takes one away).
#[inline(always)]
fn count(slot: u32, n: u64) {
    if let Some(count) = FLOW_COUNTS.get_ptr_mut(slot) {
        // SAFETY: an aligned word of the map.
        unsafe { add(count, n) };
    }
}
