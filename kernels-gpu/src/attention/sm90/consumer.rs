//! A consumer warpgroup: 64 query rows against every tile of K and V.

use cuda_std::{global, mbarrier, shared, thread, warp, wgmma};
use sage_spec::sm90::{
    BLOCK_KV, DELTA_S_BYTES, K_SCALE_BYTES, Q_SCALE_BYTES, Sm90AttentionParams, WARPGROUP_Q, WORK_BYTES,
};
use sage_spec::tiling;

use super::config::{Barriers, Config, QueryRing, TileRing};
use super::epilogue::Weights;
use super::output::{self, Output};
use super::producer::KScales;
use super::schedule::{Work, rows_end, visible};
use super::softmax::{self, References};
use super::{epilogue, scores};

const KEYS: u32 = BLOCK_KV as u32;

/// The warpgroup and the lane's place in it.
#[derive(Clone, Copy)]
pub struct Lane {
    /// Consumer warpgroup, from 0.
    pub warpgroup: u32,
    /// First row of the lane's pair `row`, `row + 8` among the warpgroup's 64.
    pub row: u32,
    /// `lane % 4`: the lane's columns are `2t` and `2t + 1` of every eight.
    pub t: u32,
    /// Whether the thread signals for its warp.
    pub leads: bool,
}

/// The first of the two rows that thread `thread` of the CTA holds, among its warpgroup's 64.
#[inline(always)]
pub fn row_in_warpgroup(thread: u32) -> u32 {
    thread % 128 / 32 * 16 + thread % 32 / 4
}

impl Lane {
    /// From the thread index; the first 128 threads are the producer's.
    ///
    /// # Safety
    /// The warp is converged.
    #[inline(always)]
    pub unsafe fn of_thread() -> Self {
        // Read again for every work item and for the epilogue: cheaper than registers through the main loop.
        let thread = thread::reread_thread_idx_x();
        // Through a shuffle, so that the assembler knows it to be uniform and what derives from it stays in
        // uniform registers.
        // SAFETY: forwarded contract.
        let warpgroup = unsafe { warp::shuffle_idx(thread / 128, 0) };
        Lane { warpgroup: warpgroup - 1, row: row_in_warpgroup(thread), t: thread % 4, leads: thread % 32 == 0 }
    }
}

/// Everything a tile needs besides its number.
pub struct Item<'a> {
    /// The parameters.
    pub p: &'a Sm90AttentionParams,
    /// The CTA's barriers.
    pub barriers: Barriers,
    /// The lane's place.
    pub lane: Lane,
    /// Descriptor of the warpgroup's rows of Q.
    pub q: u64,
    /// Descriptor of the first tile of K.
    pub k: u64,
    /// Descriptor of the first tile of V.
    pub v: u64,
    /// Scale of the lane's rows, times `sm_scale · log2(e)`.
    q_factor: f32,
    /// One over the scale of the lane's rows; only with ΔS.
    pub inverse_q_scale: f32,
    smem: u32,
    k_scales: KScales,
    /// Where in shared memory ΔS of the first stage's tile lies. Only with ΔS.
    delta_s: u32,
    /// The warpgroup's first query row.
    pub first_row: u32,
}

/// Swizzle of a row of Q or K.
#[inline(always)]
const fn row_swizzle(head_dim: u32) -> wgmma::Swizzle {
    if head_dim == 64 { wgmma::Swizzle::Bytes64 } else { wgmma::Swizzle::Bytes128 }
}

