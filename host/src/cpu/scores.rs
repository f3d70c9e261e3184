//! The integer scores alone.

use std::marker::PhantomData;

use bytemuck::Zeroable;
use rayon::prelude::*;
use sage_spec::Dims;
use sage_spec::tiling::BLOCK_Q;

use super::attend::{Load, keys_of, unpack_keys};
use super::isa::{Isa, Task};
use super::mask::Mask;
use super::operands::{Operands, TILE};
use super::output::Segment;
use super::product::{Integer, Scores};
use super::quantized::Codings;
use super::select::Path;
use crate::reference::{HostTensor, Options, Quantized};

/// Integer scores `[B, Hq, M, N]` of all queries and keys, as [`attention_quantized`](super::attention_quantized)
/// computes them: the same on every path, and those of [`reference::scores`](crate::reference::scores), which are
/// padded.
///
/// For tests: attention keeps one tile of them at a time. `k` and the mask in `options` are not used.
///
/// Example: [`attention_quantized`](crate::cpu::attention_quantized).
pub fn scores(path: Path, dims: &Dims, quantized: &Quantized, k: &HostTensor, options: &Options) -> Vec<i32> {
    let operands = &Codings { dims, quantized, q: None, k, options };
    let mut scores = vec![0; dims.batch * dims.num_heads_q * dims.seqlen_q * dims.seqlen_kv];
    scores.par_chunks_mut((dims.seqlen_q * dims.seqlen_kv).max(1)).enumerate().for_each(|(head, scores)| {
        for (block, scores) in scores.chunks_mut(BLOCK_Q * dims.seqlen_kv).enumerate() {
            let (batch, head_q) = (head / dims.num_heads_q, head % dims.num_heads_q);
            let segment = Segment { batch, head_q, block, rows: scores.len() / dims.seqlen_kv };
            path.run(BlockScores { operands, segment, scores });
        }
    });
    scores
}

/// Scores of one query block.
struct BlockScores<'a> {
    operands: &'a Codings<'a>,
    segment: Segment,
    /// `[rows, N]`.
    scores: &'a mut [i32],
}

impl Task for BlockScores<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let BlockScores { operands, segment, scores } = self;
        let (dims, lanes) = (operands.dims(), operands.qk_lanes(I::CODES));
        let height = BLOCK_Q + I::SPARE_ROWS;
        let (mut q, mut start, mut factor) = (vec![0; height * lanes], vec![0; height], vec![0.0; height]);
        let load =
            Load { operands, segment: &segment, rows: &mut [], q: &mut q, start: &mut start, factor: &mut factor };
        load.run(isa);
        let mut rows = vec![0; I::PANEL * lanes];
        let mut k = vec![I::Panel::zeroed(); TILE / I::PANEL * lanes];
        let mut tile = vec![I::Panel::zeroed(); height * TILE / I::PANEL];
        for first in (0..dims.seqlen_kv).step_by(TILE) {
            let tokens = first..dims.seqlen_kv.min(first + TILE);
            for (panel, k) in k.chunks_exact_mut(lanes).enumerate() {
                let keys = keys_of::<I>(panel, &tokens);
                unpack_keys(isa, operands, segment.flat_kv(dims), keys, &mut rows, k);
            }
            let visible = Mask::new(false, 0, first, tokens.len());
            let product = PhantomData::<Integer>;
            let task = Scores {
                q: &q,
                inner: lanes,
                k: &k,
                start: &start,
                rows: 0..segment.rows,
                visible,
                scores: &mut tile,
                product,
            };
            task.run(isa);
            let tile: &[i32] = bytemuck::cast_slice(&tile);
            for (to, from) in scores.chunks_exact_mut(dims.seqlen_kv).zip(tile.chunks_exact(TILE)) {
                to[tokens.clone()].copy_from_slice(&from[..tokens.len()]);
            }
        }
    }
}
