//! Sockets that outlive the cgroup they were made in, in the hands of a process outside: governed by its guard, and cut
//! for good once that is let go.
#![allow(clippy::unwrap_used, reason = "a failed expectation should stop the test where it stands")]
mod support;

use std::fs;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use enforcer::bottle::cgroup::Cgroup;
use enforcer::kernel::loader::Loader;
use enforcer::kernel::{Guard, Kernel as _};
use rustix::net::connect_unspec;
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use support::eventually;
use support::host::{Host, SLOT, guard, no_meter, retry};
use support::sender::{ARRIVAL, Sender};

/// A copy of the only socket that a process has, as one that it passed on.
fn passed_on(sender: &Sender) -> OwnedFd {
    let is_socket = |fd: &PathBuf| fs::read_link(fd).unwrap().to_str().unwrap().starts_with("socket:");
    let directory = fs::read_dir(format!("/proc/{}/fd", sender.pid())).unwrap();
    let fd = directory.map(|entry| entry.unwrap().path()).find(is_socket).unwrap();
    let number = fd.file_name().unwrap().to_str().unwrap().parse().unwrap();
    let id = Pid::from_raw(i32::try_from(sender.pid()).unwrap()).unwrap();
    let process = pidfd_open(id, PidfdFlags::empty()).unwrap();
    pidfd_getfd(&process, number, PidfdGetfdFlags::empty()).unwrap()
}

fn attach(host: &Host, loader: &Loader, name: &str, generation: u32) -> PathBuf {
    let path = host.cgroup.join(name);
    let cgroup = Cgroup::create(&path).unwrap();
    loader.attach(name, &cgroup, Guard { generation, ..guard(no_meter()) }).unwrap();
    loader.open(SLOT);
    path
}

fn remove(path: &Path) {
    retry(|| Cgroup::open(path).and_then(Cgroup::remove)).unwrap();
}

/// What was made inside and is held outside: a datagram socket, and a connection to this listener.
struct Outlived {
    datagrams: UdpSocket,
    stream: TcpStream,
    far: TcpStream,
    listener: TcpListener,
    receiver: UdpSocket,
}

impl Outlived {
    fn made_in(cgroup: &Path) -> Self {
        let (mut one, mut other) = (Sender::start(Some(cgroup)), Sender::start(Some(cgroup)));
        one.order("bind 127.0.0.1:0");
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let to = listener.local_addr().unwrap();
        other.order(&format!("connect {to}")).parse::<SocketAddr>().unwrap();
        let far = listener.accept().unwrap().0;
        far.set_read_timeout(Some(ARRIVAL)).unwrap();
        let receiver = UdpSocket::bind("127.0.0.1:0").unwrap();
        receiver.set_read_timeout(Some(ARRIVAL)).unwrap();
        let (datagrams, stream) = (passed_on(&one).into(), passed_on(&other).into());
        Self { datagrams, stream, far, listener, receiver }
    }

    fn passes(&mut self) {
        self.datagrams.send_to(b"x", self.receiver.local_addr().unwrap()).unwrap();
        self.receiver.recv(&mut [0; 8]).unwrap();
        self.stream.write_all(b"x").unwrap();
        self.far.read_exact(&mut [0]).unwrap();
    }

    /// Whatever its holder tries: as it is, or with the same sockets anew.
    fn is_cut(&mut self, why: &str) {
        let to = self.receiver.local_addr().unwrap();
        let refused = |outcome: std::io::Result<usize>| {
            assert_eq!(outcome.unwrap_err().kind(), ErrorKind::PermissionDenied, "{why}");
        };
        refused(self.datagrams.send_to(b"x", to));
        refused(self.datagrams.connect(to).map(|()| 0));
        self.stream.write_all(b"x").unwrap();
        for heard in [self.far.read(&mut [0]), self.receiver.recv(&mut [0; 8])] {
            assert_eq!(heard.unwrap_err().kind(), ErrorKind::WouldBlock, "{why}");
        }
    }

    /// The connection given up, the socket tries another.
    fn cannot_begin_anew(&self) {
        connect_unspec(&self.stream).unwrap();
        let again = rustix::net::connect(&self.stream, &self.listener.local_addr().unwrap());
        assert_eq!(again.unwrap_err(), rustix::io::Errno::PERM);
    }
}

#[test]
fn root_what_outlives_a_bottle_that_is_let_go_is_cut_until_it_is_closed() {
    let host = Host::new("outlived");
    let loader = host.load();
    let path = attach(&host, &loader, "one", 7);
    let below = path.join("below");
    drop(Cgroup::create(&below).unwrap());
    let mut outlived = [Outlived::made_in(&path), Outlived::made_in(&below)];
    remove(&path);
    assert!(!path.exists());
    let mut every = |loader: &Loader, why: &str, cut: bool| {
        for one in &mut outlived {
            if cut { one.is_cut(why) } else { one.passes() }
        }
        assert_eq!(loader.is_open(SLOT), !cut);
    };
    every(&loader, "its guard governs it", false);
    loader.cut(SLOT);
    every(&loader, "and cuts it", true);
    loader.detach("one", SLOT).unwrap();
    every(&loader, "let go", true);
    drop(loader);
    let loader = host.load();
    assert!(loader.adopted().is_empty(), "it is no bottle any more");
    every(&loader, "a later controller", true);
    let next = attach(&host, &loader, "one", 8);
    for one in &mut outlived {
        one.is_cut("another bottle of its name has its slot, open");
        one.cannot_begin_anew();
    }
    let kept = host.pins().join("outlived");
    let count = || fs::read_dir(&kept).unwrap().count();
    assert_eq!(count(), 1);
    drop(outlived);
    loader.detach("one", SLOT).unwrap();
    eventually(|| {
        drop(attach(&host, &loader, "two", 9));
        loader.detach("two", SLOT).unwrap();
        remove(&host.cgroup.join("two"));
        count() == 0
    });
    remove(&next);
}

#[test]
fn root_a_bottle_that_is_let_go_alive_is_free_and_leaves_nothing() {
    let host = Host::new("alive");
    let loader = host.load();
    let path = attach(&host, &loader, "one", 7);
    let mut socket = Outlived::made_in(&path);
    loader.cut(SLOT);
    socket.is_cut("cut");
    loader.detach("one", SLOT).unwrap();
    socket.datagrams.send_to(b"x", socket.receiver.local_addr().unwrap()).unwrap();
    socket.receiver.recv(&mut [0; 8]).unwrap();
    assert_eq!(fs::read_dir(host.pins().join("outlived")).unwrap().count(), 0);
    remove(&path);
}
