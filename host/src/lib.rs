//! SageAttention2 in pure Rust.
pub mod error;
pub mod metrics;
pub mod plan;
pub mod problem;
pub mod reference;
