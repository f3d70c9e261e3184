//! The general kernels: the same tiles and products as [`super::mainloop`], with modifiers between them.
//!
//! They are kernels of their own so that the plain ones pay nothing for them. A CTA takes half a query
//! block, 16 rows a warp: with 32 the output alone fills half of the registers, and none are left for
//! modifiers. Every tile subtracts the score bias exactly, whatever it hides, so that neutral modifiers
//! change no bit. Tiles that no row of the half sees are skipped.

use cuda_std::{cp_async, global, math, shared, thread, warp};
use sage_spec::PvFormat;
use sage_spec::modifiers::GeneralAttentionParams;
use sage_spec::params::AttentionParams;
use sage_spec::quant::SCORE_BIAS;
use sage_spec::tiling::{V_CHUNK, WIDE_HEAD_DIM};

use super::config::{Config, OutputTile, Probabilities, Rows, Scores};
use super::epilogue::{self, Weights};
use super::load::{self, TileCopy};
use super::mainloop::{KEYS, QUERY_ROWS, Source, Work};
use super::qk::{self, QkLane};
use super::softmax::RowState;
use crate::attention::modifiers::{self, Head, Place, Scope};

/// Rows of half a query block.
const HALF_ROWS: u32 = QUERY_ROWS / 2;
/// Rows of a warp.
const WARP_ROWS: u32 = 16;

const _: () = assert!(WIDE_HEAD_DIM == 2 * V_CHUNK, "two parts of V at most");

/// Whether ΔS is added to scores, instead of being where their accumulators start from. Scores of 256 products reach
/// 127² · 256, which leaves no room for ΔS below 2²² (`sage_spec::quant::DELTA_S_MAX_STEPS`).
const fn adds_delta_s<C: Config>() -> bool {
    C::HEAD_DIM > V_CHUNK as u32
}

/// What a CTA works on.
pub struct HalfBlock {
    /// The query block and its head.
    pub work: Work,
    /// Which half: 0 or 1.
    half: u32,
    /// Which part of V's channels: 0, or 1 if they are more than a CTA takes.
    pub v_chunk: u32,
}

impl HalfBlock {
    /// Work of the CTA with these block indices (`sage_spec::launch::general_attention_grid`).
    #[inline(always)]
    fn of_cta(p: &AttentionParams, block_idx_x: u32, block_idx_y: u32) -> Self {
        let two_chunks = (p.head_dim_v > V_CHUNK as u32) as u32;
        let half_block = block_idx_x >> two_chunks;
        HalfBlock {
            work: Work::of_cta(p, half_block / 2, block_idx_y),
            half: 1 - half_block % 2,
            v_chunk: block_idx_x & two_chunks,
        }
    }

    /// Computed again, which is cheaper than registers through the main loop.
    #[inline(always)]
    pub fn reread(p: &AttentionParams) -> Self {
        Self::of_cta(p, thread::reread_block_idx_x(), thread::reread_block_idx_y())
    }

    /// First row of the half.
    #[inline(always)]
    fn first_row(&self) -> u32 {
        self.work.query_block * QUERY_ROWS + self.half * HALF_ROWS
    }

    /// First of the two rows, eight apart, that thread `thread` holds.
    #[inline(always)]
    pub fn lane_row(&self, thread: u32) -> u32 {
        self.first_row() + thread / 32 * WARP_ROWS + thread % 32 / 4
    }
}

/// What the modifiers depend on.
#[inline(always)]
fn scope(p: &GeneralAttentionParams) -> Scope<'_> {
    let AttentionParams { seqlen_q, seqlen_kv, qk_mean, sm_scale, .. } = p.attention;
    Scope { modifiers: &p.modifiers, seqlen_q, seqlen_kv, qk_mean, sm_scale }
}

/// The CTA's head.
#[inline(always)]
fn head(p: &AttentionParams) -> Head {
    let work = HalfBlock::reread(p).work;
    let (batch, _) = work.batch_and_head_kv(p);
    Head { batch, head: work.head_q - batch * p.num_heads_q, head_q: work.head_q }
}

