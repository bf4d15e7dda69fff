//! Launching a command inside a bottle.
