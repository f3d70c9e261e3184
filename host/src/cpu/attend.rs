//! The algorithm: tiles of keys against query blocks, with an online softmax.

use std::marker::PhantomData;
use std::sync::Mutex;

use bytemuck::Zeroable;
use rayon::prelude::*;
use sage_spec::limits::MAX_HEAD_DIM;
use sage_spec::tiling::BLOCK_Q;

use super::isa::{Isa, Task};
use super::mask::Mask;
use super::operands::{Operands, TILE};
use super::output::{Item, OutputMut, Segment, items};
use super::product::{Accumulate, Bf16, F32, Scores};
use super::quantized::transpose;
use super::softmax::{ROW_MAX_START, Scale, Softmax};

/// Most query blocks that share an unpacked tile: their sums and queries stay within the level-2 cache.
const MAX_BLOCKS: usize = 4;

/// Computes attention into `out` `[B, Hq, M, Dv]` and `lse` `[B, Hq, M]`, which are all zeros and −∞.
///
/// Results do not depend on the number of threads.
pub fn attend<I: Isa, O: Operands>(isa: I, operands: &O, out: OutputMut, lse: &mut [f32]) {
    let dims = operands.dims();
    if dims.num_heads_kv == 0 || dims.seqlen_kv == 0 || lse.is_empty() {
        return;
    }
    let threads = rayon::current_num_threads();
    let blocks = dims.batch * dims.num_heads_q * dims.num_query_blocks();
    let items = items(dims, (blocks / (4 * threads)).clamp(1, MAX_BLOCKS), out, lse);
    let workers = threads.min(items.len());
    let queue = Mutex::new(items.into_iter());
    (0..workers).into_par_iter().with_max_len(1).for_each(|_| {
        let mut scratch = Scratch::<I>::new(operands);
        while let Some(item) = next(&queue) {
            scratch.attend(isa, operands, item);
        }
    });
}

/// Takes an item; nothing can panic while the lock is held.
fn next<'a>(queue: &Mutex<std::vec::IntoIter<Item<'a>>>) -> Option<Item<'a>> {
    queue.lock().unwrap_or_else(std::sync::PoisonError::into_inner).next()
}

/// Buffers of one worker. `lanes` are those of a row of Q or K, `depth` is the padded head dimension.
struct Scratch<I: Isa> {
    /// `[TILE, max(lanes, depth)]`: rows on their way into panels.
    rows: Vec<u32>,
    /// `[key panels, lanes]`.
    k: Vec<I::Panel>,
    /// `[key panels, depth]`: smoothed keys, if ΔS is needed.
    k_smoothed: Vec<I::Panel>,
    /// `[channel panels, TILE]` f32 or `[channel panels, TILE / 2]` bf16 pairs.
    v: Vec<I::Panel>,
    k_factors: [f32; TILE],
    /// `[BLOCK_Q, key panels]`: scores, then P if it is f32.
    scores: Vec<I::Panel>,
    /// `[BLOCK_Q, TILE / 2]`: P if it is bf16.
    pairs: Vec<u32>,
    alpha: [f32; BLOCK_Q],
    /// `[MAX_BLOCKS, depth]`: block means of Q.
    means: Vec<u32>,
    /// `[MAX_BLOCKS, key panels]`: ΔS of the tile.
    delta: Vec<I::Panel>,
    blocks: Vec<Block<I>>,
}

/// What a worker keeps of a query block from tile to tile.
struct Block<I: Isa> {
    /// `[BLOCK_Q, lanes]`.
    q: Vec<u32>,
    start: Vec<u32>,
    factor: Vec<f32>,
    max: Vec<f32>,
    sum: Vec<I::Panel>,
    /// `[channel panels, BLOCK_Q]`.
    out: Vec<I::Panel>,
}

