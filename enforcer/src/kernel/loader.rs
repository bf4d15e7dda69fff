//! The kernel plane with eBPF.
