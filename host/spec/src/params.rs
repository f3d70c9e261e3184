//! Kernel parameters, passed by value. Pointers are device addresses; `0` means "absent" where a
//! field says nullable. All strides are `i64` and count elements. Shapes use B = batch, H = heads,
//! M = seqlen_q, N = seqlen_kv, D = head_dim, Dv = head_dim_v, Mp/Np/Dp = padded (see [`crate::Dims`]).

use crate::schedule::Schedule;

/// A strided 4-D tensor `[B, H, tokens, D]` whose last stride is 1.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TensorArg {
    /// Address of element `[0, 0, 0, 0]`.
    pub ptr: u64,
    /// Elements from one batch entry to the next.
    pub stride_batch: i64,
    /// Elements from one head to the next.
    pub stride_head: i64,
    /// Elements from one token to the next.
    pub stride_token: i64,
}

/// `quantize_*`: smoothing and quantization of Q, K and V. CTAs take tiles of 128 tokens in the order of
/// [`crate::schedule::Schedule`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct QuantizeParams {
    /// Q, `[B, Hq, M, D]`.
    pub q: TensorArg,
    /// K, `[B, Hkv, N, D]`.
    pub k: TensorArg,
    /// V, `[B, Hkv, N, Dv]`.
    pub v: TensorArg,
    /// Out: codes `[B, Hq, Mp, Dp]`. [`CodeStorage::Packed`](crate::CodeStorage): two to a byte, even feature
    /// in the low nibble. Rows beyond M and features beyond D are zero.
    pub q_codes: u64,
    /// Out: f32 `[B, Hq, Mp / 128 * q_scales_per_block]`.
    pub q_scale: u64,
    /// Out, nullable (Q is not smoothed): f32 `[B, Hq, Mp / 128, Dp]` query-block means.
    pub q_mean: u64,
    /// Out, nullable; needs `k_mean`: f32 `[B, Hq, Mp]`, `q · k_mean` of each unquantized row.
    pub qk_mean: u64,
    /// Out: codes `[B, Hkv, Np, Dp]`, as for Q.
    pub k_codes: u64,
    /// Out: f32 `[B, Hkv, Np / 64 * k_scales_per_block]`.
    pub k_scale: u64,
    /// Scratch, zero before the launch: f32 `[B, Hkv, 4, Dp]`, [`posted`](crate::schedule::posted): what
    /// [`Statistic`](crate::schedule::Statistic) says.
    pub statistics: u64,
    /// Scratch, zero before the launch, with `k_mean`: f32 `[B, Hkv, num_chunks, Dp]`, posted sums of the tokens of each chunk.
    pub k_sum: u64,
    /// Out, nullable (K is not smoothed): f32 `[B, Hkv, Dp]` token mean, zero beyond D.
    pub k_mean: u64,
    /// Out. FP8: e4m3 `[B, Hkv, Dp, Np]`, tokens in the order of [`crate::layout::v_slot`].
    /// FP16: f16 `[B, Hkv, Np, Dp]`. Tokens beyond N and features beyond Dv are zero.
    pub v_codes: u64,
    /// Out: f32 `[B, Hkv, Dp]`, dequantization factors.
    pub v_scale: u64,
    /// Scratch, zero before the launch: f32 `[B, Hkv, num_chunks, Dp]`, posted. With `v_mean` the maxima of each chunk, else its
    /// largest magnitudes.
    pub v_max: u64,
    /// Scratch, zero before the launch, with `v_mean`: f32 `[B, Hkv, num_chunks, Dp]`, posted minima.
    pub v_min: u64,
    /// The same, sums.
    pub v_sum: u64,
    /// Scratch, zero before the launch, with `v_offset`: f32 `[B, Hkv, num_chunks, Dp]`, posted sums of what V's tokens were
    /// rounded by.
    pub v_rounding: u64,
    /// Out, nullable (V is not smoothed): f32 `[B, Hkv, Dp]` channel means.
    pub v_mean: u64,
    /// Out, nullable (FP16): f32 `[B, Hkv, Dp]`, what the output lacks without it: [`crate::quant::v_offset`].
    pub v_offset: u64,
    /// Scratch, zero before the launch: u32 words as [`crate::schedule::Progress`] lays them out.
    pub progress: u64,
    /// Order of the tiles.
    pub schedule: Schedule,
    /// Hq.
    pub num_heads_q: u32,
    /// Hkv.
    pub num_heads_kv: u32,
    /// Hq / Hkv.
    pub gqa_group: u32,
    /// M.
    pub seqlen_q: u32,
    /// N, at least 1.
    pub seqlen_kv: u32,
    /// D.
    pub head_dim: u32,
    /// [`crate::ScaleGranularity::code`].
    pub granularity: u32,
    /// Bits 0, 1, 2 for q, k, v: 1 if the base address and all strides of the tensor are multiples of 16 bytes
    /// and D or Dv of 8 elements.
    pub vectorized: u32,
    /// 1 for [`CodeStorage::Packed`](crate::CodeStorage), else 0.
    pub packed: u32,
    /// [`crate::Precision::max_code`].
    pub max_code: f32,
    /// [`crate::quant::smooth_q_scale_floor`] of a mean of 1-norm 1.
    pub smooth_q_floor: f32,
    /// Dv.
    pub head_dim_v: u32,
}

