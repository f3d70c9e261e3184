//! The reference's quantizers, vectorized: bit for bit the same codes, scales and means.

#![allow(clippy::needless_range_loop)] // fixed bounds vectorize

use std::ops::Range;

use rayon::prelude::*;
use sage_spec::layout::v_slot;
use sage_spec::quant::{qk_scale, smooth_q_scale_floor, v_scale_fp8};
use sage_spec::reduce::{CHUNK_LANES, FEATURES_PER_THREAD, TOKEN_LANES};
use sage_spec::tiling::{BLOCK_KV, BLOCK_Q, REDUCE_CHUNK, WIDE_HEAD_DIM};
use sage_spec::{Dims, Precision, PvFormat};

use super::isa::{Isa, Task};
use super::select::Path;
use crate::reference::convert::{pack_int4, round_e4m3};
use crate::reference::{self, HostTensor, Options, Quantized};

/// One f32 per feature, zero beyond the head dimension; `WIDTH` is 128, or more for wide heads only.
type Row<const WIDTH: usize> = [f32; WIDTH];

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

    let k_mean = options.smooth_k.then(|| k.token_means(heads_kv));
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
            path.run(Run(
                #[inline(always)]
                || {
                    let mut row = [0.0; WIDTH];
                    for (dot, token) in dots.iter_mut().zip(q.tokens(block, BLOCK_Q)) {
                        q.row(head, token, &mut row);
                        *dot = feature_dot(&row[..depth], mean);
                    }
                },
            ));
        });
    }
    let (q_codes, q_scale) = q.codes(
        precision,
        [BLOCK_Q, dims.num_query_blocks(), if with_q_codes { dims.batch * dims.num_heads_q } else { 0 }],
        granularity.q_scales_per_block(),
        |row| granularity.q_group(row),
        |block| {
            let mean = &q_mean.as_ref()?[block * depth..(block + 1) * depth];
            Some((mean, smooth_q_scale_floor(feature_l1(mean), precision)))
        },
    );
    let (k_codes, k_scale) = k.codes(
        precision,
        [BLOCK_KV, dims.num_kv_blocks_padded(), heads_kv],
        granularity.k_scales_per_block(),
        |key| granularity.k_group(key),
        |block| {
            let head = block / dims.num_kv_blocks_padded();
            Some((&k_mean.as_ref()?[head * depth..(head + 1) * depth], 0.0))
        },
    );
    let v_mean = options.smooth_v.then(|| v.token_means(heads_kv));
    let v_scale = v.scales_fp8(heads_kv, v_mean.as_deref());
    let v_codes = v.codes_fp8(heads_kv, dims.seqlen_kv_padded(), v_mean.as_deref(), &v_scale);
    Quantized { q_codes, q_scale, q_mean, k_codes, k_scale, k_mean, qk_mean, v_codes, v_scale, v_mean }
}

/// Plain code, compiled for an instruction set.
struct Run<F>(F);

impl<R, F: FnMut() -> R> Task for Run<F> {
    type Output = R;

    #[inline(always)]
    fn run<I: Isa>(mut self, _: I) -> R {
        (self.0)()
    }
}

/// A tensor seen as flattened heads of tokens.
struct Source<'a, const WIDTH: usize> {
    path: Path,
    tensor: &'a HostTensor<'a>,
    num_heads: usize,
    seqlen: usize,
    head_dim: usize,
    /// `head_dim_padded`.
    depth: usize,
}

