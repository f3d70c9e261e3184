//! Attention of a few queries over the cache. Each byte of the cache is used once, by one warp, so all that
//! matters is that enough copies are under way: a warp has a ring of groups of its own in shared memory, and the
//! warps of a CTA meet only when their sums are combined.

use cuda_std::{cp_async, global, math, shared, thread, warp};
use sage_spec::cache::{PAGE_GROUPS, PAGE_TOKENS};
use sage_spec::decode::{DecodeParams, TILE_ROWS, WARPS, smem, stages};

use super::combine;
use super::keys::{self, Sums};
use super::query::{Query, Tile};
use super::{layout, page_address};

/// A lane's copies of its warp's groups, one page after the other.
struct Copies<'a> {
    p: &'a DecodeParams,
    tile: &'a Tile,
    group: u32,
    lane: u32,
    /// Entry of the block table before the sequence's first page.
    entries: u32,
    /// The next page, and what the block table says about it.
    page: u32,
    id: u32,
    end: u32,
}

impl Copies<'_> {
    /// Reads the entry of the next page, if there is one, long before it is needed.
    #[inline(always)]
    unsafe fn look_up(&mut self) {
        let entry = self.entries + self.page;
        self.id = entry;
        if self.p.cache.block_table != 0 && self.page < self.end {
            // SAFETY: a page of the sequence.
            self.id = unsafe { global::load_u32(self.p.cache.block_table + entry as u64 * 4) };
        }
    }

    /// Starts the copy of the next page's group to `stage`, and closes the group of copies.
    #[inline(always)]
    unsafe fn start<const HEAD_DIM: u32, const INT4: bool>(&mut self, stage: u32) {
        let layout = const { layout::<HEAD_DIM, INT4>() };
        let first = self.page * PAGE_TOKENS as u32 + self.group * 16;
        if self.page < self.end && first < self.tile.length {
            let page =
                page_address::<HEAD_DIM, INT4>(&self.p.cache, self.id, self.tile.head_kv) + self.lane as u64 * 16;
            let to = stage + self.lane * 16;
            let (k_bytes, v_bytes) = (layout.k_group_bytes() as u32, layout.v_group_bytes() as u32);
            let (k, v) =
                (page + (self.group * k_bytes) as u64, page + layout.v_offset() as u64 + (self.group * v_bytes) as u64);
            let scales = page + layout.scales_offset() as u64 + (self.group * 64) as u64;
            // SAFETY: a page of the cache; the stage is free.
            unsafe {
                let mut byte = 0;
                while byte < k_bytes {
                    cp_async::copy16(to + byte, k + byte as u64);
                    byte += 512;
                }
                let mut byte = 0;
                while byte < v_bytes {
                    cp_async::copy16(to + k_bytes + byte, v + byte as u64);
                    byte += 512;
                }
                if self.lane < 4 {
                    cp_async::copy16(to + k_bytes + v_bytes, scales);
                }
            }
        }
        cp_async::commit_group();
        self.page += 1;
        // SAFETY: forwarded contract.
        unsafe { self.look_up() };
    }
}