/// `delta_s_*`: one CTA per (query head of the chunk, 16 or 32 query blocks of the chunk, 128 keys).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct DeltaSParams {
    /// K, `[B, Hkv, N, D]`.
    pub k: TensorArg,
    /// Nullable: f32 `[B, Hkv, Dp]` token mean of K.
    pub k_mean: u64,
    /// f32 `[B, Hkv, Np / 64 * k_scales_per_block]`.
    pub k_scale: u64,
    /// f32 `[B, Hq, Mp / 128, Dp]` query-block means.
    pub q_mean: u64,
    /// Out: f32 `[head_count, block_count, Np]`: `q_mean · (k − k_mean) / k_scale`, keys in the order
    /// of [`crate::layout::delta_s_slot`].
    pub delta_s: u64,
    /// Hq.
    pub num_heads_q: u32,
    /// Hkv.
    pub num_heads_kv: u32,
    /// N.
    pub seqlen_kv: u32,
    /// D.
    pub head_dim: u32,
    /// Mp / 128.
    pub num_query_blocks: u32,
    /// The part of the work this launch covers.
    pub chunk: Chunk,
    /// [`crate::ScaleGranularity::code`].
    pub granularity: u32,
    /// 1 if the base address and all strides of `k` are multiples of 16 bytes and D of 8 elements.
    pub vectorized: u32,
}

/// A rectangle of query blocks: flattened (batch, query head) `head_begin .. head_begin + head_count`
/// times query block `block_begin .. block_begin + block_count`. ΔS of one chunk is alive at a time,
/// so its memory stays bounded whatever the sequence length.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Chunk {
    /// First `batch * Hq + head`.
    pub head_begin: u32,
    /// Number of (batch, head) pairs.
    pub head_count: u32,
    /// First query block.
    pub block_begin: u32,
    /// Number of query blocks.
    pub block_count: u32,
}

/// `<stem>_d<64|128>`: one CTA of 128 threads per query block of the chunk. `<stem>_general_d*` take it too.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct AttentionParams {
    /// Codes of Q, `[B, Hq, Mp, Dp]`.
    pub q_codes: u64,
    /// f32 `[B, Hq, Mp / 128 * q_scales_per_block]`.
    pub q_scale: u64,
    /// Codes of K, `[B, Hkv, Np, Dp]`.
    pub k_codes: u64,
    /// f32 `[B, Hkv, Np / 64 * k_scales_per_block]`.
    pub k_scale: u64,
    /// V as [`QuantizeParams::v_codes`].
    pub v_codes: u64,
    /// f32 `[B, Hkv, Dp]`.
    pub v_scale: u64,
    /// Nullable: f32 `[B, Hkv, Dp]`, added to every row that sees a key: [`QuantizeParams::v_offset`], or for FP16
    /// [`QuantizeParams::v_mean`].
    pub v_offset: u64,
    /// Nullable (Q is not smoothed): f32 `[head_count, block_count, Np]`, see [`DeltaSParams`].
    pub delta_s: u64,
    /// Nullable: f32 `[B, Hq, Mp]`; times `sm_scale` it is added to the LSE.
    pub qk_mean: u64,
    /// Out, nullable: f32 `[B, Hq, M]` natural-log LSE; −inf for a row that sees no key.
    pub lse: u64,
    /// Out: `[B, Hq, M, Dv]`.
    pub out: TensorArg,
    /// Hq.
    pub num_heads_q: u32,
    /// Hkv.
    pub num_heads_kv: u32,
    /// Hq / Hkv: derived values come ready, so that they stay in the constant bank instead of registers.
    pub gqa_group: u32,
    /// M.
    pub seqlen_q: u32,
    /// N.
    pub seqlen_kv: u32,
    /// Np.
    pub seqlen_kv_padded: u32,
    /// Dv.
    pub head_dim_v: u32,
    /// The part of the work this launch covers.
    pub chunk: Chunk,
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
    /// D. Only kernels of 256 look at it: beyond it codes are zero.
    pub head_dim: u32,
}

/// `<stem>_scores_d<64|128>`: the raw integer scores of the same QK code path, for tests. One CTA per
/// query block; no masks, no scales, no ΔS.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ScoresParams {
    /// Codes of Q, `[B, Hq, Mp, Dp]`.
    pub q_codes: u64,
    /// Codes of K, `[B, Hkv, Np, Dp]`.
    pub k_codes: u64,
    /// Out: i32 `[B, Hq, Mp, Np]`.
    pub scores: u64,
    /// Hq.
    pub num_heads_q: u32,
    /// Hkv.
    pub num_heads_kv: u32,
    /// M.
    pub seqlen_q: u32,
    /// N.
    pub seqlen_kv: u32,
}
