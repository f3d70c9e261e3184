//! Attention on quantized operands as the kernels for Hopper do it (`sage_spec::sm90`): tiles of 128 keys, no
//! score bias, and the mixed exponential. With modifiers scores become f32 in log2 units before anything is done to
//! them, and all take the exact exponential.

use std::ops::Range;

use rayon::prelude::*;
use sage_spec::Dims;
use sage_spec::quant::{LOG2_E, SCORE_BIAS};
use sage_spec::sm90::{
    BLOCK_KV as TILE, Basis, DIRECT_ONE, DIRECT_SLOPE, EVEN_TILE_SUM, Exponential, P_MAX_LOG2, TILE_SUM_LIMIT,
    WARPGROUP_Q, code_of_part, octaves_to_raise,
};
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

        unpack_int(problem.q_codes(flat_block), options.precision, q);
        out.fill(0.0);
        let mut states = [RowState::new(ROW_MAX_START); BLOCK_Q];
        let mut groups = [(); BLOCK_Q / WARPGROUP_Q].map(|()| Group::default());

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
            let dequantize = |row: usize| Dequantize {
                q_scale: q_scales[options.granularity.q_group(row)],
                k_scale: &k_scale,
                delta_s: &shift,
                sm_scale_log2: options.sm_scale * LOG2_E,
                is_biased: options.smooth_q,
                exponential,
                depth,
            };
            if plain {
                let visible = |row: usize| keys(row).1.saturating_sub(first).min(TILE);
                for (group, begin) in groups.iter_mut().zip((0..rows).step_by(WARPGROUP_Q)) {
                    let rows = begin..rows.min(begin + WARPGROUP_Q);
                    let full = keys(begin).1 / TILE;
                    let tile = GroupTile { rows, visible: &visible, full, dequantize: &dequantize };
                    group.step(&tile, p, &mut states);
                }
            } else {
                for (row, p) in p.chunks_exact_mut(TILE).take(rows).enumerate() {
                    let state = &mut states[row];
                    let at = first_row + row;
                    let shift_log2 = problem.lse_shift(flat_q, at) * LOG2_E;
                    let terms = [modifiers.terms(at, first), modifiers.terms(at, first + BLOCK_KV)];
                    general_row(p, &dequantize(row), modifiers.softcap(), shift_log2, terms.as_flattened(), state);
                }
            }
            let mut alpha = states.map(|state| state.alpha);
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
        let v_offset = quantized.v_offset.as_ref().map(|offset| &offset[flat_kv * depth..]);
        for row in 0..rows {
            let state = &mut states[row];
            if !plain {
                // As in the general kernels' reference, which keeps maxima less the largest P.
                state.max -= P_MAX_LOG2;
            }
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
                let offset = v_offset.map_or(0.0, |offset| offset[channel]);
                *to = x.mul_add(v_scale[channel], offset * weight);
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
#[derive(Clone, Copy)]
struct Dequantize<'a> {
    q_scale: f32,
    k_scale: &'a [f32; TILE],
    /// ΔS of each key over its scale; 0 if Q is not smoothed.
    delta_s: &'a [f32; TILE],
    sm_scale_log2: f32,
    /// Whether Q is smoothed: the kernels' scores then are `SCORE_BIAS` larger.
    is_biased: bool,
    exponential: Exponential,
    /// Padded head dimension, which decides about exact keys.
    depth: usize,
}

