//! Egress: what confined bottles reach, kept in the kernel's allow-list.
//!
//! `merge` turns rules into the list's entries (pure), `names` knows where names were found and for how long (pure),
//! `resolve` asks DNS, `keeper` writes the entries before a bottle opens and keeps them fresh, `packets` finds who could
//! send past every hook. What a rule is stands in [`meter_proxy::egress`]; the meter judges by the same rules.
mod keeper;
mod merge;
mod names;
mod owner;
pub mod packets;
mod resolve;

pub use self::keeper::{Confined, Keeper};
