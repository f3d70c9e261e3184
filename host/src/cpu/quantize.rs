//! The reference's quantizers, vectorized: bit for bit the same codes, scales and means.

#![allow(clippy::needless_range_loop)] // fixed bounds vectorize

use std::ops::Range;

use bytemuck::Zeroable;
use rayon::prelude::*;
use sage_spec::quant::{qk_scale, smooth_q_scale_floor, v_scale_fp8};
use sage_spec::reduce::{CHUNK_LANES, FEATURES_PER_THREAD, TOKEN_LANES, token_mean};
use sage_spec::tiling::{BLOCK_KV, BLOCK_Q, REDUCE_CHUNK, WIDE_HEAD_DIM};
use sage_spec::{Dims, Precision, PvFormat};

use super::isa::{Isa, MOST_LANES, Task};
use super::select::Path;
use crate::reference::convert::pack_int4;
use crate::reference::{self, HostTensor, Options, Quantized};

/// One f32 per feature, zero beyond the head dimension; `WIDTH` is 128, or more for wide heads only.
pub(super) type Row<const WIDTH: usize> = [f32; WIDTH];

/// [`reference::quantize()`], faster. `q` is `[B, Hq, M, D]`, `k` is `[B, Hkv, N, D]`, `v` is
/// `[B, Hkv, N, Dv]`.
///
/// V in FP16 is left to the reference: only GPUs without FP8 ask for it.
///
/// Example: [`attention_quantized`](crate::cpu::attention_quantized).
pub fn quantize(path: Path, dims: &Dims, [q, k, v]: [&HostTensor; 3], options: &Options) -> Quantized {
    quantize_with(path, dims, [q, k, v], options, true)
}

/// [`quantize`] without the codes and scales of Q: [`attention_with_queries`](super::attention_with_queries) makes
/// them block by block. The means of Q are there.
///
/// Example: [`attention_quantized`](crate::cpu::attention_quantized).
pub fn quantize_kv(path: Path, dims: &Dims, [q, k, v]: [&HostTensor; 3], options: &Options) -> Quantized {
    quantize_with(path, dims, [q, k, v], options, false)
}

fn quantize_with(
    path: Path,
    dims: &Dims,
    [q, k, v]: [&HostTensor; 3],
    options: &Options,
    with_q_codes: bool,
) -> Quantized {
    if options.pv == PvFormat::F16 {
        return reference::quantize(dims, q, k, v, options);
    }
    match dims.is_wide() {
        false => quantize_rows::<128>(path, dims, [q, k, v], options, with_q_codes),
        true => quantize_rows::<WIDE_HEAD_DIM>(path, dims, [q, k, v], options, with_q_codes),
    }
}

