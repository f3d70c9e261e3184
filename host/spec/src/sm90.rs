//! The contract of the Hopper attention kernels (`sm90_*`): tiles, shared memory, parameters and the
//! form of the exponential. Quantized buffers are those of every other kernel.

use crate::modifiers::ModifierParams;
use crate::params::{Chunk, TensorArg};
use crate::tiling::BLOCK_Q;

/// Query rows of a consumer warpgroup; a multiple of it is a block of smooth-Q's means.
pub const WARPGROUP_Q: usize = 64;
/// Consumer warpgroups of the plain kernel of a padded head dimension of 64 or 128 with and without ΔS: as many as have
/// registers enough. With 64 features they have fewer sums to keep, and four do without spills unless ΔS or the exact
/// exponential wants more.
pub const fn warpgroups(head_dim_padded: usize, exponential: Exponential, delta_s: bool) -> usize {
    match exponential {
        Exponential::Mixed if head_dim_padded == 64 && !delta_s => 4,
        _ => 3,
    }
}
/// Consumer warpgroups of the general kernels, whose modifiers need more registers than three leave to each.
pub const GENERAL_WARPGROUPS: usize = 2;
/// Query rows of a work item of the general kernels.
pub const GENERAL_BLOCK_Q: usize = block_q(GENERAL_WARPGROUPS);
/// Key/value tokens of a tile; divides [`crate::tiling::KV_PAD`].
pub const BLOCK_KV: usize = 128;
/// Threads of a CTA of the general kernels.
pub const GENERAL_THREADS: usize = threads(GENERAL_WARPGROUPS);
/// Stages of the ring of K and V.
pub const STAGES: usize = 4;
/// Buffers of Q: the next work item's is loaded while the current one is used.
pub const Q_BUFFERS: usize = 2;
/// Rows of V's tile in shared memory after the channels: one of ones, which makes the tensor core add up
/// P, and zeros up to a whole group of eight.
pub const ONES_ROWS: usize = 8;

/// Bytes of a tile's scales of K in shared memory: of two key blocks, at most four each.
pub const K_SCALE_BYTES: usize = 32;
/// Bytes of a work item's scales of Q in shared memory: of the two query blocks that its rows lie in, at most 32 each.
pub const Q_SCALE_BYTES: usize = 256;
/// Bytes of ΔS of a tile and one query block in shared memory.
pub const DELTA_S_BYTES: usize = BLOCK_KV * 4;
/// Query blocks that the `block_q` rows of a work item lie in at most: items follow each other from the first row on.
pub const fn q_blocks(block_q: usize) -> usize {
    block_q / BLOCK_Q + if block_q.is_multiple_of(BLOCK_Q) { 0 } else { 1 }
}

/// Bytes of a work item in shared memory: which rows, of which head, and what the consumers would have to divide for.
pub const WORK_BYTES: usize = 32;

/// Query rows of a work item for `warpgroups` consumer warpgroups.
pub const fn block_q(warpgroups: usize) -> usize {
    warpgroups * WARPGROUP_Q
}

/// Threads of a CTA: a producer warpgroup and `warpgroups` consumers.
pub const fn threads(warpgroups: usize) -> usize {
    (1 + warpgroups) * 128
}

/// Query rows of a work item of a kernel that runs `threads` threads: what [`block_q`] is of the warpgroups that
/// [`threads`] counts.
pub const fn block_q_of_threads(threads: usize) -> usize {
    block_q(threads / 128 - 1)
}

