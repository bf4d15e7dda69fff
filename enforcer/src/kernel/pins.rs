//! Pins on bpffs.
