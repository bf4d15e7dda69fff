//! The meter: every call of a bottle to a provider passes here, and what the provider reports is charged.
pub mod protocol;
pub mod tokens;

#[cfg(feature = "proxy")]
pub mod decode;
#[cfg(feature = "proxy")]
pub mod estimate;
#[cfg(feature = "proxy")]
pub mod exchange;
#[cfg(feature = "proxy")]
pub mod facts;
#[cfg(feature = "proxy")]
pub mod sse;
#[cfg(feature = "proxy")]
pub mod usage;