/// Named plan of a CTA's dynamic shared memory, in bytes from its 1024-byte aligned start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SmemPlan {
    /// Bytes of one buffer of Q.
    pub q_bytes: usize,
    /// Bytes of one tile of K.
    pub k_bytes: usize,
    /// Bytes of the channels of one tile of V, as they are copied.
    pub v_copy_bytes: usize,
    /// Bytes from one tile of V to the next, ones included.
    pub v_bytes: usize,
    /// First tile of K.
    pub k_offset: usize,
    /// First tile of V.
    pub v_offset: usize,
    /// Scales of the first tile of K; [`K_SCALE_BYTES`] a stage.
    pub k_scale_offset: usize,
    /// ΔS of the first tile of K, query block by query block; `delta_s_bytes` a stage.
    pub delta_s_offset: usize,
    /// Bytes of a tile's ΔS: [`DELTA_S_BYTES`] for each of [`q_blocks`]; none without ΔS.
    pub delta_s_bytes: usize,
    /// Scales of the first buffer of Q; [`Q_SCALE_BYTES`] a buffer.
    pub q_scale_offset: usize,
    /// Scales, then means, of the channels of V for the first buffer of Q; `v_channel_bytes` a buffer.
    pub v_channel_offset: usize,
    /// Bytes of one head's scales and means of V.
    pub v_channel_bytes: usize,
    /// First barrier: full and empty K, full and empty V (a stage each), full and empty Q (a buffer each).
    pub barrier_offset: usize,
    /// Work items; [`WORK_BYTES`] for each buffer of Q.
    pub work_offset: usize,
    /// All of it.
    pub bytes: usize,
}

impl SmemPlan {
    /// The plan for a padded head dimension of 64 or 128 and work items of `block_q` rows, with or without ΔS.
    pub const fn new(head_dim_padded: usize, block_q: usize, delta_s: bool) -> SmemPlan {
        let q_bytes = block_q * head_dim_padded;
        let k_bytes = BLOCK_KV * head_dim_padded;
        let v_copy_bytes = head_dim_padded * BLOCK_KV;
        let v_bytes = v_copy_bytes + ONES_ROWS * BLOCK_KV;
        let k_offset = Q_BUFFERS * q_bytes;
        let v_offset = k_offset + STAGES * k_bytes;
        let k_scale_offset = v_offset + STAGES * v_bytes;
        let delta_s_offset = k_scale_offset + STAGES * K_SCALE_BYTES;
        let delta_s_bytes = if delta_s { q_blocks(block_q) * DELTA_S_BYTES } else { 0 };
        let q_scale_offset = delta_s_offset + STAGES * delta_s_bytes;
        let v_channel_offset = q_scale_offset + Q_BUFFERS * Q_SCALE_BYTES;
        let v_channel_bytes = 2 * head_dim_padded * 4;
        let barrier_offset = v_channel_offset + Q_BUFFERS * v_channel_bytes;
        let work_offset = barrier_offset + (2 * STAGES + 2 * Q_BUFFERS) * 8;
        let bytes = work_offset + Q_BUFFERS * WORK_BYTES;
        SmemPlan {
            q_bytes,
            k_bytes,
            v_copy_bytes,
            v_bytes,
            k_offset,
            v_offset,
            k_scale_offset,
            delta_s_offset,
            delta_s_bytes,
            q_scale_offset,
            v_channel_offset,
            v_channel_bytes,
            barrier_offset,
            work_offset,
            bytes,
        }
    }
}

/// How a kernel turns scores into E4M3 codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Exponential {
    /// 2^x by the special function unit, then rounded to nearest: every key.
    Exact,
    /// Part of the keys (see [`Exponential::is_exact_key`]) as in `Exact`; the others directly from the exponent:
    /// an E4M3 code is almost eight times the log2 of its value (see [`direct_code`]).
    Mixed,
}

impl Exponential {
    /// Bit `i`: whether keys `16 i .. 16 i + 16` of a tile take the exact exponential: five in eight with maxima, four with
    /// references, so that the error on real layers stays within 2 % of that of all exact. On standard normal inputs all direct
    /// would have 10 % more error than all exact, half of them has half of that. The special function unit works beside the
    /// others, so that only some of the direct ones save time. Which ones was tried out: others are up to 9 % slower, as ptxas
    /// schedules them.
    pub const fn exact_pairs(self, basis: Basis, head_dim: usize) -> u32 {
        match (self, basis, head_dim) {
            (Exponential::Exact, ..) => 0xff,
            (Exponential::Mixed, Basis::Maxima, _) => 0xb6,
            (Exponential::Mixed, Basis::References, 64) => 0x4d,
            (Exponential::Mixed, Basis::References, _) => 0x47,
        }
    }

