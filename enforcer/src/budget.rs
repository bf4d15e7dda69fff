//! Budgets: pure arithmetic.
