//! Senders that do not stop, and receivers outside that know when what they got was sent.
//!
//! What is sent is the instant (monotonic) at which its sending began: a receiver needs no clock of its own to tell
//! what was sent after a cut.
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};

use super::sender::Sender;

/// Ten thousand sends a second.
const PAUSE: Duration = Duration::from_micros(100);
/// Bytes of an instant.
const INSTANT: usize = size_of::<u64>();

/// Monotonic nanoseconds, the same in every process.
pub fn now() -> u64 {
    let time = Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC).unwrap());
    u64::try_from(time.as_nanos()).unwrap()
}

/// A rate of sends, from a thread of the process in the bottle.
#[derive(Default)]
pub struct Streaming(Arc<Figures>);

#[derive(Default)]
struct Figures {
    sent: AtomicU64,
    refused: AtomicU64,
    failed: AtomicU64,
}

impl Streaming {
    /// Datagrams, in turn from a socket that is connected (judged as packets alone) and from one that is not.
    pub fn udp(to: SocketAddr) -> std::io::Result<Self> {
        let any = if to.is_ipv6() { "[::1]:0" } else { "127.0.0.1:0" };
        let (connected, free) = (UdpSocket::bind(any)?, UdpSocket::bind(any)?);
        connected.connect(to)?;
        let mut turn = false;
        Ok(Self::start(move |bytes| {
            turn = !turn;
            if turn { connected.send(bytes) } else { free.send_to(bytes, to) }.map(drop)
        }))
    }

    /// Small writes on one connection. What a cut keeps back is queued, and counts as sent.
    pub fn tcp(to: SocketAddr) -> std::io::Result<Self> {
        let mut stream = TcpStream::connect(to)?;
        stream.set_nodelay(true)?;
        Ok(Self::start(move |bytes| stream.write_all(bytes)))
    }

    fn start(mut send: impl FnMut(&[u8]) -> std::io::Result<()> + Send + 'static) -> Self {
        let streaming = Self::default();
        let figures = streaming.0.clone();
        std::thread::spawn(move || {
            let mut next = Instant::now();
            loop {
                let count = match send(&now().to_ne_bytes()) {
                    Ok(()) => &figures.sent,
                    Err(error) if error.kind() == ErrorKind::PermissionDenied => &figures.refused,
                    Err(_) => &figures.failed,
                };
                count.fetch_add(1, Ordering::SeqCst);
                next += PAUSE;
                std::thread::sleep(next.saturating_duration_since(Instant::now()));
            }
        });
        streaming
    }

    /// Sends that worked, were refused and failed in another way since this was asked last.
    pub fn figures(&self) -> String {
        let [sent, refused, failed] = [&self.0.sent, &self.0.refused, &self.0.failed]
            .map(|count| count.swap(0, Ordering::SeqCst).to_string());
        format!("{sent} {refused} {failed}")
    }
}

/// The far end of a stream from a bottle; what comes is read when asked.
pub struct Lane {
    /// For the words of a failure.
    pub name: String,
    sender: Sender,
    socket: Socket,
    /// Bytes of an instant that has not come whole.
    part: Vec<u8>,
    /// The latest instant of sending that has come.
    pub latest: u64,
}

enum Socket {
    Udp(UdpSocket),
    Tcp(TcpStream),
}

impl Lane {
    /// Datagrams from a cgroup to this address.
    pub fn udp(cgroup: &Path, ip: &str) -> Self {
        let socket = UdpSocket::bind(format!("{ip}:0")).unwrap();
        socket.set_nonblocking(true).unwrap();
        let mut sender = Sender::start(Some(cgroup));
        assert_eq!(sender.order(&format!("stream-udp {}", socket.local_addr().unwrap())), "ok");
        Self::of(sender, Socket::Udp(socket), &format!("udp to {ip}"), cgroup)
    }

    /// A connection from a cgroup to this address.
    pub fn tcp(cgroup: &Path, ip: &str) -> Self {
        let listener = TcpListener::bind(format!("{ip}:0")).unwrap();
        let mut sender = Sender::start(Some(cgroup));
        assert_eq!(sender.order(&format!("stream-tcp {}", listener.local_addr().unwrap())), "ok");
        let (stream, _) = listener.accept().unwrap();
        stream.set_nonblocking(true).unwrap();
        Self::of(sender, Socket::Tcp(stream), &format!("tcp to {ip}"), cgroup)
    }

    fn of(sender: Sender, socket: Socket, what: &str, cgroup: &Path) -> Self {
        let name = format!("{what} from {}", cgroup.display());
        Self { name, sender, socket, part: Vec::new(), latest: 0 }
    }

    /// Whether it is datagrams: what is refused then is lost, and its sender told.
    pub fn is_udp(&self) -> bool {
        matches!(self.socket, Socket::Udp(_))
    }

    /// Reads all that has come; bytes.
    pub fn drain(&mut self) -> usize {
        let (mut all, mut buffer) = (0, [0; 4096]);
        loop {
            let read = match &mut self.socket {
                Socket::Udp(socket) => socket.recv(&mut buffer),
                Socket::Tcp(stream) => stream.read(&mut buffer),
            };
            let bytes = match read {
                Ok(0) => panic!("{}: the connection was closed", self.name),
                Ok(bytes) => bytes,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return all,
                Err(error) => panic!("{}: {error}", self.name),
            };
            all += bytes;
            self.note(&buffer[..bytes]);
        }
    }

    fn note(&mut self, bytes: &[u8]) {
        self.part.extend(bytes);
        let whole = self.part.len() / INSTANT * INSTANT;
        for instant in self.part.drain(..whole).collect::<Vec<u8>>().chunks_exact(INSTANT) {
            self.latest = self.latest.max(u64::from_ne_bytes(instant.try_into().unwrap()));
        }
    }

    /// Sends that worked, were refused and failed in another way since this was asked last.
    pub fn figures(&mut self) -> [u64; 3] {
        let told = self.sender.order("figures");
        let numbers: Vec<u64> = told.split(' ').map(|number| number.parse().unwrap()).collect();
        numbers.try_into().unwrap()
    }
}