/// One thread.
///
/// # Safety
/// `sage_spec::decode::DecodeParams` and `sage_spec::decode::cta`; the grid is splits · row tiles by sequences ·
/// key/value heads.
#[inline(always)]
pub unsafe fn decode<const HEAD_DIM: u32, const INT4: bool>(p: &DecodeParams) {
    const { assert!(stages(&layout::<HEAD_DIM, INT4>()) >= 2 && WARPS == PAGE_GROUPS) };
    let stage_bytes = const { layout::<HEAD_DIM, INT4>().group_bytes() as u32 };
    let depth = const { stages(&layout::<HEAD_DIM, INT4>()) as u32 };
    let (thread, lane) = (thread::thread_idx_x(), warp::lane_id());
    let warp = thread / 32;
    // SAFETY: there are heads and row tiles; the lengths are there.
    let (split, batch, length) = unsafe {
        let batch = math::div_u32(thread::block_idx_y(), p.cache.num_heads_kv);
        let split = math::div_u32(thread::block_idx_x(), p.row_tiles);
        let length = global::load_u32(p.lengths + batch as u64 * 4);
        // Whatever the lengths say, nothing beyond the plan or the cache is touched.
        let most = (p.splits * p.split_pages).min(p.cache.pages_per_sequence) * PAGE_TOKENS as u32;
        (split, batch, length.min(most))
    };
    let row_tile = thread::block_idx_x() - split * p.row_tiles;
    let pages = (length + PAGE_TOKENS as u32 - 1) / PAGE_TOKENS as u32;
    let begin = split * p.split_pages;
    // A sequence without tokens has one split with nothing in it.
    if begin >= pages && split > 0 {
        return;
    }
    let first_row = row_tile * TILE_ROWS as u32;
    let tile = Tile {
        batch,
        head_kv: thread::block_idx_y() - batch * p.cache.num_heads_kv,
        first_row,
        rows: (p.gqa_group * p.seqlen_q - first_row).min(TILE_ROWS as u32),
        length,
    };
    let end = (begin + p.split_pages).min(pages);
    let mean_scores = const { smem(&layout::<HEAD_DIM, INT4>()).mean_scores as u32 };
    let base = shared::dynamic_shared_mem();
    let ring = base + warp * depth * stage_bytes;
    let ring_end = ring + depth * stage_bytes;

    let entries = batch * p.cache.pages_per_sequence;
    let mut copies = Copies { p, tile: &tile, group: warp, lane, entries, page: begin, id: 0, end };
    let mut to = ring;
    // SAFETY: forwarded contract; stages are used in turn.
    unsafe {
        copies.look_up();
        let mut i = 0;
        while i < depth - 1 {
            copies.start::<HEAD_DIM, INT4>(to);
            to += stage_bytes;
            i += 1;
        }
    }
    // SAFETY: the warp is whole.
    let query = unsafe { Query::new::<HEAD_DIM, INT4>(p, &tile, lane) };
    if p.lse != 0 && warp == 0 && lane % 4 == 0 {
        let mut half = 0;
        while half < 2 {
            let at = base + mean_scores + (lane / 4 + 8 * half as u32) * 4;
            // SAFETY: one lane a row.
            unsafe { shared::store_f32(at, query.mean_score[half]) };
            half += 1;
        }
    }
    let all_visible = if p.causal == 0 { length } else { length.saturating_sub(p.seqlen_q - 1) };
    let mut sums = Sums::EMPTY;
    let mut from = ring;
    let mut page = begin;
    while page < end {
        // SAFETY: the lane's copies, then the warp's. What the next copy overwrites was read in the last round,
        // before the warp met.
        unsafe {
            wait_for_oldest::<HEAD_DIM, INT4>();
            warp::sync_warp();
            copies.start::<HEAD_DIM, INT4>(to);
            to = if to + stage_bytes == ring_end { ring } else { to + stage_bytes };
            let first = page * PAGE_TOKENS as u32 + warp * 16;
            if first < length {
                keys::add::<HEAD_DIM, INT4>(&query, from, lane, first, length, all_visible, &mut sums);
            }
        }
        from = if from + stage_bytes == ring_end { ring } else { from + stage_bytes };
        page += 1;
    }
    cp_async::wait_group::<0>();
    // SAFETY: all threads are here.
    unsafe {
        thread::sync_threads();
        combine::warps::<HEAD_DIM, INT4>(base, warp, lane, &tile, &sums);
        thread::sync_threads();
        combine::finish::<HEAD_DIM, INT4>(p, base, &tile, split, row_tile, pages);
    }
}

/// Waits for the oldest of the groups of copies under way.
#[inline(always)]
fn wait_for_oldest<const HEAD_DIM: u32, const INT4: bool>() {
    // `wait_group` takes a literal, which no constant of a generic function can be.
    match const { stages(&layout::<HEAD_DIM, INT4>()) } {
        4 => cp_async::wait_group::<2>(),
        5 => cp_async::wait_group::<3>(),
        _ => cp_async::wait_group::<6>(),
    }
}
