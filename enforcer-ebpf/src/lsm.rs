//! socket() of every family, where the kernel lets a cgroup have such a hook: a confined bottle makes no packet,
//! vsock, XDP or other sockets whose packets pass the cgroup's other hooks by.
use aya_ebpf::helpers::generated::bpf_set_retval;
use aya_ebpf::programs::LsmContext;

use crate::sock_addr::{ALLOW, REFUSE};
use crate::{BOTTLES, egress, slot};

const AF_UNIX: i32 = 1;
const AF_INET: i32 = 2;
const AF_INET6: i32 = 10;
const AF_NETLINK: i32 = 16;
const SOCK_RAW: i32 = 3;
/// The type's bits; the others are SOCK_CLOEXEC and SOCK_NONBLOCK.
const TYPE_MASK: i32 = 0xf;
const EAFNOSUPPORT: i32 = 97;

/// `security_socket_create(family, type, protocol, kern)`. While the slot is not written, the bottle may be a
/// confined one.
#[inline(always)]
pub fn socket_create(call: &LsmContext) -> i32 {
    let (family, kind, by_kernel): (i32, i32, i32) = (call.arg(0), call.arg(1), call.arg(3));
    let slot = slot();
    let confined = slot == 0 || BOTTLES.get(slot).is_none_or(egress::is_confined);
    if !confined || by_kernel != 0 || is_judged_elsewhere(family, kind & TYPE_MASK) {
        return ALLOW;
    }
    // SAFETY: the helper only sets what the call returns.
    unsafe { bpf_set_retval(-EAFNOSUPPORT) };
    REFUSE
}

/// Families that reach nobody outside, or whose packets the other hooks see. Netlink's sockets are raw by name.
#[inline(always)]
fn is_judged_elsewhere(family: i32, kind: i32) -> bool {
    match family {
        AF_UNIX | AF_NETLINK => true,
        AF_INET | AF_INET6 => kind != SOCK_RAW,
        _ => false,
    }
}
