//! Normalises, scales and stores the output and LSE of one warpgroup.

use cuda_std::{global, math, warp};
use sage_spec::sm90::{P_MAX_LOG2, Sm90AttentionParams, WARPGROUP_Q};
use sage_spec::tiling;

use super::config::Config;
use super::consumer::Lane;
use super::output::Output;
use super::schedule::{Work, rows_end};
use super::softmax::RowState;
use crate::attention::store::store_pair;

/// Stores the rows that exist. A row that saw no key becomes zeros, with an LSE of −inf.
///
/// # Safety
/// The warp is converged; `p` describes valid device buffers; `output` and `state` are complete.
#[inline(always)]
pub unsafe fn store<C: Config>(p: &Sm90AttentionParams, work: &Work, lane: Lane, state: &RowState, output: &Output) {
    let (batch, head_kv) = work.batch_and_head_kv(p);
    let head = work.head_q - batch * p.num_heads_q;
    let element_bytes: i64 = if p.out_dtype == 2 { 4 } else { 2 };
    let base = p
        .out
        .ptr
        .wrapping_add(((batch as i64 * p.out.stride_batch + head as i64 * p.out.stride_head) * element_bytes) as u64);
    let paired = (p.out.ptr & 3 == 0) && ((p.out.stride_batch | p.out.stride_head | p.out.stride_token) & 1 == 0);
    let first_row = work.first_row + lane.warpgroup * WARPGROUP_Q as u32 + lane.row;
    let end = rows_end(p);

    let (mut inverse_sum, mut sums, mut rows) = ([0.0f32; 2], [0.0f32; 2], [0u64; 2]);
    let mut r = 0;
    while r < 2 {
        let row = first_row + 8 * r as u32;
        // The column of ones is column 0 of the last block: the first lane of each quad holds it.
        // SAFETY: the warp is converged.
        let sum = f32::from_bits(unsafe { warp::shuffle_idx(output.high[32 + 2 * r].to_bits(), warp::lane_id() & 28) });
        sums[r] = sum;
        // NaN is not zero: it stays NaN in the output.
        inverse_sum[r] = if sum == 0.0 { 0.0 } else { math::reciprocal(sum) };
        rows[r] = base.wrapping_add((row as i64 * p.out.stride_token * element_bytes) as u64);
        if p.lse != 0 && lane.t == 0 && row < end {
            let padded = p.seqlen_q.div_ceil(tiling::BLOCK_Q as u32) as u64 * tiling::BLOCK_Q as u64;
            let mut lse = (state.max[r] - P_MAX_LOG2 + math::log2(sum)) * core::f32::consts::LN_2;
            // SAFETY: f32 [B, Hq, Mp] and [B, Hq, M].
            unsafe {
                if p.qk_mean != 0 {
                    let qk_mean = global::load_f32(p.qk_mean + (work.head_q as u64 * padded + row as u64) * 4);
                    lse = math::fma(qk_mean, p.sm_scale, lse);
                }
                if sum == 0.0 {
                    lse = f32::NEG_INFINITY;
                }
                global::store_f32(p.lse + (work.head_q as u64 * p.seqlen_q as u64 + row as u64) * 4, lse);
            }
        }
        r += 1;
    }

    let channels = head_kv as u64 * C::HEAD_DIM as u64;
    let mut c = 0;
    while c < C::HEAD_DIM as usize / 8 {
        let channel = 8 * c as u32 + 2 * lane.t;
        if channel < p.head_dim {
            let (mut scale, mut mean) = ([1.0f32; 2], [0.0f32; 2]);
            let mut i = 0;
            while i < 2 {
                // Without keys V was never quantized; its buffers are not read.
                if p.seqlen_kv > 0 {
                    // SAFETY: f32 [B, Hkv, Dp].
                    unsafe {
                        scale[i] = global::load_f32(p.v_scale + (channels + channel as u64 + i as u64) * 4);
                        if p.v_mean != 0 {
                            mean[i] = global::load_f32(p.v_mean + (channels + channel as u64 + i as u64) * 4);
                        }
                    }
                }
                i += 1;
            }
            let mut r = 0;
            while r < 2 {
                if first_row + 8 * (r as u32) < end {
                    let mut values = [0.0f32; 2];
                    let mut i = 0;
                    while i < 2 {
                        let e = 2 * r + i;
                        let x = if C::HEAD_DIM == 128 && c < 8 {
                            output.low[4 * c + e]
                        } else {
                            output.high[4 * (c % 8) + e]
                        };
                        values[i] = if sums[r] == 0.0 { 0.0 } else { math::fma(x * inverse_sum[r], scale[i], mean[i]) };
                        i += 1;
                    }
                    // SAFETY: the row and the first channel exist; the second is checked.
                    unsafe {
                        let address = rows[r].wrapping_add((channel as i64 * element_bytes) as u64);
                        store_pair(address, values, p.out_dtype, paired, channel + 1 < p.head_dim);
                    }
                }
                r += 1;
            }
        }
        c += 1;
    }
}
