//! The lane's sockets: for connections and, at the same port, for DNS queries. A connection is of the cgroup that its
//! listener was made in, so they are made by a child that first joins the lane's cgroup, and enters the network
//! namespace that they are for; it hands them over and ends.
//!
//! Not here: who takes connections and queries from them.
use std::fs::OpenOptions;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
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
use crate::bottle::netns::{NamespaceError, bind, bind_datagrams};
use crate::core::LaneAddress;

/// The hidden verb that the child runs.
pub const VERB: &str = "lane-sockets";
/// How many ports are tried where any will do, until one is free for both families and both protocols.
const TRIES: u32 = 64;
/// How long the child may take.
const CHILD_TIMEOUT: Duration = Duration::from_secs(5);

/// What the child says beside the sockets, those of IPv4 first.
#[derive(Debug, Serialize, Deserialize)]
struct Made {
    port: u16,
    has_ip6: bool,
    /// Why there are none of IPv6, where IPv6 is not just absent.
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
    let ip6 = made.has_ip6.then_some(Ipv6Addr::LOCALHOST);
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

/// All sockets at one port. Where another has taken it in any form there are none: what a cut bottle sends to the lane's
/// address and port is let through.
fn listen(port: u16) -> Result<(Made, Vec<OwnedFd>), NamespaceError> {
    let mut tries = if port == 0 { TRIES } else { 1 };
    loop {
        tries -= 1;
        match listen_at(port) {
            // any port will do: another may be free for all
            Err(NamespaceError::Taken(_)) if tries > 0 => {}
            made => return made,
        }
    }
}

fn listen_at(port: u16) -> Result<(Made, Vec<OwnedFd>), NamespaceError> {
    let first = bind((Ipv4Addr::LOCALHOST, port).into())?;
    let port = first.local_addr().map_err(NamespaceError::Enter)?.port();
    let mut sockets: Vec<OwnedFd> =
        vec![first.into(), bind_datagrams((Ipv4Addr::LOCALHOST, port).into())?.into()];
    let mut made = Made { port, has_ip6: false, without_ip6: None };
    match both(Ipv6Addr::LOCALHOST.into(), port) {
        Ok(others) => {
            sockets.extend(others);
            made.has_ip6 = true;
        }
        Err(error) if error.is_without_ip6() => {}
        Err(error @ NamespaceError::Taken(_)) => return Err(error),
        Err(error) => made.without_ip6 = Some(error.to_string()),
    }
    Ok((made, sockets))
}

/// For connections and for queries.
fn both(ip: IpAddr, port: u16) -> Result<[OwnedFd; 2], NamespaceError> {
    let address = (ip, port).into();
    Ok([bind(address)?.into(), bind_datagrams(address)?.into()])
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, UdpSocket};

    use rustix::net::{SocketType, getsockname, sockopt};

    use super::*;

    #[test]
    fn both_families_and_both_protocols_are_at_one_port() {
        let (made, sockets) = listen(0).unwrap();
        let mut found: Vec<(SocketType, IpAddr)> = Vec::new();
        for socket in &sockets {
            let address = SocketAddr::try_from(getsockname(socket).unwrap()).unwrap();
            assert_eq!(address.port(), made.port);
            found.push((sockopt::socket_type(socket).unwrap(), address.ip()));
        }
        let of = |ip: IpAddr| [(SocketType::STREAM, ip), (SocketType::DGRAM, ip)];
        assert_eq!(found, [of(Ipv4Addr::LOCALHOST.into()), of(Ipv6Addr::LOCALHOST.into())].concat());
    }

    #[test]
    fn a_port_that_another_has_in_any_form_is_none() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let stream = TcpListener::bind(address).unwrap();
            let datagrams = UdpSocket::bind(address).unwrap();
            for taken in [stream.local_addr().unwrap(), datagrams.local_addr().unwrap()] {
                let refused = listen(taken.port()).unwrap_err();
                assert!(matches!(refused, NamespaceError::Taken(there) if there == taken), "{refused}");
            }
        }
    }
}
