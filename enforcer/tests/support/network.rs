//! Network namespaces of a test's own, with nothing but `lo`, on which public addresses live too.
//!
//! Nothing can leave the machine from there, and what passes the meter by arrives all the same: at the test.
use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, UdpSocket};
use std::os::fd::AsRawFd as _;

use nix::sched::{CloneFlags, setns, unshare};

/// An address of the documentation range, here on `lo`.
pub const PUBLIC4: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 7);
/// As above.
pub const PUBLIC6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 7);
/// A private address, here on `lo`.
pub const PRIVATE4: Ipv4Addr = Ipv4Addr::new(10, 9, 8, 7);

/// Runs a test in a new network namespace. Sockets and processes that it makes are born there; the namespace goes
/// with the last of them.
pub fn in_own_network(test: impl FnOnce() + Send) {
    let outcome = std::thread::scope(|scope| {
        let inside = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("this test makes a network namespace: run it as root");
            set_up().expect("lo can be set up");
            test();
        });
        inside.join()
    });
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}

/// Another network namespace, beside the test's.
pub struct Network(File);

impl Network {
    /// A new one.
    pub fn new() -> Self {
        let made = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("this test makes a network namespace: run it as root");
            set_up().expect("lo can be set up");
            File::open("/proc/thread-self/ns/net").expect("a thread has a namespace")
        });
        Self(made.join().expect("it is made"))
    }

    /// The one that a process is in.
    pub fn of(pid: u32) -> Self {
        Self(File::open(format!("/proc/{pid}/ns/net")).expect("a process has a namespace"))
    }

    /// Runs an action in it. Sockets and processes made there stay there.
    pub fn inside<T: Send>(&self, action: impl FnOnce() -> T + Send) -> T {
        let outcome = std::thread::scope(|scope| {
            let inside = scope.spawn(|| {
                setns(&self.0, CloneFlags::CLONE_NEWNET).expect("root may enter it");
                action()
            });
            inside.join()
        });
        outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

/// Switches `lo` on in the network namespace of this thread.
pub fn switch_lo_on() -> io::Result<()> {
    let mut up = interface("lo");
    up.ifr_ifru.ifru_flags = libc::c_short::try_from(libc::IFF_UP).map_err(io::Error::other)?;
    control(&UdpSocket::bind("0.0.0.0:0")?, libc::SIOCSIFFLAGS, &up)
}

/// Switches `lo` on in the namespace of the calling thread, with the addresses above on it.
pub fn set_up() -> io::Result<()> {
    switch_lo_on()?;
    let ip4 = UdpSocket::bind("0.0.0.0:0")?;
    for (label, ip) in [("lo:1", PUBLIC4), ("lo:2", PRIVATE4)] {
        add_ip4(&ip4, label, ip)?;
    }
    add_ip6(&UdpSocket::bind("[::]:0")?, PUBLIC6)
}

fn add_ip4(socket: &UdpSocket, label: &str, ip: Ipv4Addr) -> io::Result<()> {
    let mut request = interface(label);
    let address = libc::sockaddr_in {
        sin_family: libc::sa_family_t::try_from(libc::AF_INET).map_err(io::Error::other)?,
        sin_port: 0,
        sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(ip.octets()) },
        sin_zero: [0; 8],
    };
    // SAFETY: both are sixteen bytes of plain numbers, by the kernel's definition of `struct ifreq`.
    request.ifr_ifru.ifru_addr = unsafe { std::mem::transmute::<libc::sockaddr_in, libc::sockaddr>(address) };
    control(socket, libc::SIOCSIFADDR, &request)
}

/// `struct in6_ifreq`.
#[repr(C)]
struct Ip6Request {
    address: libc::in6_addr,
    prefix_bits: u32,
    index: libc::c_int,
}

fn add_ip6(socket: &UdpSocket, ip: Ipv6Addr) -> io::Result<()> {
    let address = libc::in6_addr { s6_addr: ip.octets() };
    // `lo` is the first interface of every namespace
    control(socket, libc::SIOCSIFADDR, &Ip6Request { address, prefix_bits: 128, index: 1 })
}

fn interface(name: &str) -> libc::ifreq {
    // SAFETY: a structure of plain numbers, for which zero is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    request
}

fn control<T>(socket: &UdpSocket, command: libc::Ioctl, request: &T) -> io::Result<()> {
    // SAFETY: each command above is given the structure that the kernel reads for it, which outlives the call.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), command, std::ptr::from_ref(request)) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
