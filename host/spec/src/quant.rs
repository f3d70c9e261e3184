//! Precisions, scales and the maps from element to scale group.

use crate::tiling::{BLOCK_KV, BLOCK_Q, WARP_Q};

/// Integer type of the codes of Q and K.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Precision {
    /// Codes −7..=7, two to a byte.
    Int4,
    /// Codes −127..=127.
    Int8,
}

impl Precision {
    /// Largest code: scales are `amax / max_code`.
    pub const fn max_code(self) -> f32 {
        match self {
            Precision::Int4 => 7.0,
            Precision::Int8 => 127.0,
        }
    }

    /// Bytes that `elems` codes take in their densest storage.
    pub const fn bytes(self, elems: usize) -> usize {
        self.storage().bytes(elems)
    }

    /// The densest storage of the codes: what the CPU reference and the `mma.sync` kernels use.
    pub const fn storage(self) -> CodeStorage {
        match self {
            Precision::Int4 => CodeStorage::Packed,
            Precision::Int8 => CodeStorage::Byte,
        }
    }

    /// Name in symbols, on the command line and in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Precision::Int4 => "int4",
            Precision::Int8 => "int8",
        }
    }
}

/// How codes of Q and K lie in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CodeStorage {
    /// Two 4-bit codes to a byte, the even feature in the low nibble.
    Packed,
    /// One code to a byte, as a signed integer. 4-bit codes lie so where the tensor cores have no 4-bit product
    /// of full speed (compute capability 9.0).
    Byte,
}

impl CodeStorage {
    /// Bytes that `elems` codes take.
    pub const fn bytes(self, elems: usize) -> usize {
        match self {
            CodeStorage::Packed => elems / 2,
            CodeStorage::Byte => elems,
        }
    }
}

/// Type of P and V in the second matrix product.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PvFormat {
    /// FP8 E4M3: V with a scale per channel, transposed. sm_89 and later.
    Fp8,
    /// FP16: V token-major, scaled only where it would overflow. sm_80 and later.
    F16,
}

impl PvFormat {
    /// Log2 of the largest P: the row maximum maps to just below E4M3's 448 (2^8.807 = 447.9), or to
    /// 2^8, which spends FP16's spare exponents on small probabilities.
    pub const fn p_max_log2(self) -> f32 {
        match self {
            PvFormat::Fp8 => 8.807,
            PvFormat::F16 => 8.0,
        }
    }

    /// Bytes per element of P and V.
    pub const fn bytes(self) -> usize {
        match self {
            PvFormat::Fp8 => 1,
            PvFormat::F16 => 2,
        }
    }

    /// Name in symbols, on the command line and in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            PvFormat::Fp8 => "fp8",
            PvFormat::F16 => "f16",
        }
    }
}

/// Which elements of Q and of K share one scale (SageAttention2, section 3.2).
///
/// PerThread groups are exactly the rows and columns that one lane holds of the `m16n8` accumulator
/// fragment (PTX ISA, "Matrix Fragments for mma.m16n8k32"): rows ≡ lane/4 (mod 8), columns with
/// (n mod 8)/2 = lane mod 4. So each lane dequantizes with one product of two scales.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ScaleGranularity {
    /// Q: 128 rows. K: 64 keys.
    PerBlock,
    /// Q: the 32 rows of a warp. K: 64 keys.
    PerWarp,
    /// Q: four rows. K: sixteen keys.
    PerThread,
}

impl ScaleGranularity {
    /// Scales per query block of [`BLOCK_Q`] rows.
    pub const fn q_scales_per_block(self) -> usize {
        match self {
            ScaleGranularity::PerBlock => 1,
            ScaleGranularity::PerWarp => BLOCK_Q / WARP_Q,
            ScaleGranularity::PerThread => BLOCK_Q / WARP_Q * 8,
        }
    }

    /// Scales per key block of [`BLOCK_KV`] keys.
    pub const fn k_scales_per_block(self) -> usize {
        match self {
            ScaleGranularity::PerBlock | ScaleGranularity::PerWarp => 1,
            ScaleGranularity::PerThread => 4,
        }
    }

    /// Index of the scale of query row `row` within its head.
    pub const fn q_group(self, row: usize) -> usize {
        let block = row / BLOCK_Q;
        let warp = row % BLOCK_Q / WARP_Q;
        match self {
            ScaleGranularity::PerBlock => block,
            ScaleGranularity::PerWarp => block * self.q_scales_per_block() + warp,
            ScaleGranularity::PerThread => block * self.q_scales_per_block() + warp * 8 + row % 8,
        }
    }

