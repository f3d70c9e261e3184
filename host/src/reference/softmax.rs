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
    for c in [1.339_887_4e-3, 9.618_437e-3, 5.550_332_4e-2, 0.240_226_48, 0.693_147_2, 1.0] {
        y = y.mul_add(rest, c);
    }
    // The low bits of `shifted` are the integer; shifted into the exponent they scale by 2^integer.
    let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(1.0f32.to_bits()));
    if x <= -126.0 { 0.0 } else { y * power }
}

/// The new running maximum of a row: what `D·f` is lowered by, less `p_max_log2`.
///
/// `biased_max[t]` is the largest visible `SCORE_BIAS + score` among the keys of lane group `t` of this
/// tile (−inf if none) and `factor[t]` turns that group's score steps into log2 units. A kernel folds
/// the bias and the maximum into one constant per lane, `-(SCORE_BIAS · f + row_max)`, so it rounds the
/// maximum to a spacing at which this sum is exact for all four lanes of a row; one more score step
/// makes room for that. NaN groups are left out: their P is NaN whatever the maximum.
#[inline(always)]
pub fn row_bias(row_max: f32, biased_max: [f32; 4], factor: [f32; 4], p_max_log2: f32) -> f32 {
    let mut raw = row_max;
    let mut spacing = 0.0f32;
    for (biased, factor) in biased_max.into_iter().zip(factor) {
        raw = raw.max((biased - (SCORE_BIAS - 1.0)).mul_add(factor, -p_max_log2));
        let power = f32::from_bits((SCORE_BIAS * factor).to_bits() & 0x7f80_0000);
        if power.is_finite() {
            spacing = spacing.max(power * (1.0 / 4_194_304.0)); // 2⁻²²
        }
    }
    let shift = spacing * SCORE_BIAS;
    (raw + shift) - shift
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

/// Scores of one row in one tile; afterwards P.
pub type TileRow = [f32; BLOCK_KV];

/// Sums in eight lanes and then pairwise.
#[inline(always)]
fn sum(p: &TileRow) -> f32 {
    let mut lanes = [0.0f32; 8];
    for chunk in p.chunks_exact(8) {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            *lane += x;
        }
    }
    let [a, b, c, d, e, f, g, h] = lanes;
    ((a + b) + (c + d)) + ((e + f) + (g + h))
}

/// Maxima of columns ≡ 0..8 (mod 8) among the first `visible` ones; NaN is dropped.
#[inline(always)]
fn column_max(scores: &TileRow, visible: usize) -> [f32; 8] {
    let mut max = [f32::NEG_INFINITY; 8];
    for (block, chunk) in scores.chunks_exact(8).enumerate() {
        for (column, (max, &x)) in max.iter_mut().zip(chunk).enumerate() {
            let x = if block * 8 + column < visible { x } else { f32::NEG_INFINITY };
            *max = if x > *max { x } else { *max };
        }
    }
    max
}

/// P of a tile whose scores times `factor` (by column mod 8) are in log2 units; masked ones are 0.
#[inline(always)]
fn probabilities(
    scores: &mut TileRow,
    visible: usize,
    factor: [f32; 8],
    row_max: f32,
    round: impl Fn(f32) -> f32,
) {
    for (block, chunk) in scores.chunks_exact_mut(8).enumerate() {
        for (column, (x, factor)) in chunk.iter_mut().zip(factor).enumerate() {
            let p = round(exp2_fast(x.mul_add(factor, -row_max)));
            *x = if block * 8 + column < visible { p } else { 0.0 };
        }
    }
}

vectorized! {
    /// One row of an exact tile: `scores` becomes P relative to the new maximum; the first `visible`
    /// columns count.
    pub fn exact_row(scores: &mut TileRow, visible: usize, sm_scale_log2: f32, state: &mut RowState) {
        let mut row_max = state.max;
        for &x in &scores[..visible] {
            row_max = row_max.max(x * sm_scale_log2);
        }
        probabilities(scores, visible, [sm_scale_log2; 8], row_max, |p| p);
        state.alpha = exp2_fast(state.max - row_max);
        state.sum = state.sum * state.alpha + sum(scores);
        state.max = row_max;
    }

    /// One row of a quantized tile: integer `scores` become rounded P.
    ///
    /// `start` is what the score accumulator starts from, `SCORE_BIAS` plus ΔS in whole score steps;
    /// `factor[t]` belongs to the columns with `column % 8 / 2 == t`. `score · f - row_max` is rounded
    /// once, which is the value the kernels have too.
    pub fn quantized_row(
        scores: &mut TileRow,
        start: &TileRow,
        visible: usize,
        factor: [f32; 4],
        pv: PvFormat,
        state: &mut RowState,
    ) {
        for (x, start) in scores.iter_mut().zip(start) {
            *x += start;
        }
        let column_max = column_max(scores, visible);
        let biased_max = std::array::from_fn(|t| column_max[2 * t].max(column_max[2 * t + 1]));
        let row_max = row_bias(state.max, biased_max, factor, pv.p_max_log2());
        for x in scores.iter_mut() {
            *x -= SCORE_BIAS;
        }
        let factor = std::array::from_fn(|column| factor[column / 2]);
        match pv {
            PvFormat::Fp8 => probabilities(scores, visible, factor, row_max, round_e4m3),
            PvFormat::F16 => probabilities(scores, visible, factor, row_max, round_f16),
        }
        state.alpha = exp2_fast(state.max - row_max);
        state.sum = state.sum * state.alpha + sum(scores);
        state.max = row_max;
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
    fn row_bias_makes_the_folded_constant_exact() {
        let factor = [0.011, 0.0123, 0.0079, 0.0101];
        let biased_max = [100.0, 220.0, -50.0, f32::NEG_INFINITY].map(|x| SCORE_BIAS + x);
        let row_max = row_bias(ROW_MAX_START, biased_max, factor, 8.807);
        assert!((row_max - (221.0 * 0.0123 - 8.807)).abs() <= 1.5 * 0.0123);
        for f in factor {
            let folded = SCORE_BIAS.mul_add(-f, -row_max);
            let x = (SCORE_BIAS + 220.0).mul_add(f, folded);
            let product = f64::from(SCORE_BIAS) * f64::from(f);
            let rounded = product + f64::from(row_max) + f64::from(folded);
            println!("{f}: {x} residue {rounded:e}");
        }
        // Nothing visible, nothing changes; NaN factors are left out.
        assert_eq!(row_bias(ROW_MAX_START, [f32::NEG_INFINITY; 4], factor, 8.807), ROW_MAX_START);
        assert!(row_bias(0.0, [SCORE_BIAS; 4], [f32::NAN, 0.1, 0.1, 0.1], 8.807).is_finite());
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
            let start = [SCORE_BIAS; BLOCK_KV];
            quantized_row(&mut scores, &start, visible, [0.01; 4], PvFormat::Fp8, &mut state);
            assert_eq!(state.sum.is_nan(), is_nan);
        }
    }
}