impl<const WIDTH: usize> Source<'_, WIDTH> {
    /// The tokens that exist of block `block` of a head, in blocks of `size`.
    fn tokens(&self, block: usize, size: usize) -> Range<usize> {
        let end = self.seqlen.min((block + 1) * size);
        (block * size).min(end)..end
    }

    /// Writes the first features of `row`.
    #[inline(always)]
    fn row(&self, head: usize, token: usize, row: &mut Row<WIDTH>) {
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

    /// `[heads, depth]`: means over all tokens, 0 if there are none.
    fn token_means(&self, heads: usize) -> Vec<f32> {
        let chunks = self.seqlen.div_ceil(REDUCE_CHUNK);
        let mut means = vec![0.0; heads * self.depth];
        if chunks == 0 {
            return means;
        }
        let sums: Vec<Row<WIDTH>> = (0..heads * chunks)
            .into_par_iter()
            .map(|i| {
                let tokens = self.tokens(i % chunks, REDUCE_CHUNK);
                self.path.run(Run(
                    #[inline(always)]
                    || self.lane_sum(i / chunks, tokens.clone()),
                ))
            })
            .collect();
        for (mean, sums) in means.chunks_exact_mut(self.depth).zip(sums.chunks_exact(chunks)) {
            let mut lanes = [[0.0; WIDTH]; CHUNK_LANES];
            for (index, sum) in sums.iter().enumerate() {
                add(&mut lanes[index % CHUNK_LANES], sum);
            }
            mean.iter_mut().zip(pairwise(&mut lanes)).for_each(|(mean, sum)| *mean = sum / self.seqlen as f32);
        }
        means
    }

    /// Codes `[heads, blocks * size, depth]` and scales `[heads, blocks, scales]` of Q or K.
    ///
    /// `group` maps a row of a block to its scale; `smoothing` gives a block's mean and the least scale.
    fn codes<'m>(
        &self,
        precision: Precision,
        [size, blocks, heads]: [usize; 3],
        scales_per_block: usize,
        group: impl Fn(usize) -> usize + Sync,
        smoothing: impl Fn(usize) -> Option<(&'m [f32], f32)> + Sync,
    ) -> (Vec<u8>, Vec<f32>) {
        let bytes = precision.bytes(self.depth);
        let mut codes = vec![0; heads * blocks * size * bytes];
        let mut scales = vec![0.0; heads * blocks * scales_per_block];
        let parts = codes.par_chunks_exact_mut(size * bytes).zip(scales.par_chunks_exact_mut(scales_per_block));
        parts.enumerate().for_each_init(
            || vec![[0.0; WIDTH]; size],
            |rows, (block, (codes, scales))| {
                let (head, tokens) = (block / blocks, self.tokens(block % blocks, size));
                let smoothing = smoothing(block);
                self.path.run(Run(
                    #[inline(always)]
                    || self.block(precision, head, tokens.clone(), &group, smoothing, rows, codes, scales),
                ));
            },
        );
        (codes, scales)
    }

    #[inline(always)]
    #[allow(clippy::too_many_arguments)]
    fn block(
        &self,
        precision: Precision,
        head: usize,
        tokens: Range<usize>,
        group: &impl Fn(usize) -> usize,
        smoothing: Option<(&[f32], f32)>,
        rows: &mut [Row<WIDTH>],
        codes: &mut [u8],
        scales: &mut [f32],
    ) {
        let count = tokens.len();
        for (index, (row, token)) in rows.iter_mut().zip(tokens).enumerate() {
            self.row(head, token, row);
            if let Some((mean, _)) = smoothing {
                for d in 0..mean.len() {
                    row[d] -= mean[d];
                }
            }
            let amax = &mut scales[group(index)];
            *amax = max_or_nan(*amax, row_amax(row));
        }
        let floor = smoothing.map_or(0.0, |(_, floor)| floor);
        for scale in scales.iter_mut() {
            *scale = max_or_nan(qk_scale(*scale, precision.max_code()), floor);
        }
        let lines = codes.chunks_exact_mut(precision.bytes(self.depth));
        for (index, (row, codes)) in rows[..count].iter().zip(lines).enumerate() {
            let inverse_scale = 1.0 / scales[group(index)];
            let max_code = precision.max_code();
            match precision {
                Precision::Int8 => {
                    for (d, code) in codes.iter_mut().enumerate() {
                        *code = int_code(row[d], inverse_scale, max_code);
                    }
                }
                Precision::Int4 => {
                    for (d, code) in codes.iter_mut().enumerate() {
                        let even = int_code(row[2 * d], inverse_scale, max_code);
                        let odd = int_code(row[2 * d + 1], inverse_scale, max_code);
                        *code = pack_int4(even as i8, odd as i8);
                    }
                }
            }
        }
    }

    /// `[heads, depth]`: scales of the channels of V in FP8.
    fn scales_fp8(&self, heads: usize, v_mean: Option<&[f32]>) -> Vec<f32> {
        let chunks = self.seqlen.div_ceil(REDUCE_CHUNK);
        let extrema: Vec<(Row<WIDTH>, Row<WIDTH>)> = (0..heads * chunks)
            .into_par_iter()
            .map(|i| {
                let (head, tokens) = (i / chunks, self.tokens(i % chunks, REDUCE_CHUNK));
                self.path.run(Run(
                    #[inline(always)]
                    || {
                        let (mut max, mut min) = ([f32::NEG_INFINITY; WIDTH], [f32::INFINITY; WIDTH]);
                        let mut row = [0.0; WIDTH];
                        for token in tokens.clone() {
                            self.row(head, token, &mut row);
                            for d in 0..WIDTH {
                                max[d] = max_or_nan(max[d], row[d]);
                                min[d] = -max_or_nan(-min[d], -row[d]);
                            }
                        }
                        (max, min)
                    },
                ))
            })
            .collect();
        let mut scales = vec![0.0; heads * self.depth];
        for (head, scales) in scales.chunks_exact_mut(self.depth).enumerate() {
            for (channel, scale) in scales.iter_mut().enumerate() {
                let extrema = &extrema[head * chunks..(head + 1) * chunks];
                let start = if chunks == 0 { (0.0, 0.0) } else { (f32::NEG_INFINITY, f32::INFINITY) };
                let (max, min) = extrema.iter().fold(start, |(max, min), (chunk_max, chunk_min)| {
                    (max_or_nan(max, chunk_max[channel]), -max_or_nan(-min, -chunk_min[channel]))
                });
                let mean = v_mean.map_or(0.0, |mean| mean[head * self.depth + channel]);
                *scale = v_scale_fp8(max_or_nan(max - mean, mean - min));
            }
        }
        scales
    }

    /// `[heads, depth, padded]` in E4M3, tokens in the order of [`v_slot`].
    fn codes_fp8(&self, heads: usize, padded: usize, v_mean: Option<&[f32]>, v_scale: &[f32]) -> Vec<u8> {
        /// Channels one task transposes together.
        const CHANNELS: usize = 32;
        let mut codes = vec![0; heads * self.depth * padded];
        let groups = self.depth / CHANNELS;
        codes.par_chunks_mut((CHANNELS * padded).max(1)).enumerate().for_each(|(group, codes)| {
            let (head, first) = (group / groups, group % groups * CHANNELS);
            let begin = head * self.depth + first;
            let mean: [f32; CHANNELS] = std::array::from_fn(|c| v_mean.map_or(0.0, |mean| mean[begin + c]));
            let inverse: [f32; CHANNELS] = std::array::from_fn(|c| 1.0 / v_scale[begin + c]);
            self.path.run(Run(
                #[inline(always)]
                || self.channels_fp8(head, first, padded, v_mean.is_some(), &mean, &inverse, codes),
            ));
        });
        codes
    }

    #[inline(always)]
    #[allow(clippy::too_many_arguments)]
    fn channels_fp8<const CHANNELS: usize>(
        &self,
        head: usize,
        first: usize,
        padded: usize,
        centre: bool,
        mean: &[f32; CHANNELS],
        inverse: &[f32; CHANNELS],
        codes: &mut [u8],
    ) {
        let real = self.head_dim.saturating_sub(first).min(CHANNELS);
        let mut row = [0.0; WIDTH];
        for begin in (0..self.seqlen).step_by(16) {
            let mut group = [[0u8; CHANNELS]; 16];
            for token in begin..self.seqlen.min(begin + 16) {
                self.row(head, token, &mut row);
                let line = &mut group[v_slot(token) % 16];
                for c in 0..CHANNELS {
                    let x = row[(first + c) % WIDTH];
                    let x = if centre { x - mean[c] } else { x };
                    line[c] = e4m3_code(x * inverse[c]);
                }
            }
            for c in 0..real {
                let to = &mut codes[c * padded + begin..][..16];
                for slot in 0..16 {
                    to[slot] = group[slot][c];
                }
            }
        }
    }
}

