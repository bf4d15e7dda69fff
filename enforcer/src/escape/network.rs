//! The network that the self-test plays in: `lo` and nothing else, with public addresses on it.
//!
//! Nothing leaves the machine from there, and what passes the meter by arrives all the same, on `lo`.
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::time::{Duration, Instant};

/// An address that a bottle's hooks take for a public one; of the documentation ranges, so nobody's.
pub const PUBLIC4: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 7);
/// As above.
pub const PUBLIC6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 7);
/// `lo` is the first interface of every network namespace.
pub const LO: i32 = 1;
/// How long a new IPv6 address may take to become usable.
const USABLE: Duration = Duration::from_secs(1);

/// Sets up the calling thread's network namespace, which must be a new one. A kernel without IPv6 gets none.
///
/// # Errors
/// When `lo` cannot be set up.
pub fn set_up() -> io::Result<()> {
    switch_lo_on()?;
    add_ip4("lo:1", PUBLIC4)?;
    if has_ip6() {
        add_ip6(PUBLIC6)?;
    }
    allow_ping();
    Ok(())
}

/// Switches `lo` on in the calling thread's network namespace.
///
/// # Errors
/// The kernel's.
pub fn switch_lo_on() -> io::Result<()> {
    let mut up = interface("lo");
    up.ifr_ifru.ifru_flags = libc::c_short::try_from(libc::IFF_UP).map_err(io::Error::other)?;
    control(&UdpSocket::bind("0.0.0.0:0")?, libc::SIOCSIFFLAGS, &up)
}

/// Refuses to go on in a network that is not the self-test's: here a packet to these addresses cannot leave the
/// machine.
///
/// # Errors
/// When the public addresses are not this network's own.
pub fn check() -> io::Result<()> {
    let is_own = |ip: IpAddr| match UdpSocket::bind((ip, 0)) {
        Ok(_) => Ok(()),
        Err(error) => {
            let what = format!("not a network of the self-test, so nothing is sent: {ip}: {error}");
            Err(io::Error::new(error.kind(), what))
        }
    };
    is_own(PUBLIC4.into())?;
    if has_ip6() { is_own(PUBLIC6.into()) } else { Ok(()) }
}

/// Whether the kernel has IPv6.
#[must_use]
pub fn has_ip6() -> bool {
    Path::new("/proc/sys/net/ipv6").exists()
}

/// Lets root have ping sockets here, where the kernel's default is nobody. Where that cannot be said, they are not
/// offered, and the attempt says so.
fn allow_ping() {
    if let Err(error) = fs::write("/proc/sys/net/ipv4/ping_group_range", "0 0") {
        tracing::debug!(%error, "no ping sockets");
    }
}

/// Gives an interface of the calling thread's network namespace an address; a label (`lo:1`) adds one to those it has.
///
/// # Errors
/// The kernel's.
pub fn add_ip4(label: &str, ip: Ipv4Addr) -> io::Result<()> {
    let mut request = interface(label);
    let address = libc::sockaddr_in {
        sin_family: libc::sa_family_t::try_from(libc::AF_INET).map_err(io::Error::other)?,
        sin_port: 0,
        sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(ip.octets()) },
        sin_zero: [0; 8],
    };
    // SAFETY: both are sixteen bytes of plain numbers, by the kernel's definition of `struct ifreq`.
    request.ifr_ifru.ifru_addr = unsafe { std::mem::transmute::<libc::sockaddr_in, libc::sockaddr>(address) };
    control(&UdpSocket::bind("0.0.0.0:0")?, libc::SIOCSIFADDR, &request)
}

/// `struct in6_ifreq` of linux/ipv6.h.
#[repr(C)]
struct Ip6Request {
    address: libc::in6_addr,
    prefix_bits: u32,
    index: libc::c_int,
}

fn add_ip6(ip: Ipv6Addr) -> io::Result<()> {
    // a new namespace may take this over from a host that wants no IPv6
    for interface in ["all", "lo"] {
        let switch = format!("/proc/sys/net/ipv6/conf/{interface}/disable_ipv6");
        if fs::read_to_string(&switch)?.trim() != "0" {
            fs::write(&switch, "0")?;
        }
    }
    let address = libc::in6_addr { s6_addr: ip.octets() };
    let socket = UdpSocket::bind("[::]:0")?;
    control(&socket, libc::SIOCSIFADDR, &Ip6Request { address, prefix_bits: 128, index: LO })?;
    // the kernel makes it usable a moment later, in a thread of its own
    let end = Instant::now() + USABLE;
    while let Err(error) = UdpSocket::bind((ip, 0)) {
        if Instant::now() > end {
            return Err(error);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
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
