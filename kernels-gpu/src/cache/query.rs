//! Queries as the A operands of `m16n8k32`, quantized on the way: one scale a row, in INT8 whatever K is in.

use cuda_std::{global, math, warp};
use sage_spec::Precision;
use sage_spec::decode::DecodeParams;
use sage_spec::quant::{SCORE_BIAS, qk_scale};

use crate::codes::low_bytes;
use crate::rows::{bytes, load8, row_address};

/// Products of 32 features that a row takes, at most.
pub const STEPS: usize = 4;

/// What the CTA works on.
#[derive(Clone, Copy)]
pub struct Tile {
    /// Sequence.
    pub batch: u32,
    /// Key/value head.
    pub head_kv: u32,
    /// First row.
    pub first_row: u32,
    /// Rows from there on that exist, up to 16.
    pub rows: u32,
    /// Tokens of the sequence.
    pub length: u32,
}

impl Tile {
    /// Query token of row `row` of the tile.
    #[inline(always)]
    pub fn token(&self, p: &DecodeParams, row: u32) -> u32 {
        // SAFETY: a group has a head.
        unsafe { math::div_u32(self.first_row + row, p.gqa_group) }
    }

    /// Query head of row `row` of the tile.
    #[inline(always)]
    pub fn head_q(&self, p: &DecodeParams, row: u32) -> u32 {
        self.head_kv * p.gqa_group + self.first_row + row - self.token(p, row) * p.gqa_group
    }

    /// Keys that row `row` of the tile sees.
    #[inline(always)]
    pub fn visible(&self, p: &DecodeParams, row: u32) -> u32 {
        let hidden = if p.causal == 0 { 0 } else { p.seqlen_q.saturating_sub(1 + self.token(p, row)) };
        self.length.saturating_sub(hidden)
    }
}

/// A lane's share of the rows `g` and `g + 8`.
#[derive(Clone, Copy)]
pub struct Query {
    /// A operands of each step.
    pub a: [[u32; 4]; STEPS],
    /// Log2 units of a score step for K's scale 1.
    pub scale: [f32; 2],
    /// Keys that the rows see.
    pub visible: [u32; 2],
    /// Score of the rows with K's mean, where somebody asks for it.
    pub mean_score: [f32; 2],
}

impl Query {
    /// Reads and quantizes the rows of lane `lane`: the first eight rows of the tile are its first half.
    ///
    /// # Safety
    /// The whole warp calls it; `p` describes valid device buffers.
    #[inline(always)]
    pub unsafe fn new<const HEAD_DIM: u32, const INT4: bool, const HALVES: usize>(
        p: &DecodeParams,
        tile: &Tile,
        lane: u32,
    ) -> Query {
        let (g, t) = (lane / 4, lane % 4);
        let quarter = HEAD_DIM / 4;
        let eights = (quarter / 8) as usize;
        // Codes of INT4 keys are widened to sixteen times their value.
        let widened = if INT4 { 1.0 / 16.0 } else { 1.0 };
        let mut query = Query { a: [[0; 4]; STEPS], scale: [0.0; 2], visible: [0; 2], mean_score: [0.0; 2] };
        let mut half = 0;
        while half < HALVES {
            let row = g + 8 * half as u32;
            let mut x = [[0.0f32; 8]; STEPS];
            if row < tile.rows {
                let from = row_address(&p.q, p.dtype, tile.batch, tile.head_q(p, row), tile.token(p, row));
                let mut i = 0;
                while i < eights {
                    // SAFETY: a row that exists, aligned as the launcher has checked.
                    x[i] = unsafe { load8(from + (t * quarter + 8 * i as u32) as u64 * bytes(p.dtype), p.dtype) };
                    i += 1;
                }
            }
            let (mut amax, mut mean_score) = (0.0f32, 0.0f32);
            let mean = p.cache.k_mean
                + ((tile.batch * p.cache.num_heads_kv + tile.head_kv) * HEAD_DIM + t * quarter) as u64 * 4;
            let mut i = 0;
            while i < 8 * eights {
                amax = math::max_propagate_nan(amax, math::abs(x[i / 8][i % 8]));
                if p.lse != 0 && p.cache.k_mean != 0 {
                    // SAFETY: f32 [B, Hkv, D].
                    mean_score =
                        math::fma(x[i / 8][i % 8], unsafe { global::load_f32(mean + i as u64 * 4) }, mean_score);
                }
                i += 1;
            }
            // SAFETY: forwarded contract.
            unsafe {
                amax = math::max_propagate_nan(amax, warp::shuffle_xor_f32(amax, 1));
                amax = math::max_propagate_nan(amax, warp::shuffle_xor_f32(amax, 2));
                mean_score += warp::shuffle_xor_f32(mean_score, 1);
                mean_score += warp::shuffle_xor_f32(mean_score, 2);
            }
            let scale = qk_scale(amax, Precision::Int8.max_code());
            let inverse = 1.0 / scale;
            let mut i = 0;
            while i < eights {
                let z = x[i].map(|x| math::fma(x, inverse, SCORE_BIAS).to_bits());
                // In the order of `PageLayout::k_byte`.
                let (first, second) = if INT4 {
                    ([z[0], z[2], z[4], z[6]], [z[1], z[3], z[5], z[7]])
                } else {
                    ([z[0], z[1], z[2], z[3]], [z[4], z[5], z[6], z[7]])
                };
                query.a[i][half] = low_bytes(first);
                query.a[i][half + 2] = low_bytes(second);
                i += 1;
            }
            query.scale[half] = scale * p.scale_log2 * widened;
            query.visible[half] = tile.visible(p, row);
            query.mean_score[half] = mean_score * p.sm_scale;
            half += 1;
        }
        query
    }
}
