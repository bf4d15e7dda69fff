//! Sends as asked over one UDP socket or one TCP connection and counts what the kernel took and refused.
//!
//! Prints one JSON line at the end, with `--progress` one every 100 ms too. Receives nothing. A TCP write counts once
//! the socket's buffer took it: what came through is for the receiver to say.
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::{Parser, ValueEnum};
use nix::errno::Errno;
use serde::Serialize;
use support::clock::mono_ns;

/// A blocked TCP write is given up (and counted as EAGAIN) after this long.
const WRITE_TIMEOUT: Duration = Duration::from_millis(20);
const PROGRESS_EVERY: Duration = Duration::from_millis(100);

#[derive(Clone, Copy, ValueEnum)]
enum Protocol {
    Udp,
    Tcp,
}

/// Sends datagrams, or writes on one connection, at a rate.
#[derive(Parser)]
struct Args {
    #[arg(value_enum)]
    protocol: Protocol,
    /// Where to, as IP:PORT.
    address: SocketAddr,
    /// Sends a second; 0: as fast as it goes.
    #[arg(long, default_value_t = 1000)]
    pps: u32,
    /// Ends after this long; without it, never.
    #[arg(long)]
    for_ms: Option<u64>,
    /// Bytes of one send.
    #[arg(long, default_value_t = 64)]
    size: usize,
    /// A line of figures every 100 ms.
    #[arg(long)]
    progress: bool,
}

/// The figures so far; instants are of the monotonic clock.
#[derive(Default, Serialize)]
struct Figures {
    sent: u64,
    bytes: usize,
    /// Failed sends by errno's name.
    errors: BTreeMap<String, u64>,
    /// When the last send that worked returned.
    last_ok_ns: Option<u64>,
    /// When the last send that failed returned.
    last_error_ns: Option<u64>,
    /// Longest time between two sends that worked, up to now.
    longest_gap_ms: u64,
}

impl Figures {
    fn note(&mut self, outcome: &io::Result<usize>) {
        let now = mono_ns();
        match outcome {
            Ok(bytes) => {
                self.note_gap(now);
                self.sent += 1;
                self.bytes += bytes;
                self.last_ok_ns = Some(now);
            }
            Err(error) => {
                let name = error
                    .raw_os_error()
                    .map_or_else(|| error.to_string(), |n| format!("{:?}", Errno::from_raw(n)));
                *self.errors.entry(name).or_default() += 1;
                self.last_error_ns = Some(now);
            }
        }
    }

    fn note_gap(&mut self, now: u64) {
        let since = now - self.last_ok_ns.unwrap_or(now);
        self.longest_gap_ms = self.longest_gap_ms.max(since / 1_000_000);
    }

    fn print(&mut self) -> anyhow::Result<()> {
        self.note_gap(mono_ns());
        let mut out = io::stdout().lock();
        writeln!(out, "{}", serde_json::to_string(self)?)?;
        Ok(out.flush()?)
    }
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let mut send = opened(&args)?;
    let payload = vec![b'x'; args.size];
    let pause = Duration::from_secs(1).checked_div(args.pps).unwrap_or_default();
    let start = Instant::now();
    let end = args.for_ms.map(|ms| start + Duration::from_millis(ms));
    let (mut next, mut report) = (start, start + PROGRESS_EVERY);
    let mut figures = Figures::default();
    while end.is_none_or(|end| Instant::now() < end) {
        let outcome = send(&payload);
        let failed = outcome.is_err();
        figures.note(&outcome);
        if args.progress && Instant::now() >= report {
            figures.print()?;
            report += PROGRESS_EVERY;
        }
        if failed && matches!(args.protocol, Protocol::Tcp) && !blocked(&outcome) {
            break;
        }
        next = (next + pause).max(Instant::now().checked_sub(PROGRESS_EVERY).unwrap_or(start));
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    figures.print()
}

/// A full send buffer is no end of the connection.
fn blocked(outcome: &io::Result<usize>) -> bool {
    matches!(outcome, Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted))
}

type Send = Box<dyn FnMut(&[u8]) -> io::Result<usize>>;

fn opened(args: &Args) -> anyhow::Result<Send> {
    let to = args.address;
    match args.protocol {
        Protocol::Udp => {
            let any = if to.is_ipv6() { "[::]:0" } else { "0.0.0.0:0" };
            let socket = UdpSocket::bind(any)?;
            // not connected: a receiver's absence must not turn up as an error
            Ok(Box::new(move |bytes| socket.send_to(bytes, to)))
        }
        Protocol::Tcp => {
            let mut stream = TcpStream::connect(to).with_context(|| format!("cannot connect to {to}"))?;
            stream.set_nodelay(true)?;
            stream.set_write_timeout(Some(WRITE_TIMEOUT))?;
            Ok(Box::new(move |bytes| stream.write(bytes)))
        }
    }
}
