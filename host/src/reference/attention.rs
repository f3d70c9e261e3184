//! Attention on quantized operands (arXiv 2411.10958, Algorithm 1), as the kernels do it.

use rayon::prelude::*;
use sage_spec::layout::delta_s_slot;
use sage_spec::limits::MAX_HEAD_DIM;
use sage_spec::quant::LOG2_E;
use sage_spec::tiling::{BLOCK_KV, BLOCK_Q};
use sage_spec::{Dims, Precision};

use super::blocks::{QueryBlock, output_lens, query_blocks, visible};
use super::exact::softmax;
use super::softmax::{Dequantize, ROW_MAX_START, RowState, TileRow, quantized_row};
use super::tile::{accumulate_pv, multiply_qk, transpose, unpack_int, unpack_v};
use super::{HostTensor, Options, Output, OutputF64, Quantized};

/// Attention on quantized operands, tile by tile with the kernels' numerics.
///
/// `k` `[B, Hkv, N, D]` is the unquantized K that `quantized` was made of; it is read only when Q is
/// smoothed, for ΔS, one tile at a time.
pub fn attention_quantized(
    dims: &Dims,
    quantized: &Quantized,
    k: &HostTensor,
    options: &Options,
) -> Output {
    let (out_len, lse_len) = output_lens(dims);
    let mut output = Output { out: vec![0.0; out_len], lse: vec![f32::NEG_INFINITY; lse_len] };
    let blocks = query_blocks(dims, &mut output.out, &mut output.lse);
    let problem = Problem { dims, quantized, k, options };
    blocks
        .into_par_iter()
        .for_each_init(|| Scratch::new(dims), |scratch, block| scratch.attend(&problem, block));
    output
}

/// What an ideal kernel makes of the same codes and scales: f64, P not rounded, ΔS not rounded to
/// whole score steps. Its distance to [`attention_quantized`] is that function's own rounding.
pub fn attention_unrounded_p(
    dims: &Dims,
    quantized: &Quantized,
    k: &HostTensor,
    options: &Options,
) -> OutputF64 {
    let (out_len, lse_len) = output_lens(dims);
    let mut output = OutputF64 { out: vec![0.0; out_len], lse: vec![f64::NEG_INFINITY; lse_len] };
    let blocks = query_blocks(dims, &mut output.out, &mut output.lse);
    let problem = Problem { dims, quantized, k, options };
    blocks.into_par_iter().for_each(|block| problem.attend_unrounded(block));
    output
}

/// ΔS of every query block: f32 `[B * Hq, Mp / 128, Np]`, keys in the order of [`delta_s_slot`], in
/// units of `k_scale`; zeros for padding keys and when Q is not smoothed.
///
/// For tests: [`attention_quantized`] keeps one tile of it at a time.
pub fn delta_s(dims: &Dims, quantized: &Quantized, k: &HostTensor, options: &Options) -> Vec<f32> {
    let (blocks, tokens) = (dims.num_query_blocks(), dims.seqlen_kv_padded());
    let mut delta_s = vec![0.0; dims.batch * dims.num_heads_q * blocks * tokens];
    let problem = Problem { dims, quantized, k, options };
    delta_s.par_chunks_mut(tokens.max(1)).enumerate().for_each_init(
        || DeltaS::new(dims),
        |scratch, (index, out)| {
            let (head, block) = (index / blocks, index % blocks);
            let (batch, head_q) = (head / dims.num_heads_q, head % dims.num_heads_q);
            for first in (0..tokens).step_by(BLOCK_KV) {
                let tile = scratch.tile(&problem, batch, head_q, block, first);
                for (key, x) in tile.iter().enumerate() {
                    out[delta_s_slot(first + key)] = *x;
                }
            }
        },
    );
    delta_s
}

