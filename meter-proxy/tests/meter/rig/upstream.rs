//! Servers that the test plays, on loopback.
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::{Answer, SOON};

/// A provider that the test plays, on loopback.
pub struct Upstream {
    pub address: SocketAddr,
    seen: Arc<Seen>,
}

#[derive(Default)]
struct Seen {
    heads: Mutex<Vec<String>>,
    body_bytes: AtomicUsize,
    ended: AtomicUsize,
}

impl Upstream {
    /// Serves every request with `serve`, which gets the connection after the request was read.
    pub fn start(serve: impl Fn(&mut TcpStream) -> std::io::Result<()> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Seen::default());
        let (serve, kept) = (Arc::new(serve), Arc::clone(&seen));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (mut stream, serve, seen) = (stream.unwrap(), Arc::clone(&serve), Arc::clone(&seen));
                std::thread::spawn(move || {
                    while take_request(&mut stream, &seen).and_then(|()| serve(&mut stream)).is_ok() {}
                    seen.ended.fetch_add(1, Ordering::SeqCst);
                    // The other side may have closed it already.
                    drop(stream.shutdown(Shutdown::Both));
                });
            }
        });
        Self { address, seen: kept }
    }

    /// Serves every request with these bytes.
    pub fn saying(answer: impl Into<Vec<u8>>) -> Self {
        let answer = answer.into();
        Self::start(move |stream| stream.write_all(&answer))
    }

    /// Heads of the requests so far.
    pub fn heads(&self) -> Vec<String> {
        self.seen.heads.lock().unwrap().clone()
    }

    pub fn body_bytes(&self) -> usize {
        self.seen.body_bytes.load(Ordering::SeqCst)
    }

    /// Waits until a connection has ended; how long that took.
    pub fn ended(&self) -> Duration {
        let since = Instant::now();
        while self.seen.ended.load(Ordering::SeqCst) == 0 {
            assert!(since.elapsed() < SOON, "the connection to upstream should have been closed");
            std::thread::sleep(Duration::from_millis(1));
        }
        since.elapsed()
    }
}

/// A listening socket whose queue is full: who connects to it waits.
pub struct Deaf {
    pub address: SocketAddr,
    _held: (OwnedFd, Vec<TcpStream>),
}

impl Deaf {
    pub fn listen() -> Self {
        use rustix::net::{AddressFamily, SocketType, bind, getsockname, listen, socket};
        let socket = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
        bind(&socket, &"127.0.0.1:0".parse::<SocketAddr>().unwrap()).unwrap();
        listen(&socket, 0).unwrap();
        let address = SocketAddr::try_from(getsockname(&socket).unwrap()).unwrap();
        let mut queue = Vec::new();
        while let Ok(queued) = TcpStream::connect_timeout(&address, Duration::from_millis(200)) {
            queue.push(queued);
        }
        Self { address, _held: (socket, queue) }
    }
}

fn take_request(stream: &mut TcpStream, seen: &Seen) -> std::io::Result<()> {
    let head = Answer::read_head(stream)?;
    seen.heads.lock().unwrap().push(head.head.clone());
    let mut left = head.header("content-length").map_or(0, |length| length.parse::<usize>().unwrap());
    let mut buffer = vec![0; 64 * 1024];
    while left > 0 {
        let most = left.min(buffer.len());
        let read = stream.read(&mut buffer[..most])?;
        if read == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        seen.body_bytes.fetch_add(read, Ordering::SeqCst);
        left -= read;
    }
    Ok(())
}

/// The next connection to a server that the test plays.
pub fn next_at(origin: &TcpListener) -> TcpStream {
    origin.set_nonblocking(true).unwrap();
    let until = Instant::now() + SOON;
    let (stream, _) = loop {
        match origin.accept() {
            Err(error) if error.kind() == ErrorKind::WouldBlock && Instant::now() < until => {
                std::thread::sleep(Duration::from_millis(1));
            }
            taken => break taken.expect("somebody should have come"),
        }
    };
    stream.set_nonblocking(false).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    stream
}

pub fn nobody_comes(origin: &TcpListener) {
    origin.set_nonblocking(true).unwrap();
    assert_eq!(origin.accept().unwrap_err().kind(), ErrorKind::WouldBlock, "nothing may arrive");
}
