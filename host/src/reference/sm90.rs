//! Attention on quantized operands as the kernels for Hopper do it (`sage_spec::sm90`): tiles of 128 keys, no
//! score bias, and the mixed exponential. With modifiers scores become f32 in log2 units before anything is done to
//! them, and all take the exact exponential.

use rayon::prelude::*;
use sage_spec::Dims;
use sage_spec::quant::{LOG2_E, SCORE_BIAS};
use sage_spec::sm90::{BLOCK_KV as TILE, DIRECT_MAX_CODE, Exponential, P_MAX_LOG2, round_code, round_to_f16};
use sage_spec::tiling::{BLOCK_KV, BLOCK_Q};

use super::blocks::{QueryBlock, output_lens, query_blocks};
use super::convert::{E4M3, round_e4m3};
use super::general::{add_sink, capped};
use super::problem::Problem;
use super::scores::DeltaS;
use super::softmax::{ROW_MAX_START, RowState, exp2_fast};
use super::tile::{accumulate_pv, multiply_qk, transpose, unpack_int, unpack_v};
use super::{HostTensor, Modifiers, Options, Output, Quantized};

/// Attention on quantized operands, tile by tile with the numerics of the Hopper kernels.
///
/// As [`super::attention_quantized`], with P and V in FP8 whatever `options` says.
///
/// ```
/// use sage_attn::reference::{self, Data, HostTensor, Options};
/// use sage_attn::spec::{Dims, Precision, PvFormat, ScaleGranularity};
///
/// let dims = Dims { batch: 1, num_heads_q: 1, num_heads_kv: 1, seqlen_q: 70, seqlen_kv: 70, head_dim: 64, head_dim_v: 64 };
/// let x: Vec<f32> = (0..70 * 64).map(|i| (i as f32).sin()).collect();
/// let x = HostTensor::contiguous(Data::F32(&x), 1, 70, 64);
/// let options = Options {
///     causal: false,
///     sm_scale: 0.125,
///     precision: Precision::Int4,
///     granularity: ScaleGranularity::PerThread,
///     pv: PvFormat::Fp8,
///     smooth_q: true,
///     smooth_k: true,
///     smooth_v: false,
/// };
/// let quantized = reference::quantize(&dims, &x, &x, &x, &options);
/// let exponential = sage_attn::spec::symbol::STEMS[0].exponential;
/// let hopper = reference::attention_quantized_sm90(&dims, &quantized, &x, &options, exponential);
/// assert_eq!((hopper.out.len(), hopper.lse.len()), (70 * 64, 70));
/// ```
pub fn attention_quantized_sm90(
    dims: &Dims,
    quantized: &Quantized,
    k: &HostTensor,
    options: &Options,
    exponential: Exponential,
) -> Output {
    attention_quantized_sm90_with(dims, quantized, k, options, exponential, &Modifiers::default())
}

