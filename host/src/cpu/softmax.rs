//! Online softmax of a block of rows and one tile of keys, in the log2 domain.

#![allow(clippy::needless_range_loop)] // iterator adapters take closures, which are compiled for the baseline CPU

use sage_spec::tiling::BLOCK_KV;

use super::isa::{EXP2_F32, Isa, Task};
use super::mask::Mask;

/// Running maximum before the first tile.
pub const ROW_MAX_START: f32 = -1e30;

/// Coefficients for [`Isa::exp2`] within 3e-6 (minimax), far below the rounding of P to bf16.
const EXP2_BF16: &[f32] = &[9.570_102e-3, 5.591_786e-2, 0.240_247_44, 0.693_121_8, 0.999_999_3];

/// How scores become log2 units.
#[derive(Clone, Copy)]
pub enum Scale<'a> {
    /// Floats that are in log2 units already.
    Done,
    /// Integers.
    Integer {
        /// Factor of each row, with that of the softmax and log2(e).
        q: &'a [f32],
        /// `[TILE]`: factor of each key.
        k: &'a [f32],
        /// `[TILE]`: added to the score of each key, in log2 units; nothing if empty.
        delta: &'a [f32],
    },
}

/// Turns scores into P and updates the rows' states.
pub struct Softmax<'a, P> {
    /// `[rows, panels]`, of the rows to compute: scores; P as f32 takes their place.
    pub scores: &'a mut [P],
    /// `[rows, panels * PANEL / 2]`: P as bf16, if that is wanted; else empty.
    pub pairs: &'a mut [u32],
    /// Panels of a row.
    pub panels: usize,
    /// Rows to compute.
    pub rows: std::ops::Range<usize>,
    /// Keys that a row sees.
    pub visible: Mask,
    /// What the scores are.
    pub scale: Scale<'a>,
    /// Running maxima, in log2 units.
    pub max: &'a mut [f32],
    /// Running sums, to be added over the lanes.
    pub sum: &'a mut [P],
    /// What older sums are to be multiplied by.
    pub alpha: &'a mut [f32],
}

