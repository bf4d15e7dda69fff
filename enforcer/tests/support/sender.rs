//! A process in a bottle that does what it is told, one line at a time, and a receiver outside.
use std::fs::OpenOptions;
use std::io::{BufRead as _, BufReader, ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, ChildStderr, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use enforcer::escape::network::switch_lo_on;
use nix::fcntl::OFlag;
use nix::sched::{CloneFlags, unshare};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::stat::Mode;
use rustix::net::{AddressFamily, SendFlags, SocketType, ipproto, sockopt};

use super::streams::Streaming;

/// Long enough for a packet over loopback, on a busy machine.
pub const ARRIVAL: Duration = Duration::from_millis(400);

/// A process in a cgroup (see `in_the_bottle`).
pub struct Sender {
    child: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStderr>,
}

impl Sender {
    /// Starts it in a cgroup (joined before its program begins), or where the test is.
    pub fn start(cgroup: Option<&Path>) -> Self {
        Self::start_after(cgroup, || Ok(()))
    }

    /// As [`Self::start`], in a user and a network namespace of its own, where it is root; `lo` is still off there.
    pub fn start_apart(cgroup: &Path) -> Self {
        Self::start_after(Some(cgroup), || {
            unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET)?;
            // without a mapping it would lose its capabilities when its program begins
            let map = nix::fcntl::open(c"/proc/self/uid_map", OFlag::O_WRONLY, Mode::empty())?;
            nix::unistd::write(&map, b"0 0 1")?;
            Ok(())
        })
    }

    /// `before` runs between fork and exec, in the cgroup: it must neither allocate nor lock.
    fn start_after(
        cgroup: Option<&Path>,
        before: impl Fn() -> std::io::Result<()> + Send + Sync + 'static,
    ) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["support::sender::in_the_bottle", "--exact", "--ignored", "--nocapture"]);
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        let procs =
            cgroup.map(|path| OpenOptions::new().write(true).open(path.join("cgroup.procs")).unwrap());
        let prepare = move || {
            if let Some(procs) = &procs {
                nix::unistd::write(procs, b"0")?;
            }
            before()
        };
        // SAFETY: the closure only makes system calls (write, unshare, open), which is safe between fork and exec.
        unsafe { command.pre_exec(prepare) };
        let mut child = command.spawn().unwrap();
        let (orders, answers) = (child.stdin.take().unwrap(), BufReader::new(child.stderr.take().unwrap()));
        Self { child, orders, answers }
    }

    /// Its answer to one order.
    pub fn order(&mut self, order: &str) -> String {
        writeln!(self.orders, "{order}").unwrap();
        let mut answer = String::new();
        self.answers.read_line(&mut answer).unwrap();
        answer.trim_end().to_owned()
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        let ended = self.child.kill().and_then(|()| self.child.wait());
        if !std::thread::panicking() {
            ended.unwrap();
        }
    }
}

/// What the sender holds between two orders.
#[derive(Default)]
struct Held {
    stream: Option<TcpStream>,
    socket: Option<UdpSocket>,
    listener: Option<TcpListener>,
    attempted: Option<OwnedFd>,
    raw: Option<OwnedFd>,
    flood: Vec<TcpStream>,
    streaming: Option<Streaming>,
}

/// The sender's side. Each order answers one line, `ok` where nothing else is said, or the kind of the error:
/// - `connect ADDR` makes a TCP connection and answers its own address; `connect-only6` on a socket that takes IPv6
///   only, `connect-multipath` by MPTCP, `connect-sending` with a first byte (TCP Fast Open); `attempt` keeps the
///   socket for `again`; `connect-from FROM ADDR` from this address, and so `begin-from FROM ADDR`, whose connection opens with the first
///   `write` (TCP Fast Open, if the namespace does it without a cookie); `time-connect` answers
///   the time that it took, microseconds, before the outcome;
/// - `peer`, `write`, `read` and `close` use the connection;
/// - `flood COUNT ADDR` makes so many connections and keeps them; answers how many there are before it is refused;
///   `drain` closes them;
/// - `lo` switches the loopback interface on;
/// - `listen ADDR` makes a TCP listener and answers its address;
/// - `udp ADDR` sends a datagram, `bind ADDR` makes a socket that `receive` takes one from, `towards ADDR` connects
///   it and `send` uses it;
/// - `ask ADDR` sends a datagram from it, `answered` says whom the next one is from, `far-end` what it is connected to;
/// - `stream-udp ADDR` and `stream-tcp ADDR` send from now on; `figures` says how that went (see `streams`);
/// - `enter DIRECTORY` goes to another cgroup;
/// - `raw ADDR HEX` sends a packet with its headers; `hold-raw 4` (or 6) keeps a socket for that, `send-raw ADDR HEX`
///   uses it;
/// - `socket FAMILY TYPE PROTOCOL` makes one, by number; another error than those with a name is told by its number.
#[test]
#[ignore = "not a test: the program that the tests put into a bottle"]
fn in_the_bottle() {
    let mut held = Held::default();
    for line in std::io::stdin().lines() {
        let line = line.unwrap();
        let (order, rest) = line.split_once(' ').unwrap_or((&line, ""));
        let answer = obey(order, rest, &mut held);
        eprintln!("{}", answer.unwrap_or_else(|error| format!("{:?}", error.kind())));
    }
}

