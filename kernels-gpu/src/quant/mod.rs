//! Smoothing and quantization of Q, K and V: [`quantize`], one launch, and ΔS of smoothed Q: [`delta_s`].
//!
//! CTAs draw tiles of 128 tokens in the order of `sage_spec::schedule`, copy each to shared memory, and do
//! one of five things with it. A thread's place is a token lane and a column of eight features ([`lanes`]).
//! Sums follow `sage_spec::reduce`, so every result is bit-equal to the CPU reference.

pub mod delta_s;
pub mod element;
mod job;
mod lanes;
mod posted;
mod qk;
pub mod quantize;
mod stats;
mod tile;
mod v;
