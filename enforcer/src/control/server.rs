//! Server of the control API.
