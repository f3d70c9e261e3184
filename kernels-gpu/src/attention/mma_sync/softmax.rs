//! Online softmax in the log2 domain on biased scores.

use cuda_std::{math, thread, warp};
use sage_spec::params::AttentionParams;
use sage_spec::quant::{FOLDED_HEADROOM, SCORE_BIAS};
use sage_spec::tiling::{BLOCK_KV, BLOCK_Q};

use super::config::{Probabilities, Rows, Scores};

/// Running state of a lane's four rows.
#[derive(Clone, Copy)]
pub struct RowState {
    /// Maximum so far, in log2 units, less `p_max_log2`. Equal in the four lanes of a quad.
    pub row_max: Rows,
    /// Sum of the rounded P so far, relative to `row_max`.
    pub row_sum: Rows,
}

impl RowState {
    /// No key seen. The maximum is finite so that differences of maxima are never NaN.
    pub const EMPTY: RowState = RowState { row_max: [-1e30; 4], row_sum: [0.0; 4] };
}

/// How many of the tile's keys a lane's rows see, counted from the lane's first column: element `e` of
/// block `b` is visible to row `16m + 8h` (from the lane's first) if `8b + e % 2` is less than both.
#[derive(Clone, Copy)]
pub struct Limits {
    /// Keys up to the end of the sequence.
    tail: i32,
    /// Keys up to the causal diagonal of the lane's first row.
    diagonal: i32,
}

impl Limits {
    /// Every key is visible.
    pub const NONE: Limits = Limits { tail: i32::MAX, diagonal: i32::MAX };

    /// For tile `kv_block` of query block `query_block`. Extents are below 2³¹ − 256
    /// (`sage_spec::limits::MAX_SEQLEN`), so nothing overflows.
    #[inline(always)]
    pub fn of_tile(p: &AttentionParams, query_block: u32, kv_block: u32) -> Self {
        let thread = thread::reread_thread_idx_x();
        let tail = p.seqlen_kv as i32 - (kv_block * BLOCK_KV as u32 + 2 * (thread % 4)) as i32;
        let row = (query_block * BLOCK_Q as u32 + thread / 32 * 32 + thread % 32 / 4) as i32;
        let diagonal = if p.causal == 0 { i32::MAX - 64 } else { tail + (row + 1 - p.seqlen_q as i32) };
        Limits { tail, diagonal }
    }

    /// For the row `8 * row` after the lane's first.
    #[inline(always)]
    fn of_row(&self, row: usize) -> i32 {
        (self.diagonal + 8 * row as i32).min(self.tail)
    }
}

/// Probabilities of rows `16m..16m + 16` of a tile relative to the new row maxima; sets the factors
/// `alpha` that bring older sums of these rows to them. `f` is the size of a score step in log2 units.
/// `EXACT` honours `limits` and any step; otherwise every key must be visible and the step at most
/// `FOLDED_STEP_MAX`.
///
/// # Safety
/// The whole warp calls it.
#[inline(always)]
pub unsafe fn probabilities<const EXACT: bool>(
    scores: &Scores,
    m: usize,
    limits: &Limits,
    f: f32,
    p_max_log2: f32,
    row_max: &mut Rows,
    alpha: &mut Rows,
) -> Probabilities {
    let mut p: Probabilities = [[0.0; 4]; 8];
    // Exact: the bias is subtracted first. Folded: it goes into the two constants, which rounds them.
    let (bias, headroom) = if EXACT { (0.0, 0.0) } else { (SCORE_BIAS, FOLDED_HEADROOM) };
    let max_offset = math::fma(headroom - bias, f, -p_max_log2);
    let mut half = 0;
    while half < 2 {
        let row = m * 2 + half;
        let limit = if EXACT { limits.of_row(row) } else { 0 };
        // A masked score is −inf: it loses every maximum, and since f > 0 its exponential is 0.
        let mut biased = [0.0f32; 16];
        let mut i = 0;
        while i < 16 {
            let d = f32::from_bits(scores[i / 2][half * 2 + i % 2]);
            biased[i] = match EXACT {
                true if (8 * (i / 2) + i % 2) as i32 >= limit => f32::NEG_INFINITY,
                true => d - SCORE_BIAS,
                false => d,
            };
            i += 1;
        }
        let mut biased_max = biased[0];
        let mut i = 1;
        while i < 16 {
            biased_max = math::max(biased_max, biased[i]);
            i += 1;
        }
        // Lanes of a quad hold the same row with different k scales: scale first, then compare.
        let mut new_max = math::fma(biased_max, f, max_offset);
        // SAFETY: forwarded contract.
        unsafe {
            new_max = math::max(new_max, warp::shuffle_xor_f32(new_max, 1));
            new_max = math::max(new_max, warp::shuffle_xor_f32(new_max, 2));
        }
        new_max = math::max(row_max[row], new_max);
        alpha[row] = math::exp2(row_max[row] - new_max);
        row_max[row] = new_max;

        let c = math::fma(-bias, f, -new_max);
        let mut i = 0;
        while i < 16 {
            p[i / 2][half * 2 + i % 2] = math::exp2(math::fma(biased[i], f, c));
            i += 1;
        }
        half += 1;
    }
    p
}
