//! Holds sockets and does with them what its standard input says, one order and one answer a line.
//!
//! `open tcp|mptcp|udp ADDRESS`, `open idle|packet|raw`, `read N`, `write N` (N: the N-th that was opened, from 0),
//! `serve IP` (accepts connections there and keeps them), `leave` (to a network namespace of its own with `lo` up),
//! `follow PID` (into the network namespace of another process), `lower` (to a user who may do nothing).
//! An answer is a word, an address or an errno's name.
use std::fs::File;
use std::io::{self, BufRead as _, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, bail};
use nix::errno::Errno;
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};
use nix::unistd::{Uid, setuid};

/// A read that gets nothing is given up after this long, as EAGAIN.
const PATIENCE: Duration = Duration::from_millis(300);

/// A user without capabilities.
const NOBODY: u32 = 65_534;

enum Held {
    Tcp(TcpStream),
    Udp(UdpSocket),
    /// Held and nothing else.
    Other {
        _socket: OwnedFd,
    },
}

fn main() -> anyhow::Result<()> {
    let mut held = Vec::new();
    for line in io::stdin().lock().lines() {
        let line = line?;
        let words: Vec<&str> = line.split_whitespace().collect();
        let answer = match words.as_slice() {
            ["open", what @ ..] => open(what, &mut held)?,
            ["read", index] => named(read(at(&held, index)?)),
            ["write", index] => named(write(at(&held, index)?)),
            ["serve", ip] => serve(ip.parse()?)?,
            ["leave"] => leave()?,
            ["follow", pid] => {
                setns(File::open(format!("/proc/{pid}/ns/net"))?, CloneFlags::CLONE_NEWNET)?;
                "followed".into()
            }
            ["lower"] => {
                setuid(Uid::from_raw(NOBODY))?;
                "lowered".into()
            }
            _ => bail!("no such order: {line}"),
        };
        writeln!(io::stdout(), "{answer}")?;
        io::stdout().flush()?;
    }
    Ok(())
}

/// Opens one more; its own address, if it has one.
fn open(what: &[&str], held: &mut Vec<Held>) -> anyhow::Result<String> {
    let other = |family, kind, protocol| socket(family, kind, SockFlag::SOCK_CLOEXEC, protocol);
    let (socket, address) = match what {
        ["tcp", to] => {
            let to: SocketAddr = to.parse()?;
            let stream = TcpStream::connect(to).with_context(|| format!("cannot connect to {to}"))?;
            stream.set_read_timeout(Some(PATIENCE))?;
            let address = stream.local_addr()?.to_string();
            (Held::Tcp(stream), address)
        }
        ["mptcp", to] => {
            let protocol = Some(rustix::net::ipproto::MPTCP);
            let socket = rustix::net::socket(
                rustix::net::AddressFamily::INET,
                rustix::net::SocketType::STREAM,
                protocol,
            )?;
            rustix::net::connect(&socket, &to.parse::<SocketAddr>()?)?;
            let stream = TcpStream::from(socket);
            stream.set_read_timeout(Some(PATIENCE))?;
            let address = stream.local_addr()?.to_string();
            (Held::Tcp(stream), address)
        }
        ["udp", to] => {
            let to: SocketAddr = to.parse()?;
            let any = if to.is_ipv6() { "[::1]:0" } else { "127.0.0.1:0" };
            let socket = UdpSocket::bind(any)?;
            socket.connect(to)?;
            socket.set_read_timeout(Some(PATIENCE))?;
            let address = socket.local_addr()?.to_string();
            (Held::Udp(socket), address)
        }
        ["idle"] => {
            let socket = other(AddressFamily::Inet, SockType::Stream, None)?;
            (Held::Other { _socket: socket }, "idle".into())
        }
        ["packet"] => {
            let socket = other(AddressFamily::Packet, SockType::Raw, None)?;
            (Held::Other { _socket: socket }, "packet".into())
        }
        ["raw"] => {
            let socket = other(AddressFamily::Inet, SockType::Raw, Some(SockProtocol::Icmp))?;
            (Held::Other { _socket: socket }, "raw".into())
        }
        _ => bail!("cannot open {what:?}"),
    };
    held.push(socket);
    Ok(address)
}

fn at<'a>(held: &'a [Held], index: &str) -> anyhow::Result<&'a Held> {
    held.get(index.parse::<usize>()?).context("nothing was opened under that number")
}

fn read(held: &Held) -> io::Result<usize> {
    let mut buffer = [0; 64];
    match held {
        Held::Tcp(stream) => (&*stream).read(&mut buffer),
        Held::Udp(socket) => socket.recv(&mut buffer),
        Held::Other { .. } => Err(io::ErrorKind::Unsupported.into()),
    }
}

fn write(held: &Held) -> io::Result<usize> {
    match held {
        Held::Tcp(stream) => (&*stream).write(b"held"),
        Held::Udp(socket) => socket.send(b"held"),
        Held::Other { .. } => Err(io::ErrorKind::Unsupported.into()),
    }
}

fn named(outcome: io::Result<usize>) -> String {
    match outcome {
        Ok(bytes) => format!("{bytes} bytes"),
        Err(error) => error
            .raw_os_error()
            .map_or_else(|| error.to_string(), |number| format!("{:?}", Errno::from_raw(number))),
    }
}

/// Accepts for as long as the process lives.
fn serve(ip: IpAddr) -> anyhow::Result<String> {
    let listener = TcpListener::bind((ip, 0))?;
    let address = listener.local_addr()?;
    std::thread::spawn(move || listener.incoming().collect::<Vec<_>>());
    Ok(address.to_string())
}

fn leave() -> anyhow::Result<String> {
    unshare(CloneFlags::CLONE_NEWNET)?;
    let status = Command::new("ip").args(["link", "set", "lo", "up"]).status()?;
    anyhow::ensure!(status.success(), "lo cannot be set up");
    Ok("left".into())
}