/// [`quantize`] of rows of at most `WIDTH` features.
fn quantize_rows<const WIDTH: usize>(
    path: Path,
    dims: &Dims,
    [q, k, v]: [&HostTensor; 3],
    options: &Options,
    with_q_codes: bool,
) -> Quantized {
    let (precision, granularity) = (options.precision, options.granularity);
    let (depth, heads_kv) = (dims.head_dim_padded(), dims.batch * dims.num_heads_kv);
    let source =
        |tensor, num_heads, seqlen, head_dim| Source::<WIDTH> { path, tensor, num_heads, seqlen, head_dim, depth };
    let q = source(q, dims.num_heads_q, dims.seqlen_q, dims.head_dim);
    let k = source(k, dims.num_heads_kv, dims.seqlen_kv, dims.head_dim);
    let v = source(v, dims.num_heads_kv, dims.seqlen_kv, dims.head_dim_v);

    // The heads one after the other, so that a head is read again while it is in the cache.
    let blocks = [BLOCK_KV, dims.num_kv_blocks_padded(), granularity.k_scales_per_block()];
    let k_group = |key| granularity.k_group(key);
    let (mut k_codes, mut k_scale) = k.room(precision, heads_kv, blocks);
    let mut k_mean = vec![0.0; heads_kv * depth];
    let parts = k_mean.par_chunks_exact_mut(depth).zip(k.heads(precision, blocks, &mut k_codes, &mut k_scale));
    parts.enumerate().for_each(|(head, (mean, room))| {
        if options.smooth_k {
            k.token_mean(head, mean);
        }
        let smoothing = options.smooth_k.then_some((&*mean, 0.0));
        k.codes(precision, head, blocks, k_group, |_| smoothing, room);
    });
    let k_mean = options.smooth_k.then_some(k_mean);
    let q_blocks = dims.batch * dims.num_heads_q * dims.num_query_blocks();
    let mut q_mean = options.smooth_q.then(|| vec![0.0; q_blocks * depth]);
    let mut qk_mean = options.smooth_k.then(|| vec![0.0; q_blocks * BLOCK_Q]);
    if let Some(q_mean) = &mut q_mean {
        q_mean.par_chunks_exact_mut(depth).enumerate().for_each(|(block, mean)| {
            let (head, tokens) = (block / dims.num_query_blocks(), q.tokens(block % dims.num_query_blocks(), BLOCK_Q));
            let count = tokens.len() as f32;
            let sum = path.run(Run(
                #[inline(always)]
                || q.lane_sum(head, tokens.clone()),
            ));
            mean.iter_mut().zip(sum).for_each(|(mean, sum)| *mean = sum / count);
        });
    }
    if let (Some(dots), Some(k_mean)) = (&mut qk_mean, &k_mean)
        && dims.num_heads_kv > 0
    {
        dots.par_chunks_exact_mut(BLOCK_Q).enumerate().for_each(|(block, dots)| {
            let (head, block) = (block / dims.num_query_blocks(), block % dims.num_query_blocks());
            let head_kv = head / dims.num_heads_q * dims.num_heads_kv + dims.head_kv(head % dims.num_heads_q);
            let mean = &k_mean[head_kv * depth..(head_kv + 1) * depth];
            path.run(Dots { source: &q, head, tokens: q.tokens(block, BLOCK_Q), mean, dots });
        });
    }
    let blocks = [BLOCK_Q, dims.num_query_blocks(), granularity.q_scales_per_block()];
    let heads_q = if with_q_codes { dims.batch * dims.num_heads_q } else { 0 };
    let (mut q_codes, mut q_scale) = q.room(precision, heads_q, blocks);
    q.heads(precision, blocks, &mut q_codes, &mut q_scale).enumerate().for_each(|(head, room)| {
        let smoothing = |block: usize| {
            let mean = &q_mean.as_ref()?[(head * dims.num_query_blocks() + block) * depth..][..depth];
            Some((mean, smooth_q_scale_floor(feature_l1(mean), precision)))
        };
        q.codes(precision, head, blocks, |row| granularity.q_group(row), smoothing, room);
    });
    let padded = dims.seqlen_kv_padded();
    let mut v_mean = vec![0.0; heads_kv * depth];
    let mut v_scale = vec![v_scale_fp8(0.0); heads_kv * depth];
    let mut v_offset = vec![0.0; heads_kv * depth];
    let mut v_codes = vec![0; heads_kv * depth * padded];
    let parts = v_mean.par_chunks_exact_mut(depth).zip(v_scale.par_chunks_exact_mut(depth));
    let parts = parts.zip(v_offset.par_chunks_exact_mut(depth));
    parts.zip(v_codes.par_chunks_mut((depth * padded).max(1))).enumerate().for_each(
        |(head, (((mean, scales), offsets), codes))| {
            if options.smooth_v {
                v.token_mean(head, mean);
            }
            v.scales_fp8(head, mean, scales);
            v.codes_fp8(head, padded, mean, scales, codes, offsets);
        },
    );
    let (v_mean, v_offset) = (options.smooth_v.then_some(v_mean), Some(v_offset));
    Quantized { q_codes, q_scale, q_mean, k_codes, k_scale, k_mean, qk_mean, v_codes, v_scale, v_mean, v_offset }
}

/// Plain code, compiled for an instruction set. `FnMut`, although it is called once: a call of `FnOnce` goes through a
/// function that is compiled for the baseline CPU.
pub(super) struct Run<F>(pub(super) F);

impl<R, F: FnMut() -> R> Task for Run<F> {
    type Output = R;

    #[inline(always)]
    fn run<I: Isa>(mut self, _: I) -> R {
        (self.0)()
    }
}

/// Rows of a block of Q or K, blocks of a head and scales of a block.
type Blocks = [usize; 3];

/// A tensor seen as flattened heads of tokens.
pub(super) struct Source<'a, const WIDTH: usize> {
    pub(super) path: Path,
    pub(super) tensor: &'a HostTensor<'a>,
    pub(super) num_heads: usize,
    pub(super) seqlen: usize,
    pub(super) head_dim: usize,
    /// `head_dim_padded`.
    depth: usize,
}

