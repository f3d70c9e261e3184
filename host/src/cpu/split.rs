//! Few query blocks and many keys, as in decoding: spans of the keys are attended to apart and merged.

#![allow(clippy::needless_range_loop)] // iterator adapters take closures, which are compiled for the baseline CPU

use sage_spec::Dims;
use sage_spec::limits::MAX_HEAD_DIM;
use sage_spec::tiling::BLOCK_Q;

use super::finish::finish_row;
use super::isa::{Isa, Task};
use super::operands::{Operands, TILE};
use super::output::{Part, Target};
use super::softmax::{ROW_MAX_START, exp2};

/// Fewest keys of a span: less is not worth waking a thread for.
const MIN_KEYS: usize = 1024;
/// Fewest keys of a span for each row of a block: merging a row costs as much as a few keys.
const MIN_KEYS_PER_ROW: usize = 16;
/// As many pieces of work keep all threads busy.
const ENOUGH: usize = 64;

/// Most rows that a query block of the problem has.
pub fn most_rows(dims: &Dims) -> usize {
    dims.seqlen_q.min(BLOCK_Q)
}

/// Keys that are attended to apart: a multiple of the tile, or all.
///
/// Follows from the problem alone, so that results do not depend on the number of threads.
pub fn span(dims: &Dims) -> usize {
    let spans = ENOUGH / (dims.batch * dims.num_heads_kv * dims.num_query_blocks()).clamp(1, ENOUGH);
    let least = MIN_KEYS.max(MIN_KEYS_PER_ROW * most_rows(dims));
    dims.seqlen_kv.div_ceil(spans).max(least).next_multiple_of(TILE)
}

/// What is known of every row after each span.
///
/// A row's state is its maximum in log2 units, its sum and its unnormalized output.
pub struct States {
    /// `[query blocks, spans, rows, 2 + depth]`.
    values: Vec<f32>,
    span: usize,
    spans: usize,
    /// Floats of one block after one span.
    block: usize,
}

impl States {
    /// Room for the states of a problem's blocks.
    pub fn new(dims: &Dims, span: usize) -> States {
        let spans = dims.seqlen_kv.div_ceil(span);
        let block = most_rows(dims) * (2 + dims.head_dim_padded());
        let blocks = dims.batch * dims.num_heads_q * dims.num_query_blocks();
        States { values: vec![0.0; blocks * spans * block], span, spans, block }
    }

    /// The blocks of `whole`, once for every span.
    pub fn parts(&mut self, whole: &[Part]) -> Vec<Part<'_>> {
        let mut parts = Vec::with_capacity(whole.len() * self.spans);
        for (index, state) in self.values.chunks_exact_mut(self.block).enumerate() {
            let Part { segment, keys, .. } = &whole[index / self.spans];
            let first = index % self.spans * self.span;
            let keys = first..keys.end.min(first + self.span);
            parts.push(Part { segment: *segment, keys, target: Target::State(state) });
        }
        parts
    }

    /// The states of each block, in the order of the blocks.
    pub fn blocks(&self) -> impl rayon::iter::IndexedParallelIterator<Item = BlockStates<'_>> {
        use rayon::prelude::*;
        let block = self.block;
        self.values.par_chunks_exact(self.spans * block).map(move |values| BlockStates { values, block })
    }
}

/// The states of one query block.
#[derive(Clone, Copy)]
pub struct BlockStates<'a> {
    /// `[spans, rows, 2 + depth]`.
    values: &'a [f32],
    block: usize,
}

/// Writes the state of row `index` of a block.
#[inline(always)]
pub fn store(state: &mut [f32], index: usize, max: f32, sum: f32, row: &[f32]) {
    let state = &mut state[index * (2 + row.len())..(index + 1) * (2 + row.len())];
    (state[0], state[1]) = (max, sum);
    state[2..].copy_from_slice(row);
}

/// Merges the states of a query block, in the order of the keys, and writes the result.
pub struct Merge<'a, 'o, O> {
    /// What is attended to.
    pub operands: &'a O,
    /// The block, with its rows of the output.
    pub part: &'a mut Part<'o>,
    /// Its states.
    pub states: BlockStates<'a>,
}

impl<O: Operands> Task for Merge<'_, '_, O> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, _: I) {
        let Merge { operands, part, states } = self;
        let depth = operands.dims().head_dim_padded();
        for index in 0..part.segment.rows {
            let at = index * (2 + depth)..(index + 1) * (2 + depth);
            let mut max = ROW_MAX_START;
            for values in states.values.chunks_exact(states.block) {
                max = max.max(values[at.start]);
            }
            let mut sum = 0.0;
            let mut row = [0.0; MAX_HEAD_DIM];
            let row = &mut row[..depth];
            for values in states.values.chunks_exact(states.block) {
                let state = &values[at.clone()];
                let factor = exp2(state[0] - max);
                sum += state[1] * factor;
                for channel in 0..depth {
                    // Also where the factor is 0: NaN stays.
                    row[channel] += state[2 + channel] * factor;
                }
            }
            finish_row(operands, part, index, max, sum, row);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dims(num_heads_kv: usize, group: usize, seqlen_q: usize, seqlen_kv: usize) -> Dims {
        Dims {
            batch: 1,
            num_heads_q: num_heads_kv * group,
            num_heads_kv,
            seqlen_q,
            seqlen_kv,
            head_dim: 128,
            head_dim_v: 128,
        }
    }

    #[test]
    fn only_few_blocks_and_many_keys_are_split() {
        let spans = |dims: Dims| dims.seqlen_kv.div_ceil(span(&dims));
        assert_eq!(spans(dims(8, 4, 1, 1024)), 1);
        assert_eq!(spans(dims(8, 4, 1, 16_384)), 8);
        assert_eq!(spans(dims(1, 8, 16, 65_536)), 64);
        assert_eq!(spans(dims(64, 1, 1, 65_536)), 1);
        assert_eq!(spans(dims(8, 1, 1024, 16_384)), 1);
        assert_eq!(spans(dims(1, 1, 128, 4096)), 2);
        assert_eq!(spans(dims(1, 1, 0, 0)), 0);
    }

    #[test]
    fn spans_cover_the_keys_once() {
        for seqlen_kv in [1025, 2048, 5000, 70_001] {
            let dims = dims(2, 2, 3, seqlen_kv);
            let span = span(&dims);
            assert_eq!(span % TILE, 0);
            let (mut out, mut lse) = (vec![0.0; 4 * 3 * 128], vec![0.0; 4 * 3]);
            let whole = super::super::output::parts(&dims, super::super::output::OutputMut::F32(&mut out), &mut lse);
            let mut states = States::new(&dims, span);
            let parts = states.parts(&whole);
            for part in &whole {
                let mine = parts.iter().filter(|other| other.segment == part.segment);
                let end = mine.fold(0, |begin, other| {
                    assert_eq!(other.keys.start, begin);
                    other.keys.end
                });
                assert_eq!(end, seqlen_kv);
            }
        }
    }
}
