//! What the hooks tell the controller, one event after the other.
//!
//! It waits for nothing: who reads polls its descriptor. What an event means is the reader's to say.
use std::io::{PipeReader, Read as _};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use aya::maps::{MapData, RingBuf};
use enforcer_ebpf::Event;

use super::words::coarse_now;

/// Bytes of an event.
pub(super) const LENGTH: usize = size_of::<Event>();

/// The events, in order. Readable when there are some.
pub struct Events(Source);

enum Source {
    Ring(RingBuf<MapData>),
    Pipe(PipeReader),
}

impl Events {
    pub(super) fn of_ring(ring: RingBuf<MapData>) -> Self {
        Self(Source::Ring(ring))
    }

    /// Events that are written whole to a pipe which does not block.
    pub(super) fn of_pipe(pipe: PipeReader) -> Self {
        Self(Source::Pipe(pipe))
    }

    /// The next one, if there is one now.
    pub fn next_event(&mut self) -> Option<Event> {
        match &mut self.0 {
            Source::Ring(ring) => {
                let item = ring.next()?;
                Some(decode(item.get(..LENGTH)?.try_into().ok()?))
            }
            Source::Pipe(pipe) => {
                let mut bytes = [0; LENGTH];
                pipe.read_exact(&mut bytes).ok()?;
                Some(decode(&bytes))
            }
        }
    }
}

impl AsFd for Events {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.0 {
            Source::Ring(ring) => ring.as_fd(),
            Source::Pipe(pipe) => pipe.as_fd(),
        }
    }
}

/// How long ago an event was, by its own clock; one may have waited in the ring for a controller.
#[must_use]
pub fn age(event: &Event) -> Duration {
    Duration::from_nanos(coarse_now().saturating_sub(event.at_ns))
}

fn decode(bytes: &[u8; LENGTH]) -> Event {
    // SAFETY: `Event` is as long, `repr(C)` without padding, and every bit pattern is one.
    unsafe { std::ptr::read_unaligned(bytes.as_ptr().cast()) }
}

/// The bytes of an event.
pub(super) fn encode(event: &Event) -> [u8; LENGTH] {
    let mut bytes = [0; LENGTH];
    // SAFETY: as in `decode`.
    unsafe { std::ptr::write_unaligned(bytes.as_mut_ptr().cast(), *event) };
    bytes
}