    /// Whether key `key` of its head takes the exact exponential.
    pub const fn is_exact_key(self, basis: Basis, head_dim: usize, key: usize) -> bool {
        self.exact_pairs(basis, head_dim) >> (key % BLOCK_KV / 16) & 1 == 1
    }
}

/// What P of a tile is relative to: for a score `x` in log2 units P is `2^(x − reference)`, with a *reference* of its row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Basis {
    /// The largest score so far less [`P_MAX_LOG2`], so that its P is the largest code.
    Maxima,
    /// Whatever reference the row has, as long as no code is clamped ([`TILE_SUM_LIMIT`]): a warpgroup goes on with the
    /// references of its first tile if no row's scores are very uneven there ([`EVEN_TILE_SUM`]).
    References,
}

/// log2 of the largest E4M3 value, 448.
pub const P_MAX_LOG2: f32 = 8.807_355;

/// A tile's sum of P below which none of its codes can have been clamped: a clamped one is 448.
pub const TILE_SUM_LIMIT: f32 = 448.0;

/// The least sum of P of a first tile, relative to its maximum, of a row that goes on without maxima: two and a half times what
/// the largest key has alone.
pub const EVEN_TILE_SUM: f32 = 1120.0;

/// The exponent that a raised reference gives to the first tile's sum. 16 to 32 leave later tiles a factor of 14 below
/// [`TILE_SUM_LIMIT`], and ten octaves to the smallest normal code.
pub const TILE_SUM_EXPONENT: i32 = 4;

/// By how many octaves the reference of a row is raised whose first tile has the sum of P `tile_sum`.
pub fn octaves_to_raise(tile_sum: f32) -> i32 {
    (tile_sum.to_bits() >> 23) as i32 - 127 - TILE_SUM_EXPONENT
}

/// The reference of a row beyond the last, which no score comes near: its sums are zero, and it decides nothing.
pub const NO_ROW: f32 = 1e30;

/// The largest code of the direct form: that of 448. Codes are computed as parts of it, because a fused multiply-add clamps
/// to 0..=1 at no cost.
pub const DIRECT_MAX_CODE: f32 = 126.0;

/// Parts of the largest code an octave: eight codes.
pub const DIRECT_SLOPE: f32 = 8.0 / DIRECT_MAX_CODE;

/// Code of 1 in the direct form, as a part of the largest one. The value of code `c ≥ 8` is 2^(c/8 − 7) at multiples of eight
/// and up to 6 % above in between; with 55.54 here (and not 56) the codes' mean error over an octave is zero, so that both
/// halves of a mixed row weigh the same.
pub const DIRECT_ONE: f32 = 55.541_16 / DIRECT_MAX_CODE;

/// E4M3 code of P = 2^`x`. As a part of the largest code it is rounded to f16 before it is rounded to a whole one: that saves
/// a fifth of the kernels' instructions for it, and costs 0.0002 of relative L1 on standard normal inputs.
pub fn direct_code(x: f32) -> u8 {
    code_of_part(x * DIRECT_SLOPE + DIRECT_ONE)
}

/// Code that is the part `part` of the largest one, clamped to 0..=1; 0 for NaN.
pub fn code_of_part(part: f32) -> u8 {
    let part = if part.is_nan() { 0.0 } else { part.clamp(0.0, 1.0) };
    round_code(round_to_f16(part) * DIRECT_MAX_CODE)
}

/// Nearest f16 (ties to even) of a positive number that f16 reaches; zero for negative ones and NaN.
pub fn round_to_f16(x: f32) -> f32 {
    if x.is_nan() || x <= 0.0 {
        return 0.0;
    }
    let bits = x.to_bits();
    // f16 has 13 bits less; what it would not hold, or hold with fewer bits, is far below half a code.
    f32::from_bits((bits + 0xfff + (bits >> 13 & 1)) & !0x1fff)
}

