//! What a hostile program in a bottle would try, one order a line: says `ok` and what came of it, or the error's name.
//!
//! It does as it is told and judges nothing; what got out is for the far end to say. Single-threaded, so that it may
//! make user namespaces.
mod datagrams;
mod ring;
mod streams;

use std::fs;
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::process::Command;

use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{getgid, getuid};

/// What it holds between two orders: at most one connection.
#[derive(Default)]
struct Held {
    stream: Option<std::net::TcpStream>,
    crowd: Vec<std::net::TcpStream>,
}

fn main() -> io::Result<()> {
    let mut held = Held::default();
    for line in io::stdin().lines() {
        let answer = obey(&line?, &mut held).unwrap_or_else(|error| name(&error));
        let mut out = io::stdout().lock();
        writeln!(out, "{}", answer.trim_end())?;
        out.flush()?;
    }
    Ok(())
}

/// One order. Addresses are `IP:PORT`.
/// - `connect TO [FROM-PORT]` makes a connection and keeps it, `write`, `read` and `close` use it; `peer` names its
///   other end; `repair FROM TO` brings one into being without the other end's knowing (TCP_REPAIR), `wake` lets it
///   speak; `ring-connect TO` and `ring-write` do it by io_uring; `take PATH` receives one from another process;
/// - `flood TO HOW-MANY` makes connections and keeps them until `release`, `claim PORT HOW-MANY TO` such as nobody
///   needs to answer, each from the next port, and `begin PORT HOW-MANY TO` such as open when `speak` writes to all;
///   they say how many came about, and the last error;
/// - `listen tcp|udp WHERE [shared]` binds a socket for a moment;
/// - `udp TO`, `udp-connected TO`, `udp-lite TO`, `ring-udp TO`, `raw PROTOCOL TO HEX` send a packet;
/// - `join CGROUP`, `unshare` and `sh COMMAND` change where it is.
fn obey(line: &str, held: &mut Held) -> io::Result<String> {
    let (verb, rest) = line.split_once(' ').unwrap_or((line, ""));
    let words: Vec<&str> = rest.split_whitespace().collect();
    let done = |()| "ok".to_owned();
    match (verb, words.as_slice()) {
        ("connect", [to]) => hold(held, streams::connect(address(to)?, None)?),
        ("connect", [to, port]) => hold(held, streams::connect(address(to)?, Some(number(port)?))?),
        ("repair", [from, to]) => hold(held, streams::repair(address(from)?, address(to)?)?),
        ("wake", []) => streams::wake(stream(held)?).map(done),
        ("take", [path]) => hold(held, streams::take(path)?).map(|_| "ok".to_owned()),
        ("ring-connect", [to]) => hold(held, ring::connect(address(to)?)?),
        ("ring-write", []) => ring::write(stream(held)?).map(done),
        ("write", []) => streams::write(stream(held)?).map(done),
        ("read", []) => streams::read(stream(held)?).map(|bytes| format!("ok {bytes}")),
        ("peer", []) => Ok(format!("ok {}", stream(held)?.peer_addr()?)),
        ("close", []) => {
            held.stream = None;
            Ok("ok".to_owned())
        }
        ("flood", [to, count]) => {
            let (came, failed) = streams::flood(address(to)?, number(count)?, &mut held.crowd);
            Ok(format!("ok {came} {}", failed.map_or_else(String::new, |error| name(&error))))
        }
        ("claim", [port, count, to]) => {
            let (came, failed) = streams::claim(number(port)?, number(count)?, address(to)?, &mut held.crowd);
            Ok(format!("ok {came} {}", failed.map_or_else(String::new, |error| name(&error))))
        }
        ("begin", [port, count, to]) => {
            let (came, failed) = streams::begin(number(port)?, number(count)?, address(to)?, &mut held.crowd);
            Ok(format!("ok {came} {}", failed.map_or_else(String::new, |error| name(&error))))
        }
        ("speak", []) => held.crowd.iter_mut().try_for_each(streams::write).map(done),
        ("release", []) => {
            held.crowd.clear();
            Ok("ok".to_owned())
        }
        ("listen", [kind, at]) => streams::listen(kind, address(at)?, false).map(done),
        ("listen", [kind, at, "shared"]) => streams::listen(kind, address(at)?, true).map(done),
        ("udp", [to]) => datagrams::send(address(to)?).map(done),
        ("udp-connected", [to]) => datagrams::send_connected(address(to)?).map(done),
        ("udp-lite", [to]) => datagrams::send_lite(address(to)?).map(done),
        ("ring-udp", [to]) => ring::send_datagram(address(to)?).map(done),
        ("raw", [protocol, to, hex]) => datagrams::send_raw(number(protocol)?, address(to)?, hex).map(done),
        ("join", [cgroup]) => {
            fs::write(format!("{cgroup}/cgroup.procs"), std::process::id().to_string()).map(done)
        }
        ("unshare", []) => become_root_of_own_namespaces().map(done),
        ("sh", [_, ..]) => shell(rest),
        _ => Err(io::Error::other(format!("no such order: {line}"))),
    }
}

/// Keeps a connection; says where it came from.
fn hold(held: &mut Held, stream: std::net::TcpStream) -> io::Result<String> {
    let local = stream.local_addr()?;
    held.stream = Some(stream);
    Ok(format!("ok {local}"))
}

fn stream(held: &mut Held) -> io::Result<&mut std::net::TcpStream> {
    held.stream.as_mut().ok_or_else(|| io::Error::other("there is no connection"))
}

fn address(word: &str) -> io::Result<SocketAddr> {
    word.parse().map_err(io::Error::other)
}

fn number<T: std::str::FromStr<Err = std::num::ParseIntError>>(word: &str) -> io::Result<T> {
    word.parse().map_err(io::Error::other)
}

/// The name of an error (`EPERM`), or its words on one line.
fn name(error: &io::Error) -> String {
    if error.kind() == io::ErrorKind::TimedOut {
        return "ETIMEDOUT".to_owned();
    }
    let name = error.raw_os_error().map(|number| format!("{:?}", Errno::from_raw(number)));
    name.unwrap_or_else(|| error.to_string().replace('\n', " "))
}

/// Root, with every capability, in user and network namespaces of its own, whose `lo` is up.
fn become_root_of_own_namespaces() -> io::Result<()> {
    let (uid, gid) = (getuid(), getgid());
    unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET)?;
    fs::write("/proc/self/setgroups", "deny")?;
    fs::write("/proc/self/uid_map", format!("0 {uid} 1"))?;
    fs::write("/proc/self/gid_map", format!("0 {gid} 1"))?;
    shell("ip link set lo up").map(drop)
}

/// Runs a command; on failure its code and words are the answer.
fn shell(command: &str) -> io::Result<String> {
    let output = Command::new("timeout").args(["10", "sh", "-c", command]).output()?;
    if output.status.success() {
        return Ok(format!("ok {}", String::from_utf8_lossy(&output.stdout).replace('\n', " ")));
    }
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    Err(io::Error::other(format!("{}: {words}", output.status)))
}
