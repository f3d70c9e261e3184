//! sm_80 (Ampere) and later: the product with V in FP16, `m16n8k16`. V arrives token-major in f16 and
//! is transposed by `ldmatrix.trans` on its way to the B operand.

use cuda_std::{convert, ldmatrix, math, mma};
use sage_spec::tiling::BLOCK_KV;
use sage_spec::{Precision, PvFormat};

use super::mma_sync::config::{Config, OutputTile, Probabilities, Rows, ends_before};
use super::mma_sync::load::TileCopy;
use crate::tile::swizzle::chunk_offset;

/// Two FP16 ones.
const ONES: u32 = 0x3c00_3c00;

macro_rules! config {
    ($(#[$doc:meta])* $name:ident, $qk:expr, $head_dim:literal, $v_dim:literal) => {
        $(#[$doc])*
        pub struct $name;

        impl Config for $name {
            const HEAD_DIM: u32 = $head_dim;
            const QK: Precision = $qk;
            const PV: PvFormat = PvFormat::F16;
            type P = [[u32; 4]; 4];

            type VCopy = TileCopy<{ BLOCK_KV as u32 }, { $v_dim * 2 }>;

            #[inline(always)]
            fn v_copy(src: u64, _seqlen_kv_padded: u32) -> Self::VCopy {
                TileCopy::new(src, $head_dim * 2)
            }

            #[inline(always)]
            unsafe fn start_v(copy: &Self::VCopy, tile: u32, dst: u32, _seqlen_kv_padded: u32) {
                // SAFETY: forwarded contract.
                unsafe { copy.tile(tile, BLOCK_KV as u32 * $head_dim * 2).start(dst, $head_dim * 2) };
            }

            #[inline(always)]
            fn v_lane_offset(lane: u32) -> u32 {
                // One x4: tokens 0–7 and 8–15 of eight channels, then of the next eight.
                chunk_offset($v_dim * 2, lane % 8 + (lane / 8 % 2) * 8, lane / 16)
            }

            #[inline(always)]
            fn round_p(p: &Probabilities) -> Self::P {
                round_p(p)
            }

            #[inline(always)]
            unsafe fn multiply_v<const HALVES: usize>(p: &[Self::P; 2], v: u32, head_dim_v: u32, alpha: &Rows, output: &mut OutputTile, row_sum: &mut Rows) {
                // SAFETY: forwarded contract.
                unsafe { multiply_v::<$v_dim, HALVES>(p, v, head_dim_v, alpha, output, row_sum) }
            }
        }
    };
}

config!(
    /// `sm80_int4_f16_fwd`, head dimension 64.
    Int4D64, Precision::Int4, 64, 64
);
config!(
    /// `sm80_int4_f16_fwd`, head dimension 128.
    Int4D128, Precision::Int4, 128, 128
);
config!(
    /// `sm80_int4_f16_fwd`, head dimension 256, 128 channels of V at a time.
    Int4D256, Precision::Int4, 256, 128
);
config!(
    /// `sm80_int8_f16_fwd`, head dimension 64.
    Int8D64, Precision::Int8, 64, 64
);
config!(
    /// `sm80_int8_f16_fwd`, head dimension 128.
    Int8D128, Precision::Int8, 128, 128
);
config!(
    /// `sm80_int8_f16_fwd`, head dimension 256, 128 channels of V at a time.
    Int8D256, Precision::Int8, 256, 128
);

/// `rounded[step]` is the A operand of tokens `16 · step..`.
#[inline(always)]
fn round_p(p: &Probabilities) -> [[u32; 4]; 4] {
    let mut rounded = [[0u32; 4]; 4];
    let mut i = 0;
    while i < 4 {
        let block = i * 2;
        let mut register = 0;
        while register < 4 {
            // Registers 0 and 1: rows g and g + 8 of the first 8 tokens; 2 and 3: of the next 8.
            let (b, half) = (block + register / 2, register % 2 * 2);
            rounded[i][register] = convert::f32_to_f16x2(p[b][half], p[b][half + 1]);
            register += 1;
        }
        i += 1;
    }
    rounded
}

#[inline(always)]
unsafe fn multiply_v<const V_DIM: usize, const HALVES: usize>(
    p: &[[[u32; 4]; 4]; 2],
    v: u32,
    head_dim_v: u32,
    alpha: &Rows,
    output: &mut OutputTile,
    row_sum: &mut Rows,
) {
    let row_bytes = V_DIM as u32 * 2;
    // SAFETY: inside V's tile; the caller keeps the warp converged.
    unsafe {
        let mut m = 0;
        while m < HALVES {
            let mut sum = [0.0f32; 4];
            let mut step = 0;
            while step < 4 {
                sum = mma::m16n8k16_f16(p[m][step], [ONES; 2], sum);
                step += 1;
            }
            // Every column of the product with ones is the row sum: elements 0 and 2 suffice.
            row_sum[m * 2] = math::fma(row_sum[m * 2], alpha[m * 2], sum[0]);
            row_sum[m * 2 + 1] = math::fma(row_sum[m * 2 + 1], alpha[m * 2 + 1], sum[2]);
            m += 1;
        }
        let mut pair = 0;
        while pair < V_DIM / 16 {
            if ends_before(16 * pair as u32, head_dim_v) {
                break;
            }
            // Channels 16 · pair are 2 · pair chunks on: an XOR within the swizzle's 128 bytes (tiles are
            // 128-byte aligned), an addition beyond.
            let address = (v ^ (pair as u32 % 4 * 32)) + pair as u32 / 4 * 128;
            // The FP16 product accumulates in full f32: it goes on from the rescaled output in place,
            // which takes no temporary registers (deviation 5 of `mma_sync` is for FP8 only).
            let mut i = 0;
            while i < 8 * HALVES {
                output[i / 8 * 16 + pair * 2 + i / 4 % 2][i % 4] *= alpha[i / 8 * 2 + i % 4 / 2];
                i += 1;
            }
            let mut step = 0;
            while step < 4 {
                let b = ldmatrix::x4_trans(address + step as u32 * 16 * row_bytes);
                let mut m = 0;
                while m < HALVES {
                    let o = &mut output[m * 16 + pair * 2];
                    *o = mma::m16n8k16_f16(p[m][step], [b[0], b[1]], *o);
                    let o = &mut output[m * 16 + pair * 2 + 1];
                    *o = mma::m16n8k16_f16(p[m][step], [b[2], b[3]], *o);
                    m += 1;
                }
                step += 1;
            }
            pair += 1;
        }
    }
}
