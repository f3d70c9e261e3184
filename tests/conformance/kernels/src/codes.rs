//! What the skeleton's consumers compute between two products.

use cuda_std::{convert, math, warp};

/// Takes a tile's scores into the maxima of the lane's two rows, in log2 units; what older sums are multiplied by.
///
/// # Safety
/// The warp is together.
#[inline(always)]
pub unsafe fn update_max(scores: &[u32; 64], scale: f32, max: &mut [f32; 2]) -> [f32; 2] {
    let mut alpha = [0.0; 2];
    let mut row = 0;
    while row < 2 {
        let mut largest = math::max_s32(scores[2 * row], scores[2 * row + 1]);
        let mut block = 1;
        while block < 16 {
            let at = 4 * block + 2 * row;
            largest = math::max_s32(math::max_s32(largest, scores[at]), scores[at + 1]);
            block += 1;
        }
        // SAFETY: forwarded contract. The four lanes of a quad hold the row.
        unsafe {
            largest = math::max_s32(largest, warp::shuffle_xor(largest, 1));
            largest = math::max_s32(largest, warp::shuffle_xor(largest, 2));
        }
        let new = math::max(max[row], largest as i32 as f32 * scale);
        alpha[row] = math::exp2(max[row] - new);
        max[row] = new;
        row += 1;
    }
    alpha
}

/// P of a tile as operands of the product: a score `x` octaves above its row's maximum, at most 0, becomes the code
/// nearest to `8 (x + 15.8) - 0.4`, at least 0.
#[inline(always)]
pub fn codes(scores: &[u32; 64], scale: f32, max: [f32; 2]) -> [u32; 16] {
    let slope = scale * (8.0 / 128.0);
    let offset = max.map(|max| (8.0 * (15.8 - max) - 0.4) / 128.0);
    let mut packed = [0u32; 16];
    let mut register = 0;
    while register < 16 {
        // Register r holds row r % 2 of 16 keys, two of each of two blocks.
        let row = register % 2;
        let at = 8 * (register / 2) + 2 * row;
        let code = |i: usize| {
            let part = math::fma_saturate(scores[at + i] as i32 as f32, slope, offset[row]);
            // Adding 1.5 · 2^23 rounds, and leaves the code in the low byte.
            math::fma(part, 128.0, 12_582_912.0).to_bits()
        };
        let low = convert::permute_bytes::<0x0040>(code(0), code(1));
        let high = convert::permute_bytes::<0x0040>(code(4), code(5));
        packed[register] = convert::permute_bytes::<0x5410>(low, high);
        register += 1;
    }
    packed
}

/// `total = total · alpha + sums`.
#[inline(always)]
pub fn promote<const N: usize>(total: &mut [f32; N], sums: &[f32; N], alpha: [f32; 2]) {
    let mut i = 0;
    while i < N {
        total[i] = math::fma(total[i], alpha[i / 2 % 2], sums[i]);
        i += 1;
    }
}
