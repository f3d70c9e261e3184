//! Quantized attention for Hopper: `wgmma`, the tensor memory accelerator and memory barriers; see
//! `docs/kernels/sm90_int8_fp8_fwd.md`.
//!
//! Read in this order: [`config`] (every number, barriers), [`schedule`] (who works on what), [`producer`],
//! then [`consumer`] with its parts [`scores`], [`softmax`] and [`output`], and [`epilogue`]. [`general`] is the same
//! with windows, soft-cap, ALiBi, bias, masks and sinks.

pub mod config;
pub mod consumer;
pub mod epilogue;
pub mod general;
pub mod kernel;
pub mod output;
pub mod producer;
pub mod schedule;
pub mod scores;
pub mod softmax;

use config::{CONSUMER_REGISTERS, CONSUMER_REGISTERS_OF_FOUR, Config};
use cuda_std::warpgroup;
use kernel::Algorithm;
use sage_spec::sm90::{Exponential, Sm90AttentionParams, warpgroups};

/// Padded head dimension, whether every key takes the exact exponential, and whether there is ΔS.
pub struct Kernel<const HEAD_DIM: u32, const EXACT: bool, const DELTA_S: bool>;

/// How the kernel computes exponentials.
const fn exponential(exact: bool) -> Exponential {
    if exact { Exponential::Exact } else { Exponential::Mixed }
}

impl<const HEAD_DIM: u32, const EXACT: bool, const DELTA_S: bool> Config for Kernel<HEAD_DIM, EXACT, DELTA_S> {
    const HEAD_DIM: u32 = HEAD_DIM;
    const EXPONENTIAL: Exponential = exponential(EXACT);
    const DELTA_S: bool = DELTA_S;
    const WARPGROUPS: usize = warpgroups(HEAD_DIM as usize, exponential(EXACT), DELTA_S);
}

impl<const HEAD_DIM: u32, const EXACT: bool, const DELTA_S: bool> Algorithm for Kernel<HEAD_DIM, EXACT, DELTA_S> {
    type Params = Sm90AttentionParams;

    #[inline(always)]
    fn attention(p: &Sm90AttentionParams) -> &Sm90AttentionParams {
        p
    }

    #[inline(always)]
    fn tiles(p: &Sm90AttentionParams, first_row: u32) -> (u32, u32) {
        (0, schedule::tiles::<Self>(p, first_row))
    }

    #[inline(always)]
    unsafe fn consume(p: &Sm90AttentionParams, smem: u32) {
        // SAFETY: forwarded contract.
        unsafe {
            match Self::WARPGROUPS {
                4 => warpgroup::increase_registers::<CONSUMER_REGISTERS_OF_FOUR>(),
                _ => warpgroup::increase_registers::<CONSUMER_REGISTERS>(),
            }
            consumer::run::<Self>(p, smem)
        }
    }
}