/// [`attention_quantized_sm90`] with modifiers, as the general kernels for Hopper do it: the exponential is exact
/// whatever `exponential` says, and the LSE is the logarithm of the denominator, sink included.
///
/// Example: [`Modifiers`].
pub fn attention_quantized_sm90_with(
    dims: &Dims,
    quantized: &Quantized,
    k: &HostTensor,
    options: &Options,
    exponential: Exponential,
    modifiers: &Modifiers,
) -> Output {
    let (out_len, _) = output_lens(dims);
    let mut output = Output { out: vec![0.0; out_len], lse: modifiers.empty_lse(dims) };
    let blocks = query_blocks(dims, &mut output.out, &mut output.lse);
    let problem = Problem { dims, quantized, k, options };
    blocks
        .into_par_iter()
        .for_each_init(|| Scratch::new(dims), |scratch, block| scratch.attend(&problem, exponential, modifiers, block));
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
    /// `[BLOCK_Q, BLOCK_KV]`: scores, then P, of one half of a tile.
    half: Vec<f32>,
    /// `[BLOCK_Q, TILE]`: scores, then P.
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
            half: zeros(BLOCK_Q, BLOCK_KV),
            p: zeros(BLOCK_Q, TILE),
            out: zeros(BLOCK_Q, depth),
            delta_s: DeltaS::new(dims),
        }
    }

    fn attend(&mut self, problem: &Problem, exponential: Exponential, modifiers: &Modifiers, block: QueryBlock<f32>) {
        let Scratch { q, kv, k, half, p, out, delta_s } = self;
        let Problem { dims, quantized, options, .. } = *problem;
        let (depth, rows) = (dims.head_dim_padded(), block.rows());
        let (flat_q, flat_kv) = (block.flat_q(dims), block.flat_kv(dims));
        let flat_block = flat_q * dims.num_query_blocks() + block.block;
        let first_row = block.first_row();
        let plain = modifiers.is_plain(dims, options.causal);
        let modifiers = modifiers.head(dims, options.causal, block.batch, block.head_q);
        let keys = |row: usize| modifiers.keys(first_row + row);
        let (k_codes, v_codes) = (problem.k_codes(flat_kv), problem.v_codes(flat_kv));
        let q_scales = problem.q_scales(flat_block);

        let is_exact: [bool; TILE] = std::array::from_fn(|key| exponential.is_exact_key(key));

        unpack_int(problem.q_codes(flat_block), options.precision, q);
        out.fill(0.0);
        let mut states = [RowState::new(ROW_MAX_START); BLOCK_Q];

        for first in (keys(0).0 / TILE * TILE..keys(rows - 1).1).step_by(TILE) {
            let (mut k_scale, mut shift) = ([0.0; TILE], [0.0; TILE]);
            for at in [0, BLOCK_KV] {
                let first = first + at;
                unpack_int(&k_codes[first * problem.row_bytes()..], options.precision, kv);
                transpose(kv, depth, k);
                multiply_qk(&q[..rows * depth], k, depth, half);
                for (p, half) in p.chunks_exact_mut(TILE).zip(half.chunks_exact(BLOCK_KV)).take(rows) {
                    p[at..at + BLOCK_KV].copy_from_slice(half);
                }
                k_scale[at..at + BLOCK_KV].copy_from_slice(&problem.k_scales(flat_kv, first));
                let delta_s = delta_s.tile(problem, block.batch, block.head_q, block.block, first);
                shift[at..at + BLOCK_KV].copy_from_slice(&delta_s);
            }
            let mut alpha = [1.0; BLOCK_Q];
            for (row, p) in p.chunks_exact_mut(TILE).take(rows).enumerate() {
                let q_scale = q_scales[options.granularity.q_group(row)];
                let dequantize = Dequantize {
                    q_scale,
                    k_scale: &k_scale,
                    delta_s: &shift,
                    sm_scale_log2: options.sm_scale * LOG2_E,
                };
                let state = &mut states[row];
                if plain {
                    softmax_row(p, keys(row).1.saturating_sub(first).min(TILE), &dequantize, &is_exact, state);
                } else {
                    let row = first_row + row;
                    let shift_log2 = problem.lse_shift(flat_q, row) * LOG2_E;
                    let terms = [modifiers.terms(row, first), modifiers.terms(row, first + BLOCK_KV)];
                    general_row(p, &dequantize, modifiers.softcap(), shift_log2, terms.as_flattened(), state);
                }
                alpha[row] = state.alpha;
            }
            for at in [0, BLOCK_KV] {
                unpack_v(v_codes, sage_spec::PvFormat::Fp8, depth, first + at, kv);
                for (p, half) in p.chunks_exact(TILE).zip(half.chunks_exact_mut(BLOCK_KV)).take(rows) {
                    half.copy_from_slice(&p[at..at + BLOCK_KV]);
                }
                accumulate_pv(&half[..rows * BLOCK_KV], kv, depth, &alpha, out);
                alpha = [1.0; BLOCK_Q];
            }
        }

        let v_scale = &quantized.v_scale[flat_kv * depth..];
        let v_mean = quantized.v_mean.as_ref().map(|mean| &mean[flat_kv * depth..]);
        for row in 0..rows {
            let state = &mut states[row];
            // As in the general kernels' reference, which keeps maxima less the largest P.
            state.max -= P_MAX_LOG2;
            let shift = if modifiers.softcap().is_some() { 0.0 } else { problem.lse_shift(flat_q, first_row + row) };
            let (mut rescale, mut weight) = (1.0, 1.0);
            if modifiers.sink != f32::NEG_INFINITY {
                let keys = add_sink((modifiers.sink - shift) * LOG2_E, P_MAX_LOG2, state);
                (rescale, weight) = (state.alpha, keys / state.sum);
            }
            if state.sum == 0.0 {
                continue; // out and lse already say so
            }
            let inverse_sum = rescale / state.sum;
            let to = &mut block.out[row * dims.head_dim_v..(row + 1) * dims.head_dim_v];
            for (channel, to) in to.iter_mut().enumerate() {
                let x = out[row * depth + channel] * inverse_sum;
                *to = v_mean.map_or(x * v_scale[channel], |mean| x.mul_add(v_scale[channel], mean[channel] * weight));
            }
            let lse = (state.max + state.sum.log2()) * std::f32::consts::LN_2;
            block.lse[row] = match quantized.qk_mean {
                Some(_) => lse + shift,
                None => lse,
            };
        }
    }
}

/// What turns integer scores of one row and tile into log2 units.
struct Dequantize<'a> {
    q_scale: f32,
    k_scale: &'a [f32; TILE],
    /// ΔS of each key over its scale; 0 if Q is not smoothed.
    delta_s: &'a [f32; TILE],
    sm_scale_log2: f32,
}

/// The larger number, NaN if either is.
fn max_propagate_nan(a: f32, b: f32) -> f32 {
    if a.is_nan() || a > b { a } else { b }
}

