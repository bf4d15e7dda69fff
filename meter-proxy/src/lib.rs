//! The meter: every call of a bottle to a provider passes here, and what the provider reports is charged.
pub mod protocol;
pub mod tokens;
