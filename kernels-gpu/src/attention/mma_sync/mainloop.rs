//! The main loop and the kernel around it.

use cuda_std::{cp_async, global, math, shared, thread};
use sage_spec::params::AttentionParams;
use sage_spec::tiling::{BLOCK_KV, BLOCK_Q, KV_PAD};

use super::config::{Config, OutputTile};
use super::epilogue;
use super::load::{self, TileCopy};
use super::qk::{self, QkLane};
use super::softmax::{self, Limits, RowState};

const QUERY_ROWS: u32 = BLOCK_Q as u32;
const KEYS: u32 = BLOCK_KV as u32;

/// What a CTA works on.
pub struct Work {
    /// Index of the (batch, query head) pair within the chunk.
    pub head_local: u32,
    /// Index of the query block within the chunk.
    pub block_local: u32,
    /// `batch * Hq + head`.
    pub head_q: u32,
    /// `batch * Hkv + head`.
    pub head_kv: u32,
    /// Query block of the head.
    pub query_block: u32,
}

impl Work {
    /// Work of CTA `block_idx`. Query blocks of a head are neighbours in the grid, so they share K and V
    /// in L2; the longest (last) come first, so that causal work ends evenly.
    #[inline(always)]
    pub fn of(p: &AttentionParams, block_idx: u32) -> Self {
        // SAFETY: no grid is launched over an empty chunk, and head counts of a non-empty problem are
        // not zero.
        unsafe {
            let head_local = math::div_u32(block_idx, p.chunk.block_count);
            let block_local = p.chunk.block_count - 1 - (block_idx - head_local * p.chunk.block_count);
            let head_q = p.chunk.head_begin + head_local;
            let batch = math::div_u32(head_q, p.num_heads_q);
            let group = math::div_u32(p.num_heads_q, p.num_heads_kv);
            let head_kv = batch * p.num_heads_kv + math::div_u32(head_q - batch * p.num_heads_q, group);
            Work { head_local, block_local, head_q, head_kv, query_block: p.chunk.block_begin + block_local }
        }
    }
}

/// Number of scales per query block and per key block (`ScaleGranularity::*_scales_per_block`).
#[inline(always)]
fn scales_per_block(granularity: u32) -> (u32, u32) {
    match granularity {
        0 => (1, 1),
        1 => (4, 1),
        _ => (32, 4),
    }
}

/// The next tile of K, V and ΔS in global memory.
struct Source<C: Config, const ROW_BYTES: u32> {
    k: TileCopy<KEYS, ROW_BYTES>,
    v: C::VCopy,
    delta_s: u64,
}

impl<C: Config, const ROW_BYTES: u32> Source<C, ROW_BYTES> {
    /// Starts the copies of the next tile into the stage at shared address `stage`, as one group.
    ///
    /// # Safety
    /// All threads of the CTA call it; the tile exists and nobody uses the stage.
    #[inline(always)]
    unsafe fn start_tile<const DELTA_S: bool>(&mut self, stage: u32, seqlen_kv_padded: u32) {
        // SAFETY: forwarded contract.
        unsafe {
            self.k.start(stage, ROW_BYTES as u64);
            C::start_v(&mut self.v, stage + C::V_OFFSET, seqlen_kv_padded);
            if DELTA_S {
                load::delta_s(stage + C::DELTA_S_OFFSET, self.delta_s);
                self.delta_s += KEYS as u64 * 4;
            }
        }
        cp_async::commit_group();
        self.k.advance(C::K_BYTES as u64);
    }
}

