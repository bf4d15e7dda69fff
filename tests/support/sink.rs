//! Receivers that count: what came in over UDP or TCP, and when. They send nothing.
use std::io::{ErrorKind, Read};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::clock::mono_ns;

/// How often a receiver looks whether it should stop.
const TICK: Duration = Duration::from_millis(20);

/// One receipt: a datagram, or one read of a TCP connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// When it was read, on the monotonic clock.
    pub at_ns: u64,
    /// Its bytes.
    pub bytes: usize,
}

/// A counting receiver; stops when dropped.
pub struct Sink {
    address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    receipts: Mutex<Vec<Receipt>>,
    stop: AtomicBool,
}

impl Shared {
    fn note(&self, bytes: usize) {
        self.receipts.lock().unwrap().push(Receipt { at_ns: mono_ns(), bytes });
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

impl Sink {
    /// Receives datagrams on a free port of `ip` (127.0.0.1 or ::1).
    #[must_use]
    pub fn udp(ip: IpAddr) -> Self {
        Self::udp_at((ip, 0).into())
    }

    /// Receives datagrams at this address.
    #[must_use]
    pub fn udp_at(address: SocketAddr) -> Self {
        let socket = UdpSocket::bind(address).expect("a UDP port");
        socket.set_read_timeout(Some(TICK)).expect("a socket takes a timeout");
        let sink = Self::at(socket.local_addr().expect("a bound socket has an address"));
        let shared = Arc::clone(&sink.shared);
        std::thread::spawn(move || receive(&shared, |buffer| socket.recv(buffer).map(Some)));
        sink
    }

    /// Accepts connections on a free port of `ip` and reads them all.
    #[must_use]
    pub fn tcp(ip: IpAddr) -> Self {
        Self::tcp_at((ip, 0).into())
    }

    /// Accepts connections at this address and reads them all.
    #[must_use]
    pub fn tcp_at(address: SocketAddr) -> Self {
        let listener = TcpListener::bind(address).expect("a TCP port");
        listener.set_nonblocking(true).expect("a socket can be made non-blocking");
        let sink = Self::at(listener.local_addr().expect("a bound socket has an address"));
        let shared = Arc::clone(&sink.shared);
        std::thread::spawn(move || accept(&listener, &shared));
        sink
    }

    fn at(address: SocketAddr) -> Self {
        Self { address, shared: Arc::default() }
    }

    /// Where to send.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Everything received, in order.
    #[must_use]
    pub fn receipts(&self) -> Vec<Receipt> {
        self.shared.receipts.lock().unwrap().clone()
    }

    /// Bytes received so far.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes_since(0)
    }

    /// Bytes received at or after an instant of the monotonic clock.
    #[must_use]
    pub fn bytes_since(&self, at_ns: u64) -> usize {
        let receipts = self.shared.receipts.lock().unwrap();
        receipts.iter().filter(|receipt| receipt.at_ns >= at_ns).map(|receipt| receipt.bytes).sum()
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    while !shared.stopped() {
        match listener.accept() {
            Ok((stream, _)) => {
                let shared = Arc::clone(shared);
                std::thread::spawn(move || read_connection(stream, &shared));
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                std::thread::sleep(Duration::from_millis(2))
            }
            Err(error) => panic!("the sink cannot accept: {error}"),
        }
    }
}

fn read_connection(mut stream: TcpStream, shared: &Shared) {
    stream.set_nonblocking(false).expect("a socket can be made blocking");
    stream.set_read_timeout(Some(TICK)).expect("a socket takes a timeout");
    receive(shared, |buffer| stream.read(buffer).map(|bytes| (bytes > 0).then_some(bytes)));
}

/// Reads until told to stop, the far side closes (`None`) or the connection breaks.
fn receive(shared: &Shared, mut read: impl FnMut(&mut [u8]) -> std::io::Result<Option<usize>>) {
    let mut buffer = vec![0; 65536];
    while !shared.stopped() {
        match read(&mut buffer) {
            Ok(Some(bytes)) => shared.note(bytes),
            Ok(None) => return,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(_) => return,
        }
    }
}