/// Rounded probabilities of tile `kv_block` relative to the new row maxima; otherwise as
/// `softmax::probabilities::<true>`. `delta_s` yields ΔS, in score steps, of columns `4 · pair ..`, for those that
/// [`adds_delta_s`].
///
/// # Safety
/// The whole warp calls it; the parameters are valid.
#[inline(always)]
unsafe fn round<C: Config>(
    p: &GeneralAttentionParams,
    kv_block: u32,
    scores: &Scores,
    delta_s: impl Fn(usize) -> [f32; 4],
    f: f32,
    row_max: &mut Rows,
    alpha: &mut Rows,
) -> C::P {
    let p_max_log2 = C::PV.p_max_log2();
    let thread = thread::reread_thread_idx_x();
    let first =
        Place { row: HalfBlock::reread(&p.attention).lane_row(thread), key: kv_block * KEYS + 2 * (thread % 4) };
    let mut probabilities: Probabilities = [[0.0; 4]; 8];
    let mut row = 0;
    while row < 2 {
        let mut x = [0.0f32; 16];
        let mut i = 0;
        while i < 16 {
            x[i] = f32::from_bits(scores[i / 2][row * 2 + i % 2]) - SCORE_BIAS;
            i += 1;
        }
        if adds_delta_s::<C>() && p.attention.delta_s != 0 {
            let mut pair = 0;
            while pair < 4 {
                let steps = delta_s(pair);
                let mut i = 0;
                while i < 4 {
                    x[4 * pair + i] += steps[i];
                    i += 1;
                }
                pair += 1;
            }
        }
        let mut i = 0;
        while i < 16 {
            x[i] *= f;
            i += 1;
        }
        let place = Place { row: first.row + 8 * row as u32, ..first };
        // SAFETY: forwarded contract.
        unsafe {
            place.modify(&scope(p), || head(&p.attention), &mut x);
            if p.modifiers.mask.ptr != 0 {
                modifiers::hide_unset(place.mask_bits(&scope(p), || head(&p.attention)), &mut x);
            }
        }
        place.hide(&scope(p), &mut x);
        let mut new_max = x[0];
        let mut i = 1;
        while i < 16 {
            new_max = math::max(new_max, x[i]);
            i += 1;
        }
        new_max -= p_max_log2;
        // SAFETY: forwarded contract.
        unsafe {
            new_max = math::max(new_max, warp::shuffle_xor_f32(new_max, 1));
            new_max = math::max(new_max, warp::shuffle_xor_f32(new_max, 2));
        }
        new_max = math::max(row_max[row], new_max);
        alpha[row] = math::exp2(row_max[row] - new_max);
        row_max[row] = new_max;
        let mut i = 0;
        while i < 16 {
            probabilities[i / 2][row * 2 + i % 2] = math::exp2(x[i] - new_max);
            i += 1;
        }
        row += 1;
    }
    C::round_p(&probabilities)
}

/// Adds the sink to every row's denominator; returns the part of it that is the keys'.
///
/// # Safety
/// The parameters are valid.
#[inline(always)]
unsafe fn add_sinks<C: Config>(p: &GeneralAttentionParams, output: &mut OutputTile, state: &mut RowState) -> Weights {
    let mut weights = Weights { keys: [1.0; 4], shift_lse: p.modifiers.softcap_log2 == 0.0 };
    if p.modifiers.sinks == 0 {
        return weights;
    }
    let first_row = HalfBlock::reread(&p.attention).lane_row(thread::reread_thread_idx_x());
    let mut row = 0;
    while row < 2 {
        // SAFETY: forwarded contract; the row is inside the padded block.
        let sink = unsafe { scope(p).sink_log2(head(&p.attention), first_row + 8 * row as u32) };
        let max = math::max(state.row_max[row], sink - C::PV.p_max_log2());
        let alpha = math::exp2(state.row_max[row] - max);
        let keys = state.row_sum[row] * alpha;
        state.row_max[row] = max;
        state.row_sum[row] = keys + math::exp2(sink - max);
        let sum = state.row_sum[row];
        weights.keys[row] = if sum == keys { 1.0 } else { keys * math::reciprocal(sum) };
        let mut c = 0;
        while c < C::V_DIM as usize / 8 {
            output[c][row * 2] *= alpha;
            output[c][row * 2 + 1] *= alpha;
            c += 1;
        }
        row += 1;
    }
    weights
}