impl Dequantize<'_> {
    /// What turns score steps of key `key` into log2 units.
    fn factor(&self, key: usize) -> f32 {
        self.k_scale[key] * (self.q_scale * self.sm_scale_log2)
    }

    /// Adds ΔS to integer scores, in whole score steps; returns the largest in log2 units.
    fn scores(&self, scores: &mut [f32]) -> f32 {
        let inverse_q_scale = 1.0 / self.q_scale;
        let mut max = ROW_MAX_START;
        for (key, x) in scores.iter_mut().enumerate() {
            // Rounded by adding 1.5 · 2²³.
            *x += self.delta_s[key].mul_add(inverse_q_scale, SCORE_BIAS) - SCORE_BIAS;
            max = max_propagate_nan(max, *x * self.factor(key));
        }
        max
    }

    /// Scores become P relative to `reference`; returns their sum.
    fn weigh(&self, scores: &mut [f32], reference: f32, basis: Basis) -> f32 {
        for (key, x) in scores.iter_mut().enumerate() {
            *x = self.p_of(*x, key, reference, self.exponential.is_exact_key(basis, self.depth, key));
        }
        scores.iter().sum()
    }

    /// P of key `key`, whose score is `score` steps, as the value of its code, relative to the row's reference: in the
    /// kernels' own operations, which take the bias of scores out together with the reference.
    fn p_of(&self, score: f32, key: usize, reference: f32, is_exact: bool) -> f32 {
        let factor = self.factor(key);
        if is_exact && self.is_biased {
            let reference = factor.mul_add(SCORE_BIAS, reference);
            round_e4m3(exp2_fast((score + SCORE_BIAS).mul_add(factor, -reference)))
        } else if is_exact {
            round_e4m3(exp2_fast(score.mul_add(factor, -reference)))
        } else {
            // Without an exponential (`sage_spec::sm90::direct_code`). NaN becomes 0; the row is NaN through its reference.
            let offset = DIRECT_ONE - reference * DIRECT_SLOPE;
            E4M3[usize::from(code_of_part(score.mul_add(factor * DIRECT_SLOPE, offset)))]
        }
    }
}

/// The larger number, NaN if either is.
fn max_propagate_nan(a: f32, b: f32) -> f32 {
    if a.is_nan() || a > b { a } else { b }
}

/// Rows of a warpgroup, which decide together what P of a tile is relative to.
struct Group {
    /// Tiles so far.
    tiles: usize,
    /// What P of the next tile is relative to.
    basis: Basis,
    /// P of a tile that is tried without maxima, `[WARPGROUP_Q, TILE]`.
    tried: Vec<f32>,
}

impl Default for Group {
    fn default() -> Self {
        Group { tiles: 0, basis: Basis::Maxima, tried: vec![0.0; WARPGROUP_Q * TILE] }
    }
}

/// A tile as a warpgroup sees it.
struct GroupTile<'a> {
    /// The rows, in their block.
    rows: Range<usize>,
    /// How many keys of this tile a row sees.
    visible: &'a dyn Fn(usize) -> usize,
    /// How many whole tiles all rows see, of all.
    full: usize,
    /// What turns a row's scores into log2 units.
    dequantize: &'a dyn Fn(usize) -> Dequantize<'a>,
}

impl Group {
    /// One tile: integer scores in `p` become the values of P's codes. The maxima of `states` are the rows' references.
    fn step(&mut self, tile: &GroupTile, p: &mut [f32], states: &mut [RowState; BLOCK_Q]) {
        let GroupTile { rows, visible, full, dequantize } = tile;
        let mut maxima = [ROW_MAX_START; WARPGROUP_Q];
        for (at, row) in rows.clone().enumerate() {
            states[row].alpha = 1.0;
            maxima[at] = dequantize(row).scores(&mut p[row * TILE..][..visible(row)]);
        }
        if self.tiles == 1 && *full > 1 && rows.clone().all(|row| states[row].sum >= EVEN_TILE_SUM) {
            self.basis = Basis::References;
            for row in rows.clone() {
                let octaves = octaves_to_raise(states[row].sum) as f32;
                states[row].alpha = exp2_fast(-octaves);
                states[row].max += octaves;
            }
        }
        let is_tried = self.basis == Basis::References && self.tiles < *full;
        if is_tried && !self.fits(tile, p, states) {
            self.basis = Basis::Maxima;
        }
        for (at, row) in rows.clone().enumerate() {
            let state = &mut states[row];
            let (seen, masked) = p[row * TILE..][..TILE].split_at_mut(visible(row));
            masked.fill(0.0);
            let tile_sum: f32 = if is_tried && self.basis == Basis::References {
                seen.copy_from_slice(&self.tried[at * TILE..][..TILE]);
                seen.iter().sum()
            } else {
                let reference = max_propagate_nan(state.max, maxima[at] - P_MAX_LOG2);
                state.alpha *= exp2_fast(state.max - reference);
                state.max = reference;
                dequantize(row).weigh(seen, reference, Basis::Maxima)
            };
            state.sum = state.sum * state.alpha + tile_sum;
        }
        self.tiles += 1;
    }

