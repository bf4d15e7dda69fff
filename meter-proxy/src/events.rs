//! What every framing of a stream makes of its bytes: events, and of one that is too long to keep its two ends.
//!
//! Not here: the framings (`sse`, `json_array`, `event_stream`), and what an event means (`usage`).
use crate::limits::limit;

/// Longest event in bytes; of a longer one only both ends are kept, and reported as [`Event::Oversized`].
pub const MAX_EVENT_BYTES: usize = limit(4 * 1024 * 1024, 1024);

/// What is kept of the beginning of a longer one: its type stands there.
pub(crate) const START_BYTES: usize = limit(256, 64);
/// What is kept of its end, where the usage stands; at most twice as much for a while.
pub(crate) const END_BYTES: usize = limit(64 * 1024, 256);
/// Buffers larger than this, in bytes, are given back after the event that needed them.
pub(crate) const KEPT_BUFFER_BYTES: usize = limit(16 * 1024, 512);

/// What a framing found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// The data of one event, whose name stands in it; never empty.
    Data(&'a [u8]),
    /// The data of one event that its framing names.
    Named {
        /// Its name.
        name: &'a str,
        /// Its data.
        data: &'a [u8],
    },
    /// The two ends of the data of an event longer than [`MAX_EVENT_BYTES`].
    Oversized {
        /// Its first bytes.
        start: &'a [u8],
        /// Its last bytes.
        end: &'a [u8],
    },
}

/// What is kept of an event that grew too long.
#[derive(Debug, Default)]
pub(crate) struct Ends {
    start: Vec<u8>,
    end: Vec<u8>,
}

impl Ends {
    /// Takes its next bytes.
    pub(crate) fn push(&mut self, value: &[u8]) {
        let missing = START_BYTES.saturating_sub(self.start.len()).min(value.len());
        self.start.extend_from_slice(&value[..missing]);
        let last = &value[value.len().saturating_sub(END_BYTES)..];
        self.end.extend_from_slice(last);
        if self.end.len() > 2 * END_BYTES {
            self.end.drain(..self.end.len() - END_BYTES);
        }
    }

    /// The event that it was. Of its end always as much, however it came: what is read of it must not depend on that.
    pub(crate) fn event(&self) -> Event<'_> {
        Event::Oversized { start: &self.start, end: &self.end[self.end.len().saturating_sub(END_BYTES)..] }
    }
}
