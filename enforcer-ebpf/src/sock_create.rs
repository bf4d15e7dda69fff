//! socket(): a confined bottle makes no raw sockets, and where its sockets are made is noted for `egress`.
//!
//! Only the families INET and INET6 come by here; packet sockets and others are `lsm`'s.
use aya_ebpf::programs::SockContext;

use crate::sock_addr::{ALLOW, REFUSE};
use crate::{BOTTLES, egress, homes, read, slot};

/// SOCK_RAW.
const RAW: u32 = 3;

/// A socket is made. While the slot is not written, the bottle may be a confined one.
#[inline(always)]
pub fn create(socket: &SockContext) -> i32 {
    let slot = slot();
    let confined = slot == 0 || BOTTLES.get(slot).is_none_or(egress::is_confined);
    // SAFETY: the kernel's context of this program.
    let kind = read(unsafe { &(*socket.sock).type_ });
    if !confined {
        return ALLOW;
    }
    homes::note_new(socket);
    if kind == RAW { REFUSE } else { ALLOW }
}
