//! When the meter ends: when its controller is gone, and for no other reason.
//!
//! The controller closes the socket to stop the meter; signals that reach the whole process group are for it.
use std::io;

use tokio::signal::unix::{SignalKind, signal};

/// Takes the signals that would end the process, and says so; never returns unless they cannot be taken.
///
/// # Errors
/// When the kernel refuses a handler.
pub async fn ignore_signals() -> io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    loop {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            _ = hangup.recv() => {}
        }
        tracing::info!("a signal to end: the meter ends when its controller closes the socket");
    }
}
