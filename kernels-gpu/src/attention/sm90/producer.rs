//! The producer: one thread that keeps the rings of K and V and the buffers of Q full.

use cuda_std::{hint, mbarrier, tma};
use sage_spec::sm90::{self, BLOCK_KV, DELTA_S_BYTES, K_SCALE_BYTES, Q_SCALE_BYTES, Sm90AttentionParams, WORK_BYTES};
use sage_spec::tiling;

use super::config::{Barriers, Config, QueryRing, TileRing};
use super::kernel::Algorithm;
use super::schedule::{Items, Work};

/// Scales of K of one head, which travel with K's tiles: with four scales per key block 32 bytes a tile, with one
/// the 16 aligned bytes that the tile's two scales lie in.
pub struct KScales {
    base: u64,
    /// Index of the head's first scale.
    first: u32,
    per_block: u32,
}

impl KScales {
    /// Of key/value head `head_kv`, counted over the batch.
    #[inline(always)]
    pub fn new(p: &Sm90AttentionParams, head_kv: u32) -> Self {
        let blocks = p.seqlen_kv.div_ceil(tiling::KV_PAD as u32) * (tiling::KV_PAD / tiling::BLOCK_KV) as u32;
        let per_head = blocks * p.k_scales_per_block;
        // The whole part of 16 bytes goes into the address, so that indices stay small.
        let first = head_kv as u64 * per_head as u64;
        KScales { base: p.k_scale + (first & !3) * 4, first: first as u32 & 3, per_block: p.k_scales_per_block }
    }

    /// Bytes that are copied for a tile.
    #[inline(always)]
    fn bytes(&self) -> u32 {
        if self.per_block == 1 { 16 } else { K_SCALE_BYTES as u32 }
    }

    /// Where, among the copied scales of tile `j`, the tile's own begin.
    #[inline(always)]
    pub fn begin(&self, j: u32) -> u32 {
        (self.first + 2 * j * self.per_block) & 3
    }

    /// Starts the copy of tile `j`.
    ///
    /// # Safety
    /// The tile exists, `shared` is free, and `barrier` expects the bytes.
    #[inline(always)]
    unsafe fn load(&self, j: u32, shared: u32, barrier: u32) {
        let index = (self.first + 2 * j * self.per_block) & !3;
        // SAFETY: forwarded contract.
        unsafe { tma::load_bulk(shared, self.base + index as u64 * 4, self.bytes(), barrier) };
    }
}

/// Query blocks that an item lies in, 1 or 2, if from its first one on there are `left`.
#[inline(always)]
const fn query_blocks<C: Config>(left: u32) -> u32 {
    let most = const { sm90::q_blocks(C::BLOCK_Q as usize) as u32 };
    if left < most { 1 } else { most }
}

/// ΔS of an item's query blocks, which travels with K's tiles too.
struct DeltaS {
    /// Of the first block's key 0.
    address: u64,
    /// 0 without ΔS, else 1 or 2.
    blocks: u32,
}

impl DeltaS {
    #[inline(always)]
    fn new<C: Config>(p: &Sm90AttentionParams, work: &Work) -> Self {
        // The general kernels learn from the launch whether there is ΔS.
        if !C::DELTA_S || p.delta_s == 0 {
            return DeltaS { address: 0, blocks: 0 };
        }
        let head = work.head_q - p.chunk.head_begin;
        let block = work.first_row / tiling::BLOCK_Q as u32 - p.chunk.block_begin;
        let row = head as u64 * p.chunk.block_count as u64 + block as u64;
        let blocks = query_blocks::<C>(p.chunk.block_count - block);
        DeltaS { address: p.delta_s + row * Self::row_bytes(p), blocks }
    }

    /// From one block to the next.
    #[inline(always)]
    fn row_bytes(p: &Sm90AttentionParams) -> u64 {
        p.seqlen_kv.div_ceil(tiling::KV_PAD as u32) as u64 * (tiling::KV_PAD * 4) as u64
    }

    /// Bytes that are copied for a tile.
    #[inline(always)]
    fn bytes(&self) -> u32 {
        self.blocks * DELTA_S_BYTES as u32
    }

    /// Starts the copies of tile `j`.
    ///
    /// # Safety
    /// As for [`KScales::load`].
    #[inline(always)]
    unsafe fn load(&self, p: &Sm90AttentionParams, j: u32, shared: u32, barrier: u32) {
        let address = self.address + j as u64 * DELTA_S_BYTES as u64;
        // SAFETY: forwarded contract.
        unsafe {
            if self.blocks > 0 {
                tma::load_bulk(shared, address, DELTA_S_BYTES as u32, barrier);
            }
            if self.blocks > 1 {
                let shared = shared + DELTA_S_BYTES as u32;
                tma::load_bulk(shared, address + Self::row_bytes(p), DELTA_S_BYTES as u32, barrier);
            }
        }
    }
}

/// What travels with an item's Q: the scales of its rows (unless there is one a block, which is too little to copy),
/// and scales and offsets of V's channels.
struct ItemScales {
    q: u64,
    q_bytes: u32,
    v: u64,
    v_offset: u64,
}

