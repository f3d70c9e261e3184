//! Models that run on this crate's attention, to show what its precisions do end to end.
//!
//! Plain Rust on the CPU around [`crate::Attention`]: weights from safetensors files, matrix products
//! from `ndarray`, rows in parallel with `rayon`. Behind the feature `models`, which the command line
//! turns on.

pub mod distribution;
pub mod emoji_dit;
mod error;
pub mod ops;
pub mod picture;
mod random;
pub mod rustlm;
mod weights;

pub use error::ModelError;
pub use weights::Weights;
