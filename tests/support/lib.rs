//! Shared test support: a comparator that lets nothing through, problems to compare on, and the judgement of
//! kernels.

pub mod cache;
pub mod case;
pub mod compare;
pub mod generate;
pub mod judge;
pub mod setup;
pub mod side;
