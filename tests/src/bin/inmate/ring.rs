//! The same by io_uring: the kernel's own workers connect and send, no system call of the program's does.
use std::io;
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::os::fd::AsRawFd as _;

use io_uring::{IoUring, opcode, squeue, types};
use nix::sys::socket::{SockType, SockaddrLike as _, SockaddrStorage};

use crate::streams::{WAIT, socket_for, unspecified};

const PAYLOAD: &[u8] = b"out of the bottle";

/// Connects; a connection that does not come about in time is given up.
pub fn connect(to: SocketAddr) -> io::Result<TcpStream> {
    let socket = socket_for(to, SockType::Stream)?;
    let address = SockaddrStorage::from(to);
    let entry = opcode::Connect::new(types::Fd(socket.as_raw_fd()), address.as_ptr(), address.len()).build();
    run(entry)?;
    Ok(socket.into())
}

/// Writes some bytes into the connection's buffer.
pub fn write(stream: &mut TcpStream) -> io::Result<()> {
    run(send(stream.as_raw_fd()))
}

/// One datagram on a connected socket.
pub fn send_datagram(to: SocketAddr) -> io::Result<()> {
    let socket = UdpSocket::bind((unspecified(to), 0))?;
    socket.connect(to)?;
    run(send(socket.as_raw_fd()))
}

fn send(descriptor: i32) -> squeue::Entry {
    let length = u32::try_from(PAYLOAD.len()).unwrap_or(0);
    opcode::Send::new(types::Fd(descriptor), PAYLOAD.as_ptr(), length).build()
}

/// Does one operation, done by a worker thread of the kernel's rather than by this one, within the time for it.
fn run(entry: squeue::Entry) -> io::Result<()> {
    let mut ring = IoUring::new(4)?;
    let limit = types::Timespec::from(WAIT);
    let linked = entry.flags(squeue::Flags::ASYNC | squeue::Flags::IO_LINK).user_data(1);
    let timeout = opcode::LinkTimeout::new(&limit).build().user_data(2);
    for entry in [linked, timeout] {
        // SAFETY: what the entries point to (the socket, its address, the payload, the limit) is borrowed or owned
        // by the callers and by this function until both completions are in.
        unsafe { ring.submission().push(&entry) }.map_err(io::Error::other)?;
    }
    ring.submit_and_wait(2)?;
    let done = ring.completion().find(|done| done.user_data() == 1);
    match done.map(|done| done.result()) {
        Some(result) if result < 0 => Err(io::Error::from_raw_os_error(-result)),
        Some(_) => Ok(()),
        None => Err(io::Error::other("the operation was not completed")),
    }
}
