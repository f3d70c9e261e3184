//! Attention of a few queries over the cache. Each byte of the cache is used once, by one warp, so all that
//! matters is that enough copies are under way: a warp has a ring of groups of its own in shared memory, and the
//! warps of a CTA meet only when their sums are combined.

use cuda_std::{cp_async, global, math, shared, thread, warp};
use sage_spec::cache::{PAGE_GROUPS, PAGE_TOKENS};
use sage_spec::decode::{DecodeParams, TILE_ROWS, WARPS, smem, stage_bytes, stages, warp_groups};

use super::combine;
use super::keys::{self, Sums, Tokens};
use super::layout;
use super::query::{Query, Tile};

const PAGE: u32 = PAGE_TOKENS as u32;

/// A lane's copies of its warp's groups.
struct Copies {
    /// Where the lane's bytes of page 0 are: of K, of V, and of the scales.
    from: [u64; 3],
    /// Bytes from page to page.
    page_bytes: u32,
    lane: u32,
    /// Block table; 0 without one.
    table: u64,
    /// Entry of the block table, or page without one, of the sequence's first page.
    entries: u32,
    /// Entries that the sequence can have.
    most: u32,
    /// Which pages 0..32 of the split are, one a lane, later 32..64 and so on, and which the 32 after those.
    ids: u32,
    next_ids: u32,
    /// Entry of the block table of the first of `next_ids`, counted within the sequence.
    next_entry: u32,
    /// The next page of the split that the warp has groups of, and that after its last one.
    page: u32,
    end: u32,
}

impl Copies {
    /// Takes the next pages up, and reads which those after them are, long before they are needed.
    #[inline(always)]
    unsafe fn look_up(&mut self) {
        self.ids = self.next_ids;
        let entry = self.next_entry + self.lane;
        self.next_ids = self.entries + entry;
        if self.table != 0 && entry < self.most {
            // SAFETY: an entry of the sequence, perhaps of a page that is not in use and that nobody will copy then.
            self.next_ids = unsafe { global::load_u32(self.table + self.next_ids as u64 * 4) };
        }
        self.next_entry += 32;
    }

    /// Starts the copies of the warp's next groups to `stage`, and closes the group of copies.
    #[inline(always)]
    unsafe fn start<const HEAD_DIM: u32, const INT4: bool>(&mut self, stage: u32) {
        let groups = const { warp_groups(&layout::<HEAD_DIM, INT4>()) as u32 };
        let layout = const { layout::<HEAD_DIM, INT4>() };
        let (k_bytes, v_bytes) = (groups * layout.k_group_bytes() as u32, groups * layout.v_group_bytes() as u32);
        let to = stage + self.lane * 16;
        // SAFETY: the warp is whole.
        let id = unsafe { warp::shuffle_idx(self.ids, self.page % 32) };
        let [k, v, scales] = self.from.map(|from| from + id as u64 * self.page_bytes as u64);
        if self.page < self.end {
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
                if self.lane < 4 * groups {
                    cp_async::copy16(to + k_bytes + v_bytes, scales);
                }
            }
        }
        cp_async::commit_group();
        self.page += groups;
        if self.page % 32 < groups {
            // SAFETY: forwarded contract.
            unsafe { self.look_up() };
        }
    }
}

/// What the warps of a CTA do.
struct Work<'a> {
    p: &'a DecodeParams,
    tile: &'a Tile,
    /// Token at which the warp's groups of the split's first page would begin.
    first: u32,
    base: u32,
    warp: u32,
    lane: u32,
}

impl Work<'_> {
    /// Sums over the keys of a warp, put into shared memory, of `HALVES` times eight rows. The first copies are under
    /// way.
    #[inline(always)]
    unsafe fn sum<const HEAD_DIM: u32, const INT4: bool, const HALVES: usize>(&self, mut copies: Copies) {
        let Work { p, tile, first, base, warp, lane } = *self;
        let depth = const { stages(&layout::<HEAD_DIM, INT4>()) as u32 };
        let stage_bytes = const { stage_bytes(&layout::<HEAD_DIM, INT4>()) as u32 };
        let groups = const { warp_groups(&layout::<HEAD_DIM, INT4>()) as u32 };
        let mean_scores = const { smem(&layout::<HEAD_DIM, INT4>()).mean_scores as u32 };
        // SAFETY: the warp is whole.
        let query = unsafe { Query::new::<HEAD_DIM, INT4, HALVES>(p, tile, lane) };
        if p.lse != 0 && warp == 0 && lane % 4 == 0 {
            let mut half = 0;
            while half < HALVES {
                let at = base + mean_scores + (lane / 4 + 8 * half as u32) * 4;
                // SAFETY: one lane a row.
                unsafe { shared::store_f32(at, query.mean_score[half]) };
                half += 1;
            }
        }
        let length = tile.length;
        let all_visible = if p.causal == 0 { length } else { length.saturating_sub(p.seqlen_q - 1) };
        let mut sums = Sums::EMPTY;
        let ring = base + warp * depth * stage_bytes;
        let last = ring + (depth - 1) * stage_bytes;
        // The stage that a copy goes to is the one that was read in the last round.
        let (mut from, mut to) = (ring, last);
        let (mut page, end) = (first_page(warp, groups), copies.end);
        while page < end {
            let tokens = Tokens { first: first + page * PAGE, length, all_visible };
            // SAFETY: the lane's copies, then the warp's. What the next copy overwrites was read in the last round,
            // before the warp met.
            unsafe {
                wait_for_oldest::<HEAD_DIM, INT4>();
                warp::sync_warp();
                copies.start::<HEAD_DIM, INT4>(to);
                if groups == 2 {
                    keys::add::<HEAD_DIM, INT4, HALVES, 2>(&query, from, lane, tokens, &mut sums);
                } else {
                    keys::add::<HEAD_DIM, INT4, HALVES, 1>(&query, from, lane, tokens, &mut sums);
                }
            }
            to = from;
            from = if from == last { ring } else { from + stage_bytes };
            page += groups;
        }
        cp_async::wait_group::<0>();
        // SAFETY: all threads are here.
        unsafe {
            thread::sync_threads();
            combine::warps::<HEAD_DIM, INT4, HALVES>(base, warp, lane, tile, &sums);
        }
    }
}

