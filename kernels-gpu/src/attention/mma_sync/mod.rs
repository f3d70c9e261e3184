//! Quantized attention on `mma.sync`: one CTA of four warps per block of 128 query rows, 32 rows a
//! warp, key/value tiles of 64 tokens through a ring in shared memory.
//!
//! ```text
//! for each tile j of 64 keys:
//!     D = bias + Q̂ K̂_jᵀ                  integer tensor cores; bias = 1.5·2²³ (+ ΔS in score steps)
//!     m' = max(m, f·(max D − bias + 2) − p_max_log2),   f = q_scale · sm_scale·log2(e) · k_scale
//!     p = 2^(f·D + c),   c = −bias·f − m'   one FMA and one exponential per score
//!     P̂ = round(p) to FP8 or FP16
//!     α = 2^(m − m');  m = m'
//!     O = O·α + P̂ V̂_j;   l = l·α + P̂ 1      tensor cores start from zero each tile; FMA in f32
//! out = O / l · v_scale + v_offset
//! ```
//!
//! Deviations from the paper's Algorithm 1, and why:
//! 1. The s32 accumulator starts from the bits of 1.5·2²³, so it *is* the float `bias + score`: no
//!    conversion instruction (`sage_spec::quant::SCORE_BIAS`).
//! 2. ΔS of smooth-Q is added through the same operand, in score steps; it is rounded to one step,
//!    far below the quantization error of the score itself.
//! 3. `f·D + c` cancels two large numbers: c is rounded once, which shifts all scores of a lane's row
//!    and tile by at most one step (again below quantization), and `+ 2` in `m'` keeps P in range. Tiles
//!    with masks, and query blocks whose steps exceed `FOLDED_STEP_MAX`, subtract the bias first.
//! 4. The row sum adds the *rounded* P, through one extra product with a matrix of ones: numerator and
//!    denominator then share P's rounding, and the 64 additions per tile go to the tensor core.
//! 5. PV accumulates only 64 tokens inside the tensor core, whose FP8 accumulator keeps 13 mantissa
//!    bits on sm_89 and sm_90 (SageAttention2, section 3.4); the sum over tiles is in f32.
//!
//! [`general`] is the same with windows, soft-cap, ALiBi, bias, masks and sinks.

pub mod config;
pub mod epilogue;
pub mod general;
pub mod load;
pub mod mainloop;
pub mod qk;
pub mod scores;
pub mod softmax;