    /// Index of the scale of key `key` within its head.
    pub const fn k_group(self, key: usize) -> usize {
        let block = key / BLOCK_KV;
        match self {
            ScaleGranularity::PerBlock | ScaleGranularity::PerWarp => block,
            ScaleGranularity::PerThread => block * 4 + key % 8 / 2,
        }
    }

    /// Name on the command line and in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            ScaleGranularity::PerBlock => "block",
            ScaleGranularity::PerWarp => "warp",
            ScaleGranularity::PerThread => "thread",
        }
    }

    /// Value of `granularity` fields in kernel parameters.
    pub const fn code(self) -> u32 {
        match self {
            ScaleGranularity::PerBlock => 0,
            ScaleGranularity::PerWarp => 1,
            ScaleGranularity::PerThread => 2,
        }
    }
}

/// Smallest scale: keeps `1 / scale`, and the product of two such reciprocals, finite in f32, and
/// makes the codes of an all-zero group exactly zero instead of 0/0.
pub const SCALE_FLOOR: f32 = 1.0 / (1u64 << 40) as f32;

/// Largest E4M3 value.
pub const E4M3_MAX: f32 = 448.0;

/// The s32 accumulator of QK starts from these bits, so that the accumulator read as f32 is
/// `SCORE_BIAS + score` for every |score| < 2²² and needs no conversion.
pub const SCORE_BIAS_BITS: u32 = 0x4B40_0000;
/// `SCORE_BIAS_BITS` as a number: 1.5 · 2²³.
pub const SCORE_BIAS: f32 = 12_582_912.0;

/// ΔS in units of one score step stays below this, so that with |score| ≤ 127² · 128 the biased
/// accumulator stays within ±2²².
pub const DELTA_S_MAX_STEPS: f32 = 2_097_152.0;

/// Largest score step, in log2 units, for which the kernels fold the bias and the row maximum into one
/// constant. The constant is rounded to the spacing of f32 near `SCORE_BIAS · step`, that is to about one
/// step; here that moves P by at most 2^(1/16), less than FP8's own rounding does. A query block with
/// coarser steps anywhere subtracts the bias first, exactly, at one more addition per score.
pub const FOLDED_STEP_MAX: f32 = 1.0 / 16.0;

/// Score steps of headroom below the largest P when the constant is folded: it and the row maximum are
/// each off by at most one step.
pub const FOLDED_HEADROOM: f32 = 2.0;

/// `log2(e)`.
pub const LOG2_E: f32 = core::f32::consts::LOG2_E;

/// Scale of a group of Q or K whose largest magnitude is `amax`; `max_code` is [`Precision::max_code`]. NaN stays
/// NaN.
pub const fn qk_scale(amax: f32, max_code: f32) -> f32 {
    let scale = amax / max_code;
    if scale < SCALE_FLOOR { SCALE_FLOOR } else { scale }
}

/// Lower bound of Q's scales in a query block whose smooth-Q mean has 1-norm `mean_l1`:
/// |q̄·γ(k)| ≤ ‖q̄‖₁ · max_code · k_scale, which this bound keeps within [`DELTA_S_MAX_STEPS`] steps.
pub const fn smooth_q_scale_floor(mean_l1: f32, precision: Precision) -> f32 {
    mean_l1 * (precision.max_code() / DELTA_S_MAX_STEPS)
}

/// Scale of a channel of V in FP8 whose largest magnitude is `amax`. NaN stays NaN.
pub const fn v_scale_fp8(amax: f32) -> f32 {
    let scale = amax / E4M3_MAX;
    if scale < SCALE_FLOOR { SCALE_FLOOR } else { scale }
}

/// What the output lacks of a channel of V without it. The weights of a row have the sum 1, so that what all tokens' rounding
/// has in common is missing from every row, however it weighs them; `rounding` is the sum, over the `tokens` of the head, of
/// what was rounded less what became of it, in units of the channel's `scale`. `mean` is what was taken from V.
///
/// The variance of V's part of the error falls by what the mean of `tokens` roundings has: on standard normal inputs by 37 %.
pub const fn v_offset(mean: f32, scale: f32, rounding: f32, tokens: u32) -> f32 {
    mean + scale * (rounding / tokens as f32)
}

/// Scale of a channel of V in FP16: 1 unless `amax` exceeds 2¹⁵, then the power of two that brings
/// it down to at most 2¹⁵ (bf16 and f32 inputs can overflow FP16).
pub const fn v_scale_f16(amax: f32) -> f32 {
    let bits = amax.to_bits() & 0x7fff_ffff;
    let exponent = (bits >> 23) + if bits & 0x007f_ffff != 0 { 1 } else { 0 };
    if exponent <= 127 + 15 {
        1.0
    } else {
        let shift = exponent - (127 + 15);
        f32::from_bits((127 + if shift > 127 { 127 } else { shift }) << 23)
    }
}
