//! Tile sizes of the `mma.sync` kernels (sm_80, sm_89). Each number has its one home here.

/// Query rows per block: one CTA's tile, one smooth-Q mean, one PerBlock scale of Q.
pub const BLOCK_Q: usize = 128;
/// Query rows per warp: four warps to a CTA; one PerWarp scale of Q.
pub const WARP_Q: usize = 32;
/// Key/value tokens per tile of the main loop; one PerBlock or PerWarp scale of K.
pub const BLOCK_KV: usize = 64;
/// Quantized K and V are padded to this many tokens, so that both 64- and 128-token tiles are whole.
pub const KV_PAD: usize = 128;
/// Tokens of Q, K or V that a CTA of the quantizer holds at a time: a query block, two key blocks, a row of
/// the padding of K and V.
pub const QUANTIZE_TILE: usize = 128;
/// Tokens a reduction chunk holds (token mean of K, channel statistics of V).
pub const REDUCE_CHUNK: usize = QUANTIZE_TILE;
/// Threads per CTA of the attention kernels: four warps.
pub const ATTENTION_THREADS: usize = 128;
/// Largest padded head dimension. Its general kernels are the only ones; there is no plain form.
pub const WIDE_HEAD_DIM: usize = 256;
/// Channels of V that a CTA of the general kernels takes: the output of more does not fit its registers.
pub const V_CHUNK: usize = 128;
/// Query blocks that one CTA of the ΔS kernel handles together at head_dim 128 and 256; half of them at 64.
pub const DELTA_S_BLOCKS: usize = 32;
