//! Shared test support: a comparator that lets nothing through, problems to compare on, and the judgement of
//! kernels.

pub mod cache;
pub mod case;
pub mod compare;
pub mod functions;
pub mod generate;
pub mod judge;
pub mod must_not_compile;
pub mod patterns;
pub mod setup;
pub mod side;
