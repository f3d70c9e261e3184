//! How sums over tokens are associated. Floating-point addition does not associate, so the order is
//! part of the contract: with it, means are bit-equal on every device.
//!
//! *Strided-lane sum* of `n` values over `L` lanes: lane `r` adds the values `r, r + L, r + 2L, ...`
//! in that order starting from zero; then the lanes are added pairwise, `lane[r] += lane[r + L/2]`
//! for `r < L/2`, then `L/4`, and so on until lane 0 holds the sum.
//!
//! * token mean of K, channel mean of V: every chunk of `REDUCE_CHUNK` tokens is a strided-lane sum
//!   over [`TOKEN_LANES`]; the chunk sums are a strided-lane sum over [`CHUNK_LANES`]; the mean is
//!   [`token_mean`] of that sum.
//! * rounding of V in FP8 ([`crate::quant::v_offset`]): the same, but over [`V_LANES`], and the lane of a token is [`v_lane`].
//! * query-block mean of Q: a strided-lane sum over [`TOKEN_LANES`] of the block's real rows,
//!   divided by their count.

/// The mean of `tokens` tokens whose sum is `sum`; never −0, which [`crate::schedule::posted`] could not tell from +0.
pub const fn token_mean(sum: f32, tokens: u32) -> f32 {
    sum / tokens as f32 + 0.0
}

/// Lanes that share the tokens of a chunk or a query block.
pub const TOKEN_LANES: usize = 16;
/// Lanes that share the chunks of a sequence.
pub const CHUNK_LANES: usize = 8;
/// Features that one thread holds of a row: one 16-byte load of a 16-bit type.
pub const FEATURES_PER_THREAD: usize = 8;

/// Lanes that share the tokens of a chunk where V is quantized to FP8: two of each of the [`TOKEN_LANES`] threads.
pub const V_LANES: usize = 2 * TOKEN_LANES;

/// Lane, of [`V_LANES`], of token `token` of a chunk: its four tokens make words of codes.
pub const fn v_lane(token: usize) -> usize {
    token / 16 * 4 + token % 8 / 2
}
