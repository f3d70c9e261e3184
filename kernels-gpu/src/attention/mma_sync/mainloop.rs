//! The main loop and the kernel around it.

use cuda_std::{cp_async, global, math, shared, thread, warp};
use sage_spec::params::AttentionParams;
use sage_spec::quant::FOLDED_STEP_MAX;
use sage_spec::tiling::{BLOCK_KV, BLOCK_Q};

use super::config::{Config, OutputTile, Rows};
use super::epilogue::{self, Weights};
use super::load::{self, TileCopy};
use super::qk::{self, QkLane};
use super::softmax::{self, Limits, RowState};

/// Rows of a query block.
pub const QUERY_ROWS: u32 = BLOCK_Q as u32;
/// Keys of a tile.
pub const KEYS: u32 = BLOCK_KV as u32;

/// What a CTA works on.
pub struct Work {
    /// Index of the (batch, query head) pair within the chunk.
    pub head_local: u32,
    /// Index of the query block within the chunk.
    pub block_local: u32,
    /// `batch * Hq + head`.
    pub head_q: u32,
    /// Query block of the head.
    pub query_block: u32,
}

impl Work {
    /// Work of the CTA with these block indices: grid x is the query block, y the head. Query blocks of a head follow each other,
    /// so they share K and V in L2; the longest (last) come first, so that causal work ends evenly. Only
    /// special registers and parameters are involved, so the values stay in uniform registers.
    #[inline(always)]
    pub fn of_cta(p: &AttentionParams, block_idx_x: u32, block_idx_y: u32) -> Self {
        let head_local = block_idx_y;
        let block_local = p.chunk.block_count - 1 - block_idx_x;
        Work {
            head_local,
            block_local,
            head_q: p.chunk.head_begin + head_local,
            query_block: p.chunk.block_begin + block_local,
        }
    }

    /// Batch entry, and `batch * Hkv + head` of the key/value head.
    #[inline(always)]
    pub fn batch_and_head_kv(&self, p: &AttentionParams) -> (u32, u32) {
        // SAFETY: head counts of a launched problem are not zero.
        unsafe {
            let batch = math::div_u32(self.head_q, p.num_heads_q);
            (batch, batch * p.num_heads_kv + math::div_u32(self.head_q - batch * p.num_heads_q, p.gqa_group))
        }
    }
}

/// K, V and ΔS of the CTA in global memory: their first tiles.
pub struct Source<C: Config, const ROW_BYTES: u32> {
    /// First tile of K.
    pub k: TileCopy<KEYS, ROW_BYTES>,
    /// First tile of V.
    pub v: C::VCopy,
    /// First 64 values of ΔS.
    pub delta_s: u64,
}

impl<C: Config, const ROW_BYTES: u32> Source<C, ROW_BYTES> {
    /// Starts the copies of tile `tile` into the stage at shared address `stage`, as one group.
    ///
    /// # Safety
    /// All threads of the CTA call it; the tile exists and nobody uses the stage.
    #[inline(always)]
    pub unsafe fn start_tile<const DELTA_S: bool>(&self, tile: u32, stage: u32, seqlen_kv_padded: u32) {
        // SAFETY: forwarded contract.
        unsafe {
            if DELTA_S {
                load::delta_s(stage + C::DELTA_S_OFFSET, self.delta_s + tile as u64 * (KEYS as u64 * 4));
            }
            self.k.tile(tile, C::K_BYTES).start(stage, ROW_BYTES as u64);
            C::start_v(&self.v, tile, stage + C::V_OFFSET, seqlen_kv_padded);
        }
        cp_async::commit_group();
    }
}

