//! Division of the attention kernel's work, so that ΔS stays small.
//!
//! With smoothed Q every query block needs one f32 per key. For all blocks at once that grows with
//! M · N; so the work is cut into rectangles of heads × query blocks whose ΔS fits a fixed budget,
//! and each rectangle's ΔS overwrites the last one's.

use sage_spec::Dims;
use sage_spec::limits::MAX_GRID_Y;
use sage_spec::params::Chunk;
use sage_spec::tiling::{BLOCK_Q, DELTA_S_BLOCKS};

use crate::problem::Problem;

/// ΔS may always take this many bytes.
const BUDGET_MIN_BYTES: u128 = 32 << 20;
/// ΔS may take this fraction of the bytes of q, k and v.
const BUDGET_FRACTION: u128 = 8;

/// A regular division of `(batch, head) × query block`.
///
/// Example: [`plan`](crate::plan::plan()).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunks {
    /// (batch, head) pairs.
    heads: u32,
    /// Query blocks per head.
    blocks: u32,
    /// (batch, head) pairs of a chunk, except perhaps the last.
    heads_per_chunk: u32,
    /// Query blocks of a chunk, except perhaps a head's last; all of them if a chunk has several heads.
    blocks_per_chunk: u32,
}

impl Chunks {
    /// The division for `problem`: whole heads if at least one fits the budget, otherwise query
    /// blocks of one head, a multiple of the ΔS kernel's 32 if that many fit, and at least one.
    ///
    /// `problem` has at most [`sage_spec::limits::MAX_GRID`] pairs of head and query block.
    pub(super) fn new(problem: &Problem) -> Chunks {
        let dims = problem.dims();
        if problem.is_empty() {
            return Chunks { heads: 0, blocks: 0, heads_per_chunk: 1, blocks_per_chunk: 1 };
        }
        let heads = (dims.batch * dims.num_heads_q) as u32;
        let blocks = dims.num_query_blocks() as u32;
        // The attention grid's y extent is the chunk's heads.
        let max_heads = heads.min(MAX_GRID_Y as u32);
        if !problem.smoothing().q || dims.seqlen_kv == 0 {
            return Chunks { heads, blocks, heads_per_chunk: max_heads, blocks_per_chunk: blocks };
        }
        let block_bytes = dims.seqlen_kv_padded() as u128 * 4;
        let budget = BUDGET_MIN_BYTES.max(input_bytes(problem) / BUDGET_FRACTION);
        let fit = u32::try_from(budget / block_bytes).unwrap_or(u32::MAX);
        if fit >= blocks {
            let heads_per_chunk = (fit / blocks).min(max_heads);
            return Chunks { heads, blocks, heads_per_chunk, blocks_per_chunk: blocks };
        }
        let group = DELTA_S_BLOCKS as u32;
        let blocks_per_chunk = if fit >= group { fit / group * group } else { fit.max(1) };
        Chunks { heads, blocks, heads_per_chunk: 1, blocks_per_chunk }
    }

    /// Number of chunks.
    pub fn count(&self) -> u64 {
        let heads = u64::from(self.heads.div_ceil(self.heads_per_chunk));
        heads * u64::from(self.blocks.div_ceil(self.blocks_per_chunk))
    }

    /// (head, query block) pairs of the largest chunk, the first.
    pub fn largest(&self) -> usize {
        self.heads_per_chunk.min(self.heads) as usize * self.blocks_per_chunk.min(self.blocks) as usize
    }

    /// The chunks in launch order. Together they cover every pair once.
    pub fn iter(&self) -> impl Iterator<Item = Chunk> + use<> {
        let this = *self;
        let begins = |total: u32, step: u32| (0..total).step_by(step as usize);
        begins(this.heads, this.heads_per_chunk).flat_map(move |head| {
            begins(this.blocks, this.blocks_per_chunk).map(move |block| Chunk {
                head_begin: head,
                head_count: this.heads_per_chunk.min(this.heads - head),
                block_begin: block,
                block_count: this.blocks_per_chunk.min(this.blocks - block),
            })
        })
    }

    /// The one chunk that covers everything.
    pub fn everything(&self) -> Chunk {
        Chunk { head_begin: 0, head_count: self.heads, block_begin: 0, block_count: self.blocks }
    }
}

/// Query rows of each head that `chunk` covers: its query blocks are whole but for a head's last.
///
/// Example: [`plan`](crate::plan::plan()).
pub fn chunk_rows(dims: &Dims, chunk: &Chunk) -> usize {
    let first_row = chunk.block_begin as usize * BLOCK_Q;
    (chunk.block_count as usize * BLOCK_Q).min(dims.seqlen_q - first_row)
}

/// Bytes of q, k and v.
fn input_bytes(problem: &Problem) -> u128 {
    [problem.q(), problem.k(), problem.v()]
        .iter()
        .map(|t| t.shape.iter().map(|&extent| extent as u128).product::<u128>() * t.dtype.bytes() as u128)
        .sum()
}
