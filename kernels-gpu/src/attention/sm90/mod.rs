//! Quantized attention for Hopper: `wgmma`, the tensor memory accelerator and memory barriers; see
//! `docs/kernels/sm90_int8_fp8_fwd.md`.
//!
//! Read in this order: [`config`] (every number, barriers), [`schedule`] (who works on what), [`producer`],
//! then [`consumer`] with its parts [`scores`], [`softmax`] and [`output`], and [`epilogue`].

pub mod config;
pub mod consumer;
pub mod epilogue;
pub mod kernel;
pub mod output;
pub mod producer;
pub mod schedule;
pub mod scores;
pub mod softmax;

use config::Config;

/// Padded head dimension, which pairs of blocks take the exact exponential, and whether there is ΔS.
pub struct Kernel<const HEAD_DIM: u32, const EXACT_PAIRS: u32, const DELTA_S: bool>;

impl<const HEAD_DIM: u32, const EXACT_PAIRS: u32, const DELTA_S: bool> Config
    for Kernel<HEAD_DIM, EXACT_PAIRS, DELTA_S>
{
    const HEAD_DIM: u32 = HEAD_DIM;
    const EXACT_PAIRS: u32 = EXACT_PAIRS;
    const DELTA_S: bool = DELTA_S;
}
