//! Launch geometry of every kernel: grid, threads and dynamic shared memory. Grids are
//! one-dimensional (only x reaches 2³¹ − 1), but for the attention kernels'.

use crate::reduce::{FEATURES_PER_THREAD, TOKEN_LANES};
use crate::tiling::{ATTENTION_THREADS, BLOCK_KV, BLOCK_Q, DELTA_S_BLOCKS, QUANTIZE_TILE, REDUCE_CHUNK, V_CHUNK};
use crate::{Dims, Precision, PvFormat};

/// Threads and dynamic shared memory of one CTA.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cta {
    /// Threads, a multiple of 32.
    pub threads: usize,
    /// Dynamic shared memory in bytes.
    pub smem_bytes: usize,
}

/// Dynamic shared memory of `quantize_*`, in bytes from its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QuantizeSmem {
    /// f32 `[TOKEN_LANES, Dp]`: what the token lanes, or the lanes of a final reduction, have to add.
    pub lanes: usize,
    /// f32 `[Dp]`: mean of a query block.
    pub mean: usize,
    /// f32 `[64]`: largest magnitudes of the units of a tile.
    pub amax: usize,
    /// f32 `[64]`: reciprocals of their scales.
    pub inverse_scale: usize,
    /// u32 `[16]` a buffer: the work of this round, and of the next.
    pub work: usize,
    /// u32: whether the tile was a head's last to be begun.
    pub is_last: usize,
    /// Bytes in all.
    pub total: usize,
}

/// Bytes of a buffer's work.
pub const WORK_BYTES: u32 = 64;

/// Tiles in shared memory: the one that is worked on and, if a tile has no more than 32 KiB, the next one.
pub const fn quantize_buffers(head_dim_padded: usize, element_bytes: usize) -> usize {
    if QUANTIZE_TILE * head_dim_padded * element_bytes <= 32 << 10 { 2 } else { 1 }
}

/// `quantize_*`: tiles of 128 tokens as the caller has them, from byte 0, and tables.
pub const fn quantize_smem(head_dim_padded: usize, element_bytes: usize) -> QuantizeSmem {
    let buffers = quantize_buffers(head_dim_padded, element_bytes);
    let lanes = buffers * QUANTIZE_TILE * head_dim_padded * element_bytes;
    let mean = lanes + TOKEN_LANES * head_dim_padded * 4;
    let amax = mean + head_dim_padded * 4;
    let inverse_scale = amax + 256;
    let work = inverse_scale + 256;
    let is_last = work + buffers * WORK_BYTES as usize;
    QuantizeSmem { lanes, mean, amax, inverse_scale, work, is_last, total: is_last + 16 }
}

/// `quantize_*`: sixteen token lanes, each a row of threads that span the features.
pub const fn quantize(head_dim_padded: usize, element_bytes: usize) -> Cta {
    let threads = TOKEN_LANES * head_dim_padded / FEATURES_PER_THREAD;
    Cta { threads, smem_bytes: quantize_smem(head_dim_padded, element_bytes).total }
}

/// CTAs of `quantize_*` for each multiprocessor: as many as one of compute capability 9.0 holds. Where fewer
/// fit (of 256 features to FP8 one), the others find no tile left.
pub const fn quantize_ctas_per_sm(head_dim_padded: usize) -> usize {
    match head_dim_padded {
        256 => 2,
        _ => 3 * 128 / head_dim_padded,
    }
}

/// Query blocks of a CTA of `delta_s_*`.
pub const fn delta_s_blocks(head_dim_padded: usize) -> usize {
    if head_dim_padded < 128 { DELTA_S_BLOCKS * head_dim_padded / 128 } else { DELTA_S_BLOCKS }
}

/// `delta_s_*`: 128 keys as the caller has them, K's mean, and the means of the query blocks.
pub const fn delta_s(head_dim_padded: usize, element_bytes: usize) -> Cta {
    let threads = TOKEN_LANES * head_dim_padded / FEATURES_PER_THREAD;
    let means = (1 + delta_s_blocks(head_dim_padded)) * head_dim_padded * 4;
    Cta { threads, smem_bytes: QUANTIZE_TILE * head_dim_padded * element_bytes + means }
}

/// Stages of the K/V ring of the attention kernels.
pub const ATTENTION_STAGES: usize = 2;

/// `<stem>_d*` and `<stem>_general_d*`: Q tile, then per stage a K tile, a V tile of at most [`V_CHUNK`] channels
/// and a row of ΔS.
pub const fn attention(head_dim_padded: usize, qk: Precision, pv: PvFormat) -> Cta {
    let row = qk.bytes(head_dim_padded);
    let channels = if head_dim_padded > V_CHUNK { V_CHUNK } else { head_dim_padded };
    let stage = BLOCK_KV * row + BLOCK_KV * channels * pv.bytes() + BLOCK_KV * 4;
    Cta { threads: ATTENTION_THREADS, smem_bytes: attention_q_rows(head_dim_padded) * row + ATTENTION_STAGES * stage }
}

/// Query rows that the attention kernels have shared memory for: a block, or the half of it that a CTA of the
/// general kernels takes where there are no others.
pub const fn attention_q_rows(head_dim_padded: usize) -> usize {
    if head_dim_padded > V_CHUNK { BLOCK_Q / 2 } else { BLOCK_Q }
}

/// Reduction chunks per (batch, kv head).
pub const fn num_chunks(dims: &Dims) -> usize {
    dims.seqlen_kv.div_ceil(REDUCE_CHUNK)
}

/// CTAs of `<stem>_scores_*`.
pub const fn scores_grid(dims: &Dims) -> usize {
    dims.batch * dims.num_heads_q * dims.num_query_blocks()
}

/// CTAs of `delta_s_*` for a chunk of `head_count` heads and `block_count` query blocks.
pub const fn delta_s_grid(dims: &Dims, head_count: usize, block_count: usize) -> usize {
    let tiles = dims.seqlen_kv_padded() / QUANTIZE_TILE;
    head_count * block_count.div_ceil(delta_s_blocks(dims.head_dim_padded())) * tiles
}

/// CTAs of `<stem>_d*` for the same chunk, along x and y: with the query block and the head in two
/// block indices a kernel needs no division, and what derives from them stays in uniform registers.
/// `head_count` is at most [`crate::limits::MAX_GRID_Y`].
pub const fn attention_grid(head_count: usize, block_count: usize) -> [usize; 2] {
    [block_count, head_count]
}

/// CTAs of `<stem>_general_d*`: one for each part of V's channels ([`Dims::num_v_chunks`]) and half of a query
/// block, the part running fastest, so that the parts share K in the L2 cache.
pub const fn general_attention_grid(dims: &Dims, head_count: usize, block_count: usize) -> [usize; 2] {
    [2 * block_count * dims.num_v_chunks(), head_count]
}
