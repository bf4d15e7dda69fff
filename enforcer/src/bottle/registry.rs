//! The attached bottles.
