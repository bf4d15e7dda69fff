//! A JSON answer as it passes: kept whole while it is short, else only its end, where the usage stands.
//!
//! Not here: what the JSON means (`usage`).
use crate::limits::limit;

/// Longest decoded answer that is kept whole, bytes.
pub const MAX_WHOLE_BYTES: usize = limit(1024 * 1024, 1024);
/// What is kept of the end of a longer one, bytes, and at most twice as much for a while.
const END_BYTES: usize = limit(64 * 1024, 256);

/// What is kept of one document.
#[derive(Default)]
pub(super) struct Document {
    kept: Vec<u8>,
    /// Bytes that passed.
    seen_bytes: u64,
}

impl Document {
    /// Takes the next bytes.
    pub(super) fn feed(&mut self, piece: &[u8]) {
        self.seen_bytes = self.seen_bytes.saturating_add(piece.len() as u64);
        self.kept.extend_from_slice(piece);
        if !self.is_whole() && self.kept.len() > 2 * END_BYTES {
            self.kept.drain(..self.kept.len() - END_BYTES);
            self.kept.shrink_to(2 * END_BYTES);
        }
    }

    /// Whether [`Self::kept`] is all of it.
    pub(super) fn is_whole(&self) -> bool {
        self.seen_bytes <= MAX_WHOLE_BYTES as u64
    }

    /// The document, or its end: always as much, however it came.
    pub(super) fn kept(&self) -> &[u8] {
        if self.is_whole() { &self.kept } else { &self.kept[self.kept.len().saturating_sub(END_BYTES)..] }
    }

    /// Bytes that passed so far.
    pub(super) fn seen_bytes(&self) -> u64 {
        self.seen_bytes
    }
}
