//! Online softmax of one row and one tile with modifiers: soft-cap, terms that are added to scores, and
//! sinks. Scores are brought to log2 units first, so terms of 0 change no bit.

use sage_spec::PvFormat;
use sage_spec::quant::{LOG2_E, SCORE_BIAS};
use sage_spec::tiling::BLOCK_KV;

use super::convert::{round_e4m3, round_f16};
use super::softmax::{Dequantize, RowState, TileRow, accumulate, exp2_fast, halve};

/// `softcap · tanh(x / softcap)`, both sides in log2 units: `1 − 2 / (1 + 2^(2 x log2(e) / softcap))`
/// is tanh.
#[inline(always)]
pub fn capped(x: f32, softcap: f32) -> f32 {
    let argument = x * (2.0 / softcap);
    // 2^126 is as good as infinity here; NaN stays NaN.
    let power = exp2_fast(if argument > 126.0 { 126.0 } else { argument });
    (softcap * LOG2_E) * (1.0 - 2.0 / (1.0 + power))
}

/// Turns scores `x`, in log2 units, and their terms into P relative to the new maximum, which is less
/// `p_max_log2`; hidden keys, whose term is −inf, get 0.
#[inline(always)]
fn finish(x: &mut [f32], terms: &TileRow, p_max_log2: f32, state: &mut RowState, round: impl Fn(f32) -> f32) {
    for (x, term) in x.iter_mut().zip(terms) {
        *x = if *term == f32::NEG_INFINITY { *term } else { *x + term };
    }
    let mut max = [f32::NEG_INFINITY; BLOCK_KV];
    max.copy_from_slice(x);
    halve(&mut max, 1, f32::max);
    let row_max = state.max.max(max[0] - p_max_log2);
    x.iter_mut().for_each(|x| *x = round(exp2_fast(*x - row_max)));
    accumulate(x, row_max, state);
}

vectorized! {
    /// One row of an exact tile: `scores` `[BLOCK_KV]` becomes P.
    pub fn general_exact_row(
        scores: &mut [f32],
        sm_scale_log2: f32,
        softcap: Option<f32>,
        terms: &TileRow,
        state: &mut RowState,
    ) {
        scores.iter_mut().for_each(|x| *x *= sm_scale_log2);
        if let Some(softcap) = softcap {
            scores.iter_mut().for_each(|x| *x = capped(*x, softcap));
        }
        finish(scores, terms, 0.0, state, |p| p);
    }

    /// One row of a quantized tile: integer `scores` `[BLOCK_KV]` become rounded P. A soft-cap needs the
    /// whole score: `shift_log2` is what smoothing K has taken from it, in log2 units.
    pub fn general_quantized_row(
        scores: &mut [f32],
        dequantize: &Dequantize,
        softcap: Option<f32>,
        shift_log2: f32,
        terms: &TileRow,
        pv: PvFormat,
        state: &mut RowState,
    ) {
        let &Dequantize { q_scale, k_scale, delta_s, sm_scale_log2, whole_steps } = dequantize;
        let inverse_q_scale = 1.0 / q_scale;
        for ((x, delta_s), k_scale) in scores.iter_mut().zip(delta_s).zip(k_scale) {
            let steps = if whole_steps {
                // As the biased accumulator holds it.
                *x + delta_s.mul_add(inverse_q_scale, SCORE_BIAS) - SCORE_BIAS
            } else {
                *x + delta_s * inverse_q_scale
            };
            *x = steps * (q_scale * sm_scale_log2 * k_scale);
        }
        if let Some(softcap) = softcap {
            scores.iter_mut().for_each(|x| *x = capped(*x + shift_log2, softcap));
        }
        match pv {
            PvFormat::Fp8 => finish(scores, terms, pv.p_max_log2(), state, round_e4m3),
            PvFormat::F16 => finish(scores, terms, pv.p_max_log2(), state, round_f16),
        }
    }
}

/// Adds a sink of `sink_log2`, in log2 units, to a finished row: `sum` becomes the denominator and `alpha`
/// what the output must be multiplied by. Returns the part of the denominator that is the keys'.
pub fn add_sink(sink_log2: f32, p_max_log2: f32, state: &mut RowState) -> f32 {
    let max = state.max.max(sink_log2 - p_max_log2);
    state.alpha = exp2_fast(state.max - max);
    state.max = max;
    let keys = state.sum * state.alpha;
    state.sum = keys + exp2_fast(sink_log2 - max);
    keys
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_soft_cap_is_a_tanh() {
        for softcap in [0.5f32, 15.0, 50.0, 1e4] {
            for i in -4000..=4000 {
                let x = i as f32 * 0.37;
                let exact = f64::from(softcap) * (f64::from(x) / f64::from(softcap)).tanh();
                let actual = f64::from(capped(x * LOG2_E, softcap)) / std::f64::consts::LOG2_E;
                assert!((actual - exact).abs() <= 1e-6 * f64::from(softcap).max(x.abs().into()), "{softcap} {x}");
            }
        }
        assert_eq!(capped(f32::INFINITY, 1.0), LOG2_E);
        assert!(capped(f32::NAN, 1.0).is_nan());
    }

    #[test]
    fn a_hidden_tile_changes_nothing() {
        let mut state = RowState { max: 3.0, sum: 2.0, alpha: 0.5 };
        let mut scores = [f32::NAN; BLOCK_KV];
        general_exact_row(&mut scores, 1.0, None, &[f32::NEG_INFINITY; BLOCK_KV], &mut state);
        assert_eq!((state.max, state.sum, state.alpha), (3.0, 2.0, 1.0));
        assert_eq!(scores, [0.0; BLOCK_KV]);
    }

    #[test]
    fn a_sink_takes_its_share() {
        // One key of weight 2^3 beside a sink of 2^4, however the maximum is offset.
        for p_max in [0.0, 8.0] {
            let mut state = RowState { max: 3.0 - p_max, sum: p_max.exp2(), alpha: 0.5 };
            let keys = add_sink(4.0, p_max, &mut state);
            assert!((keys / state.sum - 8.0 / 24.0).abs() < 1e-6);
            assert!((state.max + state.sum.log2() - 24f32.log2()).abs() < 1e-6);
            let before = RowState { max: 3.0, sum: 2.0, alpha: 0.5 };
            let mut state = before;
            assert_eq!(add_sink(f32::NEG_INFINITY, p_max, &mut state), 2.0);
            assert_eq!((state.max, state.sum, state.alpha), (3.0, 2.0, 1.0));
        }
    }
}
