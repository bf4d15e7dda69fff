//! What the fuzz targets share: how an input is taken apart, what memory it took, and the properties that hold for
//! every answer of a provider.
//!
//! The targets are beside this, one file a parser. Not here: running them (`cargo xtask fuzz`).
#![allow(clippy::unwrap_used, reason = "a target says what must hold by unwrapping")]

pub mod answers;
pub mod lines;
pub mod memory;
pub mod provider;

/// Bytes at the end of each input that say how it is used; the rest is what came. At the end, so that a seed is what
/// was captured from a wire.
const CONTROL_BYTES: usize = 2;

/// An input taken apart.
pub struct Input<'a> {
    /// What came.
    pub bytes: &'a [u8],
    /// In pieces of so many bytes; at least 1.
    pub piece_bytes: usize,
    choices: u8,
}

impl<'a> Input<'a> {
    /// Takes an input apart; `None` for one that is too short.
    #[must_use]
    pub fn read(data: &'a [u8]) -> Option<Self> {
        let (bytes, &[size, choices]) = data.split_last_chunk::<CONTROL_BYTES>()?;
        Some(Self { bytes, piece_bytes: usize::from(size) + 1, choices })
    }

    /// One of these, and one of the others by the next call.
    pub fn choose<T: Copy, const N: usize>(&mut self, of: [T; N]) -> T {
        let count = u8::try_from(N).unwrap();
        let at = self.choices % count;
        self.choices /= count;
        of[usize::from(at)]
    }

    /// What came, in pieces.
    pub fn pieces(&self) -> std::slice::Chunks<'a, u8> {
        self.bytes.chunks(self.piece_bytes)
    }
}
