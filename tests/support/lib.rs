//! Shared test support: a comparator that lets nothing through, and problems to compare on.

pub mod compare;
pub mod generate;