impl<I: Isa> Scratch<I> {
    fn new<O: Operands>(operands: &O) -> Self {
        let lanes = operands.qk_lanes(I::CODES);
        let depth = operands.dims().head_dim_padded();
        let (key_panels, channel_panels) = (TILE / I::PANEL, depth / I::PANEL);
        let pairs = I::BF16 && operands.v_fits_bf16();
        let panels = |count: usize| vec![I::Panel::zeroed(); count];
        let smoothed = if operands.has_delta() { key_panels } else { 0 };
        Scratch {
            rows: vec![0; TILE * lanes.max(depth)],
            k: panels(key_panels * lanes),
            k_smoothed: panels(smoothed * depth),
            v: panels(channel_panels * if pairs { TILE / 2 } else { TILE }),
            k_factors: [0.0; TILE],
            scores: panels(BLOCK_Q * key_panels),
            pairs: vec![0; if pairs { BLOCK_Q * TILE / 2 } else { 0 }],
            alpha: [1.0; BLOCK_Q],
            means: vec![0; MAX_BLOCKS * depth],
            delta: panels(MAX_BLOCKS * smoothed),
            blocks: (0..MAX_BLOCKS)
                .map(|_| Block {
                    q: vec![0; BLOCK_Q * lanes],
                    start: vec![0; BLOCK_Q],
                    factor: vec![0.0; BLOCK_Q],
                    max: vec![0.0; BLOCK_Q],
                    sum: panels(BLOCK_Q),
                    out: panels(channel_panels * BLOCK_Q),
                })
                .collect(),
        }
    }

    fn attend<O: Operands>(&mut self, isa: I, operands: &O, mut item: Item) {
        let dims = operands.dims();
        let depth = dims.head_dim_padded();
        let flat_kv = item.parts[0].0.flat_kv(dims);
        let mask = |segment: &Segment, first: usize| {
            let real = TILE.min(dims.seqlen_kv - first);
            Mask::new(operands.causal(), segment.causal_keys(dims), first, real)
        };
        for ((segment, ..), (block, mean)) in
            item.parts.iter().zip(self.blocks.iter_mut().zip(self.means.chunks_exact_mut(depth)))
        {
            let (q, start, factor) = (&mut block.q[..], &mut block.start[..], &mut block.factor[..]);
            isa.run(Load { operands, segment, q, start, factor });
            operands.load_q_mean(segment, bytemuck::cast_slice_mut(mean));
            block.max.fill(ROW_MAX_START);
            block.sum.fill(I::Panel::zeroed());
            block.out.fill(I::Panel::zeroed());
        }
        for first in (0..dims.seqlen_kv).step_by(TILE) {
            if item.parts.iter().all(|(segment, ..)| mask(segment, first).first_row(segment.rows) == segment.rows) {
                break; // nor do they see later tiles
            }
            isa.run(Unpack { operands, flat_kv, first, scratch: &mut *self });
            if operands.has_delta() {
                isa.run(Scores {
                    q: &self.means,
                    inner: depth,
                    k: &self.k_smoothed,
                    start: &[],
                    rows: 0..item.parts.len(),
                    visible: Mask::new(false, 0, 0, TILE),
                    scores: &mut self.delta,
                    product: PhantomData::<F32>,
                });
            }
            for (index, (segment, ..)) in item.parts.iter().enumerate() {
                let visible = mask(segment, first);
                let rows = visible.first_row(segment.rows)..segment.rows;
                if !rows.is_empty() {
                    self.tile(isa, operands, index, rows, visible);
                }
            }
        }
        for ((segment, out, lse), block) in item.parts.iter_mut().zip(&self.blocks) {
            isa.run(Finish { operands, segment, block, out, lse });
        }
    }

    /// One query block against the unpacked tile.
    fn tile<O: Operands>(&mut self, isa: I, operands: &O, index: usize, rows: std::ops::Range<usize>, visible: Mask) {
        let Scratch { k, v, k_factors, scores, pairs, alpha, delta, blocks, .. } = self;
        let Block { q, start, factor, max, sum, out } = &mut blocks[index];
        let inner = operands.qk_lanes(I::CODES);
        let panels = TILE / I::PANEL;
        isa.run(Scores { q, inner, k, start, rows: rows.clone(), visible, scores, product: PhantomData::<O::Qk> });
        let delta = match operands.has_delta() {
            true => bytemuck::cast_slice(&delta[index * panels..(index + 1) * panels]),
            false => &[],
        };
        let scale: Scale = operands.scale(factor, k_factors, delta);
        isa.run(Softmax { scores, pairs, panels, rows: rows.clone(), visible, scale, max, sum, alpha });
        if pairs.is_empty() {
            let p = bytemuck::cast_slice(scores);
            let (inner, per_lane, stride) = (TILE, 1, BLOCK_Q);
            let product = PhantomData::<F32>;
            isa.run(Accumulate { p, inner, per_lane, v, rows, visible, alpha, out, stride, product });
        } else {
            let (inner, per_lane, stride) = (TILE / 2, 2, BLOCK_Q);
            let product = PhantomData::<Bf16>;
            isa.run(Accumulate { p: pairs, inner, per_lane, v, rows, visible, alpha, out, stride, product });
        }
    }
}

