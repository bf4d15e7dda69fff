//! Wires threads and tasks.