/// Raw integer scores `[B, Hq, Mp, Np]`, padding included.
pub fn scores(dims: &Dims, quantized: &Quantized, precision: Precision) -> Vec<i32> {
    let (depth, tokens) = (dims.head_dim_padded(), dims.seqlen_kv_padded());
    let row_bytes = precision.bytes(depth);
    let mut scores = vec![0; dims.batch * dims.num_heads_q * dims.seqlen_q_padded() * tokens];
    scores.par_chunks_mut((BLOCK_Q * tokens).max(1)).enumerate().for_each(|(index, scores)| {
        let head = index / dims.num_query_blocks();
        let (batch, head_q) = (head / dims.num_heads_q, head % dims.num_heads_q);
        let head_kv = batch * dims.num_heads_kv + dims.head_kv(head_q);
        let mut q = vec![0.0; BLOCK_Q * depth];
        let mut k_rows = vec![0.0; BLOCK_KV * depth];
        let mut k_columns = vec![0.0; depth * BLOCK_KV];
        let mut tile = vec![0.0; BLOCK_Q * BLOCK_KV];
        unpack_int(&quantized.q_codes[index * BLOCK_Q * row_bytes..], precision, &mut q);
        for first in (0..tokens).step_by(BLOCK_KV) {
            let codes = &quantized.k_codes[(head_kv * tokens + first) * row_bytes..];
            unpack_int(codes, precision, &mut k_rows);
            transpose(&k_rows, depth, &mut k_columns);
            multiply_qk(&q, &k_columns, depth, &mut tile);
            for (row, scores) in tile.chunks_exact(BLOCK_KV).zip(scores.chunks_exact_mut(tokens)) {
                let scores = &mut scores[first..first + BLOCK_KV];
                scores.iter_mut().zip(row).for_each(|(score, &x)| *score = x as i32);
            }
        }
    });
    scores
}

/// The arguments every function here passes around.
struct Problem<'a> {
    dims: &'a Dims,
    quantized: &'a Quantized,
    k: &'a HostTensor<'a>,
    options: &'a Options,
}

impl Problem<'_> {
    /// Scales of Q of one query block, flattened over heads.
    fn q_scales(&self, flat_block: usize) -> &[f32] {
        let count = self.options.granularity.q_scales_per_block();
        &self.quantized.q_scale[flat_block * count..][..count]
    }

    /// Scale of each key of the tile that starts at key `first`.
    fn k_scales(&self, flat_kv: usize, first: usize) -> TileRow {
        let granularity = self.options.granularity;
        let head = flat_kv * self.dims.num_kv_blocks_padded() * granularity.k_scales_per_block();
        std::array::from_fn(|key| self.quantized.k_scale[head + granularity.k_group(first + key)])
    }

    fn q_mean(&self, flat_block: usize) -> Option<&[f32]> {
        let depth = self.dims.head_dim_padded();
        Some(&self.quantized.q_mean.as_ref()?[flat_block * depth..][..depth])
    }

    /// `q · k_mean · sm_scale` of a row, which the LSE of smoothed K lacks.
    fn lse_shift(&self, flat_q: usize, row: usize) -> f32 {
        let dots = self.quantized.qk_mean.as_ref();
        dots.map_or(0.0, |dots| dots[flat_q * self.dims.seqlen_q_padded() + row] * self.options.sm_scale)
    }

    /// Codes of one head of a tensor that has `heads` of them.
    fn head_codes<'c>(&self, codes: &'c [u8], flat_head: usize, tokens: usize, row_bytes: usize) -> &'c [u8] {
        &codes[flat_head * tokens * row_bytes..][..tokens * row_bytes]
    }

    /// Token `key` of K less `k_mean`, zero beyond the head dimension.
    fn smoothed_key(&self, batch: usize, head_kv: usize, key: usize, out: &mut [f32]) {
        self.k.row(batch, head_kv, key, &mut out[..self.dims.head_dim]);
        if let Some(mean) = &self.quantized.k_mean {
            let depth = self.dims.head_dim_padded();
            let head = batch * self.dims.num_heads_kv + head_kv;
            let mean = &mean[head * depth..(head + 1) * depth];
            out.iter_mut().zip(mean).for_each(|(x, mean)| *x -= mean);
        }
    }

    fn attend_unrounded(&self, block: QueryBlock<f64>) {
        let Problem { dims, quantized, options, .. } = *self;
        let (depth, head_dim) = (dims.head_dim_padded(), dims.head_dim);
        let row_bytes = options.precision.bytes(depth);
        let tokens = dims.seqlen_kv_padded();
        let (flat_q, flat_kv) = (block.flat_q(dims), block.flat_kv(dims));
        let flat_block = flat_q * dims.num_query_blocks() + block.block;
        let seen = visible(dims, options.causal, block.first_row() + block.rows() - 1);

        let mut q = vec![0.0; BLOCK_Q * depth];
        let q_codes = &quantized.q_codes[flat_block * BLOCK_Q * row_bytes..];
        unpack_int(q_codes, options.precision, &mut q);
        let mut k = vec![0.0; tokens * depth];
        let k_codes = self.head_codes(&quantized.k_codes, flat_kv, tokens, row_bytes);
        unpack_int(k_codes, options.precision, &mut k);
        let mut v = vec![0.0; tokens * depth];
        let v_bytes = depth * options.pv.bytes();
        let v_codes = self.head_codes(&quantized.v_codes, flat_kv, tokens, v_bytes);
        for (tile, v) in v.chunks_exact_mut(BLOCK_KV * depth).enumerate() {
            unpack_v(v_codes, options.pv, depth, tile * BLOCK_KV, v);
        }
        let k_scales: Vec<TileRow> =
            (0..tokens).step_by(BLOCK_KV).map(|first| self.k_scales(flat_kv, first)).collect();
        let k_scales = k_scales.as_flattened();
        // q_mean · (k − k_mean) of every key the block sees: the scores that smoothing Q takes away.
        let mut key_row = [0.0; MAX_HEAD_DIM];
        let delta: Vec<f64> = (0..seen)
            .map(|key| {
                let Some(q_mean) = self.q_mean(flat_block) else { return 0.0 };
                self.smoothed_key(block.batch, block.head_kv, key, &mut key_row[..depth]);
                dot(q_mean, &key_row)
            })
            .collect();

        for row in 0..block.rows() {
            let q = &q[row * depth..(row + 1) * depth];
            let q_scale = f64::from(self.q_scales(flat_block)[options.granularity.q_group(row)]);
            let visible = visible(dims, options.causal, block.first_row() + row);
            let mut p: Vec<f64> = (0..visible)
                .map(|key| {
                    let score = dot(q, &k[key * depth..]) * q_scale * f64::from(k_scales[key]) + delta[key];
                    score * f64::from(options.sm_scale)
                })
                .collect();
            if p.is_empty() {
                continue;
            }
            let shift = f64::from(self.lse_shift(flat_q, block.first_row() + row));
            block.lse[row] = softmax(&mut p) + shift;
            let out = &mut block.out[row * head_dim..(row + 1) * head_dim];
            for (p, v) in p.iter().zip(v.chunks_exact(depth)) {
                out.iter_mut().zip(v).for_each(|(out, &v)| *out += p * f64::from(v));
            }
            for (channel, out) in out.iter_mut().enumerate() {
                let at = flat_kv * depth + channel;
                let mean = quantized.v_mean.as_ref().map_or(0.0, |mean| mean[at]);
                *out = *out * f64::from(quantized.v_scale[at]) + f64::from(mean);
            }
        }
    }
}

