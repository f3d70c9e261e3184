//! Online softmax of one row and one tile of keys, in the log2 domain.

use sage_spec::PvFormat;
use sage_spec::quant::{FOLDED_HEADROOM, SCORE_BIAS};
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
    for c in [1.339_887_4e-3, 9.618_437e-3, 5.550_332_4e-2, 0.240_226_48, std::f32::consts::LN_2, 1.0] {
        y = y.mul_add(rest, c);
    }
    // The low bits of `shifted` are the integer; shifted into the exponent they scale by 2^integer.
    let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(1.0f32.to_bits()));
    if x <= -126.0 { 0.0 } else { y * power }
}

/// How a kernel applies the score bias (`sage_spec::quant::SCORE_BIAS`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bias {
    /// Folded, with the row maximum, into one rounded constant per key group: `f · D + c`. For tiles
    /// that every row of the query block sees whole.
    Folded,
    /// Subtracted first: `f · (D − bias) − max`.
    Exact,
}

/// The new running maximum of a row, in log2 units and less `p_max_log2`, so that P is at most about
/// 2^`p_max_log2`.
///
/// `max[t]` is the largest visible score among the keys of lane group `t` of this tile, biased if
/// folded, −inf if none is visible; `factor[t]` turns that group's score steps into log2 units. NaN
/// factors are passed over, as by the kernels' `max.f32`: their P is NaN anyway.
#[inline(always)]
pub fn new_row_max(bias: Bias, row_max: f32, max: [f32; 4], factor: [f32; 4], p_max_log2: f32) -> f32 {
    let (bias, headroom) = match bias {
        Bias::Folded => (SCORE_BIAS, FOLDED_HEADROOM),
        Bias::Exact => (0.0, 0.0),
    };
    let mut new = row_max;
    for (max, factor) in max.into_iter().zip(factor) {
        let offset = (headroom - bias).mul_add(factor, -p_max_log2);
        new = new.max(max.mul_add(factor, offset));
    }
    new
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
        RowState { max, sum: 0.0, alpha: 1.0 }
    }
}

/// One value for each key of a tile.
pub type TileRow = [f32; BLOCK_KV];

/// Combines `x[i]` with `x[i + half]`, halving until `until` values are left at the front of `x`.
#[inline(always)]
pub fn halve(x: &mut [f32], until: usize, combine: impl Fn(f32, f32) -> f32) {
    let mut half = x.len() / 2;
    while half >= until {
        let (low, high) = x.split_at_mut(half);
        low.iter_mut().zip(&high[..half]).for_each(|(low, high)| *low = combine(*low, *high));
        half /= 2;
    }
}

/// Turns the first `visible` scores into P = 2^(score · factor + constant) and the others into 0, and
/// updates the row's state.
#[inline(always)]
fn finish_row(
    scores: &mut [f32],
    factor: &TileRow,
    constant: &TileRow,
    visible: usize,
    row_max: f32,
    state: &mut RowState,
    round: impl Fn(f32) -> f32,
) {
    for ((x, factor), constant) in scores[..visible].iter_mut().zip(factor).zip(constant) {
        *x = round(exp2_fast(x.mul_add(*factor, *constant)));
    }
    scores[visible..].fill(0.0);
    accumulate(scores, row_max, state);
}

/// Adds the P of a tile, relative to `row_max`, to a row's state.
#[inline(always)]
pub fn accumulate(p: &[f32], row_max: f32, state: &mut RowState) {
    let mut sum = [0.0; BLOCK_KV];
    sum.copy_from_slice(p);
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
    /// Whether ΔS counts in whole score steps, or as it is in the general kernels of wide heads, whose accumulator
    /// has no room for it.
    pub whole_steps: bool,
}

