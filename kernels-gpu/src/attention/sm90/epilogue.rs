//! Normalises, scales and stores the output and LSE of one warpgroup.

use cuda_std::{convert, global, hint, math, shared, warp};
use sage_spec::sm90::{Sm90AttentionParams, WARPGROUP_Q};
use sage_spec::tiling;

use super::config::Config;
use super::consumer::Lane;
use super::output::Output;
use super::schedule::{Work, rows_end};
use super::softmax::References;
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
    /// Whether 16 bytes may.
    in_vectors: bool,
}

impl Place {
    /// Of the rows `row` and `row + 8` of the head whose output is at `out`.
    #[inline(always)]
    fn new(p: &Sm90AttentionParams, out: u64, row: u32) -> Self {
        // Anew for each item: else it has a register through all tiles.
        let element_bytes: i64 = if hint::opaque(p.out_dtype) == 2 { 4 } else { 2 };
        let address = |row: u32| out.wrapping_add((row as i64 * p.out.stride_token * element_bytes) as u64);
        let end = rows_end(p);
        let strides = p.out.stride_batch | p.out.stride_head | p.out.stride_token;
        Place {
            rows: [address(row), address(row + 8)],
            exists: [row < end, row + 8 < end],
            element_bytes,
            paired: p.out.ptr & 3 == 0 && strides & 1 == 0,
            in_vectors: p.out.ptr & 15 == 0 && strides & 7 == 0,
        }
    }
}

/// What the general kernels do differently.
#[derive(Clone, Copy)]
pub struct Weights {
    /// Part of each row's denominator that is the keys', which V's offset is weighed by.
    pub keys: [f32; 2],
    /// Whether scores lack what smoothing K took from them, so that the LSE gets it back.
    pub shift_lse: bool,
}

impl Weights {
    /// Those of the plain kernels.
    pub const PLAIN: Weights = Weights { keys: [1.0; 2], shift_lse: true };
}

/// Stores the rows that exist. A row that saw no key becomes zeros, with an LSE of −inf.
///
/// `out` is the address of the head's output; `channels` is the shared address of the scales, then the means, of V's channels; none if no row of the item sees a
/// key.
///
/// # Safety
/// The warp is converged; `p` describes valid device buffers; `output` is complete.
#[inline(always)]
pub unsafe fn store<C: Config>(
    p: &Sm90AttentionParams,
    work: &Work,
    out: u64,
    references: References,
    output: &Output,
    channels: Option<u32>,
    weights: Weights,
) {
    // SAFETY: the warp is converged.
    let lane = unsafe { Lane::of_thread() };
    let first_row = work.first_row + lane.warpgroup * WARPGROUP_Q as u32 + lane.row;
    let place = Place::new(p, out, first_row);

    let (mut inverse_sum, mut is_empty) = ([0.0f32; 2], [false; 2]);
    let mut r = 0;
    while r < 2 {
        // The column of ones is column 0 of the last block: the first lane of each quad holds it.
        // SAFETY: the warp is converged.
        let sum = f32::from_bits(unsafe { warp::shuffle_idx(output.high[32 + 2 * r].to_bits(), warp::lane_id() & 28) });
        // NaN is not zero: it stays NaN in the output.
        is_empty[r] = sum == 0.0;
        // Of nothing anything is nothing.
        inverse_sum[r] = math::reciprocal(if sum == 0.0 { 1.0 } else { sum });
        if p.lse != 0 && lane.t == 0 && place.exists[r] {
            // SAFETY: the row exists.
            unsafe { store_lse(p, work.head_q, first_row + 8 * r as u32, references.0[r], sum, weights.shift_lse) };
        }
        r += 1;
    }

    // SAFETY: scales and offsets of all channels lie there; the warp is converged.
    unsafe {
        match channels {
            Some(channels)
                if place.in_vectors
                    && p.head_dim_v == C::HEAD_DIM
                    && p.out_dtype != 2
                    && !warp::vote_any(is_empty[0] || is_empty[1]) =>
            {
                store_vectors::<C>(p.out_dtype, &place, lane.t, output, inverse_sum, channels, weights);
            }
            _ => {
                let (mut scale, mut offset) = ([[1.0; 2]; 16], [[0.0; 2]; 16]);
                if let Some(channels) = channels {
                    scale = load_pairs::<C>(channels + 8 * lane.t);
                    offset = load_pairs::<C>(channels + 4 * C::HEAD_DIM + 8 * lane.t);
                }
                store_pairs::<C>(p, &place, lane.t, output, inverse_sum, is_empty, &scale, &offset, weights);
            }
        }
    }
}

/// A value for each channel of a lane: `2t` and `2t + 1` of every block of eight.
type Channels = [[f32; 2]; 16];

/// All at once, so that one latency passes and not one for each block of channels.
///
/// # Safety
/// `address` is that of the lane's first channel in shared memory.
#[inline(always)]
unsafe fn load_pairs<C: Config>(address: u32) -> Channels {
    let mut pairs = [[0.0; 2]; 16];
    let mut c = 0;
    while c < C::HEAD_DIM as usize / 8 {
        // SAFETY: forwarded contract.
        let four = unsafe { load_four(address + 32 * c as u32) };
        let mut i = 0;
        while i < 4 {
            pairs[c + i] = four[i];
            i += 1;
        }
        c += 4;
    }
    pairs
}

/// Those of four blocks.
///
/// # Safety
/// As for [`load_pairs`].
#[inline(always)]
unsafe fn load_four(address: u32) -> [[f32; 2]; 4] {
    // SAFETY: forwarded contract.
    [0, 32, 64, 96].map(|block| unsafe { [shared::load_f32(address + block), shared::load_f32(address + block + 4)] })
}