    /// Whether no code of the tile is clamped with the references as they are: the warpgroup's sums tell.
    fn fits(&mut self, tile: &GroupTile, scores: &[f32], states: &[RowState; BLOCK_Q]) -> bool {
        let mut fits = true;
        for (tried, row) in self.tried.chunks_exact_mut(TILE).zip(tile.rows.clone()) {
            tried.copy_from_slice(&scores[row * TILE..][..TILE]);
            let sum = (tile.dequantize)(row).weigh(tried, states[row].max, Basis::References);
            fits &= sum < TILE_SUM_LIMIT;
        }
        fits
    }
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
    let mut max = state.max;
    dequantize.scores(scores);
    for (key, (x, &term)) in scores.iter_mut().zip(terms).enumerate() {
        let score = *x * dequantize.factor(key);
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

#[cfg(test)]
mod tests {
    use sage_spec::sm90::direct_code;

    use super::*;

    /// Scores are in units of `k_scale`; every key takes the exact exponential.
    fn in_units_of(k_scale: &[f32; TILE]) -> Dequantize<'_> {
        Dequantize {
            q_scale: 1.0,
            k_scale,
            delta_s: &[0.0; TILE],
            sm_scale_log2: 1.0,
            is_biased: false,
            exponential: Exponential::Exact,
            depth: 64,
        }
    }

    /// P of a score in log2 units, relative to a reference of 0.
    fn p_of(x: f32, is_exact: bool) -> f32 {
        in_units_of(&[1.0; TILE]).p_of(x, 0, 0.0, is_exact)
    }

    #[test]
    fn direct_p_is_the_specified_code() {
        for step in 0..4000 {
            let x = 8.0 - step as f32 / 200.0;
            assert_eq!(p_of(x, false), E4M3[usize::from(direct_code(x))], "{x}");
        }
    }

    #[test]
    fn both_halves_of_a_mixed_row_weigh_the_same() {
        let mean = |is_exact: bool| -> f64 {
            let x = |i: i32| 8.0 - 8.0 * (i as f32 + 0.5) / 8000.0;
            (0..8000).map(|i| f64::from(p_of(x(i), is_exact)) / f64::from(x(i)).exp2()).sum::<f64>() / 8000.0
        };
        let (exact, direct) = (mean(true), mean(false));
        assert!((exact - 1.0).abs() < 1e-3, "{exact}");
        assert!((direct - 1.0).abs() < 2e-3, "{direct}");
    }

    /// What P of the third of three tiles is relative to, in which the last score is `last` octaves; the other scores are `spread`
    /// octaves apart.
    fn basis(spread: f32, last: f32) -> Basis {
        let dequantize = in_units_of(&[1.0; TILE]);
        let (mut group, mut states) = (Group::default(), [RowState::new(ROW_MAX_START); BLOCK_Q]);
        for tile in 0..3 {
            let mut scores: [f32; TILE] = std::array::from_fn(|key| -spread * (key % 64) as f32);
            if tile == 2 {
                scores[TILE - 1] = last;
            }
            let tile = GroupTile { rows: 0..1, visible: &|_| TILE, full: 3, dequantize: &|_| dequantize };
            group.step(&tile, &mut scores, &mut states);
        }
        group.basis
    }

    #[test]
    fn an_even_first_tile_decides_and_a_clamped_code_revises() {
        assert_eq!(basis(0.1, 0.0), Basis::References);
        assert_eq!(basis(5.0, 0.0), Basis::Maxima, "the first key has nearly all the weight");
        assert_eq!(basis(0.1, 10.0), Basis::Maxima, "the last key has");
    }

    #[test]
    fn a_nan_scale_makes_the_row_nan_and_an_unseen_one_does_not() {
        for (visible, is_nan) in [(64, false), (65, true)] {
            let mut scores = [1.0; TILE];
            let mut k_scale = [0.1; TILE];
            k_scale[64] = f32::NAN;
            let dequantize = Dequantize { q_scale: 0.1, ..in_units_of(&k_scale) };
            let mut states = [RowState::new(ROW_MAX_START); BLOCK_Q];
            let tile = GroupTile { rows: 0..1, visible: &|_| visible, full: 0, dequantize: &|_| dequantize };
            Group::default().step(&tile, &mut scores, &mut states);
            assert_eq!(states[0].alpha.is_nan(), is_nan);
        }
    }
}
