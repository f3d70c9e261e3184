//! Attention of a few queries over the cache of [`crate::cache`].
//!
//! The query heads of a key/value head, times the query tokens, are the rows of one product: a *row tile* has up
//! to 16 of them. The keys of a sequence are split among CTAs by whole pages. In a split, a warp adds [`warp_groups`]
//! neighbouring groups at a time: warp `w` the `w`-th, then the `w + 4`-th, and so on. Sums are combined in this order:
//! keys of a warp, warps of a CTA, splits of a sequence (by the CTA that finishes last).

use crate::cache::{CacheArg, PAGE_GROUPS, PAGE_TOKENS, PageLayout};
use crate::launch::Cta;
use crate::params::TensorArg;

/// Rows of a tile.
pub const TILE_ROWS: usize = 16;
/// Most query tokens of a launch.
pub const MAX_SEQLEN_Q: usize = 16;
/// Warps of a CTA, one for each group of a page.
pub const WARPS: usize = PAGE_GROUPS;
/// Threads of a CTA.
pub const THREADS: usize = 32 * WARPS;
/// CTAs that a multiprocessor of compute capability 9.0 holds.
pub const CTAS_PER_SM: usize = 3;
/// Binary logarithm of the largest P when a row's reference is set: spends FP16's exponents on small probabilities.
pub const P_MAX_LOG2: f32 = 12.0;
/// Binary logarithm of the largest P at all, just below FP16's largest number. While no P of a row would exceed it the
/// row keeps its reference, and nothing has to be scaled anew.
pub const P_LIMIT_LOG2: f32 = 15.0;
/// Reference of a row that has seen no key. Finite, so that differences of references are never NaN.
pub const EMPTY_MAX: f32 = -1e30;

/// `decode_*`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct DecodeParams {
    /// Queries, `[B, Hq, M, D]`; addresses and strides are multiples of 16 bytes.
    pub q: TensorArg,
    /// Out, `[B, Hq, M, D]`; as `q`.
    pub out: TensorArg,
    /// Keys and values.
    pub cache: CacheArg,
    /// u32 `[B]`: tokens of each sequence, the new ones included.
    pub lengths: u64,
    /// Out, nullable: f32 `[B, Hq, M]`, natural-log log-sum-exp.
    pub lse: u64,
    /// Scratch: f32 `[tiles, splits, R, D]` with R = min(16, rows): the sums of each split, then f32
    /// `[tiles, splits, R, 2]`: maximum and sum of P. Absent if there is one split.
    pub partials: u64,
    /// u32 `[tiles]`, zero: splits that have finished. Zero again afterwards.
    pub counters: u64,
    /// sm_scale · log2(e).
    pub scale_log2: f32,
    /// sm_scale.
    pub sm_scale: f32,
    /// Hq.
    pub num_heads_q: u32,
    /// Hq / Hkv.
    pub gqa_group: u32,
    /// M.
    pub seqlen_q: u32,
    /// Row tiles of a key/value head.
    pub row_tiles: u32,
    /// Splits of the longest sequence.
    pub splits: u32,
    /// Pages of a split.
    pub split_pages: u32,
    /// 1 if row `i` of `M` sees keys up to `i + N − M`, 0 if all.
    pub causal: u32,
    /// Type of `q`: 0 f16, 1 bf16, 2 f32.
    pub dtype: u32,
    /// Type of `out`.
    pub out_dtype: u32,
    /// Zero.
    pub reserved: u32,
}

/// Neighbouring groups that a warp adds at a time. What a warp does once for each time costs as much as reading a small
/// group; two large groups would leave room for too few copies ahead.
pub const fn warp_groups(layout: &PageLayout) -> usize {
    if layout.head_dim == 64 { 2 } else { 1 }
}

/// Bytes of the groups that a warp adds at a time.
pub const fn stage_bytes(layout: &PageLayout) -> usize {
    warp_groups(layout) * layout.group_bytes()
}

/// Stages of a warp's ring: about 16 KiB.
pub const fn stages(layout: &PageLayout) -> usize {
    17_408 / stage_bytes(layout)
}

/// Dynamic shared memory of `decode_*`, in bytes from its start. The ring of the warps is free when their sums are
/// combined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DecodeSmem {
    /// f32 `[WARPS, 16, D + 4]`: sums of the warps.
    pub sums: usize,
    /// f32 `[WARPS, 16, 2]`: maximum and sum of P.
    pub rows: usize,
    /// f32 `[16]`: what the mean of K adds to the log-sum-exp.
    pub mean_scores: usize,
    /// u32: whether this CTA is the last of its tile.
    pub is_last: usize,
    /// Bytes in all.
    pub total: usize,
}

/// See [`DecodeSmem`].
pub const fn smem(layout: &PageLayout) -> DecodeSmem {
    let ring = WARPS * stages(layout) * stage_bytes(layout);
    let rows = WARPS * TILE_ROWS * (layout.head_dim + 4) * 4;
    let end = rows + WARPS * TILE_ROWS * 8;
    let mean_scores = if ring > end { ring } else { end };
    let is_last = mean_scores + TILE_ROWS * 4;
    DecodeSmem { sums: 0, rows, mean_scores, is_last, total: is_last + 16 }
}

/// `decode_*`.
pub const fn cta(layout: &PageLayout) -> Cta {
    Cta { threads: THREADS, smem_bytes: smem(layout).total }
}

/// Row tiles of a key/value head.
pub const fn row_tiles(gqa_group: usize, seqlen_q: usize) -> usize {
    (gqa_group * seqlen_q).div_ceil(TILE_ROWS)
}

/// Rows that the partial results of a tile have room for.
pub const fn partial_rows(gqa_group: usize, seqlen_q: usize) -> usize {
    let rows = gqa_group * seqlen_q;
    if rows < TILE_ROWS { rows } else { TILE_ROWS }
}

/// Pages of `tokens` tokens.
pub const fn pages(tokens: usize) -> usize {
    tokens.div_ceil(PAGE_TOKENS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Precision;
    use crate::cache::HEAD_DIMS;

    #[test]
    fn three_ctas_fit_the_shared_memory_of_a_multiprocessor() {
        for precision in [Precision::Int4, Precision::Int8] {
            for head_dim in HEAD_DIMS {
                let layout = PageLayout { precision, head_dim };
                assert!(CTAS_PER_SM * (smem(&layout).total + 1024) <= 228 << 10, "{layout:?}");
                assert!(stages(&layout) >= 4);
            }
        }
    }
}
