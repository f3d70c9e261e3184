//! Normalises, scales and stores one warp's output and LSE.

use cuda_std::{global, math, thread};
use sage_spec::params::AttentionParams;
use sage_spec::tiling::BLOCK_Q;

use super::config::{Config, OutputTile, Rows};
use super::general::HalfBlock;
use super::mainloop::Work;
use super::softmax::RowState;
use crate::attention::store::store_pair;

/// What the general kernels do differently at the end.
pub struct Weights {
    /// Part of each row's denominator that is the keys', which the mean of V is weighed by.
    pub keys: Rows,
    /// Whether scores lack what smoothing K took from them, so that the LSE gets it back.
    pub shift_lse: bool,
}

impl Weights {
    /// Those of the plain kernels.
    pub const PLAIN: Weights = Weights { keys: [1.0; 4], shift_lse: true };
}

/// Stores the warp's rows that exist: 32, or 16 and the CTA's channels of V if `GENERAL`. A row that saw no key becomes zeros, with an LSE of −inf. Only
/// `GENERAL` looks at `weights`.
///
/// # Safety
/// `p` describes valid device buffers; `output` and `state` are complete.
#[inline(always)]
pub unsafe fn store<C: Config, const GENERAL: bool>(
    p: &AttentionParams,
    output: &OutputTile,
    state: &RowState,
    weights: &Weights,
) {
    // Read and computed again: cheaper than registers through the main loop.
    let (work, first_channel) = if GENERAL {
        let HalfBlock { work, v_chunk, .. } = HalfBlock::reread(p);
        (work, v_chunk * C::V_DIM)
    } else {
        (Work::of_cta(p, thread::reread_block_idx_x(), thread::reread_block_idx_y()), 0)
    };
    let (batch, head_kv) = work.batch_and_head_kv(p);
    let (batch, head_q, head_kv) = (batch as u64, work.head_q as u64, head_kv as u64);
    let query_block = work.query_block;
    let thread = thread::reread_thread_idx_x();
    let (warp, g, t) = (thread / 32, thread % 32 / 4, thread % 4);
    let head = head_q - batch * p.num_heads_q as u64;
    let element_bytes: i64 = if p.out_dtype == 2 { 4 } else { 2 };
    let base = p
        .out
        .ptr
        .wrapping_add(((batch as i64 * p.out.stride_batch + head as i64 * p.out.stride_head) * element_bytes) as u64)
        .wrapping_add(first_channel as u64 * element_bytes as u64);
    let paired = (p.out.ptr & 3 == 0) && ((p.out.stride_batch | p.out.stride_head | p.out.stride_token) & 1 == 0);

    let first_row = query_block * BLOCK_Q as u32 + warp * 32 + g;
    let first_row = if GENERAL { HalfBlock::reread(p).lane_row(thread) } else { first_row };
    let mut inverse_sum = [0.0f32; 4];
    let mut rows = [0u64; 4];
    let mut row = 0;
    while row < if GENERAL { 2 } else { 4 } {
        let index = first_row + 8 * row as u32;
        let sum = state.row_sum[row];
        // NaN is not zero: it stays NaN in the output.
        inverse_sum[row] = if sum == 0.0 { 0.0 } else { math::reciprocal(sum) };
        rows[row] = base.wrapping_add((index as i64 * p.out.stride_token * element_bytes) as u64);
        // One of the CTAs of a row's parts of V is enough.
        if p.lse != 0 && t == 0 && index < p.seqlen_q && (!GENERAL || first_channel == 0) {
            let rows_padded = p.seqlen_q.div_ceil(BLOCK_Q as u32) as u64 * BLOCK_Q as u64;
            let mut lse = (state.row_max[row] + math::log2(sum)) * core::f32::consts::LN_2;
            // SAFETY: f32 [B, Hq, Mp] and [B, Hq, M].
            unsafe {
                if p.qk_mean != 0 && (!GENERAL || weights.shift_lse) {
                    lse = math::fma(
                        global::load_f32(p.qk_mean + (head_q * rows_padded + index as u64) * 4),
                        p.sm_scale,
                        lse,
                    );
                }
                if sum == 0.0 {
                    lse = f32::NEG_INFINITY;
                }
                global::store_f32(p.lse + (head_q * p.seqlen_q as u64 + index as u64) * 4, lse);
            }
        }
        row += 1;
    }

    let channels = head_kv * C::HEAD_DIM as u64 + first_channel as u64;
    let existing = if GENERAL { p.head_dim_v - first_channel } else { p.head_dim_v };
    // All at once, so that one latency passes and not one for each block of channels. Those that do not exist are there,
    // but without keys V was never quantized; its buffers are not read.
    let (mut scales, mut offsets) = ([[1.0f32; 2]; 16], [[0.0f32; 2]; 16]);
    if p.seqlen_kv > 0 {
        // SAFETY: f32 [B, Hkv, Dp].
        unsafe {
            load_pairs::<C>(&mut scales, p.v_scale + (channels + 2 * t as u64) * 4);
            if p.v_offset != 0 {
                load_pairs::<C>(&mut offsets, p.v_offset + (channels + 2 * t as u64) * 4);
            }
        }
    }
    let mut c = 0;
    while c < C::V_DIM as usize / 8 {
        let channel = 8 * c as u32 + 2 * t;
        if channel < existing {
            let (scale, offset) = (scales[c], offsets[c]);
            let mut row = 0;
            while row < if GENERAL { 2 } else { 4 } {
                if first_row + 8 * (row as u32) < p.seqlen_q {
                    let (m, half) = (row / 2, row % 2);
                    let mut values = [0.0f32; 2];
                    let mut i = 0;
                    while i < 2 {
                        let normalised = output[m * 16 + c][half * 2 + i] * inverse_sum[row] * scale[i];
                        values[i] = if state.row_sum[row] == 0.0 {
                            0.0
                        } else if GENERAL {
                            math::fma(offset[i], weights.keys[row], normalised)
                        } else {
                            normalised + offset[i]
                        };
                        i += 1;
                    }
                    // SAFETY: the row and the first channel exist; the second is checked.
                    unsafe {
                        let address = rows[row].wrapping_add((channel as i64 * element_bytes) as u64);
                        store_pair(address, values, p.out_dtype, paired, channel + 1 < existing);
                    }
                }
                row += 1;
            }
        }
        c += 1;
    }
}

/// Values of the lane's channels, of which `address` is the first: two of every eight.
///
/// # Safety
/// The values are mapped, and constant while the kernel runs.
#[inline(always)]
unsafe fn load_pairs<C: Config>(pairs: &mut [[f32; 2]; 16], address: u64) {
    let mut c = 0;
    while c < C::V_DIM as usize / 8 {
        let at = address + 32 * c as u64;
        // SAFETY: forwarded contract.
        pairs[c] = unsafe { [global::load_f32(at), global::load_f32(at + 4)] };
        c += 1;
    }
}
