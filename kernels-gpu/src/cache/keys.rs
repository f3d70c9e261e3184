//! One group of 16 tokens: scores, their exponentials, and the product with V.

use cuda_std::{convert, math, mma, shared, warp};
use sage_spec::decode::{EMPTY_MAX, P_MAX_LOG2};
use sage_spec::quant::{SCORE_BIAS, SCORE_BIAS_BITS};

use super::layout;
use super::query::Query;

/// Running sums of a lane's rows `g` and `g + 8` over the keys of its warp.
#[derive(Clone, Copy)]
pub struct Sums {
    /// Maximum so far, of scores in log2 units plus the exponents of V's scales, less [`P_MAX_LOG2`].
    pub max: [f32; 2],
    /// Sum of the exponentials relative to `max`; of the lane's own columns.
    pub sum: [f32; 2],
    /// Sum of P times V's codes; block `b` has features `8b..8b + 8`.
    pub out: [[f32; 4]; 16],
}

impl Sums {
    /// No key seen.
    pub const EMPTY: Sums = Sums { max: [EMPTY_MAX; 2], sum: [0.0; 2], out: [[0.0; 4]; 16] };
}

/// Which of the lane's four tokens exist, as a mask of bytes; `remain` tokens of the group do.
#[inline(always)]
fn existing_bytes(remain: u32, t: u32) -> u32 {
    let tokens = [2 * t, 2 * t + 1, 2 * t + 8, 2 * t + 9];
    let mut mask = 0;
    let mut i = 0;
    while i < 4 {
        if tokens[i] < remain {
            mask |= 0xff << (8 * i);
        }
        i += 1;
    }
    mask
}

/// Adds the group at shared address `stage`, whose first token is `first` of the `length` of the sequence.
/// `all_visible` is what every row sees. `lane_stage` is `stage + 16 · lane`.
///
/// # Safety
/// The whole warp calls it; the group is there.
#[inline(always)]
pub unsafe fn add<const HEAD_DIM: u32, const INT4: bool>(
    query: &Query,
    stage: u32,
    lane: u32,
    first: u32,
    length: u32,
    all_visible: u32,
    sums: &mut Sums,
) {
    let layout = const { layout::<HEAD_DIM, INT4>() };
    let (t, lane_stage) = (lane % 4, stage + lane * 16);
    let (k_blocks, v_blocks) = (layout.k_group_bytes() / 512, layout.v_group_bytes() / 512);
    let steps = (HEAD_DIM / 32) as usize;
    let mut k = [[0u32; 4]; 4];
    let mut i = 0;
    while i < k_blocks {
        // SAFETY: the lane's own bytes.
        k[i] = unsafe { shared::load_u32x4(lane_stage + i as u32 * 512) };
        i += 1;
    }
    // SAFETY: the scales follow; the warp has met since they came.
    let mut scales = unsafe { shared::load_u32x4(stage + (k_blocks + v_blocks) as u32 * 512 + t * 16) };
    let mut d = [[SCORE_BIAS_BITS; 4]; 2];
    let mut step = 0;
    while step < steps {
        let mut half = 0;
        while half < 2 {
            let b = if INT4 {
                let word = half * steps + step;
                let word = k[word / 4][word % 4];
                [(word << 4) & 0xf0f0_f0f0, word & 0xf0f0_f0f0]
            } else {
                let word = (half * steps + step) * 2;
                [k[word / 4][word % 4], k[word / 4][word % 4 + 1]]
            };
            // SAFETY: forwarded contract.
            d[half] = unsafe { mma::m16n8k32_s8(query.a[step], b, d[half]) };
            half += 1;
        }
        step += 1;
    }

    let remain = length - first;
    let exists = existing_bytes(remain, t);
    if remain < 16 {
        // Scales of tokens that do not exist may be anything, also not a number.
        let mut i = 0;
        while i < 4 {
            scales[i] = if exists >> (8 * i) & 1 == 0 { 0 } else { scales[i] };
            i += 1;
        }
    }
    // Token `i` of the lane is column `i % 2` of block `i / 2`.
    let mut u = [[0.0f32; 4]; 2];
    let mut i = 0;
    while i < 4 {
        let k_scale = f32::from_bits(scales[i] << 16);
        // Minus the exponent of the reciprocal, without a conversion.
        let exponent = f32::from_bits(SCORE_BIAS_BITS - (scales[i] >> 23)) - (SCORE_BIAS - 127.0);
        let mut row = 0;
        while row < 2 && (row == 0 || query.is_tall) {
            let score = f32::from_bits(d[i / 2][2 * row + i % 2]) - SCORE_BIAS;
            u[row][i] = math::fma(score * k_scale, query.scale[row], exponent);
            row += 1;
        }
        i += 1;
    }
    if first + 16 > all_visible {
        let mut row = 0;
        while row < 2 {
            let mut i = 0;
            while i < 4 {
                let token = first + 8 * (i as u32 / 2) + 2 * t + i as u32 % 2;
                u[row][i] = if token < query.visible[row] { u[row][i] } else { f32::NEG_INFINITY };
                i += 1;
            }
            row += 1;
        }
    }

    let mut p = [[0.0f32; 4]; 2];
    let mut alpha = [1.0f32; 2];
    let mut row = 0;
    while row < 2 && (row == 0 || query.is_tall) {
        let u = u[row];
        let mut largest = math::max(math::max(u[0], u[1]), math::max(u[2], u[3]));
        // SAFETY: forwarded contract.
        unsafe {
            largest = math::max(largest, warp::shuffle_xor_f32(largest, 1));
            largest = math::max(largest, warp::shuffle_xor_f32(largest, 2));
        }
        let max = math::max(sums.max[row], largest - P_MAX_LOG2);
        alpha[row] = math::exp2(sums.max[row] - max);
        sums.max[row] = max;
        p[row] = u.map(|u| math::exp2(u - max));
        let mut sum = sums.sum[row] * alpha[row];
        let mut i = 0;
        while i < 4 {
            sum = math::fma(p[row][i], f32::from_bits(scales[i] & 0xffff_0000), sum);
            i += 1;
        }
        sums.sum[row] = sum;
        row += 1;
    }
    // SAFETY: forwarded contract; all lanes take the same way.
    if unsafe { warp::vote_any(alpha[0] != 1.0 || alpha[1] != 1.0) } {
        let mut block = 0;
        while block < (HEAD_DIM / 8) as usize {
            let out = &mut sums.out[block];
            *out = [out[0] * alpha[0], out[1] * alpha[0], out[2] * alpha[1], out[3] * alpha[1]];
            block += 1;
        }
    }
    let a = [
        convert::f32_to_f16x2(p[0][0], p[0][1]),
        convert::f32_to_f16x2(p[1][0], p[1][1]),
        convert::f32_to_f16x2(p[0][2], p[0][3]),
        convert::f32_to_f16x2(p[1][2], p[1][3]),
    ];
    let mut i = 0;
    while i < v_blocks {
        // SAFETY: the lane's own bytes.
        let words = unsafe { shared::load_u32x4(lane_stage + (k_blocks + i) as u32 * 512) };
        let mut j = 0;
        while j < 4 {
            // Codes of tokens that do not exist may be anything, also not a number.
            let b = convert::e4m3x4_to_f16x4(words[j] & exists);
            let block = 4 * i + j;
            // SAFETY: forwarded contract.
            sums.out[block] = unsafe { mma::m16n8k16_f16(a, b, sums.out[block]) };
            j += 1;
        }
        i += 1;
    }
}
