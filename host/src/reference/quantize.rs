//! Quantizing Q, K and V into the buffers the kernels read (arXiv 2411.10958, sections 3.1 to 3.4).

use rayon::prelude::*;
use sage_spec::limits::MAX_HEAD_DIM;
use sage_spec::quant::{qk_scale, smooth_q_scale_floor};
use sage_spec::reduce::{CHUNK_LANES, TOKEN_LANES, token_mean};
use sage_spec::tiling::{BLOCK_KV, BLOCK_Q, KV_PAD, REDUCE_CHUNK};
use sage_spec::{CodeStorage, Dims, Precision, PvFormat};

use super::convert::{int_code, pack_int4, unpack_int4};
use super::quantize_v::{quantize_v_f16, quantize_v_fp8, v_offsets, v_scales};
use super::reduce::{LaneSum, Row, feature_sum, max_or_nan};
use super::{HostTensor, Options};

/// Quantized operands, byte for byte as the kernels lay them out (see [`sage_spec::params`]).
///
/// B = batch, Hq/Hkv = heads, M/N = seqlen_q/seqlen_kv, D = head_dim; Mp/Np/Dp = padded.
///
/// Example: [`quantize`](crate::reference::quantize()).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Quantized {
    /// `[B, Hq, Mp, Dp]`, INT4 two to a byte; padding is zero.
    pub q_codes: Vec<u8>,
    /// `[B, Hq, Mp / 128 * q_scales_per_block]`.
    pub q_scale: Vec<f32>,
    /// `[B, Hq, Mp / 128, Dp]` query-block means, if Q is smoothed.
    pub q_mean: Option<Vec<f32>>,
    /// `[B, Hkv, Np, Dp]`, as `q_codes`.
    pub k_codes: Vec<u8>,
    /// `[B, Hkv, Np / 64 * k_scales_per_block]`.
    pub k_scale: Vec<f32>,
    /// `[B, Hkv, Dp]` token mean, if K is smoothed.
    pub k_mean: Option<Vec<f32>>,
    /// `[B, Hq, Mp]`: `q · k_mean` of the unquantized rows, if K is smoothed.
    pub qk_mean: Option<Vec<f32>>,
    /// FP8: `[B, Hkv, Dp, Np]` with tokens in the order of [`sage_spec::layout::v_slot`]. FP16: `[B, Hkv, Np, Dp]`,
    /// little-endian. Padding is zero.
    pub v_codes: Vec<u8>,
    /// `[B, Hkv, Dp]`.
    pub v_scale: Vec<f32>,
    /// `[B, Hkv, Dp]` channel means, if V is smoothed.
    pub v_mean: Option<Vec<f32>>,
    /// `[B, Hkv, Dp]`, added to the output. FP8: [`sage_spec::quant::v_offset`]. FP16: `v_mean`.
    pub v_offset: Option<Vec<f32>>,
}

