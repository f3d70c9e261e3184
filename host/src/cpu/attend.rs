//! The algorithm: tiles of keys against query blocks, with an online softmax.

use std::marker::PhantomData;
use std::ops::Range;
use std::sync::Mutex;

use bytemuck::Zeroable;
use rayon::prelude::*;
use sage_spec::tiling::BLOCK_Q;

use super::buffer::Buffer;
use super::finish::Finish;
use super::isa::{Isa, Task};
use super::mask::Mask;
use super::operands::{Operands, TILE};
use super::output::{Item, OutputMut, Part, Segment, items, parts};
use super::product::{Accumulate, Bf16, F32, Scores};
use super::quantized::transpose;
use super::softmax::{ROW_MAX_START, Scale, Softmax};
use super::split::{Merge, States, most_rows, span};

/// Most query blocks that share an unpacked tile: with 128 KiB of sums and queries each, if they are f32, more would
/// leave a level-2 cache of 2 MiB no room for the tile.
const MAX_BLOCKS: usize = 8;

/// Computes attention into `out` `[B, Hq, M, Dv]` and `lse` `[B, Hq, M]`, which is all −∞.
///
/// Results do not depend on the number of threads.
pub fn attend<I: Isa, O: Operands>(isa: I, operands: &O, mut out: OutputMut, lse: &mut [f32]) {
    let dims = operands.dims();
    if dims.num_heads_kv == 0 || dims.seqlen_kv == 0 || lse.is_empty() {
        return out.clear();
    }
    let mut whole = parts(dims, out, lse);
    let span = span(dims);
    if span >= dims.seqlen_kv {
        return attend_parts(isa, operands, &mut whole);
    }
    let mut states = States::new(dims, span);
    attend_parts(isa, operands, &mut states.parts(&whole));
    whole.par_iter_mut().zip(states.blocks()).for_each(|(part, states)| isa.run(Merge { operands, part, states }));
}

/// Hands the parts to the threads of the caller's pool, most work first.
fn attend_parts<I: Isa, O: Operands>(isa: I, operands: &O, parts: &mut [Part]) {
    let threads = rayon::current_num_threads();
    let blocks = (parts.len() / (4 * threads)).clamp(1, MAX_BLOCKS);
    let items = items(operands.dims(), blocks, parts);
    let workers = threads.min(items.len());
    let queue = Mutex::new(items.into_iter());
    (0..workers).into_par_iter().with_max_len(1).for_each(|_| {
        let mut scratch = Scratch::<I>::new(operands, blocks);
        while let Some(item) = next(&queue) {
            scratch.attend(isa, operands, item);
        }
    });
}

/// Takes an item; nothing can panic while the lock is held.
fn next<'a, 'p>(queue: &Mutex<std::vec::IntoIter<Item<'a, 'p>>>) -> Option<Item<'a, 'p>> {
    queue.lock().unwrap_or_else(std::sync::PoisonError::into_inner).next()
}

/// Buffers of one worker. `lanes` are those of a row of Q or K, `depth` is the padded head dimension, `height` the
/// rows of the largest query block and [`Isa::SPARE_ROWS`].
struct Scratch<I: Isa> {
    /// `[TILE, max(lanes, depth)]`: rows on their way into panels.
    rows: Buffer<u32>,
    /// `[key panels, lanes]`.
    k: Buffer<I::Panel>,
    /// `[key panels, depth]`: smoothed keys, if ΔS is needed.
    k_smoothed: Buffer<I::Panel>,
    /// `[channel panels, TILE]` f32 or `[channel panels, TILE / 2]` bf16 pairs.
    v: Buffer<I::Panel>,
    k_factors: [f32; TILE],
    /// `[height, key panels]`: scores of the rows at hand, then P if it is f32.
    scores: Buffer<I::Panel>,
    /// `[height, TILE / 2]`: P of the rows at hand if it is bf16.
    pairs: Buffer<u32>,
    alpha: [f32; BLOCK_Q],
    /// `[blocks, depth]`: block means of Q.
    means: Buffer<u32>,
    /// `[blocks, key panels]`: ΔS of the tile.
    delta: Buffer<I::Panel>,
    blocks: Vec<Block<I>>,
}