impl<const WIDTH: usize> Source<'_, WIDTH> {
    /// The tokens that exist of block `block` of a head, in blocks of `size`.
    pub(super) fn tokens(&self, block: usize, size: usize) -> Range<usize> {
        let end = self.seqlen.min((block + 1) * size);
        (block * size).min(end)..end
    }

    /// Writes the first features of `row`.
    #[inline(always)]
    pub(super) fn row(&self, head: usize, token: usize, row: &mut Row<WIDTH>) {
        self.tensor.row(head / self.num_heads, head % self.num_heads, token, &mut row[..self.head_dim]);
    }

    /// Strided-lane sum of some tokens (see [`sage_spec::reduce`]).
    #[inline(always)]
    fn lane_sum(&self, head: usize, tokens: Range<usize>) -> Row<WIDTH> {
        let mut lanes = [[0.0; WIDTH]; TOKEN_LANES];
        let mut row = [0.0; WIDTH];
        for (index, token) in tokens.enumerate() {
            self.row(head, token, &mut row);
            add(&mut lanes[index % TOKEN_LANES], &row);
        }
        pairwise(&mut lanes)
    }

    /// `[depth]`: mean over all tokens of a head, of which there are some.
    fn token_mean(&self, head: usize, mean: &mut [f32]) {
        let sums: Vec<Row<WIDTH>> = (0..self.seqlen.div_ceil(REDUCE_CHUNK))
            .into_par_iter()
            .map(|chunk| {
                let tokens = self.tokens(chunk, REDUCE_CHUNK);
                self.path.run(Run(
                    #[inline(always)]
                    || self.lane_sum(head, tokens.clone()),
                ))
            })
            .collect();
        let mut lanes = [[0.0; WIDTH]; CHUNK_LANES];
        for (index, sum) in sums.iter().enumerate() {
            add(&mut lanes[index % CHUNK_LANES], sum);
        }
        mean.iter_mut().zip(pairwise(&mut lanes)).for_each(|(mean, sum)| *mean = token_mean(sum, self.seqlen as u32));
    }

    /// Room for codes `[heads, blocks * size, depth]` and scales `[heads, blocks, scales_per_block]` of Q or K.
    fn room(&self, precision: Precision, heads: usize, blocks: Blocks) -> (Vec<u8>, Vec<f32>) {
        let [size, blocks, scales_per_block] = blocks;
        let bytes = precision.bytes(self.depth);
        (vec![0; heads * blocks * size * bytes], vec![0.0; heads * blocks * scales_per_block])
    }

    /// The heads of such room.
    fn heads<'r>(
        &self,
        precision: Precision,
        [size, blocks, scales_per_block]: Blocks,
        codes: &'r mut [u8],
        scales: &'r mut [f32],
    ) -> impl IndexedParallelIterator<Item = (&'r mut [u8], &'r mut [f32])> {
        let codes = codes.par_chunks_mut((blocks * size * precision.bytes(self.depth)).max(1));
        codes.zip(scales.par_chunks_mut((blocks * scales_per_block).max(1)))
    }

    /// Codes and scales of a head of Q or K.
    ///
    /// `group` maps a row of a block to its scale; `smoothing` gives a block's mean and the least scale.
    fn codes<'m>(
        &self,
        precision: Precision,
        head: usize,
        [size, _, scales_per_block]: Blocks,
        group: impl Fn(usize) -> usize + Sync,
        smoothing: impl Fn(usize) -> Option<(&'m [f32], f32)> + Sync,
        (codes, scales): (&mut [u8], &mut [f32]),
    ) {
        let bytes = precision.bytes(self.depth);
        let parts = codes.par_chunks_exact_mut(size * bytes).zip(scales.par_chunks_exact_mut(scales_per_block));
        parts.enumerate().for_each_init(
            || vec![[0.0; WIDTH]; size],
            |rows, (block, (codes, scales))| {
                let (source, tokens, smoothing) = (self, self.tokens(block, size), smoothing(block));
                self.path.run(Block { source, precision, head, tokens, group: &group, smoothing, rows, codes, scales });
            },
        );
    }
}

/// A block of Q or K and its scales.
struct Block<'a, G, const WIDTH: usize> {
    source: &'a Source<'a, WIDTH>,
    precision: Precision,
    head: usize,
    tokens: Range<usize>,
    /// Scale of a row.
    group: &'a G,
    /// Mean, and the least scale.
    smoothing: Option<(&'a [f32], f32)>,
    /// Room for the block.
    rows: &'a mut [Row<WIDTH>],
    codes: &'a mut [u8],
    scales: &'a mut [f32],
}

