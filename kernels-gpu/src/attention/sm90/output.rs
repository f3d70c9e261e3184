//! The product with V, in two levels: a tile's product starts from zero in the tensor core, whose FP8
//! accumulator keeps 13 mantissa bits (SageAttention2, section 3.4), and is added to the output in f32.

use cuda_std::{math, thread, warp, wgmma};
use sage_spec::sm90::{BLOCK_KV, TILE_SUM_LIMIT};

use super::config::Config;
use super::softmax::P;

/// Output of 64 rows as a lane holds it; rows and columns as in [`super::scores::Scores`].
pub struct Output {
    /// Channels 0..64 of a head dimension of 128; unused, and never allocated, for 64.
    pub low: [f32; 32],
    /// The last 64 channels, then eight columns of which the first is the row sum.
    pub high: [f32; 36],
}

impl Output {
    /// Before the first tile.
    #[inline(always)]
    pub fn zero() -> Self {
        Output { low: [0.0; 32], high: [0.0; 36] }
    }

    /// Times `alpha`, one for each of the lane's rows.
    #[inline(always)]
    pub fn scale<C: Config>(&mut self, alpha: [f32; 2]) {
        let mut i = 0;
        while i < 36 {
            if i < 32 && C::HEAD_DIM == 128 {
                self.low[i] *= alpha[i / 2 % 2];
            }
            self.high[i] *= alpha[i / 2 % 2];
            i += 1;
        }
    }
}

macro_rules! start_product {
    ($instruction:ident, $sum:expr, $p:expr, $v:expr) => {{
        let (p, v) = ($p, $v);
        wgmma::$instruction($sum, [p[0], p[1], p[2], p[3]], v, 0);
        wgmma::$instruction($sum, [p[4], p[5], p[6], p[7]], v + 2, 1);
        wgmma::$instruction($sum, [p[8], p[9], p[10], p[11]], v + 4, 1);
        wgmma::$instruction($sum, [p[12], p[13], p[14], p[15]], v + 6, 1);
        wgmma::commit_group();
    }};
}

/// 64 channels further in V's tile, in 16-byte units of a descriptor.
const HALF: u64 = (64 * BLOCK_KV / 16) as u64;

/// `output = output · alpha + P V`, 64 channels a group: those of the first are added while the tensor core works
/// on the second.
///
/// # Safety
/// The warpgroup is converged; `v` is the descriptor of a tile that has landed.
#[inline(always)]
pub unsafe fn accumulate<C: Config>(output: &mut Output, p: &P, v: u64, alpha: [f32; 2]) {
    let (mut low, mut high) = ([0.0f32; 32], [0.0f32; 36]);
    // SAFETY: forwarded contract.
    unsafe {
        wgmma::fence();
        if C::HEAD_DIM == 128 {
            start_product!(m64n64k32_e4m3, &mut low, p, v);
            start_product!(m64n72k32_e4m3, &mut high, p, v + HALF);
            wgmma::wait_group::<1>();
            let mut i = 0;
            while i < 32 {
                output.low[i] = math::fma(output.low[i], alpha[i / 2 % 2], low[i]);
                i += 1;
            }
        } else {
            start_product!(m64n72k32_e4m3, &mut high, p, v);
        }
        wgmma::wait_group::<0>();
        let mut i = 0;
        while i < 36 {
            output.high[i] = math::fma(output.high[i], alpha[i / 2 % 2], high[i]);
            i += 1;
        }
    }
}

/// `output = output + P V`, unless a row's sum of P reaches `TILE_SUM_LIMIT` in one of the threads that meet at `barrier`: the
/// warpgroup's. Returns whether it was added.
///
/// # Safety
/// As for [`accumulate`]; nobody else uses `barrier`.
#[inline(always)]
pub unsafe fn try_accumulate<C: Config>(output: &mut Output, p: &P, v: u64, barrier: u32) -> bool {
    let (mut low, mut high) = ([0.0f32; 32], [0.0f32; 36]);
    // SAFETY: forwarded contract.
    unsafe {
        wgmma::fence();
        if C::HEAD_DIM == 128 {
            // Sums first: the threads meet while the tensor core works on the other channels.
            start_product!(m64n72k32_e4m3, &mut high, p, v + HALF);
            start_product!(m64n64k32_e4m3, &mut low, p, v);
            wgmma::wait_group::<1>();
        } else {
            start_product!(m64n72k32_e4m3, &mut high, p, v);
            wgmma::wait_group::<0>();
        }
        // NaN is no sum below the limit.
        let fits = high[32] < TILE_SUM_LIMIT && high[34] < TILE_SUM_LIMIT;
        // Once more among the warp's lanes, so that the assembler knows the branch to be uniform.
        if warp::vote_any(thread::any_named(barrier, 128, !fits)) {
            wgmma::wait_group::<0>();
            return false;
        }
        let mut i = 0;
        while i < 36 {
            output.high[i] += high[i];
            i += 1;
        }
        if C::HEAD_DIM == 128 {
            wgmma::wait_group::<0>();
            let mut i = 0;
            while i < 32 {
                output.low[i] += low[i];
                i += 1;
            }
        }
    }
    true
}
