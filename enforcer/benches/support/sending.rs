//! A sender at full speed in a cgroup, and how long after the beginning of a cut its last packet passes.
use std::net::{SocketAddr, UdpSocket};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::figures::{median, now, report};
use super::inside::{Inside, shared};

/// The sender is at full speed again after this long.
const RUN_UP: Duration = Duration::from_micros(500);

/// When the last packet that passed began and was sent, monotonic nanoseconds, written by the sender.
pub struct Times {
    began: AtomicU64,
    returned: AtomicU64,
}

/// Sends datagrams over loopback as fast as it can, in a cgroup.
pub struct Sending {
    times: &'static Times,
    _inside: Inside,
    _receiver: UdpSocket,
}

impl Sending {
    /// Starts it, and waits until it is at full speed.
    pub fn start(cgroup: &Path) -> Self {
        let receiver = UdpSocket::bind("127.0.0.1:0").unwrap();
        let to: SocketAddr = receiver.local_addr().unwrap();
        let times = shared::<Times>();
        let inside = Inside::start(Some(cgroup), || {
            let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
            socket.connect(to).unwrap();
            loop {
                let began = now();
                if socket.send(b"x").is_ok() {
                    times.returned.store(now(), Ordering::SeqCst);
                    times.began.store(began, Ordering::SeqCst);
                }
            }
        });
        std::thread::sleep(Duration::from_millis(200));
        Self { times, _inside: inside, _receiver: receiver }
    }

    /// Opens and cuts so many times; reports from just before each cut to the return of the last send that passed.
    /// The median, nanoseconds.
    pub fn measure(&self, what: &str, rounds: usize, mut open: impl FnMut(), mut cut: impl FnMut()) -> f64 {
        let mut leaked = 0;
        let figures = (0..rounds).map(|_| {
            open();
            std::thread::sleep(RUN_UP);
            let before = now();
            cut();
            let after = now();
            std::thread::sleep(RUN_UP);
            leaked += usize::from(self.times.began.load(Ordering::SeqCst) > after);
            self.times.returned.load(Ordering::SeqCst).saturating_sub(before)
        });
        let figures: Vec<u64> = figures.collect();
        #[allow(clippy::cast_precision_loss, reason = "nanoseconds of a moment")]
        let median = median(figures.iter().map(|ns| *ns as f64).collect());
        report(what, figures);
        println!("{what}: sends that began after it was done, and passed: {leaked} of {rounds}");
        median
    }
}
