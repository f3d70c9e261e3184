//! Which rows a CTA works on, and how many keys they see.

use cuda_std::{atomic, math, thread};
use sage_spec::schedule::Progress;
use sage_spec::sm90::{BLOCK_KV, BLOCK_Q, Sm90AttentionParams};
use sage_spec::tiling;

const KEYS: u32 = BLOCK_KV as u32;

/// A work item: up to [`BLOCK_Q`] query rows of one head.
#[derive(Clone, Copy)]
pub struct Work {
    /// `batch * Hq + head`.
    pub head_q: u32,
    /// First query row.
    pub first_row: u32,
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

impl Work {
    /// Items run through a group of heads together, the last rows first: under a causal mask those see
    /// the most keys.
    #[inline(always)]
    pub fn of_item(p: &Sm90AttentionParams, item: u32) -> Self {
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
            Work {
                head_q: p.chunk.head_begin + first_head + (in_group - rank * heads),
                first_row: p.chunk.block_begin * tiling::BLOCK_Q as u32
                    + (p.tiles_per_head - 1 - rank) * BLOCK_Q as u32,
            }
        }
    }

    /// Batch entry, and `batch * Hkv + head` of the key/value head.
    #[inline(always)]
    pub fn batch_and_head_kv(&self, p: &Sm90AttentionParams) -> (u32, u32) {
        // SAFETY: head counts of a launched problem are not zero.
        unsafe {
            let batch = math::div_u32(self.head_q, p.num_heads_q);
            (batch, batch * p.num_heads_kv + math::div_u32(self.head_q - batch * p.num_heads_q, p.gqa_group))
        }
    }

    /// Tiles of K and V that the item's rows need together.
    #[inline(always)]
    pub fn tiles(&self, p: &Sm90AttentionParams) -> u32 {
        let end = rows_end(p);
        let last = if self.first_row + BLOCK_Q as u32 > end { end } else { self.first_row + BLOCK_Q as u32 } - 1;
        visible(p, last).div_ceil(KEYS)
    }
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