impl<G: Fn(usize) -> usize, const WIDTH: usize> Task for Block<'_, G, WIDTH> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, _: I) {
        let Block { source, precision, head, tokens, group, smoothing, rows, codes, scales } = self;
        let count = tokens.len();
        let mut largest = [[0; 16]; BLOCK_Q];
        for (index, (row, token)) in rows.iter_mut().zip(tokens).enumerate() {
            source.row(head, token, row);
            if let Some((mean, _)) = smoothing {
                subtract(row, mean);
            }
            add_magnitudes(&mut largest[group(index)], row);
        }
        let floor = smoothing.map_or(0.0, |(_, floor)| floor);
        for (scale, largest) in scales.iter_mut().zip(&largest) {
            *scale = max_or_nan(qk_scale(magnitude(largest), precision.max_code()), floor);
        }
        let lines = codes.chunks_exact_mut(precision.bytes(source.depth));
        for (index, (row, codes)) in rows[..count].iter().zip(lines).enumerate() {
            let mut int8 = [0; WIDTH];
            int_codes::<I>(row, 1.0 / scales[group(index)], precision.max_code(), &mut int8);
            match precision {
                Precision::Int8 => codes.copy_from_slice(&int8[..codes.len()]),
                Precision::Int4 => {
                    for (code, pair) in codes.iter_mut().zip(int8.as_chunks::<2>().0) {
                        *code = pack_int4(pair[0] as i8, pair[1] as i8);
                    }
                }
            }
        }
    }
}

/// Products of rows of Q with the mean of K.
struct Dots<'a, const WIDTH: usize> {
    source: &'a Source<'a, WIDTH>,
    head: usize,
    tokens: Range<usize>,
    mean: &'a [f32],
    /// A number for each token.
    dots: &'a mut [f32],
}

impl<const WIDTH: usize> Task for Dots<'_, WIDTH> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Dots { source, head, mut tokens, mean, dots } = self;
        let mut rows = [[0.0; WIDTH]; MOST_LANES];
        let mut panels = [I::Panel::zeroed(); WIDTH];
        for dots in dots.chunks_mut(I::PANEL) {
            // A lane for each token.
            let count = tokens.len().min(I::PANEL);
            for (row, token) in rows[..count].iter_mut().zip(&mut tokens) {
                source.row(head, token, row);
            }
            let mut slices = [&[][..]; MOST_LANES];
            for (slice, row) in slices[..count].iter_mut().zip(&rows) {
                *slice = bytemuck::cast_slice(&row[..mean.len()]);
            }
            isa.transpose(&slices[..count], &mut panels[..mean.len()]);
            // In the order of `feature_l1`.
            let mut sums = [[isa.splat(0.0); 2]; WIDE_HEAD_DIM / FEATURES_PER_THREAD];
            let threads = mean.as_chunks::<FEATURES_PER_THREAD>().0.iter();
            for (sum, (panels, mean)) in
                sums.iter_mut().zip(panels.as_chunks::<FEATURES_PER_THREAD>().0.iter().zip(threads))
            {
                for (panel, &x) in panels.iter().zip(mean) {
                    let (panel, x) = (isa.load(panel), isa.splat(x));
                    for half in 0..2 {
                        sum[half] = isa.add(sum[half], isa.mul(isa.as_f(panel[half]), x));
                    }
                }
            }
            let mut distance = mean.len() / FEATURES_PER_THREAD / 2;
            while distance > 0 {
                for thread in 0..distance {
                    for half in 0..2 {
                        sums[thread][half] = isa.add(sums[thread][half], sums[thread + distance][half]);
                    }
                }
                distance /= 2;
            }
            let mut panel = I::Panel::zeroed();
            isa.store(&mut panel, [isa.as_i(sums[0][0]), isa.as_i(sums[0][1])]);
            dots[..count].copy_from_slice(&bytemuck::cast_slice(&[panel])[..count]);
        }
    }
}

/// [`int_code`] of a row; the rest of `codes` stays.
#[inline(always)]
pub fn int_codes<I: Isa>(row: &[f32], inverse_scale: f32, max_code: f32, codes: &mut [u8]) {
    for (&x, code) in row.iter().zip(codes) {
        *code = match I::FUSED {
            true => int_code_fused(x, inverse_scale, max_code),
            false => int_code(x, inverse_scale, max_code),
        };
    }
}

