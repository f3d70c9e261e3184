//! SageAttention2 in pure Rust.
pub mod metrics;
pub mod reference;