impl ItemScales {
    #[inline(always)]
    fn new<C: Config>(p: &Sm90AttentionParams, work: &Work) -> Self {
        let blocks = p.seqlen_q.div_ceil(tiling::BLOCK_Q as u32);
        let block = work.first_row / tiling::BLOCK_Q as u32;
        let count = query_blocks::<C>(blocks - block);
        let first = (work.head_q as u64 * blocks as u64 + block as u64) * p.q_scales_per_block as u64;
        let channels = work.head_kv as u64 * Self::row::<C>() as u64;
        ItemScales {
            q: p.q_scale + first * 4,
            q_bytes: if p.q_scales_per_block == 1 { 0 } else { count * p.q_scales_per_block * 4 },
            v: p.v_scale + channels,
            v_offset: p.v_offset + channels,
        }
    }

    /// Bytes of a value for each channel.
    #[inline(always)]
    const fn row<C: Config>() -> u32 {
        C::HEAD_DIM * 4
    }

    /// Bytes that are copied.
    #[inline(always)]
    fn bytes<C: Config>(&self) -> u32 {
        self.q_bytes + 2 * Self::row::<C>()
    }

    /// Starts the copies.
    ///
    /// # Safety
    /// Buffer `buffer` of Q is free, and `barrier` expects the bytes.
    #[inline(always)]
    unsafe fn load<C: Config>(&self, smem: u32, buffer: u32, barrier: u32) {
        let plan = const { C::SMEM };
        let q = smem + plan.q_scale_offset as u32 + buffer * Q_SCALE_BYTES as u32;
        let v = smem + plan.v_channel_offset as u32 + buffer * plan.v_channel_bytes as u32;
        // SAFETY: forwarded contract.
        unsafe {
            if self.q_bytes > 0 {
                tma::load_bulk(q, self.q, self.q_bytes, barrier);
            }
            tma::load_bulk(v, self.v, Self::row::<C>(), barrier);
            tma::load_bulk(v + Self::row::<C>(), self.v_offset, Self::row::<C>(), barrier);
        }
    }
}

/// Takes the CTA's work items and copies for each: Q once, then K and V tile by tile. The item itself travels with its
/// Q.
///
/// # Safety
/// One thread of the CTA calls it, after the barriers were initialised; `maps` is the address of the
/// parameters' tensor maps.
#[inline(always)]
pub unsafe fn run<A: Algorithm>(params: &A::Params, maps: u64, smem: u32) {
    let (p, barriers) = (A::attention(params), Barriers::new::<A>(smem));
    let (q_map, k_map, v_map) = (
        maps + core::mem::offset_of!(Sm90AttentionParams, q_map) as u64,
        maps + core::mem::offset_of!(Sm90AttentionParams, k_map) as u64,
        maps + core::mem::offset_of!(Sm90AttentionParams, v_map) as u64,
    );
    let plan = const { A::SMEM };
    let (k_smem, v_smem) = (smem + plan.k_offset as u32, smem + plan.v_offset as u32);
    let (mut tile, mut query) = (TileRing::start(), QueryRing::start());
    let mut items = Items::start();
    // Without keys there are no maps.
    if p.seqlen_kv > 0 {
        // SAFETY: the maps lie in the kernel's parameters.
        unsafe {
            tma::prefetch_map(q_map);
            tma::prefetch_map(k_map);
            tma::prefetch_map(v_map);
        }
    }
    // SAFETY: boxes and barriers are those of the shared-memory plan; a buffer is written only after its
    // empty barrier has completed.
    unsafe {
        loop {
            mbarrier::wait(barriers.empty_q(query.index), query.parity ^ 1);
            let (item, full) = (items.next(p), barriers.full_q(query.index));
            let slot = smem + plan.work_offset as u32 + query.index * WORK_BYTES as u32;
            if item >= p.work_items {
                Work::store(None, p, slot);
                mbarrier::arrive(full);
                break;
            }
            let work = Work::of_item::<A>(p, item, |first_row| A::tiles(params, first_row));
            Work::store(Some(work), p, slot);
            let head_kv = work.head_kv;
            // Opaque, so that the loop is not unrolled: the producer has few registers.
            let (first, end) = (work.first_tile, hint::opaque(work.end_tile));
            if end > first {
                let scales = ItemScales::new::<A>(p, &work);
                mbarrier::arrive_expect_tx(full, plan.q_bytes as u32 + scales.bytes::<A>());
                tma::load_3d(smem + query.index * plan.q_bytes as u32, q_map, 0, work.first_row, work.head_q, full);
                scales.load::<A>(smem, query.index, full);
            } else {
                mbarrier::arrive(full);
            }
            query.advance();
            let (scales, delta_s) = (KScales::new(p, head_kv), DeltaS::new::<A>(p, &work));
            let mut j = first;
            while j < end {
                mbarrier::wait(barriers.empty(tile.index), tile.parity ^ 1);
                let full = barriers.full(tile.index);
                let bytes = (plan.k_bytes + plan.v_copy_bytes) as u32 + scales.bytes() + delta_s.bytes();
                mbarrier::arrive_expect_tx(full, bytes);
                let delta_s_offset = plan.delta_s_offset as u32 + tile.index * plan.delta_s_bytes as u32;
                delta_s.load(p, j, smem + delta_s_offset, full);
                scales.load(j, smem + (plan.k_scale_offset as u32 + tile.index * K_SCALE_BYTES as u32), full);
                tma::load_3d(k_smem + tile.index * plan.k_bytes as u32, k_map, 0, j * BLOCK_KV as u32, head_kv, full);
                tma::load_3d(v_smem + tile.index * plan.v_bytes as u32, v_map, j * BLOCK_KV as u32, 0, head_kv, full);
                tile.advance();
                j += 1;
            }
        }
        items.end(p);
    }
}
