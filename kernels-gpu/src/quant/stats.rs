//! Token mean of K; channel mean and largest magnitude of V. Two passes: chunks of 256 tokens, then the
//! chunks of a head.

use cuda_std::{global, hint, math, shared, thread};
use sage_spec::params::{KMeanFinalParams, ReducePartialParams, VStatsFinalParams};
use sage_spec::quant::{v_scale_f16, v_scale_fp8};
use sage_spec::reduce::CHUNK_LANES;
use sage_spec::tiling::REDUCE_CHUNK;

use super::element::{Element, Rows, add_weighted};
use super::lanes::{LANES, Position, reduce_lanes};

const TOKENS_PER_LANE: usize = REDUCE_CHUNK / LANES as usize;

/// One CTA: one chunk of one head. `EXTREMES` adds the channel maxima and minima. A thread has `LOADS` loads
/// in flight: as many as its registers allow.
///
/// # Safety
/// `sage_spec::params::ReducePartialParams`, `sage_spec::launch::reduce_partial`.
#[inline(always)]
pub unsafe fn partial<E: Element, const HEAD_DIM: u32, const EXTREMES: bool, const LOADS: usize>(
    p: &ReducePartialParams,
) {
    let position = Position::new::<HEAD_DIM>();
    // SAFETY: counts of a launched problem are not zero.
    let (head, batch) = unsafe {
        let head = math::div_u32(thread::block_idx_x(), p.num_chunks);
        (head, math::div_u32(head, p.num_heads))
    };
    let chunk = thread::block_idx_x() - head * p.num_chunks;
    let rows = Rows::new::<E>(
        &p.x,
        batch,
        head - batch * p.num_heads,
        p.seqlen,
        position.first_feature,
        p.head_dim,
        p.vectorized,
    );

    let mut sum = [0.0f32; 8];
    let mut max = [f32::NEG_INFINITY; 8];
    let mut min = [f32::INFINITY; 8];
    let mut token = chunk * REDUCE_CHUNK as u32 + position.lane;
    let mut pass = 0;
    while pass < hint::opaque((TOKENS_PER_LANE / LOADS) as u32) {
        // SAFETY: forwarded contract.
        let x = unsafe { rows.load::<E, LOADS, LANES>(token) };
        let mut i = 0;
        while i < LOADS {
            let weight = if rows.contains(token + i as u32 * LANES) { 1.0 } else { 0.0 };
            add_weighted(&mut sum, &x[i], weight);
            if EXTREMES {
                let mut j = 0;
                while j < 8 {
                    max[j] = math::max_propagate_nan(max[j], x[i][j]);
                    min[j] = math::min_propagate_nan(min[j], x[i][j]);
                    j += 1;
                }
            }
            i += 1;
        }
        token += LOADS as u32 * LANES;
        pass += 1;
    }

    let smem = shared::dynamic_shared_mem();
    let (row, feature) = (thread::thread_idx_x() / HEAD_DIM, thread::thread_idx_x() % HEAD_DIM);
    let index = (thread::block_idx_x() as u64 * HEAD_DIM as u64 + feature as u64) * 4;
    // SAFETY: all threads are here; the outputs have a row for every chunk. (Three stores, because choosing
    // an address among the parameters by index would copy them to local memory.)
    unsafe {
        if EXTREMES {
            let combine = |row, a, b| match row {
                0 => a + b,
                1 => math::max_propagate_nan(a, b),
                _ => math::min_propagate_nan(a, b),
            };
            let result = reduce_lanes::<HEAD_DIM, 3>(smem, position, [sum, max, min], combine);
            if row == 0 {
                global::store_f32(p.sum + index, result);
            }
            if row == 1 {
                global::store_f32(p.max + index, result);
            }
            if row == 2 {
                global::store_f32(p.min + index, result);
            }
        } else {
            let result = reduce_lanes::<HEAD_DIM, 1>(smem, position, [sum], |_, a, b| a + b);
            if row == 0 {
                global::store_f32(p.sum + index, result);
            }
        }
    }
}

