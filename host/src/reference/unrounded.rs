//! Attention on quantized operands without the rounding of the kernels.

use rayon::prelude::*;
use sage_spec::Dims;
use sage_spec::limits::MAX_HEAD_DIM;
use sage_spec::tiling::{BLOCK_KV, BLOCK_Q};

use super::blocks::{QueryBlock, output_lens, query_blocks};
use super::exact::softmax;
use super::problem::Problem;
use super::softmax::TileRow;
use super::tile::{unpack_int, unpack_v};
use super::{HostTensor, Modifiers, Options, OutputF64, Quantized};

/// What an ideal kernel makes of the same codes and scales: f64, P not rounded, ΔS not rounded to
/// whole score steps. Its distance to [`attention_quantized`](super::attention_quantized) is that function's own rounding.
///
/// Example: [`quantize`](crate::reference::quantize()).
pub fn attention_unrounded_p(dims: &Dims, quantized: &Quantized, k: &HostTensor, options: &Options) -> OutputF64 {
    attention_unrounded_p_with(dims, quantized, k, options, &Modifiers::default())
}

/// [`attention_unrounded_p`] with modifiers.
///
/// Example: [`Modifiers`].
pub fn attention_unrounded_p_with(
    dims: &Dims,
    quantized: &Quantized,
    k: &HostTensor,
    options: &Options,
    modifiers: &Modifiers,
) -> OutputF64 {
    let (out_len, _) = output_lens(dims);
    let mut output = OutputF64 { out: vec![0.0; out_len], lse: modifiers.empty_lse(dims) };
    let blocks = query_blocks(dims, &mut output.out, &mut output.lse);
    let problem = Problem { dims, quantized, k, options };
    blocks.into_par_iter().for_each(|block| problem.attend_unrounded(modifiers, block));
    output
}

impl Problem<'_> {
    fn attend_unrounded(&self, modifiers: &Modifiers, block: QueryBlock<f64>) {
        let Problem { dims, quantized, options, .. } = *self;
        let (depth, head_dim_v) = (dims.head_dim_padded(), dims.head_dim_v);
        let tokens = dims.seqlen_kv_padded();
        let (flat_q, flat_kv) = (block.flat_q(dims), block.flat_kv(dims));
        let flat_block = flat_q * dims.num_query_blocks() + block.block;
        let modifiers = modifiers.head(dims, options.causal, block.batch, block.head_q);
        let (_, seen) = modifiers.keys(block.first_row() + block.rows() - 1);

        let mut q = vec![0.0; BLOCK_Q * depth];
        unpack_int(self.q_codes(flat_block), options.precision, &mut q);
        let mut k = vec![0.0; tokens * depth];
        unpack_int(self.k_codes(flat_kv), options.precision, &mut k);
        let mut v = vec![0.0; tokens * depth];
        for (tile, v) in v.chunks_exact_mut(BLOCK_KV * depth).enumerate() {
            unpack_v(self.v_codes(flat_kv), options.pv, depth, tile * BLOCK_KV, v);
        }
        let k_scales: Vec<TileRow> = (0..tokens).step_by(BLOCK_KV).map(|first| self.k_scales(flat_kv, first)).collect();
        let k_scales = k_scales.as_flattened();
        // q_mean · (k − k_mean) of every key the block sees: the scores that smoothing Q takes away.
        let mut key_row = [0.0; MAX_HEAD_DIM];
        let delta: Vec<f64> = (0..seen)
            .map(|key| {
                let Some(q_mean) = self.q_mean(flat_block) else {
                    return 0.0;
                };
                self.smoothed_key(block.batch, block.head_kv, key, &mut key_row[..depth]);
                dot(q_mean, &key_row)
            })
            .collect();

        for row in 0..block.rows() {
            let q = &q[row * depth..(row + 1) * depth];
            let q_scale = f64::from(self.q_scales(flat_block)[options.granularity.q_group(row)]);
            let position = block.first_row() + row;
            // What smoothing K takes from every score of the row.
            let shift = f64::from(self.lse_shift(flat_q, position));
            let (first, end) = modifiers.keys(position);
            let (keys, mut p): (Vec<usize>, Vec<f64>) = (first..end)
                .filter_map(|key| {
                    let score = dot(q, &k[key * depth..]) * q_scale * f64::from(k_scales[key]) + delta[key];
                    Some((key, modifiers.modified(position, key, score * f64::from(options.sm_scale) + shift)?))
                })
                .unzip();
            block.lse[row] = softmax(&mut p, modifiers.sink.into());
            if p.is_empty() {
                continue;
            }
            let weight: f64 = p.iter().sum();
            let out = &mut block.out[row * head_dim_v..(row + 1) * head_dim_v];
            for (key, p) in keys.into_iter().zip(p) {
                let v = &v[key * depth..(key + 1) * depth];
                out.iter_mut().zip(v).for_each(|(out, &v)| *out += p * f64::from(v));
            }
            for (channel, out) in out.iter_mut().enumerate() {
                let at = flat_kv * depth + channel;
                let offset = quantized.v_offset.as_ref().map_or(0.0, |offset| offset[at]);
                *out = *out * f64::from(quantized.v_scale[at]) + f64::from(offset) * weight;
            }
        }
    }
}

/// Dot product in f64, as long as `a`.
fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
}
