//! Attention of a few queries over the quantized cache, with the splits and the order of the kernel.

use rayon::prelude::*;
use sage_spec::Precision;
use sage_spec::cache::{CacheShape, GROUP_TOKENS, PAGE_TOKENS};
use sage_spec::decode::{EMPTY_MAX, P_LIMIT_LOG2, P_MAX_LOG2, WARPS, warp_groups};
use sage_spec::quant::{LOG2_E, qk_scale};

use super::convert::{E4M3, f16_from_f32, int_code, unpack_int4};
use super::options::Output;
use super::tensor::HostTensor;

/// A cache in host memory.
///
/// Example: [`KvCache`](crate::KvCache).
#[derive(Clone, Copy, Debug)]
pub struct HostCache<'a> {
    /// Its extents.
    pub shape: CacheShape,
    /// Pages of all heads.
    pub pages: &'a [u8],
    /// Page of each 64 tokens, `[B, pages_per_sequence]`; without it a sequence's pages follow each other.
    pub block_table: Option<&'a [u32]>,
    /// What has been subtracted from K, `[B, Hkv, D]`.
    pub k_mean: Option<&'a [f32]>,
}

/// How to attend.
///
/// Example: [`KvCache`](crate::KvCache).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DecodeOptions {
    /// Query heads.
    pub num_heads_q: usize,
    /// Query tokens.
    pub seqlen_q: usize,
    /// Factor of the scores.
    pub sm_scale: f32,
    /// Whether a row sees keys up to the bottom-right diagonal only.
    pub causal: bool,
    /// Pages whose keys are summed together.
    pub split_pages: usize,
}

/// Running sums of a row over a part of the keys.
#[derive(Clone)]
struct Part {
    max: f32,
    sum: f32,
    out: Vec<f32>,
}

impl Part {
    fn empty(head_dim: usize) -> Part {
        Part { max: EMPTY_MAX, sum: 0.0, out: vec![0.0; head_dim] }
    }

    /// Parts of the same row as one.
    fn combined(parts: &[Part], head_dim: usize) -> Part {
        let mut all = Part::empty(head_dim);
        all.max = parts.iter().fold(all.max, |max, part| max.max(part.max));
        for part in parts {
            let weight = (part.max - all.max).exp2();
            all.sum = part.sum.mul_add(weight, all.sum);
            all.out.iter_mut().zip(&part.out).for_each(|(all, x)| *all = x.mul_add(weight, *all));
        }
        all
    }
}

/// Tokens of the cache that a warp adds at a time, unpacked.
struct Tokens {
    k: Vec<i8>,
    v: Vec<f32>,
    scales: Vec<[f32; 2]>,
}

/// A quantized query row.
struct Row {
    codes: Vec<i8>,
    scale_log2: f32,
    mean_score: f32,
    visible: usize,
}

/// The attention of `q`, `[B, Hq, M, D]`, over the first `lengths[b]` tokens of sequence `b`.
///
/// Example: [`KvCache`](crate::KvCache).
pub fn decode(cache: &HostCache<'_>, q: &HostTensor<'_>, lengths: &[usize], options: &DecodeOptions) -> Output {
    let (heads_kv, head_dim) = (cache.shape.num_heads_kv, cache.shape.layout.head_dim);
    let rows = options.num_heads_q / heads_kv * options.seqlen_q;
    let count = cache.shape.batch * heads_kv * rows;
    let (mut out, mut lse) = (vec![0.0f32; count * head_dim], vec![0.0f32; count]);
    // A key/value head's query heads are neighbours, and so is its part of the output.
    let per_head = out.par_chunks_mut((rows * head_dim).max(1)).zip(lse.par_chunks_mut(rows.max(1)));
    per_head.enumerate().for_each(|(index, (out, lse))| {
        head(cache, q, lengths, options, (index / heads_kv, index % heads_kv), out, lse);
    });
    Output { out, lse }
}

/// One key/value head of a sequence.
fn head(
    cache: &HostCache<'_>,
    q: &HostTensor<'_>,
    lengths: &[usize],
    options: &DecodeOptions,
    (batch, head): (usize, usize),
    out: &mut [f32],
    lse: &mut [f32],
) {
    let (head_dim, length) = (cache.shape.layout.head_dim, lengths[batch]);
    let rows = quantize(cache, q, length, options, (batch, head));
    let pages = length.div_ceil(PAGE_TOKENS);
    let mut splits: Vec<Vec<Part>> = vec![Vec::new(); rows.len()];
    for first in (0..pages).step_by(options.split_pages.max(1)) {
        let mut warps = vec![vec![Part::empty(head_dim); WARPS]; rows.len()];
        let (first, end) = (first * PAGE_TOKENS, (first + options.split_pages) * PAGE_TOKENS);
        let at_once = warp_groups(&cache.shape.layout) * GROUP_TOKENS;
        for (index, token) in (first..end.min(length)).step_by(at_once).enumerate() {
            let tokens = unpack(cache, (batch, head), token, (length - token).min(at_once));
            for (row, parts) in rows.iter().zip(&mut warps) {
                add(row, &tokens, token, &mut parts[index % WARPS]);
            }
        }
        for (splits, warps) in splits.iter_mut().zip(&warps) {
            splits.push(Part::combined(warps, head_dim));
        }
    }
    for (index, ((row, splits), (out, lse))) in
        rows.iter().zip(&splits).zip(out.chunks_mut(head_dim).zip(lse)).enumerate()
    {
        debug_assert!(index < rows.len());
        let part = if let [one] = &splits[..] { one.clone() } else { Part::combined(splits, head_dim) };
        let inverse = if part.sum == 0.0 { 0.0 } else { 1.0 / part.sum };
        out.iter_mut().zip(&part.out).for_each(|(out, x)| *out = x * inverse);
        *lse = match part.sum {
            0.0 => f32::NEG_INFINITY,
            sum => (part.max + sum.log2()).mul_add(std::f32::consts::LN_2, row.mean_score),
        };
    }
}