/// What a worker keeps of a query block from tile to tile.
pub struct Block<I: Isa> {
    /// `[height, lanes]`.
    q: Buffer<u32>,
    start: Buffer<u32>,
    factor: Buffer<f32>,
    /// Running maxima, in log2 units.
    pub max: Buffer<f32>,
    /// Running sums, to be added over the lanes.
    pub sum: Buffer<I::Panel>,
    /// `[channel panels, height]`.
    pub out: Buffer<I::Panel>,
}

impl<I: Isa> Scratch<I> {
    fn new<O: Operands>(operands: &O, blocks: usize) -> Self {
        let (lanes, height) = (operands.qk_lanes(I::CODES), most_rows(operands.dims()) + I::SPARE_ROWS);
        let depth = operands.dims().head_dim_padded();
        let (key_panels, channel_panels) = (TILE / I::PANEL, depth / I::PANEL);
        let pairs = I::BF16 && operands.v_fits_bf16();
        let panels = |count: usize| Buffer::<I::Panel>::new(count);
        let smoothed = if operands.has_delta() { key_panels } else { 0 };
        Scratch {
            rows: Buffer::new(TILE * lanes.max(depth)),
            k: panels(key_panels * lanes),
            k_smoothed: panels(smoothed * depth),
            v: panels(channel_panels * if pairs { TILE / 2 } else { TILE }),
            k_factors: [0.0; TILE],
            scores: panels(height * key_panels),
            pairs: Buffer::new(if pairs { height * TILE / 2 } else { 0 }),
            alpha: [1.0; BLOCK_Q],
            means: Buffer::new(blocks * depth),
            delta: panels(blocks * smoothed),
            blocks: (0..blocks)
                .map(|_| Block {
                    q: Buffer::new(height * lanes),
                    start: Buffer::new(height),
                    factor: Buffer::new(height),
                    max: Buffer::new(height),
                    sum: panels(height),
                    out: panels(channel_panels * height),
                })
                .collect(),
        }
    }

    fn attend<O: Operands>(&mut self, isa: I, operands: &O, item: Item) {
        let dims = operands.dims();
        let depth = dims.head_dim_padded();
        let Some(Part { segment, keys, .. }) = item.first() else { return };
        let (flat_kv, keys) = (segment.flat_kv(dims), keys.clone());
        let mask = |segment: &Segment, first: usize| {
            let real = TILE.min(keys.end - first);
            Mask::new(operands.causal(), segment.causal_keys(dims), first, real)
        };
        for (Part { segment, .. }, (block, mean)) in
            item.iter().zip(self.blocks.iter_mut().zip(self.means.chunks_exact_mut(depth)))
        {
            let (q, start, factor) = (&mut block.q[..], &mut block.start[..], &mut block.factor[..]);
            isa.run(Load { operands, segment, rows: &mut self.rows, q, start, factor });
            operands.load_q_mean(segment, bytemuck::cast_slice_mut(mean));
            block.max.fill(ROW_MAX_START);
            block.sum.fill(I::Panel::zeroed());
            block.out.fill(I::Panel::zeroed());
        }
        for first in keys.clone().step_by(TILE) {
            if item.iter().all(|Part { segment, .. }| mask(segment, first).first_row(segment.rows) == segment.rows) {
                break; // nor do they see later tiles
            }
            isa.run(Unpack { operands, flat_kv, first, scratch: &mut *self });
            if operands.has_delta() {
                isa.run(Scores {
                    q: &self.means,
                    inner: depth,
                    k: &self.k_smoothed,
                    start: &[],
                    rows: 0..item.len(),
                    visible: Mask::new(false, 0, 0, TILE),
                    scores: &mut self.delta,
                    product: PhantomData::<F32>,
                });
            }
            for (index, Part { segment, .. }) in item.iter().enumerate() {
                let visible = mask(segment, first);
                let rows = visible.first_row(segment.rows)..segment.rows;
                if !rows.is_empty() {
                    isa.run(Meet { operands, scratch: &mut *self, index, rows, visible });
                }
            }
        }
        for (part, block) in item.iter_mut().zip(&self.blocks) {
            isa.run(Finish { operands, part, block });
        }
    }
}

