//! socket(): a confined bottle makes no raw sockets, and where its sockets are made is noted for `egress`.
//!
//! Only the families INET and INET6 come by here; packet sockets and others are `lsm`'s.
use aya_ebpf::programs::SockContext;

use crate::sock_addr::{ALLOW, REFUSE};
use crate::{egress, homes, read, slot};

/// A socket is made.
#[inline(always)]
pub fn create(socket: &SockContext) -> i32 {
    if !egress::may_be_confined(slot()) {
        return ALLOW;
    }
    // SAFETY: the kernel's context of this program.
    let kind = read(unsafe { &(*socket.sock).type_ });
    homes::note_new(socket);
    if kind == egress::SOCK_RAW { REFUSE } else { ALLOW }
}