/// The rows of a key/value head, query head by query head.
fn quantize(
    cache: &HostCache<'_>,
    q: &HostTensor<'_>,
    length: usize,
    options: &DecodeOptions,
    (batch, head): (usize, usize),
) -> Vec<Row> {
    let head_dim = cache.shape.layout.head_dim;
    let group = options.num_heads_q / cache.shape.num_heads_kv;
    let mean = cache.k_mean.map(|mean| &mean[(batch * cache.shape.num_heads_kv + head) * head_dim..][..head_dim]);
    let mut x = vec![0.0f32; head_dim];
    let mut rows = Vec::with_capacity(group * options.seqlen_q);
    for index in 0..group * options.seqlen_q {
        let (head_q, token) = (head * group + index / options.seqlen_q, index % options.seqlen_q);
        q.row(batch, head_q, token, &mut x);
        let amax = x.iter().fold(0.0f32, |max, x| if max.is_nan() || x.abs() <= max { max } else { x.abs() });
        let scale = qk_scale(amax, Precision::Int8.max_code());
        let hidden = if options.causal { options.seqlen_q - 1 - token } else { 0 };
        let dot = |mean: &[f32]| x.iter().zip(mean).fold(0.0f32, |sum, (x, mean)| x.mul_add(*mean, sum));
        rows.push(Row {
            codes: x.iter().map(|&x| int_code(x, 1.0 / scale, Precision::Int8.max_code())).collect(),
            scale_log2: scale * (options.sm_scale * LOG2_E),
            mean_score: mean.map_or(0.0, |mean| dot(mean) * options.sm_scale),
            visible: length.saturating_sub(hidden),
        });
    }
    rows
}

/// The `count` tokens from token `first` on, of one page.
fn unpack(cache: &HostCache<'_>, (batch, head): (usize, usize), first: usize, count: usize) -> Tokens {
    let (shape, layout) = (&cache.shape, cache.shape.layout);
    let id = shape.page_id(cache.block_table, batch, first / PAGE_TOKENS);
    let page = &cache.pages[shape.page_offset(id, head)..][..layout.page_bytes()];
    let mut tokens = Tokens { k: Vec::new(), v: Vec::new(), scales: Vec::new() };
    for token in first..first + count {
        let word = layout.scale_byte(token);
        let word = u32::from_le_bytes([page[word], page[word + 1], page[word + 2], page[word + 3]]);
        tokens.scales.push([f32::from_bits(word << 16), f32::from_bits(word & 0xffff_0000)]);
        for d in 0..layout.head_dim {
            let code = page[layout.k_byte(token, d)];
            tokens.k.push(match layout.precision {
                Precision::Int8 => code as i8,
                Precision::Int4 => <[i8; 2]>::from(unpack_int4(code))[d % 2],
            });
            tokens.v.push(E4M3[usize::from(page[layout.v_byte(token, d)])]);
        }
    }
    tokens
}

/// Adds tokens to a row's sums.
fn add(row: &Row, tokens: &Tokens, first: usize, part: &mut Part) {
    let head_dim = row.codes.len();
    let mut u = vec![f32::NEG_INFINITY; tokens.scales.len()];
    for (n, u) in u.iter_mut().enumerate().filter(|(n, _)| first + n < row.visible) {
        let keys = &tokens.k[n * head_dim..][..head_dim];
        let score: i32 = row.codes.iter().zip(keys).map(|(&q, &k)| i32::from(q) * i32::from(k)).sum();
        let [k_scale, inverse] = tokens.scales[n];
        // V's scale is 2^exponent: a power of two has no mantissa, and NaN stays NaN.
        let exponent = 127.0 - (inverse.to_bits() >> 23) as f32;
        *u = (score as f32 * k_scale).mul_add(row.scale_log2, exponent);
    }
    let largest = u.iter().fold(f32::NEG_INFINITY, |max, &u| max.max(u));
    if largest - part.max > P_LIMIT_LOG2 {
        let max = largest - P_MAX_LOG2;
        let alpha = (part.max - max).exp2();
        part.max = max;
        part.sum *= alpha;
        part.out.iter_mut().for_each(|x| *x *= alpha);
    }
    for (n, u) in u.iter().enumerate() {
        let p = (u - part.max).exp2();
        part.sum = p.mul_add(tokens.scales[n][1], part.sum);
        let p = f16_from_f32(p).to_f32();
        let values = &tokens.v[n * head_dim..][..head_dim];
        part.out.iter_mut().zip(values).for_each(|(x, v)| *x = p.mul_add(*v, *x));
    }
}
