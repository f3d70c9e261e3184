//! ΔS of smooth-Q: `q_mean · (k − k_mean)` of every query block and key, from unquantized K, in units of
//! the key's scale (SageAttention2, section 3.1). A small f32 matrix product: 1/128 of QK's operations.

use cuda_std::{cp_async, global, hint, math, shared, thread};
use sage_spec::launch::delta_s_blocks;
use sage_spec::layout::delta_s_slot;
use sage_spec::params::DeltaSParams;
use sage_spec::tiling::{BLOCK_KV, KV_PAD};

use super::element::Element;
use super::lanes::{LANES, Position, TOKENS, load8};
use super::tile::{Source, read_swizzled};

/// Keys of a thread, 32 apart.
const KEYS: usize = 2;

/// One CTA: 128 keys by up to 16 (head_dim 64) or 32 query blocks of one head; a warp: 64 keys by 8 blocks, or 4 at
/// head_dim 256, whose more threads would else want more shared memory than some devices have.
///
/// # Safety
/// `sage_spec::params::DeltaSParams`, `sage_spec::launch::delta_s`.
#[inline(always)]
pub unsafe fn delta_s<E: Element, const HEAD_DIM: u32, const BLOCKS_PER_WARP: usize>(p: &DeltaSParams) {
    let blocks_per_cta = const { delta_s_blocks(HEAD_DIM as usize) as u32 };
    const { assert!(HEAD_DIM / 8 * LANES == 32 * 2 * delta_s_blocks(HEAD_DIM as usize) as u32 / BLOCKS_PER_WARP as u32) };
    const { assert!(TOKENS == KV_PAD as u32) };
    let num_tiles = p.seqlen_kv.div_ceil(TOKENS);
    let seqlen_padded = num_tiles * TOKENS;
    let block_groups = p.chunk.block_count.div_ceil(blocks_per_cta);
    // SAFETY: counts of a launched problem are not zero.
    let (row, head_local) = unsafe {
        let row = math::div_u32(thread::block_idx_x(), num_tiles);
        (row, math::div_u32(row, block_groups))
    };
    let tile = thread::block_idx_x() - row * num_tiles;
    let first_block = (row - head_local * block_groups) * blocks_per_cta;
    let head_q = p.chunk.head_begin + head_local;
    // SAFETY: as above.
    let (batch, head_kv) = unsafe {
        let batch = math::div_u32(head_q, p.num_heads_q);
        let group = math::div_u32(p.num_heads_q, p.num_heads_kv);
        (batch, math::div_u32(head_q - batch * p.num_heads_q, group))
    };
    let head_kv_flat = batch * p.num_heads_kv + head_kv;
    let thread = thread::thread_idx_x();
    let keys = shared::dynamic_shared_mem();
    let k_mean = keys + TOKENS * HEAD_DIM * E::BYTES;
    let means = k_mean + HEAD_DIM * 4;

    // SAFETY: inside shared memory and the tensors; a barrier separates writes from reads.
    unsafe {
        let source = Source::new::<E>(&p.k, [batch, head_kv, tile], [p.seqlen_kv, p.head_dim], p.vectorized != 0);
        let position = Position::new::<HEAD_DIM>();
        source.stage::<E, HEAD_DIM, true>(keys, position, None);
        cp_async::commit_group();
        if thread < HEAD_DIM {
            let mut mean = 0.0;
            if p.k_mean != 0 {
                mean = global::load_f32(p.k_mean + (head_kv_flat as u64 * HEAD_DIM as u64 + thread as u64) * 4);
            }
            shared::store_f32(k_mean + thread * 4, mean);
        }
        let mut index = thread * 4;
        while index < hint::opaque(blocks_per_cta * HEAD_DIM) {
            let block = first_block + index / HEAD_DIM;
            let mut value = [0; 4];
            if block < p.chunk.block_count {
                let block = head_q as u64 * p.num_query_blocks as u64 + (p.chunk.block_begin + block) as u64;
                value = global::load_u32x4(p.q_mean + (block * HEAD_DIM as u64 + (index % HEAD_DIM) as u64) * 4);
            }
            shared::store_u32x4(means + index * 4, value);
            index += HEAD_DIM / 8 * LANES * 4;
        }
        cp_async::wait_group::<0>();
        thread::sync_threads();

        let (warp, lane) = (thread / 32, thread % 32);
        let key = |i: usize| warp % 2 * 64 + i as u32 * 32 + lane;
        let warp_block = warp / 2 * BLOCKS_PER_WARP as u32;
        if first_block + warp_block >= p.chunk.block_count {
            return;
        }
        let mut sum = [[0.0f32; KEYS]; BLOCKS_PER_WARP];
        // Up to the real head dimension: beyond it the products are zero.
        let mut feature = 0;
        while feature < p.head_dim {
            let mean = load8(k_mean + feature * 4);
            let k = [0, 1].map(|i| {
                let mut k = read_swizzled::<E, HEAD_DIM>(keys, feature, key(i));
                let mut j = 0;
                while j < 8 {
                    k[j] -= mean[j];
                    j += 1;
                }
                k
            });
            let mut block = 0;
            while block < BLOCKS_PER_WARP {
                let q = load8(means + ((warp_block + block as u32) * HEAD_DIM + feature) * 4);
                let mut i = 0;
                while i < KEYS {
                    let mut j = 0;
                    while j < 8 {
                        sum[block][i] = math::fma(q[j], k[i][j], sum[block][i]);
                        j += 1;
                    }
                    i += 1;
                }
                block += 1;
            }
            feature += 8;
        }

        let mut i = 0;
        while i < KEYS {
            let key = tile * TOKENS + key(i);
            let scales = if p.granularity == 2 { 4 } else { 1 };
            let group = if p.granularity == 2 { key % 8 / 2 } else { 0 };
            let k_block =
                head_kv_flat as u64 * (seqlen_padded / BLOCK_KV as u32) as u64 + (key / BLOCK_KV as u32) as u64;
            let k_scale = global::load_f32(p.k_scale + (k_block * scales as u64 + group as u64) * 4);
            let exists = key < p.seqlen_kv;
            let mut block = 0;
            while block < BLOCKS_PER_WARP {
                let block_local = first_block + warp_block + block as u32;
                if block_local < p.chunk.block_count {
                    let row =
                        (head_local as u64 * p.chunk.block_count as u64 + block_local as u64) * seqlen_padded as u64;
                    let value = if exists { sum[block][i] / k_scale } else { 0.0 };
                    global::store_f32(p.delta_s + (row + delta_s_slot(key as usize) as u64) * 4, value);
                }
                block += 1;
            }
            i += 1;
        }
    }
}