/// Quantizes `q` `[B, Hq, M, D]`, `k` `[B, Hkv, N, D]` and `v` `[B, Hkv, N, Dv]`.
///
/// ```
/// use sage_attn::reference::{self, Data, HostTensor, Options};
/// use sage_attn::spec::{Dims, Precision, PvFormat, ScaleGranularity};
///
/// let dims = Dims { batch: 1, num_heads_q: 1, num_heads_kv: 1, seqlen_q: 70, seqlen_kv: 70, head_dim: 64, head_dim_v: 64 };
/// let x: Vec<f32> = (0..70 * 64).map(|i| (i as f32).sin()).collect();
/// let x = HostTensor::contiguous(Data::F32(&x), 1, 70, 64);
/// let options = Options {
///     causal: true,
///     sm_scale: 0.125,
///     precision: Precision::Int8,
///     granularity: ScaleGranularity::PerThread,
///     pv: PvFormat::Fp8,
///     smooth_q: false,
///     smooth_k: true,
///     smooth_v: false,
/// };
/// let quantized = reference::quantize(&dims, &x, &x, &x, &options);
/// assert_eq!(quantized.q_codes.len(), 128 * 64, "padded to whole query blocks");
///
/// // What a kernel computes of these codes, what an ideal one would, and the truth.
/// let kernel = reference::attention_quantized(&dims, &quantized, &x, &options);
/// let ideal = reference::attention_unrounded_p(&dims, &quantized, &x, &options);
/// let exact = reference::attention_f64(&dims, &x, &x, &x, true, 0.125);
/// let distance = |a: &[f32], b: &[f64]| sage_attn::metrics::Metrics::compare(a, b, 64).rel_l1;
/// assert!(distance(&kernel.out, &ideal.out) < 0.05);
/// assert!(distance(&kernel.out, &exact.out) < 0.06);
///
/// let scores = reference::scores(&dims, &quantized, options.precision);
/// assert_eq!(scores.len(), 128 * 128);
/// assert!(reference::delta_s(&dims, &quantized, &x, &options).iter().all(|&x| x == 0.0), "Q is not smoothed");
/// ```
pub fn quantize(dims: &Dims, q: &HostTensor, k: &HostTensor, v: &HostTensor, options: &Options) -> Quantized {
    let q = Tokens::new(dims, q, dims.num_heads_q, dims.seqlen_q, BLOCK_Q, dims.seqlen_q_padded());
    let k = Tokens::new(dims, k, dims.num_heads_kv, dims.seqlen_kv, BLOCK_KV, dims.seqlen_kv_padded());
    let v = Tokens {
        head_dim: dims.head_dim_v,
        ..Tokens::new(dims, v, dims.num_heads_kv, dims.seqlen_kv, KV_PAD, dims.seqlen_kv_padded())
    };
    let (precision, granularity) = (options.precision, options.granularity);

    let q_mean = options.smooth_q.then(|| block_means(&q));
    let (q_codes, q_scale) = quantize_int(
        &q,
        precision,
        granularity.q_scales_per_block(),
        |row| granularity.q_group(row),
        |block| {
            let mean = &q_mean.as_ref()?[block * q.depth..(block + 1) * q.depth];
            let l1 = feature_sum(q.depth, |d| mean[d].abs());
            Some((mean, smooth_q_scale_floor(l1, precision)))
        },
    );

    let k_mean = options.smooth_k.then(|| token_means(&k));
    let qk_mean = k_mean.as_ref().map(|k_mean| dot_with_k_mean(dims, &q, k_mean));
    let (k_codes, k_scale) = quantize_int(
        &k,
        precision,
        granularity.k_scales_per_block(),
        |key| granularity.k_group(key),
        |block| {
            let head = block / k.blocks_per_head();
            Some((&k_mean.as_ref()?[head * k.depth..(head + 1) * k.depth], 0.0))
        },
    );

    let v_mean = options.smooth_v.then(|| token_means(&v));
    let v_scale = v_scales(&v, v_mean.as_deref(), options.pv);
    let v_codes = match options.pv {
        PvFormat::Fp8 => quantize_v_fp8(&v, v_mean.as_deref(), &v_scale),
        PvFormat::F16 => quantize_v_f16(&v, v_mean.as_deref(), &v_scale),
    };

    let v_offset = match options.pv {
        PvFormat::Fp8 => Some(v_offsets(&v, v_mean.as_deref(), &v_scale)),
        PvFormat::F16 => v_mean.clone(),
    };

    Quantized { q_codes, q_scale, q_mean, k_codes, k_scale, k_mean, qk_mean, v_codes, v_scale, v_mean, v_offset }
}

/// Codes of [`Quantized`] as a kernel that reads `storage` has them.
///
/// ```
/// use sage_attn::reference::{convert::pack_int4, in_storage};
/// use sage_attn::spec::{CodeStorage, Precision};
/// // Hopper takes 4-bit codes one to a byte.
/// assert_eq!(in_storage(&[pack_int4(3, -7)], Precision::Int4, CodeStorage::Byte), [3, -7i8 as u8]);
/// ```
pub fn in_storage(codes: &[u8], precision: Precision, storage: CodeStorage) -> Vec<u8> {
    if storage == precision.storage() {
        return codes.to_vec();
    }
    codes.iter().flat_map(|&byte| <[i8; 2]>::from(unpack_int4(byte)).map(|code| code as u8)).collect()
}