/// Stores 16 bytes at a time: the usual case, in which all channels of the rows exist, in 16 bits, and each row sees a key.
/// Lane `t` of a quad stores block `t` of every four, of which it gets from each lane of the quad what that one holds.
///
/// # Safety
/// The warp is converged; the rows that exist are mapped and accessed by no other thread; `channels` is the address of the
/// scales and offsets of V's channels.
#[inline(always)]
unsafe fn store_vectors<C: Config>(
    dtype: u32,
    place: &Place,
    t: u32,
    output: &Output,
    inverse_sum: [f32; 2],
    channels: u32,
    weights: Weights,
) {
    // SAFETY: forwarded contract; a row has HEAD_DIM channels of two bytes.
    unsafe {
        let mut first = 0;
        while first < C::HEAD_DIM as usize / 8 {
            // Not all at once: there are no registers for them beside the output.
            let scale = load_four(channels + 8 * t + 32 * first as u32);
            let offset = load_four(channels + 4 * C::HEAD_DIM + 8 * t + 32 * first as u32);
            let mut r = 0;
            while r < 2 {
                let mut words = [0u32; 4];
                let mut i = 0;
                while i < 4 {
                    let sum = at::<C>(output, first + i, r);
                    let [a, b] = value(sum, inverse_sum[r], scale[i], offset[i], weights.keys[r]);
                    words[i] = if dtype == 0 { convert::f32_to_f16x2(a, b) } else { convert::f32_to_bf16x2(a, b) };
                    i += 1;
                }
                let words = transpose_quad(words, t);
                if place.exists[r] {
                    global::store_u32x4(place.rows[r] + 16 * (first as u64 + t as u64), words);
                }
                r += 1;
            }
            first += 4;
        }
    }
}

/// What two channels of a row become.
#[inline(always)]
fn value(sum: [f32; 2], inverse_sum: f32, scale: [f32; 2], offset: [f32; 2], weight: f32) -> [f32; 2] {
    [
        math::fma(sum[0] * inverse_sum, scale[0], offset[0] * weight),
        math::fma(sum[1] * inverse_sum, scale[1], offset[1] * weight),
    ]
}

/// Word `t` of each lane of the quad, in their order: a transpose of 4 x 4 words, first of their halves' pairs.
///
/// # Safety
/// The warp is converged; `t` is `lane % 4`.
#[inline(always)]
unsafe fn transpose_quad(words: [u32; 4], t: u32) -> [u32; 4] {
    let [a, b, c, d] = words;
    // SAFETY: forwarded contract.
    unsafe {
        let ([a, b], [c, d]) = (exchange(a, b, t & 1 == 1, 1), exchange(c, d, t & 1 == 1, 1));
        let ([a, c], [b, d]) = (exchange(a, c, t & 2 == 2, 2), exchange(b, d, t & 2 == 2, 2));
        [a, b, c, d]
    }
}

/// Transposes 2 x 2 words between lanes `mask` apart; `upper` is the lane with the larger number.
///
/// # Safety
/// The warp is converged.
#[inline(always)]
unsafe fn exchange(low: u32, high: u32, upper: bool, mask: u32) -> [u32; 2] {
    // SAFETY: forwarded contract.
    let other = unsafe { warp::shuffle_xor(if upper { low } else { high }, mask) };
    if upper { [other, high] } else { [low, other] }
}

/// Stores two channels at a time, or one, where nothing is known of types, strides and how many there are.
///
/// # Safety
/// The rows that exist are mapped and accessed by no other thread.
#[allow(clippy::too_many_arguments)]
#[inline(always)]
unsafe fn store_pairs<C: Config>(
    p: &Sm90AttentionParams,
    place: &Place,
    t: u32,
    output: &Output,
    inverse_sum: [f32; 2],
    is_empty: [bool; 2],
    scale: &Channels,
    offset: &Channels,
    weights: Weights,
) {
    let mut c = 0;
    while c < C::HEAD_DIM as usize / 8 {
        let channel = 8 * c as u32 + 2 * t;
        let mut r = 0;
        while r < 2 {
            if channel < p.head_dim_v && place.exists[r] {
                let sum = at::<C>(output, c, r);
                let mut values = value(sum, inverse_sum[r], scale[c], offset[c], weights.keys[r]);
                if is_empty[r] {
                    values = [0.0; 2];
                }
                let address = place.rows[r].wrapping_add((channel as i64 * place.element_bytes) as u64);
                // SAFETY: the row and the first channel exist.
                unsafe { store_pair(address, values, p.out_dtype, place.paired, channel + 1 < p.head_dim_v) };
            }
            r += 1;
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

/// The natural-log LSE of one row, with `shift` corrected for the mean that was taken from K.
///
/// # Safety
/// The row exists; `p.lse` is f32 `[B, Hq, M]`, `p.qk_mean` null or f32 `[B, Hq, Mp]`.
#[inline(always)]
unsafe fn store_lse(p: &Sm90AttentionParams, head_q: u32, row: u32, reference: f32, sum: f32, shift: bool) {
    let padded = p.seqlen_q.div_ceil(tiling::BLOCK_Q as u32) as u64 * tiling::BLOCK_Q as u64;
    let mut lse = (reference + math::log2(sum)) * core::f32::consts::LN_2;
    // SAFETY: forwarded contract.
    unsafe {
        if p.qk_mean != 0 && shift {
            lse = math::fma(global::load_f32(p.qk_mean + (head_q as u64 * padded + row as u64) * 4), p.sm_scale, lse);
        }
        if sum == 0.0 {
            lse = f32::NEG_INFINITY;
        }
        global::store_f32(p.lse + (head_q as u64 * p.seqlen_q as u64 + row as u64) * 4, lse);
    }
}