fn obey(order: &str, rest: &str, held: &mut Held) -> std::io::Result<String> {
    match order {
        "connect" => return hold(held, TcpStream::connect_timeout(&rest.parse().unwrap(), ARRIVAL)?),
        "connect-only6" => {
            let socket = rustix::net::socket(AddressFamily::INET6, SocketType::STREAM, None)?;
            sockopt::set_ipv6_v6only(&socket, true)?;
            rustix::net::connect(&socket, &rest.parse::<SocketAddr>().unwrap())?;
            return hold(held, socket.into());
        }
        "connect-multipath" => {
            let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, Some(ipproto::MPTCP))?;
            rustix::net::connect(&socket, &rest.parse::<SocketAddr>().unwrap())?;
            return hold(held, socket.into());
        }
        "connect-sending" => {
            let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None)?;
            let fast_open = SendFlags::from_bits_retain(libc::MSG_FASTOPEN.cast_unsigned());
            rustix::net::sendto(&socket, b"x", fast_open, &rest.parse::<SocketAddr>().unwrap())?;
            return hold(held, socket.into());
        }
        "connect-from" => {
            let (from, to) = rest.split_once(' ').unwrap();
            let (from, to): (SocketAddr, SocketAddr) = (from.parse().unwrap(), to.parse().unwrap());
            let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None)?;
            sockopt::set_socket_reuseaddr(&socket, true)?;
            rustix::net::bind(&socket, &from)?;
            rustix::net::connect(&socket, &to)?;
            return hold(held, socket.into());
        }
        "begin-from" => {
            let (from, to) = rest.split_once(' ').unwrap();
            let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None)?;
            nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::TcpFastOpenConnect, &true)?;
            rustix::net::bind(&socket, &from.parse::<SocketAddr>().unwrap())?;
            rustix::net::connect(&socket, &to.parse::<SocketAddr>().unwrap())?;
            return hold(held, socket.into());
        }
        "flood" => {
            let (count, to) = rest.split_once(' ').unwrap();
            return flood(held, count.parse().unwrap(), to.parse().unwrap());
        }
        "drain" => held.flood.clear(),
        "lo" => switch_lo_on()?,
        "attempt" => {
            let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None)?;
            let outcome = rustix::net::connect(&socket, &rest.parse::<SocketAddr>().unwrap());
            held.attempted = Some(socket);
            outcome?;
        }
        "again" => {
            let socket = held.attempted.take().unwrap();
            rustix::net::connect(&socket, &rest.parse::<SocketAddr>().unwrap())?;
            return hold(held, socket.into());
        }
        "time-connect" => {
            let start = Instant::now();
            let outcome = TcpStream::connect_timeout(&rest.parse().unwrap(), ARRIVAL);
            let took = start.elapsed().as_micros();
            let outcome = outcome.map_or_else(|error| format!("{:?}", error.kind()), |_| "ok".to_owned());
            return Ok(format!("{took} {outcome}"));
        }
        "peer" => return Ok(held.stream.as_ref().unwrap().peer_addr()?.to_string()),
        "write" => held.stream.as_mut().unwrap().write_all(b"x")?,
        "read" => {
            let stream = held.stream.as_mut().unwrap();
            stream.set_read_timeout(Some(ARRIVAL))?;
            stream.read_exact(&mut [0])?;
        }
        "close" => held.stream = None,
        "listen" => {
            let listener = TcpListener::bind(rest)?;
            let local = listener.local_addr()?;
            held.listener = Some(listener);
            return Ok(local.to_string());
        }
        "udp" => {
            let from = if rest.starts_with('[') { "[::1]:0" } else { "127.0.0.1:0" };
            UdpSocket::bind(from)?.send_to(b"x", rest)?;
        }
        "bind" => {
            let bound = UdpSocket::bind(rest)?;
            bound.set_read_timeout(Some(ARRIVAL))?;
            let local = bound.local_addr()?;
            held.socket = Some(bound);
            return Ok(local.to_string());
        }
        "towards" => held.socket.as_ref().unwrap().connect(rest)?,
        "send" => drop(held.socket.as_ref().unwrap().send(b"x")?),
        "receive" => drop(held.socket.as_ref().unwrap().recv(&mut [0; 8])?),
        "ask" => drop(held.socket.as_ref().unwrap().send_to(b"x", rest)?),
        "answered" => return Ok(held.socket.as_ref().unwrap().recv_from(&mut [0; 8])?.1.to_string()),
        "far-end" => return Ok(held.socket.as_ref().unwrap().peer_addr()?.to_string()),
        "stream-udp" => held.streaming = Some(Streaming::udp(rest.parse().unwrap())?),
        "stream-tcp" => held.streaming = Some(Streaming::tcp(rest.parse().unwrap())?),
        "figures" => return Ok(held.streaming.as_ref().unwrap().figures()),
        "enter" => std::fs::write(Path::new(rest).join("cgroup.procs"), "0")?,
        "raw" => send_raw(&raw_socket(!rest.contains(':'))?, rest)?,
        "hold-raw" => held.raw = Some(raw_socket(rest == "4")?),
        "send-raw" => send_raw(held.raw.as_ref().unwrap(), rest)?,
        "socket" => return make_socket(rest),
        other => panic!("{other}"),
    }
    Ok("ok".to_owned())
}

