//! What becomes of a call that names an address, and doing it: in the kernel's context of the call.
//!
//! Not here: who decides that (`connect`, `sendmsg`, `lane`).
use aya_ebpf::programs::SockAddrContext;
use enforcer_ebpf::address::has_ip6;
use enforcer_ebpf::{Bottle, Endpoint, MAPPED};

use crate::sock_addr::{ALLOW, Destination, miss, refuse, set_ip4, set_ip6, set_port};

/// What becomes of a call.
pub enum Way {
    /// Where the program asked.
    Straight,
    /// To the meter or the lane.
    To(Endpoint),
    /// Nowhere: EPERM.
    Refused,
    /// Nowhere, because nobody knows where the meter is in this network namespace.
    NoPlace,
}

/// Sends a call on an IPv4 socket there.
#[inline(always)]
pub fn go4(socket: &SockAddrContext, to: &Destination, slot: u32, bottle: &Bottle, way: Way) -> i32 {
    match way {
        Way::Straight => ALLOW,
        Way::To(there) if there.ip4 != 0 => {
            set_ip4(socket, there.ip4);
            set_port(socket, there.port);
            ALLOW
        }
        Way::To(_) | Way::Refused => refuse(socket, to, slot, bottle),
        Way::NoPlace => miss(socket, to, slot, bottle),
    }
}

/// Sends a call on an IPv6 socket there: to the IPv6 form where it asked for IPv6 and there is one, else to the
/// v4-mapped form, which the kernel itself refuses on a socket that takes IPv6 only (ENETUNREACH).
#[inline(always)]
pub fn go6(socket: &SockAddrContext, to: &Destination, slot: u32, bottle: &Bottle, way: Way) -> i32 {
    match way {
        Way::Straight => ALLOW,
        Way::To(there) => {
            let native = has_ip6(&there) && !to.is_mapped();
            if !native && there.ip4 == 0 {
                return refuse(socket, to, slot, bottle);
            }
            set_ip6(socket, if native { there.ip6 } else { [0, 0, MAPPED, there.ip4] });
            set_port(socket, there.port);
            ALLOW
        }
        Way::Refused => refuse(socket, to, slot, bottle),
        Way::NoPlace => miss(socket, to, slot, bottle),
    }
}
