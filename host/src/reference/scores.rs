//! What enters softmax: integer scores, and the ΔS that undoes smoothing Q.

use rayon::prelude::*;
use sage_spec::layout::delta_s_slot;
use sage_spec::tiling::{BLOCK_KV, BLOCK_Q};
use sage_spec::{Dims, Precision};

use super::problem::Problem;
use super::softmax::TileRow;
use super::tile::{multiply_qk, transpose, unpack_int};
use super::{HostTensor, Options, Quantized};

/// Raw integer scores `[B, Hq, Mp, Np]`, padding included.
///
/// Example: [`quantize`](crate::reference::quantize()).
pub fn scores(dims: &Dims, quantized: &Quantized, precision: Precision) -> Vec<i32> {
    let (depth, tokens) = (dims.head_dim_padded(), dims.seqlen_kv_padded());
    let row_bytes = precision.bytes(depth);
    let mut scores = vec![0; dims.batch * dims.num_heads_q * dims.seqlen_q_padded() * tokens];
    if dims.num_heads_kv == 0 {
        return scores;
    }
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

/// ΔS of every query block: f32 `[B * Hq, Mp / 128, Np]`, keys in the order of [`delta_s_slot`], in
/// units of `k_scale`; zeros for padding keys and when Q is not smoothed.
///
/// For tests: [`attention_quantized`](super::attention_quantized) keeps one tile of it at a time.
///
/// Example: [`quantize`](crate::reference::quantize()).
pub fn delta_s(dims: &Dims, quantized: &Quantized, k: &HostTensor, options: &Options) -> Vec<f32> {
    let (blocks, tokens) = (dims.num_query_blocks(), dims.seqlen_kv_padded());
    let mut delta_s = vec![0.0; dims.batch * dims.num_heads_q * blocks * tokens];
    if dims.num_heads_kv == 0 {
        return delta_s;
    }
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

/// Buffers for ΔS of a tile.
pub struct DeltaS {
    /// `[BLOCK_KV, depth]`.
    rows: Vec<f32>,
    /// `[depth, BLOCK_KV]`.
    columns: Vec<f32>,
}

impl DeltaS {
    pub fn new(dims: &Dims) -> Self {
        let len = dims.head_dim_padded() * BLOCK_KV;
        DeltaS { rows: vec![0.0; len], columns: vec![0.0; len] }
    }

    /// `q_mean · (k − k_mean) / k_scale` of the keys from `first`; zeros if Q is not smoothed.
    pub fn tile(&mut self, problem: &Problem, batch: usize, head_q: usize, block: usize, first: usize) -> TileRow {
        let dims = problem.dims;
        let flat_block = (batch * dims.num_heads_q + head_q) * dims.num_query_blocks() + block;
        let Some(q_mean) = problem.q_mean(flat_block) else {
            return [0.0; BLOCK_KV];
        };
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
