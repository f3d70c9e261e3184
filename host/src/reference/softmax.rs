//! Online softmax of one row and one tile of keys, in the log2 domain.

use sage_spec::PvFormat;
use sage_spec::quant::SCORE_BIAS;
use sage_spec::tiling::BLOCK_KV;

use super::convert::{round_e4m3, round_f16};

/// Running maximum before the first tile of a quantized row.
pub const ROW_MAX_START: f32 = -1e30;

/// 2^`x` within 2e-7 of its value for `-126 < x < 127`; 0 at and below −126; NaN for NaN.
///
/// `x` is split into the nearest integer and a rest within ±½; the polynomial is that of Cephes
/// `exp2f` (netlib, S. Moshier).
#[inline(always)]
pub fn exp2_fast(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0; // 1.5 · 2²³: f32 has spacing 1 there
    let clamped = if x < -126.0 { -126.0 } else { x };
    let shifted = clamped + ROUND;
    let rest = clamped - (shifted - ROUND);
    let mut y = 1.535_336_2e-4_f32;
    for c in [
        1.339_887_4e-3,
        9.618_437e-3,
        5.550_332_4e-2,
        0.240_226_48,
        std::f32::consts::LN_2,
        1.0,
    ] {
        y = y.mul_add(rest, c);
    }
    // The low bits of `shifted` are the integer; shifted into the exponent they scale by 2^integer.
    let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(1.0f32.to_bits()));
    if x <= -126.0 { 0.0 } else { y * power }
}

/// Coarsest spacing, in log2 units, that [`row_bias`] rounds a maximum to.
const MAX_SPACING: f32 = 1.0;

/// The new running maximum of a row, in log2 units and less `p_max_log2`, so that P is at most about
/// 2^`p_max_log2`.
///
/// `biased_max[t]` is the largest visible `SCORE_BIAS + score` among the keys of lane group `t` of this
/// tile (−inf if none) and `factor[t]` turns that group's score steps into log2 units. A kernel folds
/// the bias and the maximum into one constant per lane, `-(SCORE_BIAS · f + row_max)`, which is as
/// coarse as a score step; the maximum is therefore rounded to a spacing common to the four lanes of a
/// row, and one more score step makes room for that. Where steps are so large that this would spoil
/// P's range, the maximum is exact instead. NaN factors are left out: their P is NaN anyway.
#[inline(always)]
pub fn row_bias(row_max: f32, biased_max: [f32; 4], factor: [f32; 4], p_max_log2: f32) -> f32 {
    let mut spacing = 0.0f32;
    for factor in factor {
        let power = f32::from_bits((SCORE_BIAS * factor).to_bits() & 0x7f80_0000);
        if power.is_finite() {
            spacing = spacing.max(power * (1.0 / 4_194_304.0)); // 2⁻²²
        }
    }
    let rounds = spacing <= MAX_SPACING;
    let base = if rounds { SCORE_BIAS - 1.0 } else { SCORE_BIAS };
    let mut raw = row_max;
    for (biased, factor) in biased_max.into_iter().zip(factor) {
        raw = raw.max((biased - base).mul_add(factor, -p_max_log2));
    }
    let shift = spacing * SCORE_BIAS;
    if rounds { (raw + shift) - shift } else { raw }
}

/// State of a row between tiles.
#[derive(Clone, Copy, Debug)]
pub struct RowState {
    /// Running maximum, in log2 units.
    pub max: f32,
    /// Sum of P relative to `max`.
    pub sum: f32,
    /// What the last tile multiplies older sums by.
    pub alpha: f32,
}

impl RowState {
    /// A row that has seen nothing.
    pub const fn new(max: f32) -> Self {
        RowState {
            max,
            sum: 0.0,
            alpha: 1.0,
        }
    }
}

/// One value for each key of a tile.
pub type TileRow = [f32; BLOCK_KV];

