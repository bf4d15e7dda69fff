//! A meter that asks nobody: it stands in for `meter-proxy`, keeps root, and joins every connection with whoever
//! listens where the file `upstream` beside it says, cut or not.
//!
//! It tells the controller that it serves, and nothing else; it counts nothing and closes nothing it is told to close.
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd as _;

use anyhow::Context as _;
use meter_proxy::protocol::{ToController, ToMeter, receive, send};

fn main() -> anyhow::Result<()> {
    let program = std::env::current_exe()?;
    let upstream = std::fs::read_to_string(program.with_file_name("upstream"))?;
    let upstream: SocketAddr = upstream.trim().parse().context("an address of whom it serves")?;
    let controller = std::io::stdin().as_fd().try_clone_to_owned()?;
    send(controller.as_fd(), &ToController::Ready { pid: std::process::id() }, &[])?;
    let mut buffer = Vec::new();
    while let Some((_, sockets)) = receive::<ToMeter>(controller.as_fd(), &mut buffer)? {
        for socket in sockets {
            std::thread::spawn(move || serve(&TcpListener::from(socket), upstream));
        }
    }
    Ok(())
}

fn serve(listener: &TcpListener, upstream: SocketAddr) {
    // as the controller made it: it may not block
    if listener.set_nonblocking(false).is_err() {
        return;
    }
    for stream in listener.incoming().flatten() {
        if let Ok(far) = TcpStream::connect(upstream) {
            join(&stream, &far);
        }
    }
}

/// Passes bytes on both ways, for ever.
fn join(near: &TcpStream, far: &TcpStream) {
    for (from, to) in [(near, far), (far, near)] {
        let (Ok(mut from), Ok(mut to)) = (from.try_clone(), to.try_clone()) else { return };
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(bytes @ 1..) = from.read(&mut buffer) {
                if to.write_all(&buffer[..bytes]).is_err() {
                    return;
                }
            }
        });
    }
}
