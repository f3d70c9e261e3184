//! Online softmax of a tile: row maxima on the integer scores, then P as E4M3 codes in the operand layout of
//! the product with V. Row sums come from the tensor core, as the product of P with a column of ones.

use cuda_std::{convert, math, warp};
use sage_spec::sm90::{DIRECT_MAX_CODE, P_MAX_LOG2};

use super::config::Config;
use super::scores::{MASKED, Scores, number};

/// P of a tile: `p[4k + i]` is operand register `i` of step `k` over 32 keys. V's tokens are stored in the
/// order that makes this layout equal to the accumulator's (`sage_spec::layout::v_slot`).
pub type P = [u32; 16];

/// Row maximum before any key, in log2 units.
pub const ROW_MAX_START: f32 = -1e30;

/// What a row remembers between tiles, for the lane's two rows.
#[derive(Clone, Copy)]
pub struct RowState {
    /// Running maximum in log2 units; NaN once a scale was NaN.
    pub max: [f32; 2],
    /// What older sums are multiplied by.
    pub alpha: [f32; 2],
}

impl RowState {
    /// Takes `max`, the largest of the lane's scores of row `row`, into the row's maximum.
    ///
    /// # Safety
    /// The warp is converged.
    #[inline(always)]
    pub unsafe fn raise(&mut self, row: usize, max: f32) {
        let mut max = max;
        // SAFETY: forwarded contract. The four lanes of a quad hold the row.
        unsafe {
            max = math::max_propagate_nan(max, warp::shuffle_xor_f32(max, 1));
            max = math::max_propagate_nan(max, warp::shuffle_xor_f32(max, 2));
        }
        let new = math::max_propagate_nan(self.max[row], max);
        self.alpha[row] = math::exp2(self.max[row] - new);
        self.max[row] = new;
    }
}

/// Largest score of one row among the 64 keys that share scales. Each line becomes one three-input maximum.
#[inline(always)]
fn largest(scores: &Scores, row: usize, half: usize) -> u32 {
    let at = |block: usize, e: usize| scores[4 * (8 * half + block) + 2 * row + e];
    let mut max = [at(0, 0), at(0, 1)];
    let mut block = 1;
    while block < 8 {
        let chain = block & 1;
        max[chain] = math::max_s32(math::max_s32(max[chain], at(block, 0)), at(block, 1));
        block += 1;
    }
    math::max_s32(max[0], max[1])
}

/// Takes a tile's scores into the rows' maxima. `factor[h]` turns score steps of keys `64 h ..` into log2
/// units. NaN factors become NaN maxima, and stay: everything the row computes from here on is NaN.
///
/// # Safety
/// The warp is converged.
#[inline(always)]
pub unsafe fn update_max<C: Config, const IS_MASKED: bool>(scores: &Scores, factor: [f32; 2], state: &mut RowState) {
    let mut row = 0;
    while row < 2 {
        let mut max = ROW_MAX_START;
        let mut half = 0;
        while half < 2 {
            let score = largest(scores, row, half);
            // A half without a visible key must not bring its scale's NaN in.
            if !IS_MASKED || score != MASKED {
                max = math::max_propagate_nan(max, number::<C>(score) * factor[half]);
            }
            half += 1;
        }
        // SAFETY: forwarded contract.
        unsafe { state.raise(row, max) };
        row += 1;
    }
}

/// Four scores of one row, of keys that share `factor`, as E4M3 codes by the special function unit.
#[inline(always)]
fn exact_codes<C: Config, const IS_MASKED: bool>(scores: [u32; 4], factor: f32, max: f32) -> u32 {
    let mut p = [0.0f32; 4];
    let mut i = 0;
    while i < 4 {
        let x = math::exp2(math::fma(number::<C>(scores[i]), factor, P_MAX_LOG2 - max));
        p[i] = if IS_MASKED && scores[i] == MASKED { 0.0 } else { x };
        i += 1;
    }
    convert::f32_to_e4m3x4(p)
}

/// The same without the special function unit (`sage_spec::sm90::direct_code`): the code is a linear function of the score,
/// clamped below where it becomes f16, two at a time, and rounded by adding 1024, which leaves it in the low byte.
#[inline(always)]
fn direct_codes<C: Config, const IS_MASKED: bool>(scores: [u32; 4], factor: f32, max: f32) -> u32 {
    /// 1024 in f16, twice. Between 1024 and 2048 neighbouring f16 differ by one.
    const ROUNDING: u32 = 0x6400_6400;
    // 8 codes an octave.
    let slope = factor * 8.0;
    let offset = math::fma(max, -8.0, DIRECT_MAX_CODE);
    let mut codes = [0.0f32; 4];
    let mut i = 0;
    while i < 4 {
        let code = math::fma(number::<C>(scores[i]), slope, offset);
        codes[i] = if IS_MASKED && scores[i] == MASKED { 0.0 } else { code };
        i += 1;
    }
    let low = math::add_f16x2(convert::f32_to_f16x2_relu(codes[0], codes[1]), ROUNDING);
    let high = math::add_f16x2(convert::f32_to_f16x2_relu(codes[2], codes[3]), ROUNDING);
    convert::permute_bytes::<0x6420>(low, high)
}

/// In which order the registers of [`P`] are computed. They are the same in any order, but how ptxas interleaves the
/// special function unit with the rest is not: `docs/kernels/sm90_int8_fp8_fwd.md` says how many orders were timed, and what
/// became of them.
const fn order(head_dim: u32) -> [usize; 16] {
    match head_dim {
        128 => [11, 5, 13, 2, 14, 9, 6, 12, 10, 15, 8, 1, 0, 4, 3, 7],
        _ => [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15],
    }
}

/// P of a tile relative to the rows' maxima.
#[inline(always)]
pub fn probabilities<C: Config, const IS_MASKED: bool>(scores: &Scores, factor: [f32; 2], max: [f32; 2]) -> P {
    let mut p = [0u32; 16];
    let mut n = 0;
    while n < 16 {
        let i = const { order(C::HEAD_DIM) }[n];
        // Register i holds row i % 2 of the 16 keys of blocks 2 pair and 2 pair + 1.
        let (pair, row) = (i / 2, i % 2);
        let at = 8 * pair + 2 * row;
        let four = [scores[at], scores[at + 1], scores[at + 4], scores[at + 5]];
        let (factor, max) = (factor[pair / 4], max[row]);
        p[i] = if C::EXACT_PAIRS >> pair & 1 == 1 {
            exact_codes::<C, IS_MASKED>(four, factor, max)
        } else {
            direct_codes::<C, IS_MASKED>(four, factor, max)
        };
        n += 1;
    }
    p
}
