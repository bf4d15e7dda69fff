//! The kernel plane in memory.