/// Dot product in f64, as long as `a`.
fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
}

/// Buffers for ΔS of a tile.
struct DeltaS {
    /// `[BLOCK_KV, depth]`.
    rows: Vec<f32>,
    /// `[depth, BLOCK_KV]`.
    columns: Vec<f32>,
}

impl DeltaS {
    fn new(dims: &Dims) -> Self {
        let len = dims.head_dim_padded() * BLOCK_KV;
        DeltaS { rows: vec![0.0; len], columns: vec![0.0; len] }
    }

    /// `q_mean · (k − k_mean) / k_scale` of the keys from `first`; zeros if Q is not smoothed.
    fn tile(
        &mut self,
        problem: &Problem,
        batch: usize,
        head_q: usize,
        block: usize,
        first: usize,
    ) -> TileRow {
        let dims = problem.dims;
        let flat_block = (batch * dims.num_heads_q + head_q) * dims.num_query_blocks() + block;
        let Some(q_mean) = problem.q_mean(flat_block) else { return [0.0; BLOCK_KV] };
        let (depth, head_kv) = (dims.head_dim_padded(), dims.head_kv(head_q));
        let real = dims.seqlen_kv.saturating_sub(first).min(BLOCK_KV);
        for (key, row) in self.rows.chunks_exact_mut(depth).enumerate() {
            if key < real {
                problem.smoothed_key(batch, head_kv, first + key, row);
            } else {
                row.fill(0.0);
            }
        }
        transpose(&self.rows, depth, &mut self.columns);
        let mut tile = dot_columns(q_mean, &self.columns);
        let k_scale = problem.k_scales(batch * dims.num_heads_kv + head_kv, first);
        for (x, k_scale) in tile[..real].iter_mut().zip(k_scale) {
            *x /= k_scale;
        }
        tile
    }
}

vectorized! {
    /// Dot products of `mean` `[depth]` with every column of `keys` `[depth, BLOCK_KV]`: a chain of
    /// fused multiply-adds in the order of the features.
    fn dot_columns(mean: &[f32], keys: &[f32]) -> TileRow {
        let mut acc = [0.0f32; BLOCK_KV];
        for (mean, keys) in mean.iter().zip(keys.chunks_exact(BLOCK_KV)) {
            for (acc, key) in acc.iter_mut().zip(keys) {
                *acc = mean.mul_add(*key, *acc);
            }
        }
        acc
    }
}

