//! The core thread.
