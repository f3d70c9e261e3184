//! Which rows a CTA works on, and how many keys they see.

use cuda_std::{atomic, math, shared, thread, warp};
use sage_spec::schedule::Progress;
use sage_spec::sm90::{BLOCK_KV, Sm90AttentionParams};
use sage_spec::tiling;

use super::config::Config;
use crate::words::{join, split};

const KEYS: u32 = BLOCK_KV as u32;

/// A work item: up to [`Config::BLOCK_Q`] query rows of one head.
#[derive(Clone, Copy)]
pub struct Work {
    /// First query row.
    pub first_row: u32,
    /// `batch * Hq + head`.
    pub head_q: u32,
    /// `batch * Hkv + head` of the key/value head.
    pub head_kv: u32,
    /// First tile of K and V that the item's rows need together.
    pub first_tile: u32,
    /// End of the tiles; none are needed if it is not greater.
    pub end_tile: u32,
}

/// Hands out the work items of a CTA. The first is the CTA's own; the others go to whoever comes first, so that
/// CTAs with short items do more of them.
pub struct Items {
    round: u32,
}

impl Items {
    /// Before the first item.
    #[inline(always)]
    pub fn start() -> Self {
        Items { round: 0 }
    }

    /// The next item; at least `work_items` if there is none left.
    ///
    /// # Safety
    /// `p.progress` is null or valid; one thread of the CTA calls it.
    #[inline(always)]
    pub unsafe fn next(&mut self, p: &Sm90AttentionParams) -> u32 {
        let (cta, ctas) = (thread::block_idx_x(), thread::grid_dim_x());
        let round = self.round;
        self.round += 1;
        if round == 0 || p.progress == 0 {
            return cta + round * ctas;
        }
        // SAFETY: forwarded contract.
        ctas + unsafe { atomic::add_relaxed(p.progress + Progress::ATTENTION_NEXT as u64 * 4, 1) }
    }

    /// Ends the CTA's share. The last CTA to end leaves the words as the first found them.
    ///
    /// # Safety
    /// As for [`Items::next`], once, after it has found no item left.
    #[inline(always)]
    pub unsafe fn end(&self, p: &Sm90AttentionParams) {
        if p.progress == 0 {
            return;
        }
        let (next, done) =
            (p.progress + Progress::ATTENTION_NEXT as u64 * 4, p.progress + Progress::ATTENTION_DONE as u64 * 4);
        // SAFETY: forwarded contract; when the last CTA is here nobody takes items any more.
        unsafe {
            if atomic::add_acq_rel(done, 1) == thread::grid_dim_x() - 1 {
                atomic::store_release(next, 0);
                atomic::store_release(done, 0);
            }
        }
    }
}

/// In place of an item's first row: there are no more items.
const NO_MORE: u32 = u32::MAX;

impl Work {
    /// Items run through a group of heads together. Under a causal mask the last rows, which see the most keys, come
    /// first; else the last ones, which may be fewer, come last: the shorter the last items, the more evenly the
    /// CTAs end. `tiles` says which tiles an item needs whose first row it gets.
    #[inline(always)]
    pub fn of_item<C: Config>(p: &Sm90AttentionParams, item: u32, tiles: impl Fn(u32) -> (u32, u32)) -> Self {
        // SAFETY: the divisors of a launched problem are not zero.
        unsafe {
            let group = math::div_u32(item, p.heads_per_group * p.tiles_per_head);
            let in_group = item - group * p.heads_per_group * p.tiles_per_head;
            let first_head = group * p.heads_per_group;
            let heads = if p.chunk.head_count - first_head < p.heads_per_group {
                p.chunk.head_count - first_head
            } else {
                p.heads_per_group
            };
            let rank = math::div_u32(in_group, heads);
            let head_q = p.chunk.head_begin + first_head + (in_group - rank * heads);
            let tile = if p.last_rows_first == 0 { rank } else { p.tiles_per_head - 1 - rank };
            let first_row = p.chunk.block_begin * tiling::BLOCK_Q as u32 + tile * C::BLOCK_Q;
            let batch = math::div_u32(head_q, p.num_heads_q);
            let (first_tile, end_tile) = tiles(first_row);
            Work {
                first_row,
                head_q,
                head_kv: batch * p.num_heads_kv + math::div_u32(head_q - batch * p.num_heads_q, p.gqa_group),
                first_tile,
                end_tile,
            }
        }
    }