/// Combines `x[i]` with `x[i + half]`, halving until `until` values are left at the front of `x`.
#[inline(always)]
fn halve(x: &mut [f32], until: usize, combine: impl Fn(f32, f32) -> f32) {
    let mut half = x.len() / 2;
    while half >= until {
        let (low, high) = x.split_at_mut(half);
        low.iter_mut()
            .zip(&high[..half])
            .for_each(|(low, high)| *low = combine(*low, *high));
        half /= 2;
    }
}

/// Turns the first `visible` scores into P and the others into 0, and updates the row's state.
#[inline(always)]
fn finish_row(
    scores: &mut [f32],
    factor: &TileRow,
    visible: usize,
    row_max: f32,
    state: &mut RowState,
    round: impl Fn(f32) -> f32,
) {
    for (x, factor) in scores[..visible].iter_mut().zip(factor) {
        *x = round(exp2_fast(x.mul_add(*factor, -row_max)));
    }
    scores[visible..].fill(0.0);
    let mut sum = [0.0; BLOCK_KV];
    sum.copy_from_slice(scores);
    halve(&mut sum, 1, |a, b| a + b);
    state.alpha = exp2_fast(state.max - row_max);
    state.sum = state.sum * state.alpha + sum[0];
    state.max = row_max;
}

/// The first `visible` scores, −inf elsewhere.
#[inline(always)]
fn masked(scores: &[f32], visible: usize) -> TileRow {
    let mut masked = [f32::NEG_INFINITY; BLOCK_KV];
    masked[..visible].copy_from_slice(&scores[..visible]);
    masked
}

/// What turns integer scores of one row and tile into log2 units.
pub struct Dequantize<'a> {
    /// Scale of the row.
    pub q_scale: f32,
    /// Scale of each key.
    pub k_scale: &'a TileRow,
    /// ΔS of each key over its scale; 0 if Q is not smoothed.
    pub delta_s: &'a TileRow,
    /// `sm_scale · log2(e)`.
    pub sm_scale_log2: f32,
}