vectorized! {
    /// One row of an exact tile: `scores` `[BLOCK_KV]` becomes P relative to the new maximum; the first
    /// `visible` keys count.
    pub fn exact_row(scores: &mut [f32], visible: usize, sm_scale_log2: f32, state: &mut RowState) {
        scores.iter_mut().for_each(|x| *x *= sm_scale_log2);
        let mut max = masked(scores, visible);
        halve(&mut max, 1, f32::max);
        let row_max = state.max.max(max[0]);
        let (factor, constant) = ([1.0; BLOCK_KV], [-row_max; BLOCK_KV]);
        finish_row(scores, &factor, &constant, visible, row_max, state, |p| p);
    }

    /// One row of a quantized tile: integer `scores` `[BLOCK_KV]` become rounded P; the first `visible`
    /// keys count.
    ///
    /// The accumulator of a score starts from ΔS in whole score steps: the kernels add the score to
    /// its bits.
    pub fn quantized_row(
        scores: &mut [f32],
        visible: usize,
        bias: Bias,
        dequantize: &Dequantize,
        pv: PvFormat,
        state: &mut RowState,
    ) {
        let &Dequantize { q_scale, k_scale, delta_s, sm_scale_log2, .. } = dequantize;
        let inverse_q_scale = 1.0 / q_scale;
        for (x, delta_s) in scores.iter_mut().zip(delta_s) {
            *x += delta_s.mul_add(inverse_q_scale, SCORE_BIAS);
        }
        let bias_left = match bias {
            Bias::Folded => SCORE_BIAS,
            Bias::Exact => {
                scores.iter_mut().for_each(|x| *x -= SCORE_BIAS);
                0.0
            }
        };
        let mut max = masked(scores, visible);
        halve(&mut max, 8, f32::max);
        let mut factor = *k_scale;
        for factor in &mut factor {
            *factor *= q_scale * sm_scale_log2;
        }
        let row_max = new_row_max(
            bias,
            state.max,
            std::array::from_fn(|t| max[2 * t].max(max[2 * t + 1])),
            std::array::from_fn(|t| factor[2 * t]),
            pv.p_max_log2(),
        );
        let mut constant = factor;
        for constant in &mut constant {
            *constant = (-bias_left).mul_add(*constant, -row_max);
        }
        match pv {
            PvFormat::Fp8 => finish_row(scores, &factor, &constant, visible, row_max, state, round_e4m3),
            PvFormat::F16 => finish_row(scores, &factor, &constant, visible, row_max, state, round_f16),
        }
    }
}

#[cfg(test)]
mod tests {
    use sage_spec::quant::FOLDED_STEP_MAX;

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
    fn the_row_maximum_leaves_p_in_range() {
        for step in [1e-6, 0.003, FOLDED_STEP_MAX / 1.1, 0.3, 30.0, 1e6] {
            let factor = [1.0, 1.1, 0.7, 0.9].map(|x| x * step);
            let scores = [100.0, 220.0, -50.0, f32::NEG_INFINITY];
            let exact = 220.0 * factor[1] - 8.807;
            let start = ROW_MAX_START;
            let max = new_row_max(Bias::Exact, start, scores, factor, 8.807);
            assert!((max - exact).abs() <= exact.abs() * 1e-6, "{step}: {max}");
            if step <= FOLDED_STEP_MAX {
                let biased = scores.map(|x| SCORE_BIAS + x);
                let max = new_row_max(Bias::Folded, start, biased, factor, 8.807);
                assert!(max >= exact + factor[1] * 0.99 - 1e-5, "{step}: {max}");
                assert!(max <= exact + factor[1] * 3.01 + 1e-5, "{step}: {max}");
            }
        }
    }

    #[test]
    fn the_row_maximum_ignores_what_no_key_can_tell() {
        let (factor, nothing) = ([0.1; 4], [f32::NEG_INFINITY; 4]);
        let start = ROW_MAX_START;
        assert_eq!(new_row_max(Bias::Exact, start, nothing, factor, 8.807), start);
        let with_nan = [f32::NAN, 0.1, 0.1, 0.1];
        assert!(new_row_max(Bias::Exact, 0.0, [0.0; 4], with_nan, 8.807).is_finite());
    }

    #[test]
    fn a_masked_tile_changes_nothing() {
        let mut state = RowState { max: 3.0, sum: 2.0, alpha: 0.5 };
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
                whole_steps: true,
            };
            quantized_row(&mut scores, visible, Bias::Exact, &dequantize, PvFormat::Fp8, &mut state);
            assert_eq!(state.sum.is_nan(), is_nan);
        }
    }
}
