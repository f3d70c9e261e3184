//! The kernel around producer and consumers.

use cuda_std::{mbarrier, shared, thread, tma, warpgroup};
use sage_spec::sm90::{BLOCK_KV, ONES_ROWS, Q_BUFFERS, STAGES, Sm90AttentionParams};

use super::config::{Barriers, Config, PRODUCER_REGISTERS};
use super::producer;

/// E4M3 code of 1.0, four times.
const ONES: u32 = 0x3838_3838;

/// What differs between the plain kernels and those with modifiers.
pub trait Algorithm: Config {
    /// The kernel's parameters.
    type Params;

    /// The part of them that all have.
    fn attention(p: &Self::Params) -> &Sm90AttentionParams;

    /// Tiles of K and V that the rows of the item that begins at `first_row` need together, as first and end; none if
    /// the end is not greater.
    fn tiles(p: &Self::Params, first_row: u32) -> (u32, u32);

    /// Takes the consumers' registers and attends for every work item of the CTA.
    ///
    /// # Safety
    /// The four warps of a consumer warpgroup call it, after the barriers were initialised.
    unsafe fn consume(p: &Self::Params, smem: u32);
}

/// Prepares barriers and the rows of ones behind V's tiles, then runs the thread's role.
///
/// # Safety
/// `p` describes valid device buffers, and `maps` is the address of a copy of [`Algorithm::attention`] that tensor
/// maps may be read from; threads and shared memory are those of `sage_spec::sm90`.
#[inline(always)]
pub unsafe fn kernel<A: Algorithm>(p: &A::Params, maps: u64) {
    let smem = shared::dynamic_shared_mem();
    let thread = thread::thread_idx_x();
    // SAFETY: every thread writes its own words of the plan; the barrier orders them before any use.
    unsafe {
        if thread == 0 {
            let barriers = Barriers::new::<A>(smem);
            let mut i = 0;
            while i < STAGES as u32 {
                mbarrier::init(barriers.full(i), 1);
                mbarrier::init(barriers.empty(i), A::CONSUMER_WARPS);
                i += 1;
            }
            let mut i = 0;
            while i < Q_BUFFERS as u32 {
                mbarrier::init(barriers.full_q(i), 1);
                mbarrier::init(barriers.empty_q(i), A::CONSUMER_WARPS);
                i += 1;
            }
            mbarrier::fence_init();
        }
        // The swizzle permutes within a row, and all bytes of a row are equal here.
        const WORDS_PER_TILE: u32 = (ONES_ROWS * BLOCK_KV / 4) as u32;
        let mut word = thread;
        while word < STAGES as u32 * WORDS_PER_TILE {
            let (stage, at) = (word / WORDS_PER_TILE, word % WORDS_PER_TILE);
            let plan = const { A::SMEM };
            let address = smem + (plan.v_offset + plan.v_copy_bytes) as u32 + stage * plan.v_bytes as u32 + at * 4;
            shared::store_u32(address, if at < BLOCK_KV as u32 / 4 { ONES } else { 0 });
            word += A::THREADS;
        }
        tma::fence_proxy_async();
        thread::sync_threads();
        if thread < 128 {
            warpgroup::decrease_registers::<PRODUCER_REGISTERS>();
            if thread == 0 {
                producer::run::<A>(p, maps, smem);
            }
        } else {
            A::consume(p, smem);
        }
    }
}
