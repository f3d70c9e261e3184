//! Online softmax of a tile: row maxima on the integer scores, then P as E4M3 codes in the operand layout of
//! the product with V. Row sums come from the tensor core, as the product of P with a column of ones.

use cuda_std::{convert, hint, math, thread, warp};
use sage_spec::quant::SCORE_BIAS;
use sage_spec::sm90::{Basis, DIRECT_ONE, DIRECT_SLOPE, EVEN_TILE_SUM, NO_ROW, P_MAX_LOG2, octaves_to_raise};

use super::config::Config;
use super::output::Output;
use super::scores::{MASKED, Scores, biased_number, number};

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
        // SAFETY: forwarded contract.
        let new = math::max_propagate_nan(self.max[row], unsafe { largest_of_row(max) });
        self.alpha[row] = math::exp2(self.max[row] - new);
        self.max[row] = new;
    }
}

/// The largest of what the four lanes of a quad, which hold a row, bring.
///
/// # Safety
/// The warp is converged.
#[inline(always)]
unsafe fn largest_of_row(max: f32) -> f32 {
    // SAFETY: forwarded contract.
    unsafe {
        let max = math::max_propagate_nan(max, warp::shuffle_xor_f32(max, 1));
        math::max_propagate_nan(max, warp::shuffle_xor_f32(max, 2))
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

/// The references of the lane's two rows, in log2 units: P of a score `x` is `2^(x − reference)`. NaN once a scale was NaN.
#[derive(Clone, Copy)]
pub struct References(pub [f32; 2]);

impl References {
    /// Before any key.
    #[inline(always)]
    pub fn start() -> Self {
        References([ROW_MAX_START; 2])
    }

    /// Raises the references of rows whose largest score of the tile would make P larger than a code can be. `factor[h]` turns
    /// score steps of keys `64 h ..` into log2 units. Returns what older sums are multiplied by. NaN factors become NaN
    /// references, and stay: everything the row computes from here on is NaN.
    ///
    /// # Safety
    /// The warp is converged.
    #[inline(always)]
    pub unsafe fn raise<C: Config, const IS_MASKED: bool>(&mut self, scores: &Scores, factor: [f32; 2]) -> [f32; 2] {
        let mut alpha = [1.0; 2];
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
            let max = unsafe { largest_of_row(max) };
            let new = math::max_propagate_nan(self.0[row], max - P_MAX_LOG2);
            alpha[row] = math::exp2(self.0[row] - new);
            self.0[row] = new;
            row += 1;
        }
        alpha
    }

    /// After the first tile: whether all rows of the warpgroup that `exists` have scores so even that the next tiles are tried
    /// without maxima. If so it makes room for larger ones.
    ///
    /// # Safety
    /// The warpgroup is converged; nobody else uses `barrier`.
    #[inline(always)]
    pub unsafe fn make_room<C: Config>(&mut self, output: &mut Output, exists: [bool; 2], barrier: u32) -> bool {
        let (mut is_even, mut alpha, mut raised) = (true, [1.0; 2], self.0);
        let mut row = 0;
        while row < 2 {
            // SAFETY: forwarded contract. The first lane of a quad has the sum.
            let sum = unsafe { warp::shuffle_idx(output.high[32 + 2 * row].to_bits(), warp::lane_id() & 28) };
            let sum = f32::from_bits(sum);
            let octaves = octaves_to_raise(sum);
            if exists[row] {
                is_even &= sum >= EVEN_TILE_SUM;
                alpha[row] = f32::from_bits(((127 - octaves) as u32) << 23);
                raised[row] += octaves as f32;
            } else {
                raised[row] = NO_ROW;
            }
            row += 1;
        }
        // SAFETY: forwarded contract. Once more among the lanes, so that the assembler knows the branch to be uniform.
        if unsafe { warp::vote_any(thread::any_named(barrier, 128, !is_even)) } {
            return false;
        }
        self.0 = raised;
        output.scale::<C>(alpha);
        true
    }
}

/// Four scores of one row, of keys that share `factor`, as E4M3 codes by the special function unit; 448 for what is more.
#[inline(always)]
fn exact_codes<C: Config, const IS_MASKED: bool>(scores: [u32; 4], factor: f32, reference: f32) -> u32 {
    // The bias of scores goes out with the reference. What that rounds is less than half a score step, for all alike.
    let reference = if C::DELTA_S { math::fma(factor, SCORE_BIAS, reference) } else { reference };
    let mut p = [0.0f32; 4];
    let mut i = 0;
    while i < 4 {
        let x = math::exp2(math::fma(biased_number::<C>(scores[i]), factor, -reference));
        p[i] = if IS_MASKED && scores[i] == MASKED { 0.0 } else { x };
        i += 1;
    }
    convert::f32_to_e4m3x4(p)
}

/// The same without the special function unit (`sage_spec::sm90::direct_code`): the code is a linear function of the score,
/// computed as a part of the largest one so that the multiply-add clamps it on both sides, and made whole, two at a time in
/// f16, by adding 1024, which leaves it in the low byte.
#[inline(always)]
fn direct_codes<C: Config, const IS_MASKED: bool>(scores: [u32; 4], factor: f32, reference: f32) -> u32 {
    /// 1024 in f16, twice. Between 1024 and 2048 neighbouring f16 differ by one.
    const ROUNDING: u32 = 0x6400_6400;
    /// The largest code in f16, twice.
    const MAX_CODE: u32 = 0x57e0_57e0;
    let slope = factor * DIRECT_SLOPE;
    // Not fused, which would take a register for one of the constants.
    let offset = DIRECT_ONE - reference * DIRECT_SLOPE;
    let mut parts = [0.0f32; 4];
    let mut i = 0;
    while i < 4 {
        let part = math::fma_saturate(number::<C>(scores[i]), slope, offset);
        parts[i] = if IS_MASKED && scores[i] == MASKED { 0.0 } else { part };
        i += 1;
    }
    let low = math::fma_f16x2(convert::f32_to_f16x2(parts[0], parts[1]), MAX_CODE, ROUNDING);
    let high = math::fma_f16x2(convert::f32_to_f16x2(parts[2], parts[3]), MAX_CODE, ROUNDING);
    convert::permute_bytes::<0x6420>(low, high)
}

/// In which order the registers of [`P`] are computed. They are the same in any order, but how ptxas interleaves the
/// special function unit with the rest is not: `docs/kernels/sm90_int8_fp8_fwd.md` says how many orders were timed, and what
/// became of them.
const fn order(head_dim: u32, with_maxima: bool) -> [usize; 16] {
    match (head_dim, with_maxima) {
        (128, true) => [4, 8, 6, 11, 13, 12, 0, 3, 15, 2, 5, 9, 10, 1, 7, 14],
        (128, false) => [4, 10, 3, 6, 5, 12, 9, 8, 11, 0, 2, 7, 13, 1, 14, 15],
        (_, true) => [11, 10, 4, 1, 8, 15, 2, 0, 14, 6, 12, 7, 3, 13, 9, 5],
        (_, false) => [10, 5, 12, 2, 14, 1, 3, 7, 8, 4, 0, 13, 6, 11, 15, 9],
    }
}

/// P of a tile relative to the rows' references.
#[inline(always)]
pub fn probabilities<C: Config, const IS_MASKED: bool, const WITH_MAXIMA: bool>(
    scores: &Scores,
    factor: [f32; 2],
    references: References,
) -> P {
    let basis = if WITH_MAXIMA { Basis::Maxima } else { Basis::References };
    let exact_pairs = C::EXPONENTIAL.exact_pairs(basis, C::HEAD_DIM as usize);
    // With ΔS there are no registers to keep through the loop what derives from them.
    let references =
        if C::DELTA_S { references.0.map(|x| f32::from_bits(hint::opaque(x.to_bits()))) } else { references.0 };
    let mut p = [0u32; 16];
    let mut n = 0;
    while n < 16 {
        let i = const { order(C::HEAD_DIM, WITH_MAXIMA) }[n];
        // Register i holds row i % 2 of the 16 keys of blocks 2 pair and 2 pair + 1.
        let (pair, row) = (i / 2, i % 2);
        let at = 8 * pair + 2 * row;
        let four = [scores[at], scores[at + 1], scores[at + 4], scores[at + 5]];
        let (factor, reference) = (factor[pair / 4], references[row]);
        p[i] = if exact_pairs >> pair & 1 == 1 {
            exact_codes::<C, IS_MASKED>(four, factor, reference)
        } else {
            direct_codes::<C, IS_MASKED>(four, factor, reference)
        };
        n += 1;
    }
    p
}