impl<'a> Item<'a> {
    /// For the work item `work`, whose Q is in buffer `q_buffer`.
    ///
    /// # Safety
    /// The warpgroup has a row below M.
    #[inline(always)]
    pub unsafe fn new<C: Config>(
        p: &'a Sm90AttentionParams,
        barriers: Barriers,
        smem: u32,
        lane: Lane,
        work: &Work,
        q_buffer: u32,
    ) -> Self {
        let plan = const { C::SMEM };
        let swizzle = row_swizzle(C::HEAD_DIM);
        let first_row = work.first_row + lane.warpgroup * WARPGROUP_Q as u32;
        let row = first_row + lane.row;
        // Q: groups as in `ScaleGranularity::q_group`; the two rows of a lane share one.
        let in_block = row % tiling::BLOCK_Q as u32;
        let q_group = match p.q_scales_per_block {
            1 => 0,
            4 => in_block / 32,
            _ => in_block / 32 * 8 + row % 8,
        };
        let q_blocks = p.seqlen_q.div_ceil(tiling::BLOCK_Q as u32);
        let q_block = row / tiling::BLOCK_Q as u32;
        // SAFETY: the warpgroup has a row below M, and with it the whole block of 128 has scales; those that travel
        // with Q have landed.
        let q_scale = unsafe {
            if p.q_scales_per_block == 1 {
                global::load_f32(p.q_scale + (work.head_q as u64 * q_blocks as u64 + q_block as u64) * 4)
            } else {
                let in_item = (q_block - work.first_row / tiling::BLOCK_Q as u32) * p.q_scales_per_block + q_group;
                shared::load_f32(smem + plan.q_scale_offset as u32 + q_buffer * Q_SCALE_BYTES as u32 + in_item * 4)
            }
        };
        Item {
            p,
            barriers,
            lane,
            q: wgmma::descriptor(smem + q_buffer * plan.q_bytes as u32, swizzle)
                + (lane.warpgroup * WARPGROUP_Q as u32 * C::HEAD_DIM / 16) as u64,
            k: wgmma::descriptor(smem + plan.k_offset as u32, swizzle),
            v: wgmma::descriptor(smem + plan.v_offset as u32, wgmma::Swizzle::Bytes128),
            q_factor: q_scale * p.sm_scale_log2,
            inverse_q_scale: if C::DELTA_S { 1.0 / q_scale } else { 0.0 },
            smem,
            k_scales: KScales::new(p, work.head_kv),
            delta_s: if C::DELTA_S {
                // Of the warpgroup's first row, and so the same for all lanes: a register of the warp.
                let in_item = first_row / tiling::BLOCK_Q as u32 - work.first_row / tiling::BLOCK_Q as u32;
                smem + plan.delta_s_offset as u32 + in_item * DELTA_S_BYTES as u32
            } else {
                0
            },
            first_row,
        }
    }

    /// What turns score steps of each half of tile `j` into log2 units.
    ///
    /// # Safety
    /// K's tile has landed at `tile`.
    #[inline(always)]
    pub unsafe fn factor<C: Config>(&self, j: u32, tile: TileRing, t: u32) -> [f32; 2] {
        let scales = self.smem + (const { C::SMEM.k_scale_offset as u32 } + tile.index * K_SCALE_BYTES as u32);
        // Four scales a key block: one for each t. One: both of the tile in one vector's half.
        // SAFETY: scales exist for every padded block.
        let k_scale = unsafe {
            if self.p.k_scales_per_block == 1 {
                let begin = scales + self.k_scales.begin(j) * 4;
                [shared::load_f32(begin), shared::load_f32(begin + 4)]
            } else {
                let begin = scales + t * 4;
                [shared::load_f32(begin), shared::load_f32(begin + 16)]
            }
        };
        [k_scale[0] * self.q_factor, k_scale[1] * self.q_factor]
    }

    /// Where in shared memory ΔS of the tile at `tile` lies.
    #[inline(always)]
    pub fn delta_s<C: Config>(&self, tile: TileRing) -> u32 {
        self.delta_s + tile.index * const { C::SMEM.delta_s_bytes as u32 }
    }

