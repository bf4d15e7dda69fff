//! The built lane, spoken to as its controller and the clients of a cut bottle do.
#![allow(clippy::unwrap_used, reason = "tests say what they expect by unwrapping")]

mod absences;
mod bodies;
mod bounds;
mod confinement;
mod names;
mod opened;
mod process;
mod rig;
mod tls;
mod ways;