/// Nearest code (ties to even) of a number of at most 127 codes; 0 for negative ones and NaN.
pub fn round_code(code: f32) -> u8 {
    // f32 has spacing 1 between 2²³ and 2²⁴.
    if code > 0.0 { ((code + 12_582_912.0) - 12_582_912.0) as u8 } else { 0 }
}

/// Work items, of `block_q` rows, of a launch over `rows` query rows of each of `heads` heads.
pub const fn work_items(heads: usize, rows: usize, block_q: usize) -> usize {
    heads * rows.div_ceil(block_q)
}

/// A tensor map (`CUtensorMap`), made by the driver's `cuTensorMapEncodeTiled`. It must lie at a multiple of 64
/// bytes: the kernel's attribute `parameter_align` sees to that, as rustc allows no more than 16 for parameters.
#[repr(C, align(16))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TensorMap(pub [u64; 16]);

/// `sm90_int8_fp8_fwd_*`: [`threads`] for [`warpgroups`], as many CTAs as fit the device.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sm90AttentionParams {
    /// Codes of Q, one byte each, `[B·Hq, Mp, Dp]`; box `[1, block_q, Dp]`, swizzled by its row of Dp bytes.
    pub q_map: TensorMap,
    /// Codes of K, one byte each, `[B·Hkv, Np, Dp]`; box `[1, BLOCK_KV, Dp]`, swizzled likewise.
    pub k_map: TensorMap,
    /// Codes of V, `[B·Hkv, Dp, Np]`; box `[1, Dp, BLOCK_KV]`, 128-byte swizzle.
    pub v_map: TensorMap,
    /// f32 `[B, Hq, Mp / 128 * q_scales_per_block]`, 16-byte aligned.
    pub q_scale: u64,
    /// f32 `[B, Hkv, Np / 64 * k_scales_per_block]`, 16-byte aligned and readable up to a multiple of 16 bytes.
    pub k_scale: u64,
    /// f32 `[B, Hkv, Dp]`, 16-byte aligned.
    pub v_scale: u64,
    /// f32 `[B, Hkv, Dp]`, 16-byte aligned, added to every row that sees a key.
    pub v_offset: u64,
    /// Nullable except in `*_delta_s_*`: f32 `[head_count, block_count, Np]`, 16-byte aligned, see [`crate::params::DeltaSParams`].
    pub delta_s: u64,
    /// Nullable: f32 `[B, Hq, Mp]`; times `sm_scale` it is added to the LSE.
    pub qk_mean: u64,
    /// Out, nullable: f32 `[B, Hq, M]` natural-log LSE; −inf for a row that sees no key.
    pub lse: u64,
    /// Nullable: u32 words as [`crate::schedule::Progress`] lays them out. With it a CTA takes the next item when
    /// it has time, without it every so many-th.
    pub progress: u64,
    /// Out: `[B, Hq, M, Dv]`.
    pub out: TensorArg,
    /// Hq.
    pub num_heads_q: u32,
    /// Hkv.
    pub num_heads_kv: u32,
    /// Hq / Hkv.
    pub gqa_group: u32,
    /// M.
    pub seqlen_q: u32,
    /// N.
    pub seqlen_kv: u32,
    /// Dv. (D is in the zeros of the codes.)
    pub head_dim_v: u32,
    /// The part of the work this launch covers, in query blocks of 128 rows.
    pub chunk: Chunk,
    /// Work items per head of the chunk: its rows over [`block_q`], rounded up.
    pub tiles_per_head: u32,
    /// Work items of the launch.
    pub work_items: u32,
    /// Heads whose work items are interleaved, so that long items start first while the heads' K and V stay in L2. At
    /// least 1.
    pub heads_per_group: u32,
    /// 1: a head's last rows come first; 0: its first ones.
    pub last_rows_first: u32,
    /// [`crate::ScaleGranularity::q_scales_per_block`].
    pub q_scales_per_block: u32,
    /// [`crate::ScaleGranularity::k_scales_per_block`].
    pub k_scales_per_block: u32,
    /// 1: row i sees keys up to `i + N − M` (bottom-right aligned); 0: every key.
    pub causal: u32,
    /// Type of `out`: 0 f16, 1 bf16, 2 f32.
    pub out_dtype: u32,
    /// `sm_scale · log2(e)`.
    pub sm_scale_log2: f32,
    /// `sm_scale`.
    pub sm_scale: f32,
}

