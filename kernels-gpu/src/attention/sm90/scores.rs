//! QK of one tile: products, ΔS and masks, all on integers, or on the bits of floating point numbers that are whole.

use cuda_std::{math, shared, wgmma};
use sage_spec::quant::SCORE_BIAS;

use super::config::Config;

/// Scores of a tile as a lane holds them: element `4b + e` is row `g + 8 (e / 2)` of its warp's 16 rows,
/// column `8b + 2t + e % 2`, with `g = lane / 4` and `t = lane % 4`. The bits of s32; with ΔS those of `SCORE_BIAS + score`
/// as f32 (`sage_spec::quant::SCORE_BIAS`), which compare alike.
pub type Scores = [u32; 64];

/// A score that no product reaches: the key is masked.
pub const MASKED: u32 = i32::MIN as u32;

/// `scores = Q K^T` over 64 rows and a tile of keys, as one group; the caller waits for it. In kernels with ΔS the product
/// is added to what is there: what [`delta_s`] returned, or the bits of `SCORE_BIAS`.
///
/// # Safety
/// The warpgroup is converged; `q` and `k` are descriptors of tiles that have landed.
#[inline(always)]
pub unsafe fn start_product<C: Config>(scores: &mut Scores, q: u64, k: u64) {
    // 32 bytes further along a row are two 16-byte units of the descriptor.
    // SAFETY: forwarded contract.
    unsafe {
        wgmma::fence();
        wgmma::m64n128k32_s8(scores, q, k, C::DELTA_S as u32);
        wgmma::m64n128k32_s8(scores, q + 2, k + 2, 1);
        if C::HEAD_DIM == 128 {
            wgmma::m64n128k32_s8(scores, q + 4, k + 4, 1);
            wgmma::m64n128k32_s8(scores, q + 6, k + 6, 1);
        }
        wgmma::commit_group();
    }
}

/// A score as a number.
#[inline(always)]
pub fn number<C: Config>(score: u32) -> f32 {
    if C::DELTA_S { biased_number::<C>(score) - SCORE_BIAS } else { biased_number::<C>(score) }
}

/// A score as a number; with ΔS, that and `SCORE_BIAS`.
#[inline(always)]
pub fn biased_number<C: Config>(score: u32) -> f32 {
    if C::DELTA_S { f32::from_bits(score) } else { score as i32 as f32 }
}

/// ΔS of a tile, rounded to whole score steps, as the bits of `SCORE_BIAS + steps`: what the accumulators of the product
/// start from.
///
/// `delta_s` is where the tile's first key lies in shared memory, in the order of
/// [`sage_spec::layout::delta_s_slot`]: the lane's columns of blocks `2i` and `2i + 1` are one vector.
///
/// # Safety
/// f32 of a whole tile have landed at `delta_s`, 16-byte aligned.
#[inline(always)]
pub unsafe fn delta_s(delta_s: u32, inverse_q_scale: f32, t: u32) -> Scores {
    let mut scores = [0u32; 64];
    let mut i = 0;
    while i < 8 {
        // SAFETY: forwarded contract; 16 keys are 64 bytes.
        let vector = unsafe { shared::load_u32x4(delta_s + i as u32 * 64 + t * 16) };
        let mut column = 0;
        while column < 4 {
            let (block, e) = (2 * i + column / 2, column % 2);
            // In units near 1.5 · 2²³ the spacing of f32 is 1: the sum's bits are the bias's plus an integer.
            let biased = math::fma(f32::from_bits(vector[column]), inverse_q_scale, SCORE_BIAS).to_bits();
            scores[4 * block + e] = biased;
            scores[4 * block + 2 + e] = biased;
            column += 1;
        }
        i += 1;
    }
    scores
}

/// Masks what the lane's two rows do not see: keys of the tile from `visible[half]` on.
#[inline(always)]
pub fn mask(scores: &mut Scores, visible: [u32; 2], t: u32) {
    // Relative to the lane's first column, so that the comparisons are with constants.
    let end = [visible[0] as i32 - 2 * t as i32, visible[1] as i32 - 2 * t as i32];
    let mut i = 0;
    while i < 64 {
        let (block, e) = (i / 4, i % 4);
        if (8 * block + e % 2) as i32 >= end[e / 2] {
            scores[i] = MASKED;
        }
        i += 1;
    }
}