/// A tensor seen as flattened heads, each a whole number of padded blocks of tokens.
pub(super) struct Tokens<'a> {
    pub tensor: &'a HostTensor<'a>,
    /// Heads per batch entry.
    pub num_heads: usize,
    /// `batch * num_heads`.
    pub heads: usize,
    pub seqlen: usize,
    /// Tokens per block.
    pub block: usize,
    pub seqlen_padded: usize,
    pub head_dim: usize,
    /// `head_dim_padded`.
    pub depth: usize,
}

impl<'a> Tokens<'a> {
    fn new(
        dims: &Dims,
        tensor: &'a HostTensor<'a>,
        num_heads: usize,
        seqlen: usize,
        block: usize,
        seqlen_padded: usize,
    ) -> Self {
        let heads = dims.batch * num_heads;
        let (head_dim, depth) = (dims.head_dim, dims.head_dim_padded());
        Tokens { tensor, num_heads, heads, seqlen, block, seqlen_padded, head_dim, depth }
    }

    fn blocks_per_head(&self) -> usize {
        self.seqlen_padded / self.block
    }

    /// Real tokens of flattened block `block`, as (head, range of tokens).
    pub fn block_tokens(&self, block: usize) -> (usize, std::ops::Range<usize>) {
        let first = block % self.blocks_per_head() * self.block;
        let end = self.seqlen.min(first + self.block);
        (block / self.blocks_per_head(), first.min(end)..end)
    }

    /// Token `token` of flattened head `head`, zero beyond the head dimension.
    pub fn row(&self, head: usize, token: usize) -> Row {
        let mut row = [0.0; MAX_HEAD_DIM];
        let out = &mut row[..self.head_dim];
        self.tensor.row(head / self.num_heads, head % self.num_heads, token, out);
        row
    }
}

/// `[heads, blocks, depth]`: means of the real rows of each query block.
fn block_means(q: &Tokens) -> Vec<f32> {
    let mut means = vec![0.0; q.heads * q.blocks_per_head() * q.depth];
    means.par_chunks_mut(q.depth).enumerate().for_each(|(block, mean)| {
        let (head, tokens) = q.block_tokens(block);
        let count = tokens.len() as f32;
        let mut sum = LaneSum::<TOKEN_LANES>::new();
        tokens.enumerate().for_each(|(index, token)| sum.add(index, &q.row(head, token)));
        mean.iter_mut().zip(sum.finish()).for_each(|(mean, sum)| *mean = sum / count);
    });
    means
}

/// `[heads, depth]`: means over all tokens, 0 if there are none.
fn token_means(x: &Tokens) -> Vec<f32> {
    let chunks = x.seqlen.div_ceil(REDUCE_CHUNK);
    let mut means = vec![0.0; x.heads * x.depth];
    if chunks == 0 {
        return means;
    }
    let chunk_sums: Vec<Row> = (0..x.heads * chunks)
        .into_par_iter()
        .map(|i| {
            let (head, first) = (i / chunks, i % chunks * REDUCE_CHUNK);
            let mut sum = LaneSum::<TOKEN_LANES>::new();
            for token in first..x.seqlen.min(first + REDUCE_CHUNK) {
                sum.add(token - first, &x.row(head, token));
            }
            sum.finish()
        })
        .collect();
    for (mean, chunk_sums) in means.chunks_exact_mut(x.depth).zip(chunk_sums.chunks_exact(chunks)) {
        let mut sum = LaneSum::<CHUNK_LANES>::new();
        chunk_sums.iter().enumerate().for_each(|(index, chunk)| sum.add(index, chunk));
        mean.iter_mut().zip(sum.finish()).for_each(|(mean, sum)| *mean = token_mean(sum, x.seqlen as u32));
    }
    means
}

