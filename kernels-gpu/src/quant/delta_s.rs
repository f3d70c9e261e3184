//! ΔS of smooth-Q: `q_mean · (k − k_mean)` of every query block and key, from unquantized K, in units of
//! the key's scale (SageAttention2, section 3.1). A small f32 matrix product: 1/128 of QK's operations.

use cuda_std::{global, hint, math, shared, thread};
use sage_spec::layout::delta_s_slot;
use sage_spec::params::DeltaSParams;
use sage_spec::tiling::{BLOCK_KV, DELTA_S_BLOCKS, KV_PAD};

use super::element::{Element, Rows};

const KEYS: u32 = BLOCK_KV as u32;
const BLOCKS: u32 = DELTA_S_BLOCKS as u32;
const THREADS: u32 = 256;
/// Query blocks of a thread; it has one key.
const PER_THREAD: usize = (BLOCKS * KEYS / THREADS) as usize;

/// One CTA: 64 keys by up to 16 query blocks of one head.
///
/// # Safety
/// `sage_spec::params::DeltaSParams`, `sage_spec::launch::delta_s`.
#[inline(always)]
pub unsafe fn delta_s<E: Element, const HEAD_DIM: u32>(p: &DeltaSParams) {
    let seqlen_padded = p.seqlen_kv.div_ceil(KV_PAD as u32) * KV_PAD as u32;
    let num_kv_blocks = seqlen_padded / KEYS;
    let block_groups = p.chunk.block_count.div_ceil(BLOCKS);
    // SAFETY: counts of a launched problem are not zero.
    let (row, head_local) = unsafe {
        let row = math::div_u32(thread::block_idx_x(), num_kv_blocks);
        (row, math::div_u32(row, block_groups))
    };
    let first_key = (thread::block_idx_x() - row * num_kv_blocks) * KEYS;
    let first_block = (row - head_local * block_groups) * BLOCKS;
    let head_q = p.chunk.head_begin + head_local;
    // SAFETY: as above.
    let (batch, head_kv) = unsafe {
        let batch = math::div_u32(head_q, p.num_heads_q);
        let group = math::div_u32(p.num_heads_q, p.num_heads_kv);
        (batch, math::div_u32(head_q - batch * p.num_heads_q, group))
    };
    let head_kv_flat = batch * p.num_heads_kv + head_kv;
    let thread = thread::thread_idx_x();
    let smem = shared::dynamic_shared_mem();
    let means = smem;
    let keys = smem + BLOCKS * HEAD_DIM * 4;
    // One f32 of padding: 32 keys of a warp, same feature, 32 banks.
    let key_pitch = (HEAD_DIM + 1) * 4;

    // SAFETY: inside shared memory and the tensors; a barrier separates writes from reads.
    unsafe {
        let columns = HEAD_DIM / 8;
        let feature = thread % columns * 8;
        let rows = Rows::new::<E>(&p.k, batch, head_kv, p.seqlen_kv, feature, p.head_dim, p.vectorized);
        let mut key = thread / columns;
        while key < hint::opaque(KEYS) {
            let [x] = rows.load::<E, 1, 1>(first_key + key);
            let mut i = 0;
            while i < 8 {
                let mut value = x[i];
                if p.k_mean != 0 {
                    value -= global::load_f32(
                        p.k_mean + (head_kv_flat as u64 * HEAD_DIM as u64 + (feature + i as u32) as u64) * 4,
                    );
                }
                shared::store_f32(keys + key * key_pitch + (feature + i as u32) * 4, value);
                i += 1;
            }
            key += THREADS / columns;
        }
        let mut index = thread;
        while index < hint::opaque(BLOCKS * HEAD_DIM) {
            let block = first_block + index / HEAD_DIM;
            let mut value = 0.0;
            if block < p.chunk.block_count {
                let block = head_q as u64 * p.num_query_blocks as u64 + (p.chunk.block_begin + block) as u64;
                value = global::load_f32(p.q_mean + (block * HEAD_DIM as u64 + (index % HEAD_DIM) as u64) * 4);
            }
            shared::store_f32(means + index * 4, value);
            index += THREADS;
        }
        thread::sync_threads();

        let (key, first) = (thread % KEYS, thread / KEYS * PER_THREAD as u32);
        let mut sum = [0.0f32; PER_THREAD];
        // Up to the real head dimension: beyond it the products are zero.
        let mut feature = 0;
        while feature < p.head_dim {
            let k = [0, 1, 2, 3].map(|i| shared::load_f32(keys + key * key_pitch + (feature + i) * 4));
            let mut block = 0;
            while block < PER_THREAD {
                let q = shared::load_u32x4(means + ((first + block as u32) * HEAD_DIM + feature) * 4);
                let mut i = 0;
                while i < 4 {
                    sum[block] = math::fma(f32::from_bits(q[i]), k[i], sum[block]);
                    i += 1;
                }
                block += 1;
            }
            feature += 4;
        }

        let scales = if p.granularity == 2 { 4 } else { 1 };
        let group = if p.granularity == 2 { key % 8 / 2 } else { 0 };
        let k_block = (head_kv_flat as u64 * num_kv_blocks as u64) + (first_key / KEYS) as u64;
        let k_scale = global::load_f32(p.k_scale + (k_block * scales as u64 + group as u64) * 4);
        let exists = first_key + key < p.seqlen_kv;
        let mut block = 0;
        while block < PER_THREAD {
            let block_local = first_block + first + block as u32;
            if block_local < p.chunk.block_count {
                let row = (head_local as u64 * p.chunk.block_count as u64 + block_local as u64) * seqlen_padded as u64;
                let value = if exists { sum[block] / k_scale } else { 0.0 };
                global::store_f32(p.delta_s + (row + first_key as u64 + delta_s_slot(key as usize) as u64) * 4, value);
            }
            block += 1;
        }
    }
}