/// One query block against the unpacked tile.
struct Meet<'a, O, I: Isa> {
    operands: &'a O,
    scratch: &'a mut Scratch<I>,
    /// Index of the block.
    index: usize,
    /// Rows that see a key.
    rows: Range<usize>,
    visible: Mask,
}

impl<O: Operands, J: Isa> Task for Meet<'_, O, J> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Meet { operands, scratch, index, rows, visible } = self;
        let Scratch { k, v, k_factors, scores, pairs, alpha, delta, blocks, .. } = scratch;
        let Block { q, start, factor, max, sum, out } = &mut blocks[index];
        let inner = operands.qk_lanes(I::CODES);
        let (panels, stride) = (TILE / I::PANEL, sum.len());
        let delta = match operands.has_delta() {
            true => bytemuck::cast_slice(&delta[index * panels..(index + 1) * panels]),
            false => &[],
        };
        let scale: Scale = operands.scale(factor, k_factors, delta);
        let product = PhantomData::<O::Qk>;
        Scores { q, inner, k, start, rows: rows.clone(), visible, scores, product }.run(isa);
        Softmax { scores, pairs, panels, rows: rows.clone(), visible, scale, max, sum, alpha }.run(isa);
        if pairs.is_empty() {
            let p = bytemuck::cast_slice(scores);
            let (inner, per_lane) = (TILE, 1);
            let product = PhantomData::<F32>;
            Accumulate { p, inner, per_lane, v, rows, visible, alpha, out, stride, product }.run(isa);
        } else {
            let (inner, per_lane) = (TILE / 2, 2);
            let product = PhantomData::<Bf16>;
            Accumulate { p: pairs, inner, per_lane, v, rows, visible, alpha, out, stride, product }.run(isa);
        }
    }
}

/// Loads a query block.
pub struct Load<'a, O> {
    pub operands: &'a O,
    pub segment: &'a Segment,
    pub rows: &'a mut [u32],
    pub q: &'a mut [u32],
    pub start: &'a mut [u32],
    pub factor: &'a mut [f32],
}

impl<O: Operands> Task for Load<'_, O> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        self.operands.load_q(isa, self.segment, self.rows, self.q, self.start, self.factor);
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

        for (panel, k) in bytemuck::cast_slice_mut::<_, I::Panel>(k).chunks_exact_mut(lanes).enumerate() {
            unpack_keys(isa, operands, flat_kv, keys_of::<I>(panel, &tokens), rows, k);
        }
        if operands.has_delta() {
            let depth = dims.head_dim_padded();
            for (panel, k) in bytemuck::cast_slice_mut::<_, I::Panel>(k_smoothed).chunks_exact_mut(depth).enumerate() {
                let keys = keys_of::<I>(panel, &tokens);
                operands.load_k_smoothed(flat_kv, keys.clone(), bytemuck::cast_slice_mut(rows));
                transpose(isa, rows, depth, keys.len(), k);
            }
        }
        operands.k_factors(flat_kv, first, k_factors);
        operands.load_v(isa, flat_kv, tokens, !pairs.is_empty(), rows, bytemuck::cast_slice_mut(v));
    }
}

/// The keys of a tile that are in panel `panel`.
#[inline(always)]
pub fn keys_of<I: Isa>(panel: usize, tile: &Range<usize>) -> Range<usize> {
    tile.start + panel * I::PANEL..tile.end.min(tile.start + (panel + 1) * I::PANEL)
}

/// Unpacks the keys of one panel; the other lanes become zero, or nothing happens if there are no keys.
#[inline(always)]
pub fn unpack_keys<I: Isa, O: Operands>(
    isa: I,
    operands: &O,
    flat_kv: usize,
    keys: Range<usize>,
    rows: &mut [u32],
    k: &mut [I::Panel],
) {
    if !keys.is_empty() {
        operands.load_k(I::CODES, flat_kv, keys.clone(), rows);
        transpose(isa, rows, operands.qk_lanes(I::CODES), keys.len(), k);
    }
}
