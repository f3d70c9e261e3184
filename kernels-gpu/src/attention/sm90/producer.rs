//! The producer: one thread that keeps the rings of K and V and the buffers of Q full.

use cuda_std::{mbarrier, tma};
use sage_spec::sm90::{BLOCK_KV, Sm90AttentionParams};

use super::config::{Barriers, Config, QueryRing, TileRing};
use super::schedule::Schedule;

/// Copies for every work item of the CTA: Q once, then K and V tile by tile.
///
/// # Safety
/// One thread of the CTA calls it, after the barriers were initialised; `maps` is the address of `p`'s
/// tensor maps.
#[inline(always)]
pub unsafe fn run<C: Config>(p: &Sm90AttentionParams, maps: u64, smem: u32) {
    let barriers = Barriers::new::<C>(smem);
    let (q_map, k_map, v_map) = (
        maps + core::mem::offset_of!(Sm90AttentionParams, q_map) as u64,
        maps + core::mem::offset_of!(Sm90AttentionParams, k_map) as u64,
        maps + core::mem::offset_of!(Sm90AttentionParams, v_map) as u64,
    );
    let plan = const { C::SMEM };
    let (k_smem, v_smem) = (smem + plan.k_offset as u32, smem + plan.v_offset as u32);
    let (mut tile, mut query) = (TileRing::start(), QueryRing::start());
    let mut schedule = Schedule::start();
    // SAFETY: boxes and barriers are those of the shared-memory plan; a buffer is written only after its
    // empty barrier has completed.
    unsafe {
        while let Some(work) = schedule.next(p) {
            let (_, head_kv) = work.batch_and_head_kv(p);
            let tiles = work.tiles(p);
            if tiles > 0 {
                mbarrier::wait(barriers.empty_q(query.index), query.parity ^ 1);
                let full = barriers.full_q(query.index);
                mbarrier::arrive_expect_tx(full, plan.q_bytes as u32);
                tma::load_3d(smem + query.index * plan.q_bytes as u32, q_map, 0, work.first_row, work.head_q, full);
                query.advance();
            }
            let mut j = 0;
            while j < tiles {
                mbarrier::wait(barriers.empty_k(tile.index), tile.parity ^ 1);
                let full = barriers.full_k(tile.index);
                mbarrier::arrive_expect_tx(full, plan.k_bytes as u32);
                tma::load_3d(k_smem + tile.index * plan.k_bytes as u32, k_map, 0, j * BLOCK_KV as u32, head_kv, full);

                mbarrier::wait(barriers.empty_v(tile.index), tile.parity ^ 1);
                let full = barriers.full_v(tile.index);
                mbarrier::arrive_expect_tx(full, plan.v_copy_bytes as u32);
                tma::load_3d(v_smem + tile.index * plan.v_bytes as u32, v_map, j * BLOCK_KV as u32, 0, head_kv, full);
                tile.advance();
                j += 1;
            }
        }
    }
}
