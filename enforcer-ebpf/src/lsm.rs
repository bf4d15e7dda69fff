//! socket() of every family, where the kernel lets a cgroup have such a hook: a confined bottle makes no packet,
//! vsock, XDP or other sockets whose packets pass the cgroup's other hooks by.
use aya_ebpf::helpers::generated::bpf_set_retval;
use aya_ebpf::programs::LsmContext;

use crate::sock_addr::{ALLOW, REFUSE};
use crate::{egress, slot};

const AF_UNIX: i32 = 1;
const AF_INET: i32 = 2;
const AF_INET6: i32 = 10;
const AF_NETLINK: i32 = 16;
/// The type's bits; the others are SOCK_CLOEXEC and SOCK_NONBLOCK.
const TYPE_MASK: u32 = 0xf;
const EAFNOSUPPORT: i32 = 97;

/// `security_socket_create(family, type, protocol, kern)`.
#[inline(always)]
pub fn socket_create(call: &LsmContext) -> i32 {
    let (family, kind, by_kernel): (i32, u32, i32) = (call.arg(0), call.arg(1), call.arg(3));
    if !egress::may_be_confined(slot()) || by_kernel != 0 || is_judged_elsewhere(family, kind & TYPE_MASK) {
        return ALLOW;
    }
    // SAFETY: the helper only sets what the call returns.
    unsafe { bpf_set_retval(-EAFNOSUPPORT) };
    REFUSE
}

/// Families that reach nobody outside, or whose packets the other hooks see. Netlink's sockets are raw by name.
#[inline(always)]
fn is_judged_elsewhere(family: i32, kind: u32) -> bool {
    match family {
        AF_UNIX | AF_NETLINK => true,
        AF_INET | AF_INET6 => kind != egress::SOCK_RAW,
        _ => false,
    }
}
