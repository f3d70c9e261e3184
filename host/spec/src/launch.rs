//! Launch geometry of every kernel: grid, threads and dynamic shared memory. Grids are
//! one-dimensional (only x reaches 2³¹ − 1), but for the attention kernels'.

use crate::reduce::{CHUNK_LANES, FEATURES_PER_THREAD, TOKEN_LANES};
use crate::tiling::{ATTENTION_THREADS, BLOCK_KV, BLOCK_Q, DELTA_S_BLOCKS, KV_PAD, REDUCE_CHUNK};
use crate::{Dims, Precision, PvFormat};

/// Threads and dynamic shared memory of one CTA.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cta {
    /// Threads, a multiple of 32.
    pub threads: usize,
    /// Dynamic shared memory in bytes.
    pub smem_bytes: usize,
}

/// Threads of a CTA in which `TOKEN_LANES` rows of threads each span the features of a token.
const fn token_threads(head_dim_padded: usize) -> usize {
    TOKEN_LANES * head_dim_padded / FEATURES_PER_THREAD
}

/// `k_mean_partial_*` (`sums = 1`) and `v_stats_partial_*` (`sums = 3`: sum, max, min).
pub const fn reduce_partial(head_dim_padded: usize, sums: usize) -> Cta {
    Cta { threads: token_threads(head_dim_padded), smem_bytes: sums * TOKEN_LANES * head_dim_padded * 4 }
}

/// `k_mean_final_*` (`sums = 1`) and `v_stats_final_*` (`sums = 3`).
pub const fn reduce_final(head_dim_padded: usize, sums: usize) -> Cta {
    Cta { threads: CHUNK_LANES * head_dim_padded, smem_bytes: sums * CHUNK_LANES * head_dim_padded * 4 }
}

/// `quantize_q_*`: the mean's lanes, the mean itself, a table of group maxima and one of scales.
pub const fn quantize_q(head_dim_padded: usize) -> Cta {
    Cta { threads: token_threads(head_dim_padded), smem_bytes: (TOKEN_LANES + 1) * head_dim_padded * 4 + 1024 }
}

/// Token lanes of `quantize_k_*`.
pub const QUANTIZE_K_LANES: usize = 16;

/// `quantize_k_*`: a table of group maxima and one of scales.
pub const fn quantize_k(head_dim_padded: usize) -> Cta {
    Cta { threads: QUANTIZE_K_LANES * head_dim_padded / FEATURES_PER_THREAD, smem_bytes: 1024 }
}

/// `quantize_v_*`: the reciprocals of the scales; in FP8 also a transposed tile.
pub const fn quantize_v(head_dim_padded: usize, format: PvFormat) -> Cta {
    let tile = match format {
        PvFormat::Fp8 => KV_PAD * head_dim_padded,
        PvFormat::F16 => 0,
    };
    Cta { threads: token_threads(head_dim_padded), smem_bytes: tile + head_dim_padded * 4 }
}

/// `delta_s_*`: 64 smoothed keys (rows padded by one f32 against bank conflicts) and 16 means.
pub const fn delta_s(head_dim_padded: usize) -> Cta {
    Cta { threads: 256, smem_bytes: (BLOCK_KV * (head_dim_padded + 1) + DELTA_S_BLOCKS * head_dim_padded) * 4 }
}

/// Stages of the K/V ring of the attention kernels.
pub const ATTENTION_STAGES: usize = 2;

/// `<stem>_d*`: Q tile, then per stage a K tile, a V tile and a row of ΔS.
pub const fn attention(head_dim_padded: usize, qk: Precision, pv: PvFormat) -> Cta {
    let row = qk.bytes(head_dim_padded);
    let stage = BLOCK_KV * row + BLOCK_KV * head_dim_padded * pv.bytes() + BLOCK_KV * 4;
    Cta { threads: ATTENTION_THREADS, smem_bytes: BLOCK_Q * row + ATTENTION_STAGES * stage }
}

/// CTAs of `k_mean_partial_*` and `v_stats_partial_*`.
pub const fn reduce_partial_grid(dims: &Dims) -> usize {
    dims.batch * dims.num_heads_kv * num_chunks(dims)
}

/// Reduction chunks per (batch, kv head).
pub const fn num_chunks(dims: &Dims) -> usize {
    dims.seqlen_kv.div_ceil(REDUCE_CHUNK)
}

/// CTAs of `k_mean_final_*` and `v_stats_final_*`.
pub const fn reduce_final_grid(dims: &Dims) -> usize {
    dims.batch * dims.num_heads_kv
}

/// CTAs of `quantize_q_*` and of `<stem>_scores_*`.
pub const fn quantize_q_grid(dims: &Dims) -> usize {
    dims.batch * dims.num_heads_q * dims.num_query_blocks()
}

/// CTAs of `quantize_k_*`.
pub const fn quantize_k_grid(dims: &Dims) -> usize {
    dims.batch * dims.num_heads_kv * dims.num_kv_blocks_padded()
}

/// CTAs of `quantize_v_*`.
pub const fn quantize_v_grid(dims: &Dims) -> usize {
    dims.batch * dims.num_heads_kv * (dims.seqlen_kv_padded() / KV_PAD)
}

/// CTAs of `delta_s_*` for a chunk of `head_count` heads and `block_count` query blocks.
pub const fn delta_s_grid(dims: &Dims, head_count: usize, block_count: usize) -> usize {
    head_count * block_count.div_ceil(DELTA_S_BLOCKS) * dims.num_kv_blocks_padded()
}

/// CTAs of `<stem>_d*` for the same chunk, along x and y: with the query block and the head in two
/// block indices a kernel needs no division, and what derives from them stays in uniform registers.
/// `head_count` is at most [`crate::limits::MAX_GRID_Y`].
pub const fn attention_grid(head_count: usize, block_count: usize) -> [usize; 2] {
    [block_count, head_count]
}

/// CTAs of `<stem>_general_d*`: one for each half of a query block.
pub const fn general_attention_grid(head_count: usize, block_count: usize) -> [usize; 2] {
    [2 * block_count, head_count]
}
