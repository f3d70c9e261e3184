//! Raw integer scores of the attention kernels' own QK path, for tests: a score that differs from the
//! reference by one is an indexing or packing bug, and no tolerance can hide it.

use cuda_std::{cp_async, global, math, shared, thread};
use sage_spec::params::ScoresParams;
use sage_spec::quant::SCORE_BIAS_BITS;
use sage_spec::tiling::{BLOCK_KV, BLOCK_Q, KV_PAD};

use super::config::Config;
use super::load::TileCopy;
use super::qk::{self, QkLane};
use crate::tile::fragment::{accumulator_column, accumulator_row};

/// One CTA: all padded scores of one query block.
///
/// # Safety
/// `p` describes valid device buffers; threads and shared memory as for the attention kernel.
#[inline(always)]
pub unsafe fn kernel<C: Config, const ROW_BYTES: u32>(p: &ScoresParams) {
    let (warp, lane) = (thread::thread_idx_x() / 32, thread::thread_idx_x() % 32);
    let smem = shared::dynamic_shared_mem();
    let num_query_blocks = p.seqlen_q.div_ceil(BLOCK_Q as u32);
    let seqlen_kv_padded = p.seqlen_kv.div_ceil(KV_PAD as u32) * KV_PAD as u32;
    let q_block = thread::block_idx_x();
    // SAFETY: counts of a launched problem are not zero.
    let (head_q, group) =
        unsafe { (math::div_u32(q_block, num_query_blocks), math::div_u32(p.num_heads_q, p.num_heads_kv)) };
    // SAFETY: as above.
    let batch = unsafe { math::div_u32(head_q, p.num_heads_q) };
    // SAFETY: as above.
    let head_kv = batch * p.num_heads_kv + unsafe { math::div_u32(head_q - batch * p.num_heads_q, group) };
    let k_codes = p.k_codes + head_kv as u64 * seqlen_kv_padded as u64 * ROW_BYTES as u64;
    let stage = smem + C::RING_OFFSET;
    let qk_lane = QkLane::new::<C>(smem + C::Q_OFFSET, warp, lane);
    // SAFETY: inside the padded tensors; barriers order copies, reads and reuse of the stage.
    unsafe {
        let q = TileCopy::<{ BLOCK_Q as u32 }, ROW_BYTES>::new(
            p.q_codes + q_block as u64 * (BLOCK_Q as u32 * ROW_BYTES) as u64,
            ROW_BYTES as u64,
        );
        q.start(smem + C::Q_OFFSET, ROW_BYTES as u64);
        let k = TileCopy::<{ BLOCK_KV as u32 }, ROW_BYTES>::new(k_codes, ROW_BYTES as u64);
        let mut kv_block = 0;
        while kv_block < seqlen_kv_padded / BLOCK_KV as u32 {
            k.tile(kv_block, C::K_BYTES).start(stage, ROW_BYTES as u64);
            cp_async::commit_group();
            cp_async::wait_group::<0>();
            thread::sync_threads();
            let scores = qk::scores::<C, false>(&qk_lane, stage, [1.0; 2]);
            let mut i = 0;
            while i < 16 {
                let mut e = 0;
                while e < 4 {
                    let row = q_block as u64 * BLOCK_Q as u64
                        + (warp * 32 + (i as u32 / 8) * 16 + accumulator_row(lane, e as u32)) as u64;
                    let key =
                        (kv_block * BLOCK_KV as u32 + (i as u32 % 8) * 8 + accumulator_column(lane, e as u32)) as u64;
                    global::store_u32(
                        p.scores + (row * seqlen_kv_padded as u64 + key) * 4,
                        scores[i / 8][i % 8][e].wrapping_sub(SCORE_BIAS_BITS),
                    );
                    e += 1;
                }
                i += 1;
            }
            thread::sync_threads();
            kv_block += 1;
        }
    }
}
