//! One file a verb.
pub mod text;
