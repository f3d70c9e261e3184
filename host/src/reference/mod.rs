//! Attention on the CPU: the truth the kernels are judged by, and the back end that runs without a GPU.
//!
//! Three levels, each checked against the one above:
//!
//! 1. [`attention_f64`]: the definition, `softmax(Q Kᵀ · sm_scale) V`, in f64. [`attention_f32`] is the
//!    same in f32 with an online softmax.
//! 2. [`attention_unrounded_p`]: the definition on quantized Q, K and V, with P not rounded: what an
//!    ideal kernel would make of the same codes and scales.
//! 3. [`quantize()`] and [`attention_quantized`]: SageAttention2 (arXiv 2411.10958, Algorithm 1) step
//!    for step as the kernels do it. The quantizer and the integer scores are bit-exact; after them
//!    only `exp2` and the order of sums differ.
//!
//! Keys and values that stay from call to call: [`cache_append`] and [`decode`], to the order of the splits.
//!
//! Each has a variant `_with` that takes [`Modifiers`]: windows, soft-cap, ALiBi, bias, masks and sinks.
//!
//! A float operation rounds once, to nearest even, and is fused only where `mul_add` says so; the same
//! input therefore gives the same output bits on every machine and for every number of threads.
//!
//! The functions take extents and strides as given: `num_heads_q` must be a multiple of
//! `num_heads_kv`, `head_dim` and `head_dim_v` at most 256, strides non-negative, and slices
//! long enough. Any extent may be zero.

#[macro_use]
mod simd;

mod attention;
mod blocks;
mod cache;
pub mod convert;
mod decode;
mod exact;
mod general;
mod modifiers;
mod options;
mod problem;
mod quantize;
mod quantize_v;
mod reduce;
mod scores;
mod sm90;
mod softmax;
mod tensor;
mod tile;
mod unrounded;

pub use attention::{attention_quantized, attention_quantized_with};
pub use cache::{cache_append, cache_mean, cache_read};
pub use decode::{DecodeOptions, HostCache, decode};
pub use exact::{attention_f32, attention_f32_with, attention_f64, attention_f64_with};
pub use modifiers::{HostMask, Modifiers};
pub use options::{Options, Output, OutputF64};
pub use quantize::{Quantized, in_storage, quantize};
pub use scores::{delta_s, scores};
pub use sm90::{attention_quantized_sm90, attention_quantized_sm90_with};
pub use tensor::{Data, HostTensor};
pub use unrounded::{attention_unrounded_p, attention_unrounded_p_with};
