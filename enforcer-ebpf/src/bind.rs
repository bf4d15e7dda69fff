//! bind(): a bottle may not take the ports of the meter and the lane, where it could wait for them to die and then
//! answer in their place; the lane's own sockets may. A port that it gets by chance is of no use to it: `skb` drops what
//! is sent from there.
use aya_ebpf::programs::SockAddrContext;
use enforcer_ebpf::{Bottle, Endpoint, FLAG_LANE};

use crate::sock_addr::{ALLOW, REFUSE, port};
use crate::{BOTTLES, read, slot};

/// A socket of either family binds, at any address.
#[inline(always)]
pub fn bind(socket: &SockAddrContext) -> i32 {
    let slot = slot();
    let Some(bottle) = BOTTLES.get(slot) else { return REFUSE };
    let port = port(socket);
    let is_lane = read(&bottle.flags) & FLAG_LANE != 0;
    if slot == 0 || (!is_lane && is_ours(port, bottle)) {
        return REFUSE;
    }
    ALLOW
}

/// Whether a port is the meter's or the lane's.
#[inline(always)]
fn is_ours(port: u32, bottle: &Bottle) -> bool {
    is_port_of(port, &bottle.meter) || is_port_of(port, &bottle.lane)
}

/// Whether an endpoint is set and has this port (host byte order).
#[inline(always)]
fn is_port_of(port: u32, endpoint: &Endpoint) -> bool {
    port != 0 && port == u32::from((read(&endpoint.port) as u16).to_be())
}
