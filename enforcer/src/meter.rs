//! The meter process and its socket.
