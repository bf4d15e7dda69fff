//! Processes of the probes: forked, inside the trial's cgroup or not, doing one thing each.
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid};
use rustix::net::{AddressFamily, SocketType};

use crate::bottle::cgroup::Cgroup;

/// Longest time that a process of the probes may take.
const PATIENCE: Duration = Duration::from_secs(2);

/// Runs an action in a new process; it must neither allocate nor lock.
pub(super) fn fork(action: impl FnOnce() -> io::Result<()>) -> io::Result<Pid> {
    // SAFETY: the child only makes system calls without allocating, as every caller promises, and then ends without
    // running any destructor of the parent's.
    match unsafe { nix::unistd::fork() }? {
        ForkResult::Parent { child } => Ok(child),
        ForkResult::Child => {
            let failed = action().is_err();
            // SAFETY: ends the process at once.
            unsafe { libc::_exit(i32::from(failed)) }
        }
    }
}

/// As [`fork`], in a cgroup.
pub(super) fn fork_in(cgroup: &Cgroup, action: impl FnOnce() -> io::Result<()>) -> io::Result<Pid> {
    let procs: File = OpenOptions::new().write(true).open(cgroup.path().join("cgroup.procs"))?;
    fork(|| {
        nix::unistd::write(&procs, b"0")?;
        action()
    })
}

/// Waits for a process of ours, and ends it when it goes on; whether it ended without an error.
pub(super) fn ended_well(child: Pid) -> io::Result<bool> {
    let end = Instant::now() + PATIENCE;
    loop {
        match waitpid(child, Some(WaitPidFlag::WNOHANG))? {
            WaitStatus::StillAlive if Instant::now() < end => std::thread::sleep(Duration::from_micros(200)),
            WaitStatus::StillAlive => {
                kill(child, Signal::SIGKILL)?;
                waitpid(child, None)?;
                return Err(ErrorKind::TimedOut.into());
            }
            status => return Ok(matches!(status, WaitStatus::Exited(_, 0))),
        }
    }
}

/// Connects from 127.0.0.1 or its v4-mapped form: what is not redirected then fails (EINVAL), and never leaves this
/// machine. Does not allocate.
pub(super) fn connect_from_loopback(to: SocketAddr) -> io::Result<TcpStream> {
    let (family, from) = match to {
        SocketAddr::V4(_) => (AddressFamily::INET, IpAddr::V4(Ipv4Addr::LOCALHOST)),
        SocketAddr::V6(_) => (AddressFamily::INET6, IpAddr::V6(Ipv4Addr::LOCALHOST.to_ipv6_mapped())),
    };
    let socket = rustix::net::socket(family, SocketType::STREAM, None)?;
    rustix::net::bind(&socket, &SocketAddr::new(from, 0))?;
    rustix::net::connect(&socket, &to)?;
    Ok(socket.into())
}

/// Whether something was refused as it should be.
pub(super) fn refused<T>(outcome: io::Result<T>) -> io::Result<()> {
    match outcome {
        Err(error) if error.kind() == ErrorKind::PermissionDenied => Ok(()),
        Err(error) => Err(error),
        Ok(_) => Err(ErrorKind::Other.into()),
    }
}

/// Accepts one connection from inside, waiting as long as it may take.
pub(super) fn accept(listener: &TcpListener, patience: Duration) -> io::Result<(TcpStream, SocketAddr)> {
    listener.set_nonblocking(true)?;
    let end = Instant::now() + patience;
    loop {
        match listener.accept() {
            Err(error) if error.kind() == ErrorKind::WouldBlock && Instant::now() < end => {
                std::thread::sleep(Duration::from_millis(1));
            }
            result => return result,
        }
    }
}