/// One thread's feature, reduced over the chunks of head `head`: `CHUNK_LANES` strided lanes, then pairwise.
#[inline(always)]
unsafe fn over_chunks<const HEAD_DIM: u32>(
    smem: u32,
    partial: u64,
    num_chunks: u32,
    start: f32,
    combine: impl Fn(f32, f32) -> f32,
) -> f32 {
    let (lane, feature) = (thread::thread_idx_x() / HEAD_DIM, thread::thread_idx_x() % HEAD_DIM);
    let base = partial + (thread::block_idx_x() as u64 * num_chunks as u64 * HEAD_DIM as u64 + feature as u64) * 4;
    let mut x = start;
    let mut chunk = lane;
    while chunk < num_chunks {
        // SAFETY: an existing chunk.
        x = combine(x, unsafe { global::load_f32(base + chunk as u64 * (HEAD_DIM * 4) as u64) });
        chunk += CHUNK_LANES as u32;
    }
    let slot = |lane: u32| smem + (lane * HEAD_DIM + feature) * 4;
    let mut stride = CHUNK_LANES as u32 / 2;
    while stride > 0 {
        // SAFETY: as in `lanes::reduce_lanes`.
        unsafe {
            if lane >= stride && lane < 2 * stride {
                shared::store_f32(slot(lane), x);
            }
            thread::sync_threads();
            if lane < stride {
                x = combine(x, shared::load_f32(slot(lane + stride)));
            }
        }
        stride /= 2;
    }
    x
}

/// One CTA: the token mean of one head of K.
///
/// # Safety
/// `sage_spec::params::KMeanFinalParams`, `sage_spec::launch::reduce_final`.
#[inline(always)]
pub unsafe fn k_mean_final<const HEAD_DIM: u32>(p: &KMeanFinalParams) {
    // SAFETY: forwarded contract.
    unsafe {
        let sum = over_chunks::<HEAD_DIM>(shared::dynamic_shared_mem(), p.sum, p.num_chunks, 0.0, |a, b| a + b);
        if thread::thread_idx_x() < HEAD_DIM {
            let index = thread::block_idx_x() as u64 * HEAD_DIM as u64 + thread::thread_idx_x() as u64;
            global::store_f32(p.mean + index * 4, sum / p.seqlen as f32);
        }
    }
}

/// One CTA: means and scales of the channels of one head of V.
///
/// # Safety
/// `sage_spec::params::VStatsFinalParams`, `sage_spec::launch::reduce_final`.
#[inline(always)]
pub unsafe fn v_stats_final<const HEAD_DIM: u32>(p: &VStatsFinalParams) {
    let smem = shared::dynamic_shared_mem();
    let bytes = CHUNK_LANES as u32 * HEAD_DIM * 4;
    // SAFETY: forwarded contract; each reduction has its own part of shared memory.
    unsafe {
        let sum = over_chunks::<HEAD_DIM>(smem, p.sum, p.num_chunks, 0.0, |a, b| a + b);
        let max =
            over_chunks::<HEAD_DIM>(smem + bytes, p.max, p.num_chunks, f32::NEG_INFINITY, math::max_propagate_nan);
        let min =
            over_chunks::<HEAD_DIM>(smem + 2 * bytes, p.min, p.num_chunks, f32::INFINITY, math::min_propagate_nan);
        if thread::thread_idx_x() < HEAD_DIM {
            let index = thread::block_idx_x() as u64 * HEAD_DIM as u64 + thread::thread_idx_x() as u64;
            // Subtraction rounds monotonically: the extreme of the differences is the difference of
            // the extreme.
            let mut mean = 0.0;
            if p.mean != 0 {
                mean = sum / p.seqlen as f32;
                global::store_f32(p.mean + index * 4, mean);
            }
            let amax = math::max_propagate_nan(max - mean, mean - min);
            let scale = if p.format == 0 { v_scale_fp8(amax) } else { v_scale_f16(amax) };
            global::store_f32(p.scale + index * 4, scale);
        }
    }
}