    /// Scores of tile `j` at `tile`, and what turns them into log2 units.
    ///
    /// # Safety
    /// The warpgroup is converged, and the tile has landed.
    #[inline(always)]
    unsafe fn scores<C: Config>(&self, j: u32, tile: TileRing, t: u32) -> (scores::Scores, [f32; 2]) {
        let k_bytes = const { C::SMEM.k_bytes as u32 };
        // SAFETY: forwarded contract.
        unsafe {
            let mut s =
                if C::DELTA_S { scores::delta_s(self.delta_s::<C>(tile), self.inverse_q_scale, t) } else { [0; 64] };
            scores::start_product::<C>(&mut s, self.q, self.k + (tile.index * k_bytes / 16) as u64);
            // Loaded while the tensor core works.
            let factor = self.factor::<C>(j, tile, t);
            wgmma::wait_group::<0>();
            (s, factor)
        }
    }

    /// Descriptor of the tile of V at `tile`.
    #[inline(always)]
    pub fn v<C: Config>(&self, tile: TileRing) -> u64 {
        self.v + (tile.index * const { C::SMEM.v_bytes as u32 } / 16) as u64
    }

    /// Gives the stage back.
    ///
    /// # Safety
    /// Every lane of the warp has read what it wants, and met the others since.
    #[inline(always)]
    pub unsafe fn release(&self, tile: TileRing) {
        if self.lane.leads {
            // SAFETY: forwarded contract.
            unsafe { mbarrier::arrive(self.barriers.empty(tile.index)) };
        }
    }

    /// One tile that all rows see, with the references as they are. Returns false, and leaves everything as it was, if that
    /// clamps a code.
    ///
    /// # Safety
    /// The warpgroup is converged and owns the tile `j`, which the producer puts at `tile`.
    #[inline(always)]
    unsafe fn try_step<C: Config>(&self, j: u32, tile: TileRing, references: References, output: &mut Output) -> bool {
        // SAFETY: forwarded contract.
        unsafe {
            // Read again and again: a register that lives through the loop costs more.
            let thread = thread::reread_thread_idx_x();
            mbarrier::wait(self.barriers.full(tile.index), tile.parity);
            let (s, factor) = self.scores::<C>(j, tile, thread % 4);
            let p = softmax::probabilities::<C, false, false>(&s, factor, references);
            // Every lane has its scales and its ΔS when they meet in there.
            let fits = output::try_accumulate::<C>(output, &p, self.v::<C>(tile), 1 + self.lane.warpgroup);
            if fits {
                self.release(tile);
            }
            fits
        }
    }

    /// Any tile; one whose keys not all rows see if `IS_MASKED`.
    ///
    /// # Safety
    /// As for [`Item::try_step`].
    #[inline(always)]
    unsafe fn step<C: Config, const IS_MASKED: bool>(
        &self,
        j: u32,
        tile: TileRing,
        references: &mut References,
        output: &mut Output,
    ) {
        // SAFETY: forwarded contract.
        unsafe {
            let thread = thread::reread_thread_idx_x();
            // A tile that was tried has landed before.
            mbarrier::wait_again(self.barriers.full(tile.index), tile.parity);
            let (mut s, factor) = self.scores::<C>(j, tile, thread % 4);
            // Every lane has its scales and its ΔS, before one of them lets the stage go.
            warp::sync_warp();
            if IS_MASKED {
                let first = j * KEYS;
                let seen = |row: u32| {
                    let visible = visible(self.p, row);
                    let from_first = if visible > first { visible - first } else { 0 };
                    if from_first < KEYS { from_first } else { KEYS }
                };
                let row = self.first_row + row_in_warpgroup(thread);
                scores::mask(&mut s, [seen(row), seen(row + 8)], thread % 4);
            }
            let alpha = references.raise::<C, IS_MASKED>(&s, factor);
            let p = softmax::probabilities::<C, IS_MASKED, true>(&s, factor, *references);
            output::accumulate::<C>(output, &p, self.v::<C>(tile), alpha);
            self.release(tile);
        }
    }
}

/// Address of the scales of V's channels that came with buffer `buffer` of Q.
#[inline(always)]
pub fn channels<C: Config>(smem: u32, buffer: u32) -> u32 {
    let plan = const { C::SMEM };
    smem + plan.v_channel_offset as u32 + buffer * plan.v_channel_bytes as u32
}

