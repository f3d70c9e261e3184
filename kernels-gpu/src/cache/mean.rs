//! The token mean of keys: token lanes add every so many tokens, then each other's sums.

use cuda_std::{global, math, shared, thread};
use sage_spec::cache::{MEAN_THREADS, MeanParams};

use crate::rows::{bytes, load, row_address};

/// One thread.
///
/// # Safety
/// `sage_spec::cache::MeanParams` and `sage_spec::cache::MEAN_CTA`; a CTA for each sequence and head.
#[inline(always)]
pub unsafe fn mean(p: &MeanParams) {
    let thread = thread::thread_idx_x();
    let smem = shared::dynamic_shared_mem();
    // SAFETY: all threads are here; tokens exist; a CTA has its row of the mean.
    unsafe {
        let batch = math::div_u32(thread::block_idx_x(), p.num_heads_kv);
        let head = thread::block_idx_x() - batch * p.num_heads_kv;
        let lane = math::div_u32(thread, p.head_dim);
        let feature = thread - lane * p.head_dim;
        let lanes = math::div_u32(MEAN_THREADS as u32, p.head_dim);
        let mut sum = 0.0f32;
        let mut token = lane;
        while token < p.num_tokens {
            let row = row_address(&p.k, p.dtype, batch, head, token);
            sum += load(row + feature as u64 * bytes(p.dtype), p.dtype);
            token += lanes;
        }
        shared::store_f32(smem + thread * 4, sum);
        thread::sync_threads();
        if lane == 0 {
            let mut sum = 0.0f32;
            let mut lane = 0;
            while lane < lanes {
                sum += shared::load_f32(smem + (lane * p.head_dim + feature) * 4);
                lane += 1;
            }
            let index = thread::block_idx_x() as u64 * p.head_dim as u64 + feature as u64;
            global::store_f32(p.mean + index * 4, sum / p.num_tokens as f32);
        }
    }
}