/// One CTA: all tiles of one query block. `ROW_BYTES` repeats `C::ROW_BYTES` because a const argument
/// cannot be computed from a type parameter.
///
/// # Safety
/// `p` describes valid device buffers (`sage_spec::params::AttentionParams`); the launch has
/// `sage_spec::launch::attention` threads and shared memory.
#[inline(always)]
pub unsafe fn attend<C: Config, const DELTA_S: bool, const ROW_BYTES: u32>(p: &AttentionParams) {
    const { assert!(C::ROW_BYTES == ROW_BYTES && C::SMEM_BYTES > 0) };
    let (warp, lane) = (thread::thread_idx_x() / 32, thread::thread_idx_x() % 32);
    let (g, t) = (lane / 4, lane % 4);
    let smem = shared::dynamic_shared_mem();
    let Work { head_local, block_local, head_q, head_kv, query_block } = Work::of(p, thread::block_idx_x());
    let num_query_blocks = p.seqlen_q.div_ceil(QUERY_ROWS);
    let seqlen_kv_padded = p.seqlen_kv.div_ceil(KV_PAD as u32) * KV_PAD as u32;
    let (q_scales, k_scales) = scales_per_block(p.granularity);
    let k_scale_lane = if k_scales == 4 { t } else { 0 };
    let q_scale_lane = match q_scales {
        1 => 0,
        4 => warp,
        _ => warp * 8 + g,
    };
    let codes = head_kv as u64 * seqlen_kv_padded as u64;
    let mut source: Source<C, ROW_BYTES> = Source {
        k: TileCopy::new(p.k_codes + codes * ROW_BYTES as u64, ROW_BYTES as u64),
        v: C::v_copy(p.v_codes + codes * (C::HEAD_DIM * C::PV.bytes() as u32) as u64, seqlen_kv_padded),
        delta_s: p.delta_s + (head_local as u64 * p.chunk.block_count as u64 + block_local as u64) * seqlen_kv_padded as u64 * 4,
    };
    let mut k_scale_address = p.k_scale + (head_kv as u64 * (seqlen_kv_padded / KEYS * k_scales) as u64 + k_scale_lane as u64) * 4;

    // Row i sees `visible(i)` keys. Tiles before `full_tiles` are visible to all rows of the block,
    // tiles from `num_tiles` on to none.
    let first_row = query_block * QUERY_ROWS;
    let last_row = (first_row + QUERY_ROWS).min(p.seqlen_q) - 1;
    let visible = |row: u32| -> u32 {
        if p.causal == 0 {
            p.seqlen_kv
        } else {
            let keys = row as i64 + 1 + p.seqlen_kv as i64 - p.seqlen_q as i64;
            keys.clamp(0, p.seqlen_kv as i64) as u32
        }
    };
    let num_tiles = visible(last_row).div_ceil(KEYS);
    let full_tiles = visible(first_row) / KEYS;

    let mut output: OutputTile = [[0.0; 4]; 32];
    let mut state = RowState::EMPTY;
    if num_tiles > 0 {
        let q_block = head_q as u64 * num_query_blocks as u64 + query_block as u64;
        // SAFETY: a scale for every padded row group (params); Q's tile is inside the padded tensor.
        let q_scale = unsafe { global::load_f32(p.q_scale + (q_block * q_scales as u64 + q_scale_lane as u64) * 4) };
        let (q_factor, inverse_q_scale) = (q_scale * p.sm_scale_log2, 1.0 / q_scale);
        // SAFETY: as above; nobody reads shared memory yet.
        unsafe {
            let q = TileCopy::<QUERY_ROWS, ROW_BYTES>::new(p.q_codes + q_block * (QUERY_ROWS * ROW_BYTES) as u64, ROW_BYTES as u64);
            q.start(smem + C::Q_OFFSET, ROW_BYTES as u64);
            source.start_tile::<DELTA_S>(smem + C::RING_OFFSET, seqlen_kv_padded);
        }
        let qk_lane = QkLane::new::<C>(smem + C::Q_OFFSET, warp, lane);
        let v_lane = C::V_OFFSET + C::v_lane_offset(lane);
        let mut stage = smem + C::RING_OFFSET;
        macro_rules! step {
            ($kv_block:expr, $masked:literal) => {{
                let kv_block: u32 = $kv_block;
                let next_stage = 2 * (smem + C::RING_OFFSET) + C::STAGE_BYTES - stage;
                cp_async::wait_group::<0>();
                // Now this tile is complete in shared memory, and no warp reads the other stage.
                // SAFETY: loop bounds are uniform over the CTA.
                unsafe { thread::sync_threads() };
                if kv_block + 1 < num_tiles {
                    // SAFETY: the other stage is free and the tile exists.
                    unsafe { source.start_tile::<DELTA_S>(next_stage, seqlen_kv_padded) };
                }
                // SAFETY: a scale for every padded key group (params).
                let k_scale = unsafe { global::load_f32(k_scale_address) };
                k_scale_address += (k_scales * 4) as u64;
                // SAFETY: the warp is converged; Q and the stage are complete.
                unsafe {
                    let scores = qk::scores::<C, DELTA_S>(&qk_lane, stage, inverse_q_scale);
                    let limits = if $masked { Limits::of_tile(p, query_block, kv_block) } else { Limits::NONE };
                    let (probabilities, alpha) =
                        softmax::probabilities::<$masked>(&scores, &limits, q_factor * k_scale, C::PV.p_max_log2(), &mut state.row_max);
                    let rounded = C::round_p(&probabilities);
                    C::multiply_v(&rounded, stage + v_lane, &alpha, &mut output, &mut state.row_sum);
                }
                stage = next_stage;
            }};
        }
        let mut kv_block = 0;
        while kv_block < full_tiles {
            step!(kv_block, false);
            kv_block += 1;
        }
        while kv_block < num_tiles {
            step!(kv_block, true);
            kv_block += 1;
        }
    }
    // SAFETY: forwarded contract.
    unsafe { epilogue::store::<C>(p, &output, &state) };
}

/// Dispatches on ΔS once, outside the main loop.
///
/// # Safety
/// As for [`attend`].
#[inline(always)]
pub unsafe fn kernel<C: Config, const ROW_BYTES: u32>(p: &AttentionParams) {
    // SAFETY: forwarded contract.
    unsafe {
        if p.delta_s != 0 {
            attend::<C, true, ROW_BYTES>(p);
        } else {
            attend::<C, false, ROW_BYTES>(p);
        }
    }
}
