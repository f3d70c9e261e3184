//! One or two groups of 16 tokens at a time: scores, their exponentials, and the product with V.

use cuda_std::{convert, math, mma, shared, warp};
use sage_spec::decode::{EMPTY_MAX, P_LIMIT_LOG2, P_MAX_LOG2};
use sage_spec::quant::{SCORE_BIAS, SCORE_BIAS_BITS};

use super::layout;
use super::query::Query;

/// Running sums of a lane's rows `g` and `g + 8` over the keys of its warp.
#[derive(Clone, Copy)]
pub struct Sums {
    /// What P is relative to: at least the maximum so far, of scores in log2 units plus the exponents of V's scales,
    /// less [`P_LIMIT_LOG2`].
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

/// Which tokens a warp adds at a time.
#[derive(Clone, Copy)]
pub struct Tokens {
    /// The first one.
    pub first: u32,
    /// Tokens of the sequence.
    pub length: u32,
    /// Tokens that every row sees.
    pub all_visible: u32,
}

/// Scores of the 16 tokens whose codes of K the lane has at `lane_stage`, as `f32` with a bias. Token `i` of the lane
/// is column `i % 2` of block `i / 2`.
#[inline(always)]
unsafe fn scores<const HEAD_DIM: u32, const INT4: bool>(query: &Query, lane_stage: u32) -> [[u32; 4]; 2] {
    let k_blocks = const { layout::<HEAD_DIM, INT4>().k_group_bytes() / 512 };
    let steps = (HEAD_DIM / 32) as usize;
    let mut k = [[0u32; 4]; 4];
    let mut i = 0;
    while i < k_blocks {
        // SAFETY: the lane's own bytes.
        k[i] = unsafe { shared::load_u32x4(lane_stage + i as u32 * 512) };
        i += 1;
    }
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
    d
}

/// Makes the scales and the codes of V zero whose tokens do not exist: they may be anything, also not a number. The
/// lane's first token is `first`, and `lane_v` is where it has its codes of V.
#[inline(always)]
unsafe fn clear<const HEAD_DIM: u32>(lane_v: u32, first: u32, length: u32, scales: &mut [u32; 4]) {
    let mut mask = 0;
    let mut i = 0;
    while i < 4 {
        let exists = first + OFFSETS[i] < length;
        scales[i] = if exists { scales[i] } else { 0 };
        mask |= if exists { 0xff << (8 * i) } else { 0 };
        i += 1;
    }
    let mut byte = 0;
    while byte < 16 * HEAD_DIM {
        // SAFETY: the lane's own bytes.
        unsafe {
            let words = shared::load_u32x4(lane_v + byte);
            shared::store_u32x4(lane_v + byte, words.map(|word| word & mask));
        }
        byte += 512;
    }
}

/// Tokens of a lane, from its first one.
const OFFSETS: [u32; 4] = [0, 1, 8, 9];

/// Gives the rows whose `largest` of the new tokens would make P exceed its limit a new reference. A lane has only a
/// quarter of a row's tokens.
#[inline(always)]
unsafe fn raise<const HEAD_DIM: u32, const HALVES: usize>(largest: [f32; HALVES], sums: &mut Sums) {
    let mut row = 0;
    while row < HALVES {
        let mut largest = largest[row];
        // SAFETY: the whole warp calls it.
        unsafe {
            largest = math::max(largest, warp::shuffle_xor_f32(largest, 1));
            largest = math::max(largest, warp::shuffle_xor_f32(largest, 2));
        }
        let old = sums.max[row];
        let max = if largest - old > P_LIMIT_LOG2 { largest - P_MAX_LOG2 } else { old };
        let alpha = math::exp2(old - max);
        sums.max[row] = max;
        sums.sum[row] *= alpha;
        let mut block = 0;
        while block < (HEAD_DIM / 8) as usize {
            sums.out[block][2 * row] *= alpha;
            sums.out[block][2 * row + 1] *= alpha;
            block += 1;
        }
        row += 1;
    }
}

/// Adds `GROUPS` neighbouring groups at shared address `stage` to the sums of `HALVES` rows of each lane.
///
/// # Safety
/// The whole warp calls it; the groups are there, and the warp has met since they came.
#[inline(always)]
pub unsafe fn add<const HEAD_DIM: u32, const INT4: bool, const HALVES: usize, const GROUPS: usize>(
    query: &Query,
    stage: u32,
    lane: u32,
    tokens: Tokens,
    sums: &mut Sums,
) {
    let layout = const { layout::<HEAD_DIM, INT4>() };
    let (k_bytes, v_bytes) = (layout.k_group_bytes(), layout.v_group_bytes());
    let (t, lane_stage) = (lane % 4, stage + lane * 16);
    let k = |j: usize| lane_stage + (j * k_bytes) as u32;
    let v = |j: usize| lane_stage + (GROUPS * k_bytes + j * v_bytes) as u32;
    let mut scales = [[0u32; 4]; GROUPS];
    let mut u = [[[0.0f32; 4]; GROUPS]; HALVES];
    let mut j = 0;
    while j < GROUPS {
        // SAFETY: forwarded contract.
        let d = unsafe {
            scales[j] = shared::load_u32x4(stage + t * 16 + (GROUPS * (k_bytes + v_bytes) + 64 * j) as u32);
            scores::<HEAD_DIM, INT4>(query, k(j))
        };
        let mut i = 0;
        while i < 4 {
            let k_scale = f32::from_bits(scales[j][i] << 16);
            // The reciprocal's exponent field becomes a float's mantissa without a conversion, 128 times as large.
            let field = f32::from_bits(convert::permute_bytes::<0x7632>(scales[j][i], SCORE_BIAS_BITS));
            let exponent = math::fma(field, -1.0 / 128.0, SCORE_BIAS / 128.0 + 127.0);
            let mut row = 0;
            while row < HALVES {
                let score = f32::from_bits(d[i / 2][2 * row + i % 2]) - SCORE_BIAS;
                u[row][j][i] = math::fma(score * k_scale, query.scale[row], exponent);
                row += 1;
            }
            i += 1;
        }
        j += 1;
    }
    let end = tokens.first + 16 * GROUPS as u32;
    if end > tokens.all_visible {
        let mut j = 0;
        while j < GROUPS {
            let first = tokens.first + 16 * j as u32 + 2 * t;
            let mut row = 0;
            while row < HALVES {
                let mut i = 0;
                while i < 4 {
                    let is_visible = first + OFFSETS[i] < query.visible[row];
                    u[row][j][i] = if is_visible { u[row][j][i] } else { f32::NEG_INFINITY };
                    i += 1;
                }
                row += 1;
            }
            if end > tokens.length {
                // SAFETY: forwarded contract.
                unsafe { clear::<HEAD_DIM>(v(j), first, tokens.length, &mut scales[j]) };
            }
            j += 1;
        }
    }

    let mut largest = [f32::NEG_INFINITY; HALVES];
    let mut exceeds = false;
    let mut row = 0;
    while row < HALVES {
        let mut j = 0;
        while j < GROUPS {
            let u = u[row][j];
            let of_group = math::max(math::max(u[0], u[1]), math::max(u[2], u[3]));
            largest[row] = if j == 0 { of_group } else { math::max(largest[row], of_group) };
            j += 1;
        }
        exceeds |= largest[row] - sums.max[row] > P_LIMIT_LOG2;
        row += 1;
    }
    // SAFETY: forwarded contract; all lanes take the same way.
    unsafe {
        if warp::vote_any(exceeds) {
            raise::<HEAD_DIM, HALVES>(largest, sums);
        }
    }

    let mut j = 0;
    while j < GROUPS {
        // Rows from 8 on that are not there are zero.
        let mut a = [0u32; 4];
        let mut row = 0;
        while row < HALVES {
            let p = u[row][j].map(|u| math::exp2(u - sums.max[row]));
            let mut i = 0;
            while i < 4 {
                sums.sum[row] = math::fma(p[i], f32::from_bits(scales[j][i] & 0xffff_0000), sums.sum[row]);
                i += 1;
            }
            a[row] = convert::f32_to_f16x2(p[0], p[1]);
            a[row + 2] = convert::f32_to_f16x2(p[2], p[3]);
            row += 1;
        }
        let mut block = 0;
        while block < (HEAD_DIM / 8) as usize {
            // SAFETY: the lane's own bytes.
            let words = unsafe { shared::load_u32x4(v(j) + block as u32 / 4 * 512) };
            let mut i = 0;
            while i < 4 {
                let b = convert::e4m3x4_to_f16x4(words[i]);
                // SAFETY: forwarded contract.
                sums.out[block] = unsafe { mma::m16n8k16_f16(a, b, sums.out[block]) };
                block += 1;
                i += 1;
            }
        }
        j += 1;
    }
}
