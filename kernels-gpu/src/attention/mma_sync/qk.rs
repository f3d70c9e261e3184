//! `D = C + Q̂ K̂ᵀ` of one warp's 32 rows and one tile of 64 keys.

use cuda_std::{ldmatrix, math, mma, shared};
use sage_spec::Precision;
use sage_spec::quant::{SCORE_BIAS, SCORE_BIAS_BITS};

use super::config::{Config, Scores};
use crate::tile::fragment::{ldmatrix_a, ldmatrix_b};
use crate::tile::swizzle::chunk_offset;

/// Shared addresses a lane needs for QK, computed once.
#[derive(Clone, Copy)]
pub struct QkLane {
    /// `ldmatrix` address of the lane's chunk of Q in the warp's first 16 rows, first 32 bytes.
    q: u32,
    /// Offset of the lane's chunk of K in a tile, first 16 keys, first 32 bytes.
    k: u32,
    /// Offset of the lane's ΔS vectors in a stage.
    delta_s: u32,
}

impl QkLane {
    /// For warp `warp` of 32 rows, lane `lane`, with Q's tile at shared address `q_tile` (128-byte aligned, as
    /// all tiles are: later 32-byte steps along K are then an XOR on the address, like the swizzle).
    #[inline(always)]
    pub fn new<C: Config>(q_tile: u32, warp: u32, lane: u32) -> Self {
        let (q_row, q_chunk) = ldmatrix_a(lane);
        let (k_row, k_chunk) = ldmatrix_b(lane);
        QkLane {
            q: q_tile + chunk_offset(C::ROW_BYTES, warp * 32 + q_row, q_chunk),
            k: chunk_offset(C::ROW_BYTES, k_row, k_chunk),
            delta_s: C::DELTA_S_OFFSET + (lane % 4) * 16,
        }
    }

    /// The same for warps of 16 rows.
    #[inline(always)]
    pub fn of_16_rows<C: Config>(q_tile: u32, warp: u32, lane: u32) -> Self {
        let (q_row, q_chunk) = ldmatrix_a(lane);
        QkLane {
            q: q_tile + chunk_offset(C::ROW_BYTES, warp * 16 + q_row, q_chunk),
            ..Self::new::<C>(q_tile, warp, lane)
        }
    }
}

impl QkLane {
    /// ΔS, in units of k_scale, of the columns that a lane holds of `n8` blocks `2 · pair` and `2 · pair + 1`.
    ///
    /// # Safety
    /// The stage at shared address `stage` is complete.
    #[inline(always)]
    pub unsafe fn delta_s(&self, stage: u32, pair: usize) -> [f32; 4] {
        // SAFETY: inside the stage's ΔS row.
        unsafe { shared::load_u32x4(stage + self.delta_s + pair as u32 * 64) }.map(f32::from_bits)
    }
}

#[inline(always)]
unsafe fn multiply<C: Config>(a: [u32; 4], b: [u32; 2], c: [u32; 4]) -> [u32; 4] {
    // SAFETY: the caller keeps the warp converged.
    unsafe {
        match C::QK {
            Precision::Int4 => mma::m16n8k64_s4(a, b, c),
            Precision::Int8 => mma::m16n8k32_s8(a, b, c),
        }
    }
}

