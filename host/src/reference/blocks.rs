//! Cutting the output into independent pieces of work.

use sage_spec::Dims;
use sage_spec::tiling::BLOCK_Q;

/// One query block of one head and the part of the output it owns.
pub struct QueryBlock<'a, T> {
    pub batch: usize,
    pub head_q: usize,
    pub head_kv: usize,
    /// Index of the block within its head.
    pub block: usize,
    /// `[rows, head_dim_v]`.
    pub out: &'a mut [T],
    /// `[rows]`.
    pub lse: &'a mut [T],
}

impl<T> QueryBlock<'_, T> {
    /// `batch * num_heads_q + head_q`.
    pub fn flat_q(&self, dims: &Dims) -> usize {
        self.batch * dims.num_heads_q + self.head_q
    }

    /// `batch * num_heads_kv + head_kv`.
    pub fn flat_kv(&self, dims: &Dims) -> usize {
        self.batch * dims.num_heads_kv + self.head_kv
    }

    /// First row of the block within its head.
    pub fn first_row(&self) -> usize {
        self.block * BLOCK_Q
    }

    /// Rows that exist, at most [`BLOCK_Q`].
    pub fn rows(&self) -> usize {
        self.lse.len()
    }
}

/// Every query block of a problem, in memory order; none if there is nothing to attend to.
///
/// `out` is `[B, Hq, M, Dv]` and `lse` is `[B, Hq, M]`.
pub fn query_blocks<'a, T>(dims: &Dims, mut out: &'a mut [T], mut lse: &'a mut [T]) -> Vec<QueryBlock<'a, T>> {
    let mut blocks = Vec::new();
    if dims.num_heads_kv == 0 || dims.seqlen_kv == 0 {
        return blocks;
    }
    for batch in 0..dims.batch {
        for head_q in 0..dims.num_heads_q {
            for block in 0..dims.num_query_blocks() {
                let rows = BLOCK_Q.min(dims.seqlen_q - block * BLOCK_Q);
                let (block_out, rest_out) = out.split_at_mut(rows * dims.head_dim_v);
                let (block_lse, rest_lse) = lse.split_at_mut(rows);
                (out, lse) = (rest_out, rest_lse);
                let head_kv = dims.head_kv(head_q);
                blocks.push(QueryBlock { batch, head_q, head_kv, block, out: block_out, lse: block_lse });
            }
        }
    }
    blocks
}

/// Number of output elements and rows.
pub fn output_lens(dims: &Dims) -> (usize, usize) {
    let rows = dims.batch * dims.num_heads_q * dims.seqlen_q;
    (rows * dims.head_dim_v, rows)
}
