//! What the algorithm asks of the tensors: exact or quantized.

use sage_spec::Dims;

use super::isa::{Codes, Isa};
use super::output::Segment;
use super::product::Multiply;
use super::softmax::Scale;

/// Keys of a tile: two blocks of [`sage_spec::tiling::BLOCK_KV`].
pub const TILE: usize = 128;

/// Q, K and V in some number format.
pub trait Operands: Sync {
    /// Product of Q and K.
    type Qk: Multiply;

    /// Extents.
    fn dims(&self) -> &Dims;
    /// Whether the causal mask applies.
    fn causal(&self) -> bool;
    /// 32-bit lanes of a row of Q or K.
    fn qk_lanes(&self, codes: Codes) -> usize;
    /// Whether V is exact in bf16.
    fn v_fits_bf16(&self) -> bool;
    /// Whether Q's block means were subtracted and their scores are to be added.
    fn has_delta(&self) -> bool;

    /// Rows of a query block: lanes of `[rows, qk_lanes]`, what each row's sums start from, and each row's
    /// factor. The last two are left alone by exact arithmetic. `rows` is room for `[rows, head_dim_padded]`.
    fn load_q<I: Isa>(
        &self,
        isa: I,
        segment: &Segment,
        rows: &mut [u32],
        q: &mut [u32],
        start: &mut [u32],
        factor: &mut [f32],
    );
    /// The block's mean in log2 units, `[head_dim_padded]`.
    fn load_q_mean(&self, segment: &Segment, mean: &mut [f32]);
    /// Lanes of `tokens` keys of a head, `[tokens, qk_lanes]`.
    fn load_k(&self, codes: Codes, flat_kv: usize, tokens: std::ops::Range<usize>, k: &mut [u32]);
    /// Smoothed, unquantized keys `[tokens, head_dim_padded]`.
    fn load_k_smoothed(&self, flat_kv: usize, tokens: std::ops::Range<usize>, k: &mut [f32]);
    /// Factor of each key of a tile.
    fn k_factors(&self, flat_kv: usize, first: usize, factors: &mut [f32; TILE]);
    /// A tile of V: `[panels, TILE]` f32, or `[panels, TILE / 2]` pairs of bf16 if `pairs`. `tokens` exist.
    fn load_v<I: Isa>(
        &self,
        isa: I,
        flat_kv: usize,
        tokens: std::ops::Range<usize>,
        pairs: bool,
        rows: &mut [u32],
        panels: &mut [I::Panel],
    );
    /// How scores become log2 units.
    fn scale<'s>(&self, q: &'s [f32], k: &'s [f32; TILE], delta: &'s [f32]) -> Scale<'s>;
    /// Turns a row of `[head_dim_padded]` sums over `inverse_sum` into the output.
    fn finish(&self, segment: &Segment, inverse_sum: f32, row: &mut [f32]);
    /// What the log-sum-exp of a row lacks.
    fn lse_shift(&self, segment: &Segment, row: usize) -> f32;
}