/// Keeps a connection; answers its own address.
fn hold(held: &mut Held, stream: TcpStream) -> std::io::Result<String> {
    let local = stream.local_addr()?;
    held.stream = Some(stream);
    Ok(local.to_string())
}

fn flood(held: &mut Held, count: usize, to: SocketAddr) -> std::io::Result<String> {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
    while held.flood.len() < count {
        match TcpStream::connect_timeout(&to, Duration::from_secs(5)) {
            Err(error) if error.kind() == ErrorKind::PermissionDenied => break,
            stream => held.flood.push(stream?),
        }
    }
    Ok(held.flood.len().to_string())
}

fn raw_socket(ip4: bool) -> std::io::Result<OwnedFd> {
    let family = if ip4 { AddressFamily::INET } else { AddressFamily::INET6 };
    Ok(rustix::net::socket(family, SocketType::RAW, Some(ipproto::RAW))?)
}

fn send_raw(socket: &OwnedFd, order: &str) -> std::io::Result<()> {
    let (to, hex) = order.split_once(' ').unwrap();
    let packet: Vec<u8> =
        (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect();
    rustix::net::sendto(socket, &packet, SendFlags::empty(), &SocketAddr::new(to.parse().unwrap(), 0))?;
    Ok(())
}

fn make_socket(order: &str) -> std::io::Result<String> {
    let numbers: Vec<i32> = order.split(' ').map(|number| number.parse().unwrap()).collect();
    // SAFETY: the call takes three numbers; the descriptor that it returns is closed by the line after it.
    let made = unsafe { libc::socket(numbers[0], numbers[1], numbers[2]) };
    if made < 0 {
        let error = std::io::Error::last_os_error();
        return Ok(error.raw_os_error().unwrap().to_string());
    }
    // SAFETY: as above: it is ours and nobody else's.
    drop(unsafe { <OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(made) });
    Ok("ok".to_owned())
}

/// A receiver of datagrams outside every bottle.
pub struct Receiver(pub UdpSocket);

impl Receiver {
    /// On a free port.
    pub fn new(ip: &str) -> Self {
        let socket = UdpSocket::bind(format!("{ip}:0")).unwrap();
        socket.set_read_timeout(Some(ARRIVAL)).unwrap();
        Self(socket)
    }

    /// Whether a datagram that this sender is told to send gets here.
    pub fn hears(&self, sender: &mut Sender) -> bool {
        let answer = sender.order(&format!("udp {}", self.0.local_addr().unwrap()));
        match self.0.recv(&mut [0; 8]) {
            Ok(_) => {
                assert_eq!(answer, "ok");
                true
            }
            Err(error) => {
                assert!(matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut), "{error}");
                assert_eq!(answer, "PermissionDenied");
                false
            }
        }
    }
}
