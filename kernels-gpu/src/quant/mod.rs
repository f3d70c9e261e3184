//! Smoothing and quantization of Q, K and V.
//!
//! One CTA spans a whole row of features with 16-byte loads (`FEATURES_PER_THREAD` features a thread)
//! and sixteen token lanes; each thread has all its loads in flight before it uses the first. Sums
//! follow `sage_spec::reduce`, so every result is bit-equal to the CPU reference.

pub mod delta_s;
pub mod element;
pub mod lanes;
pub mod qk;
pub mod stats;
pub mod v;