/// Scores of both halves of the warp's rows and the tile at shared address `stage`, as bits of
/// `SCORE_BIAS + score`. With `DELTA_S` the stage's ΔS row (in units of k_scale) times
/// `inverse_q_scale` is part of the bias. Both elements of `inverse_q_scale` are the same number, for
/// rows `g` and `g + 8`: if they are distinct registers (`math::distinct_copy`), ptxas computes the four
/// registers of a C operand in place, and does not copy them there for each product.
///
/// # Safety
/// The whole warp calls it; Q's tile and the stage are complete.
#[inline(always)]
pub unsafe fn scores<C: Config, const DELTA_S: bool>(
    lane: &QkLane,
    stage: u32,
    inverse_q_scale: [f32; 2],
) -> [Scores; 2] {
    let mut d: [Scores; 2] = [[[SCORE_BIAS_BITS; 4]; 8]; 2];
    // One step is 32 bytes of K: the depth of one product. Outermost, so that few operands are alive.
    let mut step = 0;
    while step < C::ROW_BYTES / 32 {
        // SAFETY: inside Q's tile.
        let q =
            unsafe { [ldmatrix::x4(lane.q ^ (step * 32)), ldmatrix::x4((lane.q ^ (step * 32)) + 16 * C::ROW_BYTES)] };
        let mut pair = 0;
        while pair < 4 {
            // SAFETY: inside K's tile.
            let k = unsafe { ldmatrix::x4((stage + (lane.k ^ (step * 32))) + pair as u32 * 16 * C::ROW_BYTES) };
            if DELTA_S && step == 0 {
                // SAFETY: inside the stage's ΔS row. Order of the values: sage_spec::layout::delta_s_slot.
                let steps = unsafe { shared::load_u32x4(stage + lane.delta_s + pair as u32 * 64) };
                let [upper, lower] = inverse_q_scale
                    .map(|scale| steps.map(|x| math::fma(f32::from_bits(x), scale, SCORE_BIAS).to_bits()));
                let mut m = 0;
                while m < 2 {
                    // ΔS belongs to the column: all rows of the lane share it.
                    d[m][2 * pair] = [upper[0], upper[1], lower[0], lower[1]];
                    d[m][2 * pair + 1] = [upper[2], upper[3], lower[2], lower[3]];
                    m += 1;
                }
            }
            let mut m = 0;
            while m < 2 {
                // SAFETY: forwarded contract.
                unsafe {
                    d[m][2 * pair] = multiply::<C>(q[m], [k[0], k[1]], d[m][2 * pair]);
                    d[m][2 * pair + 1] = multiply::<C>(q[m], [k[2], k[3]], d[m][2 * pair + 1]);
                }
                m += 1;
            }
            pair += 1;
        }
        step += 1;
    }
    d
}

/// [`scores`] of a warp of 16 rows. At head dimension 256 features from `head_dim` on, which are zeros, are left
/// out.
///
/// # Safety
/// As for [`scores`].
#[inline(always)]
pub unsafe fn scores_of_16_rows<C: Config, const DELTA_S: bool>(
    lane: &QkLane,
    stage: u32,
    inverse_q_scale: [f32; 2],
    head_dim: u32,
) -> Scores {
    let mut d: Scores = [[SCORE_BIAS_BITS; 4]; 8];
    if DELTA_S {
        let mut pair = 0;
        while pair < 4 {
            // SAFETY: inside the stage's ΔS row.
            let steps = unsafe { shared::load_u32x4(stage + lane.delta_s + pair as u32 * 64) };
            let [upper, lower] =
                inverse_q_scale.map(|scale| steps.map(|x| math::fma(f32::from_bits(x), scale, SCORE_BIAS).to_bits()));
            d[2 * pair] = [upper[0], upper[1], lower[0], lower[1]];
            d[2 * pair + 1] = [upper[2], upper[3], lower[2], lower[3]];
            pair += 1;
        }
    }
    let mut step = 0;
    while step < C::ROW_BYTES / 32 {
        if C::HEAD_DIM > C::V_DIM && C::QK.bytes(head_dim.next_multiple_of(2) as usize) as u32 <= step * 32 {
            break;
        }
        // SAFETY: inside Q's tile.
        let q = unsafe { ldmatrix::x4(lane.q ^ (step * 32)) };
        let mut pair = 0;
        while pair < 4 {
            // SAFETY: inside K's tile; forwarded contract.
            unsafe {
                let k = ldmatrix::x4((stage + (lane.k ^ (step * 32))) + pair as u32 * 16 * C::ROW_BYTES);
                d[2 * pair] = multiply::<C>(q, [k[0], k[1]], d[2 * pair]);
                d[2 * pair + 1] = multiply::<C>(q, [k[2], k[3]], d[2 * pair + 1]);
            }
            pair += 1;
        }
        step += 1;
    }
    d
}