    /// Leaves the item, and the address of its head's output, at `shared`; no item if there are no more.
    ///
    /// # Safety
    /// [`sage_spec::sm90::WORK_BYTES`] at `shared` are free, and 16-byte aligned.
    #[inline(always)]
    pub unsafe fn store(work: Option<Work>, p: &Sm90AttentionParams, shared: u32) {
        // SAFETY: forwarded contract; head counts of a launched problem are not zero.
        unsafe {
            let Some(work) = work else {
                // All that is read, with a value.
                shared::store_u32x4(shared, [NO_MORE, 0, 0, 0]);
                return;
            };
            shared::store_u32x4(shared, [work.first_row, work.head_q, work.head_kv, work.end_tile]);
            let batch = math::div_u32(work.head_q, p.num_heads_q);
            let head = work.head_q - batch * p.num_heads_q;
            let first = batch as i64 * p.out.stride_batch + head as i64 * p.out.stride_head;
            let address = p.out.ptr.wrapping_add((first * if p.out_dtype == 2 { 4 } else { 2 }) as u64);
            let (second, [low, high]) = (shared + 16, split(address));
            shared::store_u32x4(second, [low, high, work.first_tile, 0]);
        }
    }

    /// What [`Work::store`] left, but for the first tile, the same in every lane.
    ///
    /// # Safety
    /// The warp is converged; an item was stored at `shared`.
    #[inline(always)]
    pub unsafe fn load(shared: u32) -> Option<Work> {
        // SAFETY: forwarded contract. Through shuffles, so that the assembler knows the words to be uniform.
        unsafe {
            let [first_row, head_q, head_kv, end_tile] = shared::load_u32x4(shared);
            let first_row = warp::shuffle_idx(first_row, 0);
            if first_row == NO_MORE {
                return None;
            }
            Some(Work {
                first_row,
                head_q: warp::shuffle_idx(head_q, 0),
                head_kv: warp::shuffle_idx(head_kv, 0),
                first_tile: 0,
                end_tile: warp::shuffle_idx(end_tile, 0),
            })
        }
    }

    /// First tile of the stored item, the same in every lane.
    ///
    /// # Safety
    /// As for [`Work::load`].
    #[inline(always)]
    pub unsafe fn load_first_tile(shared: u32) -> u32 {
        // SAFETY: forwarded contract.
        unsafe { warp::shuffle_idx(shared::load_u32(shared + 24), 0) }
    }

    /// Address of the output of the stored item's head.
    ///
    /// # Safety
    /// As for [`Work::load`].
    #[inline(always)]
    pub unsafe fn load_out(shared: u32) -> u64 {
        // SAFETY: forwarded contract.
        unsafe { join([shared::load_u32(shared + 16), shared::load_u32(shared + 20)]) }
    }
}

/// Tiles that the rows of a plain kernel's item see together.
#[inline(always)]
pub fn tiles<C: Config>(p: &Sm90AttentionParams, first_row: u32) -> u32 {
    let end = rows_end(p);
    let last_row = if first_row + C::BLOCK_Q > end { end } else { first_row + C::BLOCK_Q } - 1;
    visible(p, last_row).div_ceil(KEYS)
}

/// End of the rows that this launch covers.
#[inline(always)]
pub fn rows_end(p: &Sm90AttentionParams) -> u32 {
    let end = (p.chunk.block_begin + p.chunk.block_count) * tiling::BLOCK_Q as u32;
    if end < p.seqlen_q { end } else { p.seqlen_q }
}

/// Number of keys, from the first one on, that query row `row` sees.
#[inline(always)]
pub fn visible(p: &Sm90AttentionParams, row: u32) -> u32 {
    if p.causal == 0 {
        return p.seqlen_kv;
    }
    // Lengths are below 2³¹: the sum fits.
    let upper = row + 1 + p.seqlen_kv;
    let keys = if upper > p.seqlen_q { upper - p.seqlen_q } else { 0 };
    if keys < p.seqlen_kv { keys } else { p.seqlen_kv }
}
