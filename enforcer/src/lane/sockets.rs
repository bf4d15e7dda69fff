//! The lane's listening sockets. A connection is of the cgroup that its listener was made in, so they are made by a
//! child that first joins the lane's cgroup, and enters the network namespace that they are for; it hands them over and
//! ends.
//!
//! Not here: who takes connections from them.
use std::fs::OpenOptions;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use meter_proxy::protocol;
use nix::sched::{CloneFlags, setns};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use serde::{Deserialize, Serialize};

use super::LaneError;
use crate::bottle::netns::{NamespaceError, bind};
use crate::core::LaneAddress;

/// The hidden verb that the child runs.
pub const VERB: &str = "lane-sockets";
/// How many ports are tried where any will do, until one is free for both families.
const TRIES: u32 = 64;
/// How long the child may take.
const CHILD_TIMEOUT: Duration = Duration::from_secs(5);

/// What the child says beside the sockets: the IPv4 one first, then the other if there is one.
#[derive(Debug, Serialize, Deserialize)]
struct Made {
    port: u16,
    /// Why there is none of IPv6, where IPv6 is not just absent.
    without_ip6: Option<String>,
}

/// Sockets on loopback, and where they listen.
#[derive(Debug)]
pub(super) struct Inside {
    pub address: LaneAddress,
    pub sockets: Vec<OwnedFd>,
}

/// Makes the sockets of one network namespace (`None`: this process's own) at this port (0: any).
pub(super) fn make(procs: &Path, namespace: Option<BorrowedFd<'_>>, port: u16) -> Result<Inside, LaneError> {
    let (ours, theirs) = protocol::pair()?;
    set_socket_timeout(&ours, Timeout::Recv, Some(CHILD_TIMEOUT)).map_err(io::Error::from)?;
    let procs = OpenOptions::new().write(true).open(procs)?;
    let namespace = namespace.map(|namespace| namespace.try_clone_to_owned()).transpose()?;
    let join = move || {
        nix::unistd::write(&procs, b"0")?;
        if let Some(namespace) = &namespace {
            setns(namespace, CloneFlags::CLONE_NEWNET)?;
        }
        Ok(())
    };
    let mut command = Command::new("/proc/self/exe");
    command.args([VERB, "--port", &port.to_string()]).env_clear();
    command.stdin(Stdio::from(theirs)).stdout(Stdio::null());
    // SAFETY: between fork and exec it makes system calls on what was opened before the fork, and nothing else.
    unsafe { command.pre_exec(join) };
    let mut child = command.spawn()?;
    // the other end is open here until the command is gone
    drop(command);
    let said = protocol::receive::<Result<Made, String>>(ours.as_fd(), &mut Vec::new());
    // it has nothing else to do
    child.kill()?;
    child.wait()?;
    let (made, sockets) =
        said.map_err(io::Error::other)?.ok_or(LaneError::Sockets("it said nothing".into()))?;
    inside(made.map_err(LaneError::Sockets)?, sockets)
}

fn inside(made: Made, sockets: Vec<OwnedFd>) -> Result<Inside, LaneError> {
    if sockets.is_empty() {
        return Err(LaneError::Sockets("it handed over none".into()));
    }
    if let Some(why) = made.without_ip6 {
        tracing::warn!(why, "sockets that take IPv6 alone cannot reach the lane");
    }
    let ip4 = SocketAddr::from((Ipv4Addr::LOCALHOST, made.port));
    let ip6 = (sockets.len() > 1).then_some(Ipv6Addr::LOCALHOST);
    Ok(Inside { address: LaneAddress { ip4, ip6 }, sockets })
}

/// What the child does: makes the sockets and sends them by its standard input.
///
/// # Errors
/// When standard input is no socket of the controller's.
pub fn hand_over(port: u16) -> io::Result<()> {
    let made = listen(port);
    let (said, sockets) = match made {
        Ok((made, sockets)) => (Ok(made), sockets),
        Err(error) => (Err(error.to_string()), Vec::new()),
    };
    let sockets: Vec<_> = sockets.iter().map(AsFd::as_fd).collect();
    protocol::send(io::stdin().as_fd(), &said, &sockets).map_err(io::Error::other)
}

fn listen(port: u16) -> Result<(Made, Vec<TcpListener>), NamespaceError> {
    let mut tries = if port == 0 { TRIES } else { 1 };
    loop {
        tries -= 1;
        let first = bind((Ipv4Addr::LOCALHOST, port).into())?;
        let port = first.local_addr().map_err(NamespaceError::Enter)?.port();
        let made = |without_ip6| Made { port, without_ip6 };
        match bind((Ipv6Addr::LOCALHOST, port).into()) {
            Ok(second) => return Ok((made(None), vec![first, second])),
            // any port will do: another may be free for both
            Err(NamespaceError::Taken(_)) if tries > 0 => {}
            Err(error) if error.is_without_ip6() => return Ok((made(None), vec![first])),
            Err(error) => return Ok((made(Some(error.to_string())), vec![first])),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_families_listen_at_one_port() {
        let (made, sockets) = listen(0).unwrap();
        let ports: Vec<u16> = sockets.iter().map(|socket| socket.local_addr().unwrap().port()).collect();
        assert_eq!(ports, [made.port, made.port]);
        let taken = listen(made.port).unwrap_err();
        assert!(matches!(taken, NamespaceError::Taken(_)), "{taken}");
    }
}
