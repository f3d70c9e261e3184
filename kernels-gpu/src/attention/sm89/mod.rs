//! sm_89 (Ada) and later: the product with V in FP8 E4M3, `m16n8k32`, which sm_80 lacks. V arrives
//! transposed (`[channel][token]`), because the 8-bit B operand wants tokens contiguous and no 8-bit
//! transposing `ldmatrix` exists, with its tokens in the order of `sage_spec::layout::v_slot`.

use cuda_std::{convert, ldmatrix, math, mma};
use sage_spec::tiling::BLOCK_KV;
use sage_spec::{Precision, PvFormat};

use super::mma_sync::config::{Config, OutputTile, Probabilities, Rows, ends_before};
use super::mma_sync::load::TileCopy;
use crate::tile::swizzle::chunk_offset;

/// Four E4M3 ones.
const ONES: u32 = 0x3838_3838;

macro_rules! config {
    ($(#[$doc:meta])* $name:ident, $qk:expr, $head_dim:literal, $v_dim:literal) => {
        $(#[$doc])*
        pub struct $name;

        impl Config for $name {
            const HEAD_DIM: u32 = $head_dim;
            const QK: Precision = $qk;
            const PV: PvFormat = PvFormat::Fp8;
            type P = [[u32; 4]; 2];

            type VCopy = TileCopy<$v_dim, { BLOCK_KV as u32 }>;

            #[inline(always)]
            fn v_copy(src: u64, seqlen_kv_padded: u32) -> Self::VCopy {
                TileCopy::new(src, seqlen_kv_padded as u64)
            }

            #[inline(always)]
            unsafe fn start_v(copy: &Self::VCopy, tile: u32, dst: u32, seqlen_kv_padded: u32) {
                // SAFETY: forwarded contract.
                unsafe { copy.tile(tile, BLOCK_KV as u32).start(dst, seqlen_kv_padded as u64) };
            }

            #[inline(always)]
            fn v_lane_offset(lane: u32) -> u32 {
                // One x4: eight channels (rows of the transposed tile) by the four 16-byte chunks of 64 tokens.
                chunk_offset(BLOCK_KV as u32, lane % 8, lane / 8)
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
    /// `sm89_int4_fp8_fwd`, head dimension 64.
    Int4D64, Precision::Int4, 64, 64
);
config!(
    /// `sm89_int4_fp8_fwd`, head dimension 128.
    Int4D128, Precision::Int4, 128, 128
);
config!(
    /// `sm89_int4_fp8_fwd`, head dimension 256, 128 channels of V at a time.
    Int4D256, Precision::Int4, 256, 128
);
config!(
    /// `sm89_int8_fp8_fwd`, head dimension 64.
    Int8D64, Precision::Int8, 64, 64
);
config!(
    /// `sm89_int8_fp8_fwd`, head dimension 128.
    Int8D128, Precision::Int8, 128, 128
);
config!(
    /// `sm89_int8_fp8_fwd`, head dimension 256, 128 channels of V at a time.
    Int8D256, Precision::Int8, 256, 128
);

/// `rounded[step]` is the A operand of tokens `32 · step..`.
#[inline(always)]
fn round_p(p: &Probabilities) -> [[u32; 4]; 2] {
    let mut rounded = [[0u32; 4]; 2];
    let mut i = 0;
    while i < 2 {
        let block = i * 4;
        let mut register = 0;
        while register < 4 {
            // Registers 0 and 1: rows g and g + 8 of the first 16 tokens; 2 and 3: of the next 16.
            let (b, half) = (block + register / 2 * 2, register % 2 * 2);
            rounded[i][register] =
                convert::f32_to_e4m3x4([p[b][half], p[b][half + 1], p[b + 1][half], p[b + 1][half + 1]]);
            register += 1;
        }
        i += 1;
    }
    rounded
}

#[inline(always)]
unsafe fn multiply_v<const V_DIM: usize, const HALVES: usize>(
    p: &[[[u32; 4]; 2]; 2],
    v: u32,
    head_dim_v: u32,
    alpha: &Rows,
    output: &mut OutputTile,
    row_sum: &mut Rows,
) {
    // SAFETY: inside V's tile; the caller keeps the warp converged.
    unsafe {
        let mut m = 0;
        while m < HALVES {
            let sum = mma::m16n8k32_e4m3(p[m][0], [ONES; 2], [0.0; 4]);
            let sum = mma::m16n8k32_e4m3(p[m][1], [ONES; 2], sum);
            // Every column of the product with ones is the row sum: elements 0 and 2 suffice.
            row_sum[m * 2] = math::fma(row_sum[m * 2], alpha[m * 2], sum[0]);
            row_sum[m * 2 + 1] = math::fma(row_sum[m * 2 + 1], alpha[m * 2 + 1], sum[2]);
            m += 1;
        }
        let mut c = 0;
        while c < V_DIM / 8 {
            if ends_before(8 * c as u32, head_dim_v) {
                break;
            }
            let b = ldmatrix::x4(v + c as u32 * 8 * BLOCK_KV as u32);
            let mut m = 0;
            while m < HALVES {
                let tile = mma::m16n8k32_e4m3(p[m][0], [b[0], b[1]], [0.0; 4]);
                let tile = mma::m16n8k32_e4m3(p[m][1], [b[2], b[3]], tile);
                let mut e = 0;
                while e < 4 {
                    let o = &mut output[m * 16 + c][e];
                    *o = math::fma(*o, alpha[m * 2 + e / 2], tile[e]);
                    e += 1;
                }
                m += 1;
            }
            c += 1;
        }
    }
}