/// Buffers of one worker.
struct Scratch {
    /// `[BLOCK_Q, depth]`.
    q: Vec<f32>,
    /// `[BLOCK_KV, depth]`: rows of K before transposing, then of V.
    kv: Vec<f32>,
    /// `[depth, BLOCK_KV]`.
    k: Vec<f32>,
    /// `[BLOCK_Q, BLOCK_KV]`: scores, then P.
    p: Vec<f32>,
    /// `[BLOCK_Q, depth]`.
    out: Vec<f32>,
    delta_s: DeltaS,
}

impl Scratch {
    fn new(dims: &Dims) -> Self {
        let depth = dims.head_dim_padded();
        let zeros = |rows: usize, columns: usize| vec![0.0; rows * columns];
        Scratch {
            q: zeros(BLOCK_Q, depth),
            kv: zeros(BLOCK_KV, depth),
            k: zeros(depth, BLOCK_KV),
            p: zeros(BLOCK_Q, BLOCK_KV),
            out: zeros(BLOCK_Q, depth),
            delta_s: DeltaS::new(dims),
        }
    }

    fn attend(&mut self, problem: &Problem, block: QueryBlock<f32>) {
        let Scratch { q, kv, k, p, out, delta_s } = self;
        let Problem { dims, quantized, options, .. } = *problem;
        let (depth, tokens) = (dims.head_dim_padded(), dims.seqlen_kv_padded());
        let row_bytes = options.precision.bytes(depth);
        let rows = block.rows();
        let (flat_q, flat_kv) = (block.flat_q(dims), block.flat_kv(dims));
        let flat_block = flat_q * dims.num_query_blocks() + block.block;
        let first_row = block.first_row();
        let visible = |row: usize| visible(dims, options.causal, first_row + row);
        let k_codes = problem.head_codes(&quantized.k_codes, flat_kv, tokens, row_bytes);
        let v_bytes = depth * options.pv.bytes();
        let v_codes = problem.head_codes(&quantized.v_codes, flat_kv, tokens, v_bytes);
        let q_scales = problem.q_scales(flat_block);
        let sm_scale_log2 = options.sm_scale * LOG2_E;

        unpack_int(&quantized.q_codes[flat_block * BLOCK_Q * row_bytes..], options.precision, q);
        out.fill(0.0);
        let mut states = [RowState::new(ROW_MAX_START); BLOCK_Q];

        for first in (0..visible(block.rows() - 1)).step_by(BLOCK_KV) {
            unpack_int(&k_codes[first * row_bytes..], options.precision, kv);
            transpose(kv, depth, k);
            unpack_v(v_codes, options.pv, depth, first, kv);
            multiply_qk(&q[..rows * depth], k, depth, p);

            let delta_s = delta_s.tile(problem, block.batch, block.head_q, block.block, first);
            let k_scale = problem.k_scales(flat_kv, first);
            let mut alpha = [1.0; BLOCK_Q];
            for (row, p) in p.chunks_exact_mut(BLOCK_KV).take(rows).enumerate() {
                let visible = visible(row).saturating_sub(first).min(BLOCK_KV);
                let dequantize = Dequantize {
                    q_scale: q_scales[options.granularity.q_group(row)],
                    k_scale: &k_scale,
                    delta_s: &delta_s,
                    sm_scale_log2,
                };
                quantized_row(p, visible, &dequantize, options.pv, &mut states[row]);
                alpha[row] = states[row].alpha;
            }
            accumulate_pv(&p[..rows * BLOCK_KV], kv, depth, &alpha, out);
        }

        let v_scale = &quantized.v_scale[flat_kv * depth..];
        let v_mean = quantized.v_mean.as_ref().map(|mean| &mean[flat_kv * depth..]);
        for row in 0..block.rows() {
            let state = &states[row];
            if state.sum == 0.0 {
                continue; // out and lse already say so
            }
            let inverse_sum = 1.0 / state.sum;
            let to = &mut block.out[row * dims.head_dim..(row + 1) * dims.head_dim];
            for (channel, to) in to.iter_mut().enumerate() {
                let x = out[row * depth + channel] * inverse_sum * v_scale[channel];
                *to = v_mean.map_or(x, |mean| x + mean[channel]);
            }
            let lse = (state.max + state.sum.log2()) * std::f32::consts::LN_2;
            block.lse[row] = match quantized.qk_mean {
                Some(_) => lse + problem.lse_shift(flat_q, block.first_row() + row),
                None => lse,
            };
        }
    }
}
