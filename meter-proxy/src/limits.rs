//! One choice for all bounds of memory: fuzzed, they are so low that short inputs get past them.
//!
//! Not here: the bounds, which stand where they hold.

/// The bound in bytes, or with the feature `fuzzing` a lower one.
pub(crate) const fn limit(bytes: usize, fuzzed_bytes: usize) -> usize {
    if cfg!(feature = "fuzzing") { fuzzed_bytes } else { bytes }
}