/// `sm90_int8_fp8_general_d<64|128>`: as `sm90_int8_fp8_exp2_fwd_*` with [`GENERAL_THREADS`] threads, and modifiers.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sm90GeneralParams {
    /// What all attention kernels for Hopper take; here ΔS is added if its pointer is not null, and `causal` does not
    /// count.
    pub attention: Sm90AttentionParams,
    /// What only these take.
    pub modifiers: ModifierParams,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_plan_fits_a_multiprocessor() {
        let plain = |d, delta_s| (d, block_q(warpgroups(d, Exponential::Mixed, delta_s)), delta_s);
        let general = |d| (d, GENERAL_BLOCK_Q, true);
        let all = [64, 128].map(|d| [plain(d, false), plain(d, true), general(d)]);
        for (head_dim, block_q, delta_s) in all.into_iter().flatten() {
            let plan = SmemPlan::new(head_dim, block_q, delta_s);
            assert!(plan.bytes <= 227 << 10, "{plan:?}");
            for offset in [plan.q_bytes, plan.k_offset, plan.k_bytes, plan.v_offset, plan.v_bytes] {
                assert_eq!(offset % 1024, 0, "{plan:?}");
            }
        }
    }

    #[test]
    fn an_item_lies_in_so_many_query_blocks() {
        for rows in [WARPGROUP_Q, 128, 192, 256] {
            let blocks = |item: usize| (item * rows + rows - 1) / BLOCK_Q - item * rows / BLOCK_Q + 1;
            assert_eq!((0..20).map(blocks).max(), Some(q_blocks(rows)), "{rows}");
        }
    }

    #[test]
    fn direct_codes_end_at_both_ends() {
        assert_eq!([9.0, 8.0, 0.0, -1.0, -7.0, -1e30, f32::NAN].map(direct_code), [126, 120, 56, 48, 0, 0, 0]);
    }

    #[test]
    fn a_large_sum_becomes_one_between_16_and_32() {
        for (sum, octaves) in [(1120.0, 6), (2047.9, 6), (2048.0, 7), (57_344.0, 11)] {
            assert_eq!(octaves_to_raise(sum), octaves, "{sum}");
        }
    }

    #[test]
    fn codes_are_rounded_once_or_twice() {
        for (code, rounded) in [(0.5, 0), (0.501, 1), (1.5, 2), (100.5, 100), (101.5, 102), (126.4, 126)] {
            assert_eq!([code, round_to_f16(code)].map(round_code), [rounded; 2], "{code}");
        }
        // Nearer to a half than a thirty-second: the half, and from there to the even code.
        let codes = [100.53, 100.54, 101.47, 101.46];
        assert_eq!(codes.map(round_code), [101, 101, 101, 101]);
        assert_eq!(codes.map(round_to_f16).map(round_code), [100, 101, 102, 101]);
    }

    #[test]
    fn part_of_the_keys_is_exact_in_a_mixed_row() {
        let exact = |e: Exponential, basis, d| (0..BLOCK_KV).filter(|&key| e.is_exact_key(basis, d, key)).count();
        for (basis, of_mixed) in [(Basis::Maxima, 80), (Basis::References, 64)] {
            for d in [64, 128] {
                assert_eq!([Exponential::Mixed, Exponential::Exact].map(|e| exact(e, basis, d)), [of_mixed, BLOCK_KV]);
            }
        }
    }
}