/// [`reference::convert::int_code`] in two's complement, rounded by adding 1.5 · 2⁵²: no library call.
#[inline(always)]
pub fn int_code(x: f32, inverse_scale: f32, max_code: f32) -> u8 {
    const ROUND: f64 = 6_755_399_441_055_744.0;
    let (x, max_code) = (f64::from(x) * f64::from(inverse_scale), f64::from(max_code));
    let x = if x > max_code { max_code } else { x };
    let x = if x < -max_code { -max_code } else { x };
    if x.is_nan() { 0 } else { (x + ROUND).to_bits() as u8 }
}

/// [`reference::convert::e4m3_from_f32`] without branches.
#[inline(always)]
fn e4m3_code(x: f32) -> u8 {
    const REBIAS: f32 = f32::from_bits((127 - 120) << 23);
    // As in the unpacking: 2⁻¹²⁰ puts exponent and mantissa where the code has them, 20 bits further up.
    let magnitude = ((round_e4m3(x.abs()) * REBIAS).to_bits() >> 20) as u8;
    let sign = (x.to_bits() >> 24) as u8 & 0x80;
    if x.is_nan() { 0x7f } else { sign | magnitude }
}

#[inline(always)]
fn add<const WIDTH: usize>(sum: &mut Row<WIDTH>, row: &Row<WIDTH>) {
    for d in 0..WIDTH {
        sum[d] += row[d];
    }
}