/// Loads a query block.
struct Load<'a, O> {
    operands: &'a O,
    segment: &'a Segment,
    q: &'a mut [u32],
    start: &'a mut [u32],
    factor: &'a mut [f32],
}

impl<O: Operands> Task for Load<'_, O> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, _: I) {
        self.operands.load_q(I::CODES, self.segment, self.q, self.start, self.factor);
    }
}

/// Unpacks a tile of K and V.
struct Unpack<'a, O, I: Isa> {
    operands: &'a O,
    flat_kv: usize,
    first: usize,
    scratch: &'a mut Scratch<I>,
}

impl<O: Operands, J: Isa> Task for Unpack<'_, O, J> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Unpack { operands, flat_kv, first, scratch } = self;
        let Scratch { rows, k, k_smoothed, v, k_factors, pairs, .. } = scratch;
        let dims = operands.dims();
        let tokens = first..dims.seqlen_kv.min(first + TILE);
        let lanes = operands.qk_lanes(I::CODES);
        let key_panels =
            |panel: usize| tokens.start + panel * I::PANEL..tokens.end.min(tokens.start + (panel + 1) * I::PANEL);

        for (panel, k) in bytemuck::cast_slice_mut::<_, I::Panel>(k).chunks_exact_mut(lanes).enumerate() {
            let keys = key_panels(panel);
            if !keys.is_empty() {
                operands.load_k(I::CODES, flat_kv, keys.clone(), rows);
                transpose(isa, rows, lanes, keys.len(), k);
            }
        }
        if operands.has_delta() {
            let depth = dims.head_dim_padded();
            for (panel, k) in bytemuck::cast_slice_mut::<_, I::Panel>(k_smoothed).chunks_exact_mut(depth).enumerate() {
                let keys = key_panels(panel);
                operands.load_k_smoothed(flat_kv, keys.clone(), bytemuck::cast_slice_mut(rows));
                transpose(isa, rows, depth, keys.len(), k);
            }
        }
        operands.k_factors(flat_kv, first, k_factors);
        operands.load_v(isa, flat_kv, tokens, !pairs.is_empty(), rows, bytemuck::cast_slice_mut(v));
    }
}

/// Normalizes a query block and writes it.
struct Finish<'a, 'o, O, I: Isa> {
    operands: &'a O,
    segment: &'a Segment,
    block: &'a Block<I>,
    out: &'a mut OutputMut<'o>,
    lse: &'a mut [f32],
}

impl<O: Operands, J: Isa> Task for Finish<'_, '_, O, J> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Finish { operands, segment, block, out, lse } = self;
        let dims = operands.dims();
        let mut row = [0.0; MAX_HEAD_DIM];
        let row = &mut row[..dims.head_dim_padded()];
        let sums: &[I::Panel] = bytemuck::cast_slice(&block.sum);
        let panels: &[f32] = bytemuck::cast_slice(&block.out);
        for (index, lse) in lse.iter_mut().enumerate() {
            let bits = isa.load(&sums[index]);
            let sum = isa.sum_lanes(isa.add(isa.as_f(bits[0]), isa.as_f(bits[1])));
            if sum == 0.0 {
                continue; // the row sees no key; out and lse already say so
            }
            for (to, panel) in row.chunks_exact_mut(I::PANEL).zip(panels.chunks_exact(BLOCK_Q * I::PANEL)) {
                to.copy_from_slice(&panel[index * I::PANEL..][..I::PANEL]);
            }
            operands.finish(segment, 1.0 / sum, row);
            out.write(index * dims.head_dim_v, &row[..dims.head_dim_v]);
            *lse = (block.max[index] + sum.log2()) * std::f32::consts::LN_2 + operands.lse_shift(segment, index);
        }
    }
}