/// Lets tiles `j .. end`, which only other warpgroups need, pass through, in step with the ring.
///
/// # Safety
/// The warpgroup owns the tile `j`, which the producer puts at `tile`.
#[inline(always)]
pub unsafe fn pass(barriers: Barriers, lane: Lane, j: &mut u32, end: u32, tile: &mut TileRing) {
    // SAFETY: forwarded contract.
    unsafe {
        while *j < end {
            mbarrier::wait(barriers.full(tile.index), tile.parity);
            // Every lane has seen this round, before one of them lets the next one of the stage begin.
            warp::sync_warp();
            if lane.leads {
                mbarrier::arrive(barriers.empty(tile.index));
            }
            tile.advance();
            *j += 1;
        }
    }
}

/// Attends for every work item of the CTA.
///
/// # Safety
/// The four warps of a consumer warpgroup call it, after the barriers were initialised.
#[inline(always)]
pub unsafe fn run<C: Config>(p: &Sm90AttentionParams, smem: u32) {
    let barriers = Barriers::new::<C>(smem);
    let (mut tile, mut query) = (TileRing::start(), QueryRing::start());
    // SAFETY: the producer hands the same items to all, in the same order; conditions are uniform over the
    // warpgroup, as they depend on the work item and the warpgroup alone.
    unsafe {
        loop {
            let lane = Lane::of_thread();
            mbarrier::wait(barriers.full_q(query.index), query.parity);
            let slot = smem + const { C::SMEM.work_offset as u32 } + query.index * WORK_BYTES as u32;
            let Some(work) = Work::load(slot) else { break };
            let tiles = work.end_tile;
            // Through a shuffle, as the warpgroup: which tiles there are then stays in uniform registers.
            let first_row = warp::shuffle_idx(work.first_row, 0) + lane.warpgroup * WARPGROUP_Q as u32;
            let end = rows_end(p);
            let mut j = 0;
            if first_row < end {
                let mut references = References::start();
                let mut output = Output::zero();
                if tiles > 0 {
                    let last_row =
                        if first_row + WARPGROUP_Q as u32 > end { end } else { first_row + WARPGROUP_Q as u32 } - 1;
                    let full = visible(p, first_row) / KEYS;
                    let own = visible(p, last_row).div_ceil(KEYS);
                    let item = Item::new::<C>(p, barriers, smem, lane, &work, query.index);
                    // Where the tiles with maxima end: the first, and all if scores are uneven there or in a later one.
                    let mut with_maxima = if full > 1 { 1 } else { full };
                    while j < full {
                        while j < with_maxima {
                            item.step::<C, false>(j, tile, &mut references, &mut output);
                            tile.advance();
                            j += 1;
                        }
                        if j < full {
                            with_maxima = full;
                            let row = first_row + row_in_warpgroup(thread::reread_thread_idx_x());
                            let exists = [row < end, row + 8 < end];
                            if references.make_room::<C>(&mut output, exists, 1 + lane.warpgroup) {
                                while j < full && item.try_step::<C>(j, tile, references, &mut output) {
                                    tile.advance();
                                    j += 1;
                                }
                            }
                        }
                    }
                    while j < own {
                        item.step::<C, true>(j, tile, &mut references, &mut output);
                        tile.advance();
                        j += 1;
                    }
                }
                // Without a tile nothing travelled with Q.
                let channels = if tiles > 0 { Some(channels::<C>(smem, query.index)) } else { None };
                epilogue::store::<C>(p, &work, Work::load_out(slot), references, &output, channels, Weights::PLAIN);
            }
            pass(barriers, lane, &mut j, tiles, &mut tile);
            // Every lane has read the item, before one of them lets its slot go.
            warp::sync_warp();
            if lane.leads {
                mbarrier::arrive(barriers.empty_q(query.index));
            }
            query.advance();
        }
    }
}
