//! Probes of kernel features.
