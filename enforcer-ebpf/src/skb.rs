//! Packets of a bottle: passes or drops them by the bottle's verdict, and counts. Looks into no packet.
use aya_ebpf::programs::SkBuffContext;

use crate::{BOTTLES, COUNTERS, is_open, slot};

const PASS: i32 = 1;
const DROP: i32 = 0;

/// What becomes of the packet, either direction. A slot without an entry drops: slot 0 has one that is never
/// live, so an attach point whose slot is not written yet drops as well.
#[inline(always)]
pub fn judge(packet: &SkBuffContext) -> i32 {
    let slot = slot();
    let (Some(bottle), Some(counters)) = (BOTTLES.get(slot), COUNTERS.get_ptr_mut(slot)) else {
        return DROP;
    };
    let open = slot != 0 && is_open(bottle);
    let bytes = u64::from(packet.len());
    // SAFETY: the pointer is this CPU's own entry, and nothing else writes it while a program runs here.
    let counters = unsafe { &mut *counters };
    if open {
        counters.passed_packets += 1;
        counters.passed_bytes += bytes;
        PASS
    } else {
        counters.dropped_packets += 1;
        counters.dropped_bytes += bytes;
        DROP
    }
}