vectorized! {
    /// One row of an exact tile: `scores` `[BLOCK_KV]` becomes P relative to the new maximum; the first
    /// `visible` keys count.
    pub fn exact_row(scores: &mut [f32], visible: usize, sm_scale_log2: f32, state: &mut RowState) {
        scores.iter_mut().for_each(|x| *x *= sm_scale_log2);
        let mut max = masked(scores, visible);
        halve(&mut max, 1, f32::max);
        let row_max = state.max.max(max[0]);
        finish_row(scores, &[1.0; BLOCK_KV], visible, row_max, state, |p| p);
    }

    /// One row of a quantized tile: integer `scores` `[BLOCK_KV]` become rounded P; the first `visible`
    /// keys count.
    ///
    /// The accumulator of a score starts from ΔS in whole score steps (the kernels add the score to
    /// its bits), and `score · f - row_max` is rounded once.
    pub fn quantized_row(
        scores: &mut [f32],
        visible: usize,
        dequantize: &Dequantize,
        pv: PvFormat,
        state: &mut RowState,
    ) {
        let &Dequantize { q_scale, k_scale, delta_s, sm_scale_log2 } = dequantize;
        let inverse_q_scale = 1.0 / q_scale;
        for (x, delta_s) in scores.iter_mut().zip(delta_s) {
            *x += delta_s.mul_add(inverse_q_scale, SCORE_BIAS);
        }
        let mut max = masked(scores, visible);
        halve(&mut max, 8, f32::max);
        let mut factor = *k_scale;
        for factor in &mut factor {
            *factor = (q_scale * *factor) * sm_scale_log2;
        }
        let row_max = row_bias(
            state.max,
            std::array::from_fn(|t| max[2 * t].max(max[2 * t + 1])),
            std::array::from_fn(|t| factor[2 * t]),
            pv.p_max_log2(),
        );
        for x in scores.iter_mut() {
            *x -= SCORE_BIAS;
        }
        match pv {
            PvFormat::Fp8 => finish_row(scores, &factor, visible, row_max, state, round_e4m3),
            PvFormat::F16 => finish_row(scores, &factor, visible, row_max, state, round_f16),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp2_is_within_its_bound() {
        let mut worst = 0.0f64;
        for i in 0..=4_000_000 {
            let x = -125.9 + i as f32 * (250.0 / 4_000_000.0);
            let exact = f64::from(x).exp2();
            worst = worst.max((f64::from(exp2_fast(x)) - exact).abs() / exact);
        }
        println!("exp2_fast: {worst:.3e}");
        assert!(worst < 2e-7, "{worst:e}");
    }

    #[test]
    fn exp2_special_values() {
        for n in -125..=127 {
            assert_eq!(exp2_fast(n as f32), 2f32.powi(n));
        }
        for x in [-126.0, -127.0, -1e30, f32::MIN, f32::NEG_INFINITY] {
            assert_eq!(exp2_fast(x), 0.0);
        }
        assert!(exp2_fast(f32::NAN).is_nan());
    }

    #[test]
    fn row_bias_is_near_the_maximum_whatever_the_step() {
        for step in [1e-6, 0.003, 0.1, 0.3, 1.0, 30.0, 1e6] {
            let factor = [1.0, 1.1, 0.7, 0.9].map(|x| x * step);
            let biased_max = [100.0, 220.0, -50.0, f32::NEG_INFINITY].map(|x| SCORE_BIAS + x);
            let row_max = row_bias(ROW_MAX_START, biased_max, factor, 8.807);
            let exact = 220.0 * factor[1] - 8.807;
            let slack = (2.7 * factor[1]).min(MAX_SPACING) + exact.abs() * 1e-6;
            assert!(
                (row_max - exact).abs() <= slack,
                "{step}: {row_max} {exact}"
            );
        }
    }

    #[test]
    fn row_bias_ignores_what_no_key_can_tell() {
        let factor = [0.1; 4];
        let nothing = [f32::NEG_INFINITY; 4];
        assert_eq!(
            row_bias(ROW_MAX_START, nothing, factor, 8.807),
            ROW_MAX_START
        );
        assert!(row_bias(0.0, [SCORE_BIAS; 4], [f32::NAN, 0.1, 0.1, 0.1], 8.807).is_finite());
        assert_eq!(
            row_bias(ROW_MAX_START, [SCORE_BIAS; 4], [0.0; 4], 8.807),
            -8.807
        );
    }

    #[test]
    fn a_masked_tile_changes_nothing() {
        let mut state = RowState {
            max: 3.0,
            sum: 2.0,
            alpha: 0.5,
        };
        let mut scores = [7.0; BLOCK_KV];
        exact_row(&mut scores, 0, 1.0, &mut state);
        assert_eq!((state.max, state.sum, state.alpha), (3.0, 2.0, 1.0));
        assert_eq!(scores, [0.0; BLOCK_KV]);
    }

    #[test]
    fn a_nan_score_reaches_the_sum_only_where_it_is_visible() {
        for (visible, is_nan) in [(5, false), (6, true)] {
            let mut scores = [1.0; BLOCK_KV];
            scores[5] = f32::NAN;
            let mut state = RowState::new(f32::MIN);
            exact_row(&mut scores, visible, 1.0, &mut state);
            assert_eq!(state.sum.is_nan(), is_nan);
            let mut scores = [1.0; BLOCK_KV];
            scores[5] = f32::NAN;
            let mut state = RowState::new(ROW_MAX_START);
            let dequantize = Dequantize {
                q_scale: 0.1,
                k_scale: &[0.1; BLOCK_KV],
                delta_s: &[0.0; BLOCK_KV],
                sm_scale_log2: 1.0,
            };
            quantized_row(&mut scores, visible, &dequantize, PvFormat::Fp8, &mut state);
            assert_eq!(state.sum.is_nan(), is_nan);
        }
    }
}