/// Bytes from one part of V's channels to the next, in a head's codes.
#[inline(always)]
const fn v_chunk_bytes<C: Config>(seqlen_kv_padded: u32) -> u64 {
    match C::PV {
        PvFormat::Fp8 => C::V_DIM as u64 * seqlen_kv_padded as u64,
        PvFormat::F16 => C::V_DIM as u64 * 2,
    }
}

/// Starts the copies of a tile; see [`Source::start_tile`].
///
/// # Safety
/// As there.
#[inline(always)]
unsafe fn start_tile<C: Config, const DELTA_S: bool, const ROW_BYTES: u32>(
    p: &AttentionParams,
    source: &Source<C, ROW_BYTES>,
    tile: u32,
    stage: u32,
) {
    // SAFETY: forwarded contract.
    unsafe {
        if adds_delta_s::<C>() && p.delta_s != 0 {
            load::delta_s(stage + C::DELTA_S_OFFSET, source.delta_s + tile as u64 * (KEYS as u64 * 4));
        }
        source.start_tile::<DELTA_S>(tile, stage, p.seqlen_kv_padded);
    }
}

/// One CTA: the tiles of half a query block that one of its rows sees, and one part of V's channels.
///
/// # Safety
/// As for `mainloop::attend`, with valid modifiers.
#[inline(always)]
unsafe fn attend<C: Config, const DELTA_S: bool, const ROW_BYTES: u32>(general: &GeneralAttentionParams) {
    const { assert!(C::ROW_BYTES == ROW_BYTES && C::SMEM_BYTES > 0) };
    let p = &general.attention;
    let (warp_idx, lane) = (thread::thread_idx_x() / 32, thread::thread_idx_x() % 32);
    let (g, t) = (lane / 4, lane % 4);
    let smem = shared::dynamic_shared_mem();
    let half_block = HalfBlock::of_cta(p, thread::block_idx_x(), thread::block_idx_y());
    let &HalfBlock { ref work, half, v_chunk } = &half_block;
    let &Work { head_q, query_block, .. } = work;
    let first_row = half_block.first_row();
    if first_row >= p.seqlen_q {
        return;
    }
    let (_, head_kv) = work.batch_and_head_kv(p);
    let k_scale_lane = if p.k_scales_per_block == 1 { 0 } else { t };
    let q_scale_lane = match p.q_scales_per_block {
        1 => 0,
        // 32 rows to a group, which are two warps'.
        4 => half * 2 + warp_idx / 2,
        _ => (half * 2 + warp_idx / 2) * 8 + g,
    };
    let codes = head_kv as u64 * p.seqlen_kv_padded as u64;
    let delta_s_row = work.head_local as u64 * p.chunk.block_count as u64 + work.block_local as u64;
    let source: Source<C, ROW_BYTES> = Source {
        k: TileCopy::new(p.k_codes + codes * ROW_BYTES as u64, ROW_BYTES as u64),
        v: C::v_copy(
            p.v_codes
                + codes * (C::HEAD_DIM * C::PV.bytes() as u32) as u64
                + v_chunk as u64 * v_chunk_bytes::<C>(p.seqlen_kv_padded),
            p.seqlen_kv_padded,
        ),
        delta_s: p.delta_s + delta_s_row * p.seqlen_kv_padded as u64 * 4,
    };

    let last_row = (first_row + HALF_ROWS).min(p.seqlen_q) - 1;
    let (first_tile, end_tile) = scope(general).tiles(first_row, last_row, KEYS);
    let mut output: OutputTile = [[0.0; 4]; 32];
    let mut state = RowState::EMPTY;
    if first_tile < end_tile {
        let q_block = head_q as u64 * p.seqlen_q.div_ceil(QUERY_ROWS) as u64 + query_block as u64;
        // SAFETY: a scale for every padded row group (params); Q's tile is inside the padded tensor.
        let q_scale =
            unsafe { global::load_f32(p.q_scale + (q_block * p.q_scales_per_block as u64 + q_scale_lane as u64) * 4) };
        let (q_factor, inverse_q_scale) = (q_scale * p.sm_scale_log2, math::reciprocal(q_scale));
        let inverse_q_scale = [inverse_q_scale, math::distinct_copy(inverse_q_scale)];
        // All scales of K number less than 2³²: one for 16 tokens at most.
        let mut k_scale_index =
            (head_kv * (p.seqlen_kv_padded / KEYS) + first_tile) * p.k_scales_per_block + k_scale_lane;
        let mut stage = smem + C::RING_OFFSET;
        // SAFETY: as above; nobody reads shared memory yet.
        unsafe {
            let rows = q_block * QUERY_ROWS as u64 + (half * HALF_ROWS) as u64;
            let q = TileCopy::<HALF_ROWS, ROW_BYTES>::new(p.q_codes + rows * ROW_BYTES as u64, ROW_BYTES as u64);
            q.start(smem + C::Q_OFFSET, ROW_BYTES as u64);
            start_tile::<C, DELTA_S, ROW_BYTES>(p, &source, first_tile, stage);
        }
        let qk_lane = QkLane::of_16_rows::<C>(smem + C::Q_OFFSET, warp_idx, lane);
        let v_lane = C::V_OFFSET + C::v_lane_offset(lane);
        let mut kv_block = first_tile;
        while kv_block < end_tile {
            let next_stage = 2 * (smem + C::RING_OFFSET) + C::STAGE_BYTES - stage;
            cp_async::wait_group::<0>();
            // Now this tile is complete in shared memory, and no warp reads the other stage.
            // SAFETY: loop bounds are uniform over the CTA.
            unsafe { thread::sync_threads() };
            if kv_block + 1 < end_tile {
                // SAFETY: the other stage is free and the tile exists.
                unsafe { start_tile::<C, DELTA_S, ROW_BYTES>(p, &source, kv_block + 1, next_stage) };
            }
            // SAFETY: the warp is converged; Q and the stage are complete.
            unsafe {
                let k_scale = global::load_f32(p.k_scale + k_scale_index as u64 * 4);
                k_scale_index += p.k_scales_per_block;
                let f = q_factor * k_scale;
                let mut alpha: Rows = [0.0; 4];
                let scores = qk::scores_of_16_rows::<C, DELTA_S>(&qk_lane, stage, inverse_q_scale, p.head_dim);
                let delta_s = |pair| qk_lane.delta_s(stage, pair).map(|x| x * inverse_q_scale[0]);
                let rounded = round::<C>(general, kv_block, &scores, delta_s, f, &mut state.row_max, &mut alpha);
                let channels = p.head_dim_v - v_chunk * C::V_DIM;
                C::multiply_v::<1>(&[rounded; 2], stage + v_lane, channels, &alpha, &mut output, &mut state.row_sum);
            }
            stage = next_stage;
            kv_block += 1;
        }
    }
    // SAFETY: forwarded contract.
    unsafe {
        let weights = add_sinks::<C>(general, &mut output, &mut state);
        epilogue::store::<C, true>(p, &output, &state, &weights);
    }
}

/// Dispatches on ΔS once, outside the main loop, unless the loop adds it.
///
/// # Safety
/// As for [`attend`].
#[inline(always)]
pub unsafe fn kernel<C: Config, const ROW_BYTES: u32>(p: &GeneralAttentionParams) {
    // SAFETY: forwarded contract.
    unsafe {
        if !adds_delta_s::<C>() && p.attention.delta_s != 0 {
            attend::<C, true, ROW_BYTES>(p);
        } else {
            attend::<C, false, ROW_BYTES>(p);
        }
    }
}