/// Page of the split in which the first `groups` groups of a warp are. The four warps have `groups` pages at a time.
#[inline(always)]
fn first_page(warp: u32, groups: u32) -> u32 {
    warp * groups / PAGE_GROUPS as u32
}

/// One thread.
///
/// # Safety
/// `sage_spec::decode::DecodeParams` and `sage_spec::decode::cta`; the grid is splits · row tiles by sequences ·
/// key/value heads.
#[inline(always)]
pub unsafe fn decode<const HEAD_DIM: u32, const INT4: bool>(p: &DecodeParams) {
    const { assert!(WARPS == PAGE_GROUPS && matches!(stages(&layout::<HEAD_DIM, INT4>()), 4 | 5)) };
    let groups = const { warp_groups(&layout::<HEAD_DIM, INT4>()) as u32 };
    let stage_bytes = const { stage_bytes(&layout::<HEAD_DIM, INT4>()) as u32 };
    let depth = const { stages(&layout::<HEAD_DIM, INT4>()) as u32 };
    let layout = const { layout::<HEAD_DIM, INT4>() };
    let (thread, lane) = (thread::thread_idx_x(), warp::lane_id());
    let warp = thread / 32;
    // SAFETY: there are heads and row tiles; the lengths are there.
    let (split, batch, length) = unsafe {
        let batch = math::div_u32(thread::block_idx_y(), p.cache.num_heads_kv);
        let split = math::div_u32(thread::block_idx_x(), p.row_tiles);
        let length = global::load_u32(p.lengths + batch as u64 * 4);
        // Whatever the lengths say, nothing beyond the plan or the cache is touched.
        let most = (p.splits * p.split_pages).min(p.cache.pages_per_sequence) * PAGE;
        (split, batch, length.min(most))
    };
    let row_tile = thread::block_idx_x() - split * p.row_tiles;
    let pages = (length + PAGE - 1) / PAGE;
    let begin = split * p.split_pages;
    let first_row = row_tile * TILE_ROWS as u32;
    let tile = Tile {
        batch,
        head_kv: thread::block_idx_y() - batch * p.cache.num_heads_kv,
        first_row,
        rows: (p.gqa_group * p.seqlen_q - first_row).min(TILE_ROWS as u32),
        length,
    };
    let base = shared::dynamic_shared_mem();

    // The warp's groups of a page, and the token at which they begin in the split's first page.
    let group = warp * groups % PAGE_GROUPS as u32;
    let first = begin * PAGE + group * 16;
    let end = length.min((begin + p.split_pages) * PAGE);
    let page = p.cache.pages + tile.head_kv as u64 * layout.page_bytes() as u64;
    // In 32 bits: no compiler then takes the sums apart, to add their constants anew for each copy.
    let of_group = |offset: usize, bytes: usize| page + (offset as u32 + group * bytes as u32 + lane * 16) as u64;
    let mut copies = Copies {
        from: [
            of_group(0, layout.k_group_bytes()),
            of_group(layout.v_offset(), layout.v_group_bytes()),
            of_group(layout.scales_offset(), layout.scales_group_bytes()),
        ],
        page_bytes: p.cache.num_heads_kv * layout.page_bytes() as u32,
        lane,
        table: p.cache.block_table,
        entries: batch * p.cache.pages_per_sequence,
        most: p.cache.pages_per_sequence,
        ids: 0,
        next_ids: 0,
        next_entry: begin,
        page: first_page(warp, groups),
        end: (end.max(first) - first + PAGE - 1) / PAGE,
    };
    // SAFETY: forwarded contract; stages are used in turn.
    unsafe {
        // The table is read beside the length, not after it: which of the pages exist, nobody asks before the copies.
        copies.look_up();
        copies.look_up();
        let mut to = base + warp * depth * stage_bytes;
        let mut i = 0;
        while i < depth - 1 {
            copies.start::<HEAD_DIM, INT4>(to);
            to += stage_bytes;
            i += 1;
        }
    }
    // A sequence without tokens has one split with nothing in it. No copy is under way here.
    if begin >= pages && split > 0 {
        return;
    }
    let work = Work { p, tile: &tile, first, base, warp, lane };
    // SAFETY: all threads are here.
    unsafe {
        if tile.rows > 8 {
            work.sum::<HEAD_DIM, INT4, 2>(copies);
        } else {
            work.sum::<HEAD_DIM, INT4, 1>(copies);
        }
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
        _ => cp_async::wait_group::<3>(),
    }
}
