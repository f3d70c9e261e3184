//! Normalises, scales and stores the output and LSE of one warpgroup.

use cuda_std::{convert, global, math, warp};
use sage_spec::sm90::{P_MAX_LOG2, Sm90AttentionParams, WARPGROUP_Q};
use sage_spec::tiling;

use super::config::Config;
use super::consumer::Lane;
use super::output::Output;
use super::schedule::{Work, rows_end};
use super::softmax::RowState;
use crate::attention::store::store_pair;

/// Where a lane's rows go, and how.
struct Place {
    /// Addresses of the rows' first elements.
    rows: [u64; 2],
    /// Which rows exist.
    exists: [bool; 2],
    element_bytes: i64,
    /// Whether two neighbouring channels may be stored together.
    paired: bool,
}

impl Place {
    /// Of the rows `row` and `row + 8` of the work item's head.
    #[inline(always)]
    fn new(p: &Sm90AttentionParams, work: &Work, batch: u32, row: u32) -> Self {
        let element_bytes: i64 = if p.out_dtype == 2 { 4 } else { 2 };
        let head = work.head_q - batch * p.num_heads_q;
        let first = batch as i64 * p.out.stride_batch + head as i64 * p.out.stride_head;
        let address =
            |row: u32| p.out.ptr.wrapping_add(((first + row as i64 * p.out.stride_token) * element_bytes) as u64);
        let end = rows_end(p);
        Place {
            rows: [address(row), address(row + 8)],
            exists: [row < end, row + 8 < end],
            element_bytes,
            paired: (p.out.ptr & 3 == 0) && ((p.out.stride_batch | p.out.stride_head | p.out.stride_token) & 1 == 0),
        }
    }
}

/// Stores the rows that exist. A row that saw no key becomes zeros, with an LSE of −inf.
///
/// # Safety
/// The warp is converged; `p` describes valid device buffers; `output` and `state` are complete.
#[inline(always)]
pub unsafe fn store<C: Config>(p: &Sm90AttentionParams, work: &Work, state: &RowState, output: &Output) {
    // SAFETY: the warp is converged.
    let lane = unsafe { Lane::of_thread() };
    let (batch, head_kv) = work.batch_and_head_kv(p);
    let first_row = work.first_row + lane.warpgroup * WARPGROUP_Q as u32 + lane.row;
    let place = Place::new(p, work, batch, first_row);

    let (mut inverse_sum, mut is_empty) = ([0.0f32; 2], [false; 2]);
    let mut r = 0;
    while r < 2 {
        // The column of ones is column 0 of the last block: the first lane of each quad holds it.
        // SAFETY: the warp is converged.
        let sum = f32::from_bits(unsafe { warp::shuffle_idx(output.high[32 + 2 * r].to_bits(), warp::lane_id() & 28) });
        // NaN is not zero: it stays NaN in the output.
        is_empty[r] = sum == 0.0;
        inverse_sum[r] = if sum == 0.0 { 0.0 } else { math::reciprocal(sum) };
        if p.lse != 0 && lane.t == 0 && place.exists[r] {
            // SAFETY: the row exists.
            unsafe { store_lse(p, work.head_q, first_row + 8 * r as u32, state.max[r], sum) };
        }
        r += 1;
    }

    let channels = head_kv as u64 * C::HEAD_DIM as u64;
    let is_plain = place.paired && p.head_dim_v == C::HEAD_DIM && p.out_dtype != 2 && p.seqlen_kv > 0 && p.v_mean == 0;
    let mut c = 0;
    while c < C::HEAD_DIM as usize / 8 {
        let channel = 8 * c as u32 + 2 * lane.t;
        // SAFETY: scales are f32 [B, Hkv, Dp]; rows and channels are checked for existence.
        unsafe {
            if is_plain {
                // Everything is there, in pairs: the usual case, without a branch per channel.
                let scale = load_pair(p.v_scale + (channels + channel as u64) * 4);
                let mut r = 0;
                while r < 2 {
                    if place.exists[r] {
                        let [a, b] = at::<C>(output, c, r);
                        let (a, b) = (a * inverse_sum[r] * scale[0], b * inverse_sum[r] * scale[1]);
                        let bits =
                            if p.out_dtype == 0 { convert::f32_to_f16x2(a, b) } else { convert::f32_to_bf16x2(a, b) };
                        global::store_u32(place.rows[r] + channel as u64 * 2, bits);
                    }
                    r += 1;
                }
            } else if channel < p.head_dim_v {
                let (mut scale, mut mean) = ([1.0f32; 2], [0.0f32; 2]);
                // Without keys V was never quantized; its buffers are not read.
                if p.seqlen_kv > 0 {
                    scale = load_pair(p.v_scale + (channels + channel as u64) * 4);
                    if p.v_mean != 0 {
                        mean = load_pair(p.v_mean + (channels + channel as u64) * 4);
                    }
                }
                let mut r = 0;
                while r < 2 {
                    if place.exists[r] {
                        let [a, b] = at::<C>(output, c, r);
                        let mut values = [
                            math::fma(a * inverse_sum[r], scale[0], mean[0]),
                            math::fma(b * inverse_sum[r], scale[1], mean[1]),
                        ];
                        if is_empty[r] {
                            values = [0.0; 2];
                        }
                        let address = place.rows[r].wrapping_add((channel as i64 * place.element_bytes) as u64);
                        store_pair(address, values, p.out_dtype, place.paired, channel + 1 < p.head_dim_v);
                    }
                    r += 1;
                }
            }
        }
        c += 1;
    }
}

/// Two neighbouring channels of one of the lane's rows.
#[inline(always)]
fn at<C: Config>(output: &Output, c: usize, r: usize) -> [f32; 2] {
    if C::HEAD_DIM == 128 && c < 8 {
        [output.low[4 * c + 2 * r], output.low[4 * c + 2 * r + 1]]
    } else {
        [output.high[4 * (c % 8) + 2 * r], output.high[4 * (c % 8) + 2 * r + 1]]
    }
}

/// Two f32.
///
/// # Safety
/// Both are mapped, aligned and constant while the kernel runs.
#[inline(always)]
unsafe fn load_pair(address: u64) -> [f32; 2] {
    // SAFETY: forwarded contract.
    unsafe { [global::load_f32(address), global::load_f32(address + 4)] }
}

/// The natural-log LSE of one row, corrected for the mean that was taken from K.
///
/// # Safety
/// The row exists; `p.lse` is f32 `[B, Hq, M]`, `p.qk_mean` null or f32 `[B, Hq, Mp]`.
#[inline(always)]
unsafe fn store_lse(p: &Sm90AttentionParams, head_q: u32, row: u32, max: f32, sum: f32) {
    let padded = p.seqlen_q.div_ceil(tiling::BLOCK_Q as u32) as u64 * tiling::BLOCK_Q as u64;
    let mut lse = (max - P_MAX_LOG2 + math::log2(sum)) * core::f32::consts::LN_2;
    // SAFETY: forwarded contract.
    unsafe {
        if p.qk_mean != 0 {
            lse = math::fma(global::load_f32(p.qk_mean + (head_q as u64 * padded + row as u64) * 4), p.sm_scale, lse);
        }
        if sum == 0.0 {
            lse = f32::NEG_INFINITY;
        }
        global::store_f32(p.lse + (head_q as u64 * p.seqlen_q as u64 + row as u64) * 4, lse);
    }
}
