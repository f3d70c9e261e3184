//! Extents of one attention problem and the counts derived from them.

use crate::tiling::{BLOCK_KV, BLOCK_Q, KV_PAD, V_CHUNK, WIDE_HEAD_DIM};

/// Extents of `softmax(Q Kᵀ · sm_scale) V`, all in elements.
///
/// `q` is `[batch, num_heads_q, seqlen_q, head_dim]`, `k` is `[batch, num_heads_kv, seqlen_kv, head_dim]`,
/// `v` is `[batch, num_heads_kv, seqlen_kv, head_dim_v]`, and so is the output by its rows. The struct is plain data: the host's `Problem`
/// checks it before anything is planned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Dims {
    /// Problems in the batch.
    pub batch: usize,
    /// Query heads; a multiple of `num_heads_kv`.
    pub num_heads_q: usize,
    /// Key/value heads.
    pub num_heads_kv: usize,
    /// Query tokens per sequence.
    pub seqlen_q: usize,
    /// Key/value tokens per sequence.
    pub seqlen_kv: usize,
    /// Features of q and k per head as the caller has them, 1..=256.
    pub head_dim: usize,
    /// Features of v and of the output per head as the caller has them, 1..=256.
    pub head_dim_v: usize,
}

impl Dims {
    /// Head dimension of the quantized tensors, all three: the next of 64, 128 and 256 for the larger of
    /// [`Dims::head_dim`] and [`Dims::head_dim_v`]; the rest are zeros.
    pub const fn head_dim_padded(&self) -> usize {
        let larger = if self.head_dim > self.head_dim_v { self.head_dim } else { self.head_dim_v };
        match larger {
            0..=64 => 64,
            65..=128 => 128,
            _ => WIDE_HEAD_DIM,
        }
    }

    /// Whether the padded head dimension is [`WIDE_HEAD_DIM`], which only the general kernels have.
    pub const fn is_wide(&self) -> bool {
        self.head_dim_padded() == WIDE_HEAD_DIM
    }

    /// Parts of V's channels that CTAs of their own work on: of at most [`V_CHUNK`] channels each.
    pub const fn num_v_chunks(&self) -> usize {
        if self.head_dim_v > V_CHUNK { self.head_dim_v.div_ceil(V_CHUNK) } else { 1 }
    }

    /// Query heads that share one key/value head.
    pub const fn gqa_group(&self) -> usize {
        self.num_heads_q / self.num_heads_kv
    }

    /// Blocks of [`BLOCK_Q`] query rows per head.
    pub const fn num_query_blocks(&self) -> usize {
        self.seqlen_q.div_ceil(BLOCK_Q)
    }

    /// Query rows of the quantized tensor: whole query blocks.
    pub const fn seqlen_q_padded(&self) -> usize {
        self.num_query_blocks() * BLOCK_Q
    }

    /// Key tokens of the quantized tensors: whole multiples of [`KV_PAD`].
    pub const fn seqlen_kv_padded(&self) -> usize {
        self.seqlen_kv.div_ceil(KV_PAD) * KV_PAD
    }

    /// Key/value blocks that hold at least one real token.
    pub const fn num_kv_blocks(&self) -> usize {
        self.seqlen_kv.div_ceil(BLOCK_KV)
    }

    /// Key/value blocks of the padded tensors; scales are stored for every one of them.
    pub const fn num_kv_blocks_padded(&self) -> usize {
        self.seqlen_kv_padded() / BLOCK_KV
    }

    /// Index of the key/value head that query head `head_q` attends to.
    pub const fn head_kv(&self, head_q: usize) -> usize {
        head_q / self.gqa_group()
    }

    /// Keys row `row` may see when the causal mask is aligned bottom-right: keys `0..visible`.
    pub const fn causal_visible(&self, row: usize) -> usize {
        (row + 1 + self.seqlen_kv).saturating_sub(self.seqlen_q)
    }
}
