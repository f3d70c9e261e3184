//! Attention on quantized operands (arXiv 2411.10958, Algorithm 1), as the kernels do it.

use rayon::prelude::*;
use sage_spec::Dims;
use sage_spec::quant::{FOLDED_STEP_MAX, LOG2_E};
use sage_spec::tiling::{BLOCK_KV, BLOCK_Q};

use super::blocks::{QueryBlock, output_lens, query_blocks};
use super::general::{add_sink, general_quantized_row};
use super::problem::Problem;
use super::scores::DeltaS;
use super::softmax::{Bias, Dequantize, ROW_MAX_START, RowState, quantized_row};
use super::tile::{accumulate_pv, multiply_qk, transpose, unpack_int, unpack_v};
use super::{HostTensor, Modifiers, Options, Output, Quantized};

/// Attention on quantized operands, tile by tile with the kernels' numerics.
///
/// `k` `[B, Hkv, N, D]` is the unquantized K that `quantized` was made of; it is read only when Q is
/// smoothed, for ΔS, one tile at a time.
///
/// Example: [`quantize`](crate::reference::quantize()).
pub fn attention_quantized(dims: &Dims, quantized: &Quantized, k: &HostTensor, options: &Options) -> Output {
    attention_quantized_with(dims, quantized, k, options, &Modifiers::default())
}

/// [`attention_quantized`] with modifiers, as the general kernels do it: every tile subtracts the bias
/// exactly. The LSE is the logarithm of the denominator, sink included.
///
/// Example: [`Modifiers`].
pub fn attention_quantized_with(
    dims: &Dims,
    quantized: &Quantized,
    k: &HostTensor,
    options: &Options,
    modifiers: &Modifiers,
) -> Output {
    let (out_len, _) = output_lens(dims);
    let mut output = Output { out: vec![0.0; out_len], lse: modifiers.empty_lse(dims) };
    let blocks = query_blocks(dims, &mut output.out, &mut output.lse);
    let problem = Problem { dims, quantized, k, options };
    blocks
        .into_par_iter()
        .for_each_init(|| Scratch::new(dims), |scratch, block| scratch.attend(&problem, modifiers, block));
    output
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

    fn attend(&mut self, problem: &Problem, modifiers: &Modifiers, block: QueryBlock<f32>) {
        let Scratch { q, kv, k, p, out, delta_s } = self;
        let Problem { dims, quantized, options, .. } = *problem;
        let (depth, rows) = (dims.head_dim_padded(), block.rows());
        let (flat_q, flat_kv) = (block.flat_q(dims), block.flat_kv(dims));
        let flat_block = flat_q * dims.num_query_blocks() + block.block;
        let first_row = block.first_row();
        // Of wide heads there are general kernels only.
        let plain = modifiers.is_plain(dims, options.causal) && !dims.is_wide();
        let modifiers = modifiers.head(dims, options.causal, block.batch, block.head_q);
        let keys = |row: usize| modifiers.keys(first_row + row);
        let (k_codes, v_codes) = (problem.k_codes(flat_kv), problem.v_codes(flat_kv));
        let q_scales = problem.q_scales(flat_block);
        let sm_scale_log2 = options.sm_scale * LOG2_E;

        unpack_int(problem.q_codes(flat_block), options.precision, q);
        out.fill(0.0);
        let mut states = [RowState::new(ROW_MAX_START); BLOCK_Q];

        let num_keys = keys(rows - 1).1;
        // As the kernels decide it, for the whole query block.
        let largest = |scales: &[f32]| scales.iter().fold(0.0f32, |a, &b| a.max(b));
        let k_scales = problem.head_k_scales(flat_kv, num_keys.div_ceil(BLOCK_KV));
        let step = largest(q_scales) * sm_scale_log2 * largest(k_scales);
        let is_full = |first: usize| first + BLOCK_KV <= keys(0).1;

        for first in (keys(0).0 / BLOCK_KV * BLOCK_KV..num_keys).step_by(BLOCK_KV) {
            let coarse = step > FOLDED_STEP_MAX;
            let bias = if is_full(first) && !coarse { Bias::Folded } else { Bias::Exact };
            unpack_int(&k_codes[first * problem.row_bytes()..], options.precision, kv);
            transpose(kv, depth, k);
            unpack_v(v_codes, options.pv, depth, first, kv);
            multiply_qk(&q[..rows * depth], k, depth, p);

            let delta_s = delta_s.tile(problem, block.batch, block.head_q, block.block, first);
            let k_scale = problem.k_scales(flat_kv, first);
            let mut alpha = [1.0; BLOCK_Q];
            for (row, p) in p.chunks_exact_mut(BLOCK_KV).take(rows).enumerate() {
                let dequantize = Dequantize {
                    q_scale: q_scales[options.granularity.q_group(row)],
                    k_scale: &k_scale,
                    delta_s: &delta_s,
                    sm_scale_log2,
                    whole_steps: !dims.is_wide(),
                };
                if plain {
                    let visible = keys(row).1.saturating_sub(first).min(BLOCK_KV);
                    quantized_row(p, visible, bias, &dequantize, options.pv, &mut states[row]);
                } else {
                    let shift_log2 = problem.lse_shift(flat_q, first_row + row) * LOG2_E;
                    let terms = modifiers.terms(first_row + row, first);
                    let (softcap, state) = (modifiers.softcap(), &mut states[row]);
                    general_quantized_row(p, &dequantize, softcap, shift_log2, &terms, options.pv, state);
                }
                alpha[row] = states[row].alpha;
            }
            accumulate_pv(&p[..rows * BLOCK_KV], kv, depth, &alpha, out);
        }

        let v_scale = &quantized.v_scale[flat_kv * depth..];
        let v_offset = quantized.v_offset.as_ref().map(|offset| &offset[flat_kv * depth..]);
        for row in 0..rows {
            let state = &mut states[row];
            // Scores lack what smoothing K took from all of them, unless the soft-cap needed it.
            let shift = if modifiers.softcap().is_some() { 0.0 } else { problem.lse_shift(flat_q, first_row + row) };
            // What the output, and the mean of V, still have to be multiplied by.
            let (mut rescale, mut weight) = (1.0, 1.0);
            if modifiers.sink != f32::NEG_INFINITY {
                let keys = add_sink((modifiers.sink - shift) * LOG2_E, options.pv.p_max_log2(), state);
                (rescale, weight) = (state.alpha, keys / state.sum);
            }
            if state.sum == 0.0 {
                continue; // out and lse already say so
            }
            let inverse_sum = rescale / state.sum;
            let to = &mut block.out[row * dims.head_dim_v..(row + 1) * dims.head_dim_v];
            for (channel, to) in to.iter_mut().enumerate() {
                let x = out[row * depth + channel] * inverse_sum * v_scale[channel];
                *to = v_offset.map_or(x, |offset| offset[channel].mul_add(weight, x));
            }
            let lse = (state.max + state.sum.log2()) * std::f32::consts::LN_2;
            block.lse[row] = match quantized.qk_mean {
                Some(_) => lse + shift,
                None => lse,
            };
        }
    }
}