/// One row of a tile: integer `scores` become the values of P's codes; the first `visible` keys count. `is_exact`
/// tells which keys take the exact exponential.
fn softmax_row(
    scores: &mut [f32],
    visible: usize,
    dequantize: &Dequantize,
    is_exact: &[bool; TILE],
    state: &mut RowState,
) {
    let q_factor = dequantize.q_scale * dequantize.sm_scale_log2;
    let inverse_q_scale = 1.0 / dequantize.q_scale;
    let (seen, masked) = scores.split_at_mut(visible);
    let mut max = state.max;
    for (key, x) in seen.iter_mut().enumerate() {
        // Whole score steps: rounded by adding 1.5 · 2²³.
        *x += dequantize.delta_s[key].mul_add(inverse_q_scale, SCORE_BIAS) - SCORE_BIAS;
        max = max_propagate_nan(max, *x * (dequantize.k_scale[key] * q_factor));
    }
    let mut sum = 0.0;
    for (key, x) in seen.iter_mut().enumerate() {
        let factor = dequantize.k_scale[key] * q_factor;
        *x = if is_exact[key] {
            round_e4m3(exp2_fast(x.mul_add(factor, P_MAX_LOG2 - max)))
        } else {
            direct_p(*x, factor, max)
        };
        sum += *x;
    }
    masked.fill(0.0);
    state.alpha = exp2_fast(state.max - max);
    state.sum = state.sum * state.alpha + sum;
    state.max = max;
}

/// One row of a tile with modifiers: integer `scores` become the values of P's codes. Keys whose term is −inf are
/// hidden. A soft-cap needs the whole score: `shift_log2` is what smoothing K has taken from it, in log2 units.
fn general_row(
    scores: &mut [f32],
    dequantize: &Dequantize,
    softcap: Option<f32>,
    shift_log2: f32,
    terms: &[f32],
    state: &mut RowState,
) {
    let q_factor = dequantize.q_scale * dequantize.sm_scale_log2;
    let inverse_q_scale = 1.0 / dequantize.q_scale;
    let mut max = state.max;
    for (key, (x, &term)) in scores.iter_mut().zip(terms).enumerate() {
        let steps = *x + (dequantize.delta_s[key].mul_add(inverse_q_scale, SCORE_BIAS) - SCORE_BIAS);
        let score = steps * (dequantize.k_scale[key] * q_factor);
        let score = softcap.map_or(score, |softcap| capped(score + shift_log2, softcap));
        *x = if term == f32::NEG_INFINITY { term } else { score + term };
        max = max_propagate_nan(max, *x);
    }
    let mut sum = 0.0;
    for x in scores.iter_mut() {
        *x = round_e4m3(exp2_fast(*x + (P_MAX_LOG2 - max)));
        sum += *x;
    }
    state.alpha = exp2_fast(state.max - max);
    state.sum = state.sum * state.alpha + sum;
    state.max = max;
}

/// P of a score without an exponential (`sage_spec::sm90::direct_code`), in the kernels' own operations. NaN becomes
/// 0 here; the row is NaN through its maximum.
fn direct_p(score: f32, factor: f32, max: f32) -> f32 {
    let code = score.mul_add(factor * 8.0, max.mul_add(-8.0, DIRECT_MAX_CODE));
    E4M3[usize::from(round_code(round_to_f16(code)))]
}

#[cfg(test)]
mod tests {
    use sage_spec::sm90::direct_code;

    use super::*;

    #[test]
    fn direct_p_is_the_specified_code() {
        for step in 0..4000 {
            let below = -(step as f32) / 200.0;
            // Exact powers of two keep the operations' rounding out of the comparison.
            assert_eq!(direct_p(below, 1.0, 0.0), E4M3[usize::from(direct_code(below))], "{below}");
        }
    }

    #[test]
    fn both_halves_of_a_mixed_row_weigh_the_same() {
        let sum = |is_exact: bool| -> f64 {
            (0..8000)
                .map(|i| {
                    let below = -8.0 * (i as f32 + 0.5) / 8000.0;
                    let p =
                        if is_exact { round_e4m3(exp2_fast(below + P_MAX_LOG2)) } else { direct_p(below, 1.0, 0.0) };
                    f64::from(p) / f64::from(below + P_MAX_LOG2).exp2()
                })
                .sum::<f64>()
                / 8000.0
        };
        let (exact, direct) = (sum(true), sum(false));
        assert!((exact - 1.0).abs() < 1e-3, "{exact}");
        assert!((direct - 1.0).abs() < 2e-3, "{direct}");
    }

    #[test]
    fn a_nan_scale_makes_the_row_nan_and_an_unseen_one_does_not() {
        for (visible, is_nan) in [(64, false), (65, true)] {
            let mut scores = [1.0; TILE];
            let mut k_scale = [0.1; TILE];
            k_scale[64] = f32::NAN;
            let dequantize = Dequantize { q_scale: 0.1, k_scale: &k_scale, delta_s: &[0.0; TILE], sm_scale_log2: 1.0 };
            let mut state = RowState::new(ROW_MAX_START);
            softmax_row(&mut scores, visible, &dequantize, &[true; TILE], &mut state);
            assert_eq!(state.alpha.is_nan(), is_nan);
        }
    }
}
