//! A listener that stands in for the meter or the lane, and what the kernel plane knows of its connections.
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use enforcer::kernel::loader::Loader;
use enforcer::kernel::{Flow, Guard, Kernel as _};

use super::host::{LISTENER, guard};
use super::sender::ARRIVAL;

/// The meter's stand-in: on IPv4, and on IPv6 at the same port.
pub struct Meter {
    /// On 127.0.0.1.
    pub ip4: TcpListener,
    /// On ::1.
    pub ip6: TcpListener,
}

impl Meter {
    /// On a free port.
    pub fn new() -> Self {
        Self::at(0)
    }

    /// On this port.
    pub fn at(port: u16) -> Self {
        let ip4 = TcpListener::bind(("127.0.0.1", port)).unwrap();
        let ip6 = TcpListener::bind(("::1", ip4.local_addr().unwrap().port())).unwrap();
        for listener in [&ip4, &ip6] {
            listener.set_nonblocking(true).unwrap();
        }
        Self { ip4, ip6 }
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.ip4.local_addr().unwrap().port()
    }

    /// A guard that knows the IPv4 listener only.
    pub fn guard(&self) -> Guard {
        guard(self.ip4.local_addr().unwrap())
    }

    /// One that knows both.
    pub fn guard_with_ip6(&self) -> Guard {
        Guard { meter_ip6: Some(Ipv6Addr::LOCALHOST), ..self.guard() }
    }
}

/// The next connection, and what the kernel plane knows of it.
pub fn accept(loader: &Loader, listener: &TcpListener) -> (TcpStream, Option<Flow>) {
    let (stream, peer) = accept_within(listener, ARRIVAL).unwrap();
    let flow = loader.flow(peer, stream.local_addr().unwrap(), LISTENER);
    (stream, flow)
}

/// The next connection, if there is one in time.
pub fn accept_within(listener: &TcpListener, time: Duration) -> Option<(TcpStream, SocketAddr)> {
    listener.set_nonblocking(true).unwrap();
    let end = Instant::now() + time;
    while Instant::now() < end {
        if let Ok((stream, peer)) = listener.accept() {
            stream.set_nonblocking(false).unwrap();
            stream.set_read_timeout(Some(ARRIVAL)).unwrap();
            return Some((stream, peer));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    None
}

/// Where a connection was going, as the kernel remembered it.
pub fn original(flow: &Flow) -> SocketAddr {
    let mut octets = [0; 16];
    for (chunk, word) in octets.chunks_exact_mut(4).zip(flow.original_ip) {
        chunk.copy_from_slice(&word.to_ne_bytes());
    }
    let port = u16::try_from(flow.original_port).unwrap();
    SocketAddr::new(IpAddr::from(octets).to_canonical(), port)
}

/// An address in its plain form.
pub fn canonical(address: &str) -> SocketAddr {
    let address: SocketAddr = address.parse().unwrap();
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
