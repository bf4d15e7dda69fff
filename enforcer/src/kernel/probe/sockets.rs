//! Finding a socket by its cookie and its cgroup, and aborting it: what a hard cut stands on, and what finds the
//! sockets that a process held before it came into a bottle.
use std::io::{self, ErrorKind, Read as _};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use rustix::net::sockopt::socket_cookie;

use super::super::sock_diag::{Family, InetSocket, SockDiag, Transport};
use super::inside::{accept, ended_well, fork_in};
use super::trial::Trial;
use super::{Failure, Outcome, failure};

/// How long a socket may take to hear of its end.
const SOON: Duration = Duration::from_millis(300);

/// A connection that a process in a cgroup made must be listed as made there.
pub(super) fn lists(trial: &Trial) -> Outcome {
    let cgroup = trial.opened();
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let client = fork_in(cgroup, || TcpStream::connect_timeout(&address, SOON)?.read(&mut [0]).map(drop))?;
    let found = accept(&listener, SOON).and_then(|(stream, peer)| {
        let listed = list(|socket| socket.local == peer && socket.remote == address);
        drop(stream);
        listed
    });
    ended_well(client)?;
    match found?.first().map(|socket| socket.cgroup) {
        Some(Some(id)) if id == cgroup.id() => {
            Ok("a socket is listed with the cgroup it was made in".to_owned())
        }
        Some(Some(_)) => Err(failure("a socket is listed with another cgroup than it was made in")),
        Some(None) => Err(missing("sockets are listed without their cgroup")),
        None => Err(failure("a socket is not listed")),
    }
}

/// A connection of our own, found by its cookie, must be abortable.
pub(super) fn aborts() -> Outcome {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let mut client = TcpStream::connect(listener.local_addr()?)?;
    client.set_read_timeout(Some(SOON))?;
    let cookie = socket_cookie(&client).map_err(io::Error::from)?;
    let listed = list(|socket| socket.cookie == cookie)?;
    let [socket] = listed.as_slice() else { return Err(failure("a socket is not found by its cookie")) };
    match SockDiag::open()?.abort(socket) {
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
            return Err(missing("the kernel aborts no sockets"));
        }
        aborted => drop(aborted?),
    }
    match client.read(&mut [0]) {
        Err(error) if error.kind() == ErrorKind::ConnectionAborted => {
            Ok("a connection is aborted by its cookie".to_owned())
        }
        other => Err(failure(format!("an aborted connection goes on: {other:?}"))),
    }
}

/// Connections of this network namespace, over IPv4.
fn list(wanted: impl Fn(&InetSocket) -> bool) -> io::Result<Vec<InetSocket>> {
    SockDiag::open()?.list(Family::V4, Transport::Tcp, wanted)
}

fn missing(what: &str) -> Failure {
    let hint = "a kernel with CONFIG_INET_DIAG and CONFIG_INET_DIAG_DESTROY has it; `cut --hard` needs it";
    Failure { what: what.to_owned(), hint: Some(hint.to_owned()) }
}