impl<P: bytemuck::Pod> Task for Softmax<'_, P> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Softmax { scores, pairs, panels, rows, visible, scale, max, sum, alpha } = self;
        let scores: &mut [I::Panel] = bytemuck::cast_slice_mut(scores);
        let sum: &mut [I::Panel] = bytemuck::cast_slice_mut(sum);
        let half = I::PANEL / 2;
        // All maxima first: what follows from a row's maximum waits long for it.
        for (seen, row) in scores.chunks_exact_mut(panels).zip(rows.clone()) {
            let keys = visible.keys(row);
            let used = keys.div_ceil(I::PANEL);

            let mut largest = [isa.splat(f32::NEG_INFINITY); 2];
            match scale {
                Scale::Done => {
                    for panel in 0..used {
                        let x = floats(isa, &seen[panel]);
                        largest = candidate(isa, x, keys - panel * I::PANEL, largest, &mut seen[panel]);
                    }
                }
                Scale::Integer { q, k, delta } => {
                    let q = isa.splat(q[row]);
                    let k: &[I::Panel] = bytemuck::cast_slice(k);
                    let delta: &[I::Panel] = bytemuck::cast_slice(delta);
                    let mut factor = [q; 2];
                    for panel in 0..used {
                        // The scales of a key block repeat every eight keys.
                        if panel * I::PANEL % BLOCK_KV == 0 {
                            let k = floats(isa, &k[panel]);
                            factor = [isa.mul(k[0], q), isa.mul(k[1], q)];
                        }
                        let x = isa.load(&seen[panel]);
                        let x = [isa.to_f(x[0]), isa.to_f(x[1])];
                        let x = if delta.is_empty() {
                            [isa.mul(x[0], factor[0]), isa.mul(x[1], factor[1])]
                        } else {
                            let delta = floats(isa, &delta[panel]);
                            [isa.mul_add(x[0], factor[0], delta[0]), isa.mul_add(x[1], factor[1], delta[1])]
                        };
                        largest = candidate(isa, x, keys - panel * I::PANEL, largest, &mut seen[panel]);
                    }
                }
            }

            let row_max = isa.max_lane(isa.max(largest[0], largest[1])).max(max[row]);
            // After the first tiles, maxima hardly ever change.
            let correction = if row_max == max[row] { 1.0 } else { exp2(max[row] - row_max) };
            (max[row], alpha[row]) = (row_max, correction);
        }
        for (line, row) in scores.chunks_exact_mut(panels).zip(rows.clone()) {
            let used = visible.keys(row).div_ceil(I::PANEL);
            let (seen, unseen) = line.split_at_mut(used);
            let (minus_max, correction) = (isa.splat(-max[row]), isa.splat(alpha[row]));
            let old = floats(isa, &sum[row]);
            let mut sums = [isa.mul(old[0], correction), isa.mul(old[1], correction)];
            if I::BF16 && !pairs.is_empty() {
                let pairs = &mut pairs[(row - rows.start) * panels * half..][..panels * half];
                let (seen_pairs, unseen_pairs) = pairs.split_at_mut(used * half);
                for (bits, pairs) in seen.iter().zip(seen_pairs.chunks_exact_mut(half)) {
                    let x = floats(isa, bits);
                    let p0 = isa.exp2(isa.add(x[0], minus_max), EXP2_BF16);
                    let p1 = isa.exp2(isa.add(x[1], minus_max), EXP2_BF16);
                    sums = [isa.add(sums[0], p0), isa.add(sums[1], p1)];
                    isa.store_half(pairs, isa.narrow([p0, p1]));
                }
                unseen_pairs.fill(0);
            } else {
                for bits in seen {
                    let x = floats(isa, bits);
                    let p0 = isa.exp2(isa.add(x[0], minus_max), EXP2_F32);
                    let p1 = isa.exp2(isa.add(x[1], minus_max), EXP2_F32);
                    sums = [isa.add(sums[0], p0), isa.add(sums[1], p1)];
                    isa.store(bits, [isa.as_i(p0), isa.as_i(p1)]);
                }
                for bits in unseen {
                    isa.store(bits, [isa.splat_bits(0); 2]);
                }
            }
            isa.store(&mut sum[row], [isa.as_i(sums[0]), isa.as_i(sums[1])]);
        }
    }
}

/// A panel as numbers.
#[inline(always)]
fn floats<I: Isa>(isa: I, panel: &I::Panel) -> [I::F; 2] {
    let bits = isa.load(panel);
    [isa.as_f(bits[0]), isa.as_f(bits[1])]
}

/// Stores the scores `x`, of which the first `left` are visible, and returns the maxima with them.
#[inline(always)]
fn candidate<I: Isa>(isa: I, x: [I::F; 2], left: usize, largest: [I::F; 2], panel: &mut I::Panel) -> [I::F; 2] {
    let x = if left < I::PANEL { isa.first(x, left) } else { x };
    isa.store(panel, [isa.as_i(x[0]), isa.as_i(x[1])]);
    // A NaN candidate is passed over: its P is NaN anyway.
    [isa.max(x[0], largest[0]), isa.max(x[1], largest[1])]
}

/// 2^`x` for `x <= 0`; NaN for NaN.
#[inline(always)]
pub fn exp2(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0; // 1.5 · 2²³: f32 has spacing 1 there
    let clamped = if x < -126.0 { -126.0 } else { x };
    let shifted = clamped + ROUND;
    let rest = clamped - (shifted - ROUND);
    let mut y = 0.0;
    for c in EXP2_F32 {
        y = y * rest + c;
    }
    let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(1.0f32.to_bits()));
    if x <= -126.0 { 0.0 } else { y * power }
}