/// `[heads, seqlen_padded]`: dot products of the rows of Q with their head's `k_mean`, 0 for padding.
fn dot_with_k_mean(dims: &Dims, q: &Tokens, k_mean: &[f32]) -> Vec<f32> {
    let mut dots = vec![0.0; q.heads * q.seqlen_padded];
    if dims.num_heads_kv == 0 {
        return dots;
    }
    dots.par_chunks_mut(BLOCK_Q).enumerate().for_each(|(block, dots)| {
        let (head, tokens) = q.block_tokens(block);
        let (batch, head_q) = (head / dims.num_heads_q, head % dims.num_heads_q);
        let head_kv = batch * dims.num_heads_kv + dims.head_kv(head_q);
        let mean = &k_mean[head_kv * q.depth..(head_kv + 1) * q.depth];
        for (dot, token) in dots.iter_mut().zip(tokens) {
            let row = q.row(head, token);
            *dot = feature_sum(q.depth, |d| row[d] * mean[d]);
        }
    });
    dots
}

/// Codes `[heads, seqlen_padded, depth]` and scales `[heads, blocks, scales_per_block]` of Q or K.
///
/// `group` maps a row of a block to its scale; `smoothing` gives a flattened block's mean to subtract
/// and the lower bound of its scales.
fn quantize_int<'m>(
    x: &Tokens,
    precision: Precision,
    scales_per_block: usize,
    group: impl Fn(usize) -> usize + Sync,
    smoothing: impl Fn(usize) -> Option<(&'m [f32], f32)> + Sync,
) -> (Vec<u8>, Vec<f32>) {
    let row_bytes = precision.bytes(x.depth);
    let mut codes = vec![0; x.heads * x.seqlen_padded * row_bytes];
    let mut scales = vec![0.0; x.heads * x.blocks_per_head() * scales_per_block];
    let blocks = codes.par_chunks_mut(x.block * row_bytes).zip(scales.par_chunks_mut(scales_per_block));
    blocks.enumerate().for_each_init(Vec::new, |rows: &mut Vec<Row>, (block, (codes, scales))| {
        let (head, tokens) = x.block_tokens(block);
        let smoothing = smoothing(block);
        rows.clear();
        rows.extend(tokens.map(|token| x.row(head, token)));
        if let Some((mean, _)) = smoothing {
            for row in rows.iter_mut() {
                row.iter_mut().zip(mean).for_each(|(x, mean)| *x -= mean);
            }
        }
        for (index, row) in rows.iter().enumerate() {
            let amax = &mut scales[group(index)];
            *amax = max_or_nan(*amax, row_amax(row));
        }
        let floor = smoothing.map_or(0.0, |(_, floor)| floor);
        for scale in scales.iter_mut() {
            *scale = max_or_nan(qk_scale(*scale, precision.max_code()), floor);
        }
        for (index, (row, codes)) in rows.iter().zip(codes.chunks_exact_mut(row_bytes)).enumerate() {
            encode_row(row, 1.0 / scales[group(index)], precision, codes);
        }
    });
    (codes, scales)
}

vectorized! {
    /// Largest magnitude of a row; NaN if there is one.
    fn row_amax(row: &Row) -> f32 {
        let mut lanes = [0.0f32; 16];
        for chunk in row.chunks_exact(16) {
            for (lane, x) in lanes.iter_mut().zip(chunk) {
                *lane = max_or_nan(*lane, x.abs());
            }
        }
        lanes.into_iter().fold(0.0, max_or_nan)
    }

    /// Codes of the first features of a row, as many as fit `codes`.
    fn encode_row(row: &Row, inverse_scale: f32, precision: Precision, codes: &mut [u8]) {
        let int = |x: f32| int_code(x, inverse_scale, precision.max_code());
        match precision {
            Precision::Int8 => {
                codes.iter_mut().zip(row).for_each(|(byte, &x)| *byte = int(x) as u8);
            }
            Precision::Int4 => {
                let pairs = row.as_chunks::<2>().0;
                codes.iter_mut().zip(pairs).for_each(|(byte, &[even, odd])| *byte = pack_int4(int(even), int(odd)));
            }
        }
    }
}