/// Largest of `count` scales at `scales`. Every warp looks at all of them, so that all threads of the CTA
/// get the same value. NaN scales are passed over: their scores are NaN in any case.
///
/// # Safety
/// All lanes of the warp call it; `scales` holds `count` f32.
#[inline(always)]
unsafe fn largest_scale(scales: u64, count: u32) -> f32 {
    let mut largest = 0.0;
    let mut first = thread::thread_idx_x() % 32;
    while first < count {
        // Four loads in flight; the last one again where there are no more.
        let values = [0, 32, 64, 96].map(|offset| {
            // SAFETY: inside the scales.
            unsafe { global::load_f32(scales + (first + offset).min(count - 1) as u64 * 4) }
        });
        largest = math::max(largest, math::max(math::max(values[0], values[1]), math::max(values[2], values[3])));
        first += 128;
    }
    let mut mask = 16;
    while mask > 0 {
        // SAFETY: all lanes are here.
        largest = math::max(largest, unsafe { warp::shuffle_xor_f32(largest, mask) });
        mask /= 2;
    }
    largest
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
    let (warp_idx, lane) = (thread::thread_idx_x() / 32, thread::thread_idx_x() % 32);
    let (g, t) = (lane / 4, lane % 4);
    let smem = shared::dynamic_shared_mem();
    let work = Work::of_cta(p, thread::block_idx_x(), thread::block_idx_y());
    let Work { head_local, block_local, head_q, query_block } = work;
    let (_, head_kv) = work.batch_and_head_kv(p);
    let num_query_blocks = p.seqlen_q.div_ceil(QUERY_ROWS);
    // PerBlock, PerWarp, PerThread: `sage_spec::ScaleGranularity`.
    let k_scale_lane = if p.k_scales_per_block == 1 { 0 } else { t };
    let q_scale_lane = match p.q_scales_per_block {
        1 => 0,
        4 => warp_idx,
        _ => warp_idx * 8 + g,
    };
    let codes = head_kv as u64 * p.seqlen_kv_padded as u64;
    let source: Source<C, ROW_BYTES> = Source {
        k: TileCopy::new(p.k_codes + codes * ROW_BYTES as u64, ROW_BYTES as u64),
        v: C::v_copy(p.v_codes + codes * (C::HEAD_DIM * C::PV.bytes() as u32) as u64, p.seqlen_kv_padded),
        delta_s: p.delta_s
            + (head_local as u64 * p.chunk.block_count as u64 + block_local as u64) * p.seqlen_kv_padded as u64 * 4,
    };
    let k_scales = p.k_scale + head_kv as u64 * (p.seqlen_kv_padded / KEYS * p.k_scales_per_block) as u64 * 4;
    // All scales of K number less than 2³²: one for 16 tokens at most.
    let mut k_scale_index = head_kv * (p.seqlen_kv_padded / KEYS * p.k_scales_per_block) + k_scale_lane;

    // Row i sees `visible(i)` keys. Tiles before `full_tiles` are visible to all rows of the block,
    // tiles from `num_tiles` on to none.
    let first_row = query_block * QUERY_ROWS;
    let last_row = (first_row + QUERY_ROWS).min(p.seqlen_q) - 1;
    let visible = |row: u32| -> u32 {
        if p.causal == 0 {
            return p.seqlen_kv;
        }
        // Extents are below 2³¹ − 256 (`sage_spec::limits`): no overflow.
        let keys = row as i32 + 1 - p.seqlen_q as i32 + p.seqlen_kv as i32;
        keys.max(0).min(p.seqlen_kv as i32) as u32
    };
    let num_tiles = visible(last_row).div_ceil(KEYS);
    let mut full_tiles = visible(first_row) / KEYS;

    let mut output: OutputTile = [[0.0; 4]; 32];
    let mut state = RowState::EMPTY;
    if num_tiles > 0 {
        let q_block = head_q as u64 * num_query_blocks as u64 + query_block as u64;
        // SAFETY: a scale for every padded row group (params); Q's tile is inside the padded tensor.
        let q_scale =
            unsafe { global::load_f32(p.q_scale + (q_block * p.q_scales_per_block as u64 + q_scale_lane as u64) * 4) };
        let (q_factor, inverse_q_scale) = (q_scale * p.sm_scale_log2, math::reciprocal(q_scale));
        let inverse_q_scale = [inverse_q_scale, math::distinct_copy(inverse_q_scale)];
        // SAFETY: as above; nobody reads shared memory yet.
        unsafe {
            let q = TileCopy::<QUERY_ROWS, ROW_BYTES>::new(
                p.q_codes + q_block * (QUERY_ROWS * ROW_BYTES) as u64,
                ROW_BYTES as u64,
            );
            q.start(smem + C::Q_OFFSET, ROW_BYTES as u64);
            source.start_tile::<DELTA_S>(0, smem + C::RING_OFFSET, p.seqlen_kv_padded);
        }
        // SAFETY: all threads are here; scales of this block and of existing tiles.
        let (largest_q, largest_k) = unsafe {
            (
                largest_scale(p.q_scale + q_block * p.q_scales_per_block as u64 * 4, p.q_scales_per_block),
                largest_scale(k_scales, num_tiles * p.k_scales_per_block),
            )
        };
        // All tiles are exact where folding would be too coarse (deviation 3).
        if largest_q * p.sm_scale_log2 * largest_k > FOLDED_STEP_MAX {
            full_tiles = 0;
        }
        let qk_lane = QkLane::new::<C>(smem + C::Q_OFFSET, warp_idx, lane);
        let v_lane = C::V_OFFSET + C::v_lane_offset(lane);
        let mut stage = smem + C::RING_OFFSET;
        macro_rules! step {
            ($kv_block:expr, $exact:literal) => {{
                let kv_block: u32 = $kv_block;
                let next_stage = 2 * (smem + C::RING_OFFSET) + C::STAGE_BYTES - stage;
                cp_async::wait_group::<0>();
                // Now this tile is complete in shared memory, and no warp reads the other stage.
                // SAFETY: loop bounds are uniform over the CTA.
                unsafe { thread::sync_threads() };
                if kv_block + 1 < num_tiles {
                    // SAFETY: the other stage is free and the tile exists.
                    unsafe { source.start_tile::<DELTA_S>(kv_block + 1, next_stage, p.seqlen_kv_padded) };
                }
                // SAFETY: the warp is converged; Q and the stage are complete.
                unsafe {
                    let k_scale = global::load_f32(p.k_scale + k_scale_index as u64 * 4);
                    k_scale_index += p.k_scales_per_block;
                    let mut f = q_factor * k_scale;
                    if $exact {
                        // Never zero (a tiny sm_scale could underflow): masking relies on −inf · f.
                        f = math::max_propagate_nan(f, f32::MIN_POSITIVE);
                    }
                    let limits = if $exact { Limits::of_tile(p, query_block, kv_block) } else { Limits::NONE };
                    let mut alpha: Rows = [0.0; 4];
                    let scores = qk::scores::<C, DELTA_S>(&qk_lane, stage, inverse_q_scale);
                    let rounded = [0, 1].map(|m| {
                        let p_max = C::PV.p_max_log2();
                        C::round_p(&softmax::probabilities::<$exact>(
                            &scores[m],
                            m,
                            &limits,
                            f,
                            p_max,
                            &mut state.row_max,
                            &mut alpha,
                        ))
                    });
                    C::multiply_v::<2>(&rounded, stage + v_lane, p.head_dim_v, &alpha, &mut output, &mut state.row_sum);
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
    unsafe { epilogue::store::<C, false>(p, &output, &state, &Weights::PLAIN) };
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
