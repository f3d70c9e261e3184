//! Where results go, and cutting it into independent pieces of work.

use std::ops::Range;

use half::{bf16, f16};
use sage_spec::Dims;
use sage_spec::tiling::BLOCK_Q;

/// A contiguous output `[B, Hq, M, Dv]`, or whole rows of it.
///
/// Example: [`attention_exact`](crate::cpu::attention_exact).
#[derive(Debug)]
pub enum OutputMut<'a> {
    /// IEEE 754 binary16.
    F16(&'a mut [f16]),
    /// bfloat16.
    BF16(&'a mut [bf16]),
    /// IEEE 754 binary32.
    F32(&'a mut [f32]),
}

impl<'a> OutputMut<'a> {
    /// Elements.
    pub fn len(&self) -> usize {
        match self {
            OutputMut::F16(x) => x.len(),
            OutputMut::BF16(x) => x.len(),
            OutputMut::F32(x) => x.len(),
        }
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The first `at` elements and the rest.
    fn split_at(self, at: usize) -> (Self, Self) {
        match self {
            OutputMut::F16(x) => {
                let (a, b) = x.split_at_mut(at);
                (OutputMut::F16(a), OutputMut::F16(b))
            }
            OutputMut::BF16(x) => {
                let (a, b) = x.split_at_mut(at);
                (OutputMut::BF16(a), OutputMut::BF16(b))
            }
            OutputMut::F32(x) => {
                let (a, b) = x.split_at_mut(at);
                (OutputMut::F32(a), OutputMut::F32(b))
            }
        }
    }

    /// Writes elements from `at` on, rounding to nearest even.
    pub fn write(&mut self, at: usize, values: &[f32]) {
        let end = at + values.len();
        match self {
            OutputMut::F16(x) => x[at..end].iter_mut().zip(values).for_each(|(x, &value)| *x = f16::from_f32(value)),
            OutputMut::BF16(x) => x[at..end].iter_mut().zip(values).for_each(|(x, &value)| *x = bf16::from_f32(value)),
            OutputMut::F32(x) => x[at..end].copy_from_slice(values),
        }
    }

    /// Fills with zeros.
    pub fn clear(&mut self) {
        match self {
            OutputMut::F16(x) => x.fill(f16::ZERO),
            OutputMut::BF16(x) => x.fill(bf16::ZERO),
            OutputMut::F32(x) => x.fill(0.0),
        }
    }
}

/// One query block of one head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Batch entry.
    pub batch: usize,
    /// Query head.
    pub head_q: usize,
    /// Index of the block within its head.
    pub block: usize,
    /// Rows, at most [`BLOCK_Q`].
    pub rows: usize,
}

impl Segment {
    /// `batch * num_heads_q + head_q`.
    pub fn flat_q(&self, dims: &Dims) -> usize {
        self.batch * dims.num_heads_q + self.head_q
    }

    /// `batch * num_heads_kv` plus the key/value head.
    pub fn flat_kv(&self, dims: &Dims) -> usize {
        self.batch * dims.num_heads_kv + dims.head_kv(self.head_q)
    }

    /// Index of the block among all blocks of all heads.
    pub fn flat_block(&self, dims: &Dims) -> usize {
        self.flat_q(dims) * dims.num_query_blocks() + self.block
    }

    /// First row of the block within its head.
    pub fn first_row(&self) -> usize {
        self.block * BLOCK_Q
    }

    /// Keys that row 0 of the block sees under the causal mask; not positive if it sees none.
    pub fn causal_keys(&self, dims: &Dims) -> i64 {
        (self.first_row() + 1 + dims.seqlen_kv) as i64 - dims.seqlen_q as i64
    }
}

/// A query block, the keys it meets and where the result goes.
#[derive(Debug)]
pub struct Part<'a> {
    /// The block.
    pub segment: Segment,
    /// Keys to attend to, from a multiple of the tile on.
    pub keys: Range<usize>,
    /// Where the result goes.
    pub target: Target<'a>,
}

/// Where the result of a [`Part`] goes.
#[derive(Debug)]
pub enum Target<'a> {
    /// The block's rows of the output and of the log-sum-exp.
    Rows(OutputMut<'a>, &'a mut [f32]),
    /// The block's state after these keys, to be merged with that after others (see `split`).
    State(&'a mut [f32]),
}

/// Query blocks that read the same keys and values, so that a tile of those is unpacked once for all.
pub type Item<'a, 'p> = &'p mut [Part<'a>];

/// Cuts a problem into query blocks that meet all keys.
///
/// `out` is `[B, Hq, M, Dv]` and `lse` is `[B, Hq, M]`; `num_heads_kv` is not zero.
pub fn parts<'a>(dims: &Dims, mut out: OutputMut<'a>, mut lse: &'a mut [f32]) -> Vec<Part<'a>> {
    let mut parts = Vec::with_capacity(dims.batch * dims.num_heads_q * dims.num_query_blocks());
    for batch in 0..dims.batch {
        for head_q in 0..dims.num_heads_q {
            for block in 0..dims.num_query_blocks() {
                let rows = BLOCK_Q.min(dims.seqlen_q - block * BLOCK_Q);
                let (part_out, rest_out) = out.split_at(rows * dims.head_dim_v);
                let (part_lse, rest_lse) = lse.split_at_mut(rows);
                (out, lse) = (rest_out, rest_lse);
                let segment = Segment { batch, head_q, block, rows };
                parts.push(Part { segment, keys: 0..dims.seqlen_kv, target: Target::Rows(part_out, part_lse) });
            }
        }
    }
    parts
}

/// Groups parts into items of at most `blocks` query blocks each, most work first.
pub fn items<'a, 'p>(dims: &Dims, blocks: usize, mut parts: &'p mut [Part<'a>]) -> Vec<Item<'a, 'p>> {
    // Heads of a group next to each other, so that an item's blocks see about the same keys.
    parts.sort_unstable_by_key(|part| {
        let segment = &part.segment;
        (segment.flat_kv(dims), part.keys.start, segment.block, segment.head_q)
    });
    let mut items = Vec::with_capacity(parts.len());
    while let Some(first) = parts.first() {
        let same = |part: &&Part| part.segment.flat_kv(dims) == first.segment.flat_kv(dims) && part.keys == first.keys;
        let count = parts.iter().take(blocks).take_while(same).count();
        let (item, rest) = parts.split_at_mut(count);
        items.push(item);
        parts = rest;
    }
    // Later blocks see more keys under the causal mask.
    items.sort_unstable_by_key(|item| std::cmp::Reverse(item.last().map(|part| part.segment.block)));
    items
}
