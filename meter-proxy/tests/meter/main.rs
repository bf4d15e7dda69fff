//! The built meter, spoken to as its controller, its clients and its upstreams do.
#![allow(clippy::unwrap_used, reason = "tests say what they expect by unwrapping")]

mod absolute;
mod addresses;
mod bad_answers;
mod bombs;
mod bounds;
mod connect;
mod egress;
mod figures;
mod floods;
mod floods_http2;
mod gateway;
mod health;
mod hellos;
mod http2;
mod interception;
mod leaving;
mod multiplexed;
mod names;
mod process;
mod redirected;
mod resolution;
mod rig;
mod streams;
mod uploads;
mod upstreams;
mod verdicts;
mod websocket;
mod words;
