//! What varies between the kernels, and the shared-memory plan derived from it.

use sage_spec::launch::{ATTENTION_STAGES, attention_q_rows};
use sage_spec::tiling::{BLOCK_KV, V_CHUNK};
use sage_spec::{Precision, PvFormat};

/// Scores of 16 of a warp's 32 rows and a tile: element `e` of `scores[b]` is row `g + 8(e/2)`, column
/// `8b + 2t + e%2`.
pub type Scores = [[u32; 4]; 8];
/// The same elements as probabilities.
pub type Probabilities = [[f32; 4]; 8];
/// Output of one warp: element `e` of `output[m * 16 + c]` is row `16m + g + 8(e/2)`, channel
/// `8c + 2t + e%2`, of at most 128. Half of it is unused, and never allocated, when the head dimension is 64.
pub type OutputTile = [[f32; 4]; 32];
/// One value for each of the four rows a lane holds: `rows[m * 2 + e / 2]`.
pub type Rows = [f32; 4];

/// Whether the product with V is complete before channel `channel` because all that follow are padding;
/// asked once for each 32 channels.
///
/// The branch also divides the product into basic blocks, across which ptxas moves nothing. In one
/// block it loads V's operands before the scores are spent and puts off the additions to the output,
/// until 255 registers do not suffice.
#[inline(always)]
pub fn ends_before(channel: u32, head_dim_v: u32) -> bool {
    channel % 32 == 0 && channel >= head_dim_v
}

/// A kernel: its types, its sizes and its product with V.
pub trait Config {
    /// Padded head dimension, 64, 128 or 256.
    const HEAD_DIM: u32;
    /// Type of the codes of Q and K.
    const QK: Precision;
    /// Type of P and V.
    const PV: PvFormat;
    /// P of 16 rows as A operands.
    type P: Copy;

    /// Channels of V that a CTA takes.
    const V_DIM: u32 = if Self::HEAD_DIM > V_CHUNK as u32 { V_CHUNK as u32 } else { Self::HEAD_DIM };
    /// Bytes of a row of Q or K.
    const ROW_BYTES: u32 = Self::QK.bytes(Self::HEAD_DIM as usize) as u32;
    /// Bytes of a tile of K.
    const K_BYTES: u32 = BLOCK_KV as u32 * Self::ROW_BYTES;
    /// Bytes of a tile of V.
    const V_BYTES: u32 = BLOCK_KV as u32 * Self::V_DIM * Self::PV.bytes() as u32;
    /// Shared memory: Q first.
    const Q_OFFSET: u32 = 0;
    /// Then the ring; each stage holds K, V and a row of ΔS.
    const RING_OFFSET: u32 = attention_q_rows(Self::HEAD_DIM as usize) as u32 * Self::ROW_BYTES;
    /// V within a stage.
    const V_OFFSET: u32 = Self::K_BYTES;
    /// ΔS within a stage.
    const DELTA_S_OFFSET: u32 = Self::K_BYTES + Self::V_BYTES;
    /// Bytes of a stage.
    const STAGE_BYTES: u32 = Self::DELTA_S_OFFSET + BLOCK_KV as u32 * 4;
    /// All of it; the host allocates `sage_spec::launch::attention` bytes.
    const SMEM_BYTES: u32 = {
        let bytes = Self::RING_OFFSET + ATTENTION_STAGES as u32 * Self::STAGE_BYTES;
        let host = sage_spec::launch::attention(Self::HEAD_DIM as usize, Self::QK, Self::PV).smem_bytes;
        assert!(bytes as usize == host, "host and kernel disagree on shared memory");
        bytes
    };

    /// Copies V's tiles: rows are channels (FP8) or tokens (FP16).
    type VCopy: Copy;

    /// Copies the tile at global address `src`, and those that follow.
    fn v_copy(src: u64, seqlen_kv_padded: u32) -> Self::VCopy;

    /// Starts the copies of tile `tile` to shared address `dst`.
    ///
    /// # Safety
    /// As for [`super::load::TileCopy::start`].
    unsafe fn start_v(copy: &Self::VCopy, tile: u32, dst: u32, seqlen_kv_padded: u32);

    /// Rounds P to its 8- or 16-bit format, as A operands.
    fn round_p(p: &Probabilities) -> Self::P;

    /// Offset in V's tile of the 16 bytes whose address lane `lane` gives to the first `ldmatrix`.
    fn v_lane_offset(lane: u32) -> u32;

    /// `output = output · alpha + P V`, `row_sum = row_sum · alpha + P 1`, of the first `HALVES` times 16
    /// rows; `v` is the shared address of
    /// V's tile plus [`Config::v_lane_offset`], `head_dim_v` the number of channels that exist.
    ///
    /// # Safety
    /// The whole warp calls it; the tile is complete.
    unsafe fn multiply_v<const HALVES: usize>(
        p: &[Self::P; 2],
        v: u32,
        head_dim_v: u32,
        alpha: &Rows,
        output: &mut OutputTile,
        row_sum: &mut Rows,
    );
}