/// [`reference::convert::int_code`] in two's complement, rounded by adding 1.5 · 2⁵²: no library call.
#[inline(always)]
fn int_code(x: f32, inverse_scale: f32, max_code: f32) -> u8 {
    const ROUND: f64 = 6_755_399_441_055_744.0;
    let (x, max_code) = (f64::from(x) * f64::from(inverse_scale), f64::from(max_code));
    let x = if x > max_code { max_code } else { x };
    let x = if x < -max_code { -max_code } else { x };
    if x.is_nan() { 0 } else { (x + ROUND).to_bits() as u8 }
}

/// [`int_code`] where the CPU has a fused multiply-add: at 1.5 · 2²³ the spacing of f32 is 1, so that rounding the
/// exact sum once rounds the exact product to an integer.
#[inline(always)]
fn int_code_fused(x: f32, inverse_scale: f32, max_code: f32) -> u8 {
    const ROUND: f32 = 12_582_912.0;
    let x = x.mul_add(inverse_scale, ROUND);
    let x = if x > ROUND + max_code { ROUND + max_code } else { x };
    let x = if x < ROUND - max_code { ROUND - max_code } else { x };
    if x.is_nan() { 0 } else { x.to_bits() as u8 }
}

/// Takes the mean off a row; what is beyond the mean stays.
#[inline(always)]
pub fn subtract(row: &mut [f32], mean: &[f32]) {
    for (x, mean) in row.iter_mut().zip(mean) {
        *x -= mean;
    }
}

#[inline(always)]
pub(super) fn add<const WIDTH: usize>(sum: &mut Row<WIDTH>, row: &Row<WIDTH>) {
    for d in 0..WIDTH {
        sum[d] += row[d];
    }
}

/// Adds the lanes pairwise.
#[inline(always)]
pub(super) fn pairwise<const WIDTH: usize>(lanes: &mut [Row<WIDTH>]) -> Row<WIDTH> {
    let mut half = lanes.len() / 2;
    while half > 0 {
        let (low, high) = lanes.split_at_mut(half);
        for i in 0..half {
            add(&mut low[i], &high[i]);
        }
        half /= 2;
    }
    lanes[0]
}

/// Sum of the magnitudes of a mean, in the order of [`sage_spec::reduce`]: eight in order, then a butterfly.
pub fn feature_l1(mean: &[f32]) -> f32 {
    let mut sums = [0.0f32; WIDE_HEAD_DIM / FEATURES_PER_THREAD];
    for (sum, thread) in sums.iter_mut().zip(mean.as_chunks::<FEATURES_PER_THREAD>().0) {
        thread.iter().for_each(|x| *sum += x.abs());
    }
    let mut distance = mean.len() / FEATURES_PER_THREAD / 2;
    while distance > 0 {
        for thread in 0..distance {
            sums[thread] += sums[thread + distance];
        }
        distance /= 2;
    }
    sums[0]
}

/// Largest bits of the magnitudes of a row, lane by lane: ordered like the numbers, and NaN is the largest.
#[inline(always)]
pub fn add_magnitudes(largest: &mut [u32; 16], row: &[f32]) {
    let mut all = *largest;
    for chunk in row.as_chunks::<16>().0 {
        for lane in 0..16 {
            all[lane] = all[lane].max(chunk[lane].abs().to_bits());
        }
    }
    *largest = all;
}

/// The largest magnitude of what [`add_magnitudes`] saw; NaN if there was one.
#[inline(always)]
pub fn magnitude(largest: &[u32; 16]) -> f32 {
    let mut all = 0;
    for &lane in largest {
        all = all.max(lane);
    }
    f32::from_bits(all)
}

/// The larger of two numbers; NaN if either is.
#[inline(always)]
pub fn max_or_nan(a: f32, b: f32) -> f32 {
    if a > b || a.is_nan() { a } else { b }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference::convert;

    #[test]
    fn codes_are_those_of_the_reference() {
        for bits in (0..=u32::MAX).step_by(1021) {
            let x = f32::from_bits(bits);
            for (inverse_scale, max_code) in [(1.0, 127.0), (0.01, 127.0), (12.0, 7.0)] {
                let expected = convert::int_code(x, inverse_scale, max_code);
                assert_eq!(int_code(x, inverse_scale, max_code) as i8, expected, "{x:e}");
                assert_eq!(int_code_fused(x, inverse_scale, max_code) as i8, expected, "{x:e}");
            }
        }
    }
}
