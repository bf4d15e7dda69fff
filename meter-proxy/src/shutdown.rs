//! When the meter, or the lane, ends: when its controller is gone, and for no other reason.
//!
//! The controller closes the socket to stop it; signals that reach the whole process group are for it.
use std::convert::Infallible;
use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// The signals that would end the process, taken.
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    /// Takes the signals; from here on they do nothing by themselves.
    ///
    /// # Errors
    /// When the kernel refuses a handler.
    pub fn take() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// Says of each that it changes nothing.
    pub async fn ignore(mut self) -> Infallible {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => {}
                _ = self.interrupt.recv() => {}
                _ = self.hangup.recv() => {}
            }
            tracing::info!("a signal to end: this process ends when its controller closes the socket");
        }
    }
}