/// Adds the lanes pairwise.
#[inline(always)]
fn pairwise<const WIDTH: usize>(lanes: &mut [Row<WIDTH>]) -> Row<WIDTH> {
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

/// Sum over `depth` features of what `term` gives, in the order of [`sage_spec::reduce`]: eight in order, then
/// a butterfly.
#[inline(always)]
fn feature_sum(depth: usize, term: impl Fn(usize) -> f32) -> f32 {
    let threads = depth / FEATURES_PER_THREAD;
    let mut parts = [0.0f32; WIDE_HEAD_DIM / FEATURES_PER_THREAD];
    for feature in 0..FEATURES_PER_THREAD {
        for thread in 0..threads {
            parts[thread] += term(thread * FEATURES_PER_THREAD + feature);
        }
    }
    let mut distance = threads / 2;
    while distance > 0 {
        parts = std::array::from_fn(|thread| parts[thread] + parts[thread ^ distance]);
        distance /= 2;
    }
    parts[0]
}

#[inline(always)]
fn feature_dot(a: &[f32], b: &[f32]) -> f32 {
    feature_sum(a.len(), |d| a[d] * b[d])
}

pub fn feature_l1(mean: &[f32]) -> f32 {
    feature_sum(mean.len(), |d| mean[d].abs())
}

/// Largest magnitude of a row; NaN if there is one.
#[inline(always)]
fn row_amax<const WIDTH: usize>(row: &Row<WIDTH>) -> f32 {
    let mut lanes = [0.0f32; 16];
    for chunk in row.as_chunks::<16>().0 {
        for lane in 0..16 {
            lanes[lane] = max_or_nan(lanes[lane], chunk[lane].abs());
        }
    }
    lanes.into_iter().fold(0.0, max_or_nan)
}

/// The larger of two numbers; NaN if either is.
#[inline(always)]
pub fn max_or_nan(a: f32, b: f32) -> f32 {
    if a > b || a.is_nan() { a } else { b }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference::convert::{self, e4m3_from_f32};

    #[test]
    fn codes_are_those_of_the_reference() {
        for bits in (0..=u32::MAX).step_by(1021) {
            let x = f32::from_bits(bits);
            assert_eq!(e4m3_code(x), e4m3_from_f32(x), "{x:e}");
            for (inverse_scale, max_code) in [(1.0, 127.0), (0.01, 127.0), (12.0, 7.0)] {
                let expected = convert::int_code(x, inverse_scale, max_code);
                assert_eq!(int_code(x, inverse_scale, max_code) as i8, expected, "{x:e}");
            }
        }
    }
}
