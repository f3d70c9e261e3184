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

/// A short name for bytes: the first 12 digits of their SHA-256. Tells files apart; no proof of
/// anything.
///
/// ```
/// use sage_attn::models::fingerprint;
/// assert_ne!(fingerprint(b"weights"), fingerprint(b"other weights"));
/// ```
pub fn fingerprint(bytes: &[u8]) -> String {
    use sha2::{Digest, Sha256};
    Sha256::digest(bytes).iter().take(6).map(|byte| format!("{byte:02x}")).collect()
}
