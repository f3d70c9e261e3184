//! The skeleton of a Hopper attention kernel, with nothing that is not about how threads, tensor cores and copies
//! work together: INT8 scores, P as E4M3 codes without the special function unit, E4M3 P V promoted to f32, for a
//! head dimension of 128, one scale, whole tiles and no mask.
//!
//! A producer thread keeps two rings of bulk copies full. Three consumer warpgroups of 64 queries take each tile of
//! 128 keys: scores by `wgmma`, row maxima on the integers, codes by two fused multiply-adds each, and the product
//! with V in two halves, whose last column is one of ones and gives the row sums.

use super::codes::{codes, promote, update_max};
use super::*;
use cuda_std::{mbarrier, tma, warpgroup, wgmma};

/// Queries of a tile.
pub const QUERIES: usize = 192;
/// Keys of a tile, and the head dimension.
pub const KEYS: usize = 128;
/// Rows of a tile of V: a channel each, one of ones, and zeros up to eight.
pub const V_ROWS: usize = 136;
/// Threads of a CTA.
pub const THREADS: u32 = 512;

const STAGES: u32 = 4;
const Q_BYTES: u32 = (QUERIES * 128) as u32;
const K_BYTES: u32 = (KEYS * 128) as u32;
const V_BYTES: u32 = (V_ROWS * 128) as u32;
const K: u32 = Q_BYTES;
const V: u32 = K + STAGES * K_BYTES;
const BARRIERS: u32 = V + STAGES * V_BYTES;
/// Dynamic shared memory: Q, the rings of K and V, and full and empty barriers of both.
pub const SHARED_BYTES: u32 = BARRIERS + 4 * STAGES * 8;

/// What the first words of the input say, and where everything is.
#[derive(Clone, Copy)]
struct Task {
    buffers: Buffers,
    smem: u32,
    /// Tiles of keys of a head.
    tiles: u32,
    /// Work items: a tile of queries each.
    items: u32,
    /// Factor from a score to log2 units.
    scale: f32,
}

/// A place in the rings.
#[derive(Clone, Copy)]
struct Stage {
    smem: u32,
    index: u32,
    parity: u32,
}

impl Stage {
    /// The place of tile number `n` of the CTA.
    #[inline(always)]
    fn of(task: &Task, n: u32) -> Self {
        Stage { smem: task.smem, index: n % STAGES, parity: (n / STAGES) & 1 }
    }

    /// Barrier `which`: full and empty K, full and empty V.
    #[inline(always)]
    fn barrier(&self, which: u32) -> u32 {
        self.smem + BARRIERS + (which * STAGES + self.index) * 8
    }

    #[inline(always)]
    fn k(&self) -> u32 {
        self.smem + K + self.index * K_BYTES
    }

    #[inline(always)]
    fn v(&self) -> u32 {
        self.smem + V + self.index * V_BYTES
    }
}

const FULL_K: u32 = 0;
const EMPTY_K: u32 = 1;
const FULL_V: u32 = 2;
const EMPTY_V: u32 = 3;

/// Attention of every work item over the keys of its own head.
///
/// # Safety
/// Words 0 to 2 of the input are tiles, items and the scale's bits. The image holds a tile of Q, which all items share,
/// then all tiles of K by item and tile, then all of V, each with the 128-byte swizzle, V's tokens in the order
/// 0 1 8 9 2 3 10 11 4 5 12 13 6 7 14 15 of each 16. Written are the fragments of codes, u32 `[items, tiles, 384, 16]`,
/// then the output, f32 `[items, 192, 128]`.
#[kernel(max_threads = 512, min_blocks = 1)]
pub unsafe fn skeleton(p: Buffers) {
    let thread = thread::thread_idx_x();
    // SAFETY: forwarded contract; warpgroups stay together.
    unsafe {
        let task = Task {
            buffers: p,
            smem: shared::dynamic_shared_mem(),
            tiles: global::load_u32(p.input),
            items: global::load_u32(p.input + 4),
            scale: global::load_f32(p.input + 8),
        };
        prepare(&task);
        if thread < 128 {
            warpgroup::decrease_registers::<24>();
            if thread == 0 {
                produce(&task);
            }
        } else {
            warpgroup::increase_registers::<160>();
            consume(&task, thread / 128 - 1);
        }
    }
}

/// Initialises the barriers; brings Q by ordinary stores, which the tensor cores see after the fence.
///
/// # Safety
/// As for [`skeleton`]; all threads call it.
#[inline(always)]
unsafe fn prepare(task: &Task) {
    let thread = thread::thread_idx_x();
    // SAFETY: forwarded contract.
    unsafe {
        if thread == 0 {
            let mut index = 0;
            while index < STAGES {
                let stage = Stage { smem: task.smem, index, parity: 0 };
                mbarrier::init(stage.barrier(FULL_K), 1);
                mbarrier::init(stage.barrier(EMPTY_K), 12);
                mbarrier::init(stage.barrier(FULL_V), 1);
                mbarrier::init(stage.barrier(EMPTY_V), 12);
                index += 1;
            }
            mbarrier::fence_init();
        }
        let mut offset = thread * 16;
        while offset < Q_BYTES {
            shared::store_u32x4(task.smem + offset, global::load_u32x4(task.buffers.image + offset as u64));
            offset += THREADS * 16;
        }
        tma::fence_proxy_async();
        thread::sync_threads();
    }
}

/// Keeps the rings full.
///
/// # Safety
/// As for [`skeleton`]; one thread calls it.
#[inline(always)]
unsafe fn produce(task: &Task) {
    let k = task.buffers.image + Q_BYTES as u64;
    let v = k + task.items as u64 * task.tiles as u64 * K_BYTES as u64;
    let (mut n, mut item) = (0, thread::block_idx_x());
    while item < task.items {
        let mut tile = 0;
        while tile < task.tiles {
            let (stage, at) = (Stage::of(task, n), (item * task.tiles + tile) as u64);
            // SAFETY: the tile exists; its stage has been given back by all warps.
            unsafe {
                mbarrier::wait(stage.barrier(EMPTY_K), stage.parity ^ 1);
                mbarrier::arrive_expect_tx(stage.barrier(FULL_K), K_BYTES);
                tma::load_bulk(stage.k(), k + at * K_BYTES as u64, K_BYTES, stage.barrier(FULL_K));
                mbarrier::wait(stage.barrier(EMPTY_V), stage.parity ^ 1);
                mbarrier::arrive_expect_tx(stage.barrier(FULL_V), V_BYTES);
                tma::load_bulk(stage.v(), v + at * V_BYTES as u64, V_BYTES, stage.barrier(FULL_V));
            }
            n += 1;
            tile += 1;
        }
        item += thread::grid_dim_x();
    }
}

/// Attends with the 64 queries of consumer warpgroup `warpgroup`.
///
/// # Safety
/// As for [`skeleton`]; the warpgroup calls it together.
#[inline(always)]
unsafe fn consume(task: &Task, warpgroup: u32) {
    let thread = thread::thread_idx_x() % 128;
    let q = wgmma::descriptor(task.smem + warpgroup * 64 * 128, wgmma::Swizzle::Bytes128);
    let outputs = task.buffers.output + task.items as u64 * task.tiles as u64 * (QUERIES * KEYS) as u64;
    let (mut n, mut item) = (0, thread::block_idx_x());
    while item < task.items {
        // Channels 0 to 63, then 64 to 127, the row sum, and seven columns of zeros.
        let (mut low, mut high) = ([0.0f32; 32], [0.0f32; 36]);
        let mut max = [-1e30f32; 2];
        let mut tile = 0;
        while tile < task.tiles {
            let stage = Stage::of(task, n);
            // SAFETY: the warpgroup is together; a stage is read between its full and its empty barrier.
            unsafe {
                mbarrier::wait(stage.barrier(FULL_K), stage.parity);
                let scores = scores(q, stage.k());
                release(stage.barrier(EMPTY_K));
                let alpha = update_max(&scores, task.scale, &mut max);
                let codes = codes(&scores, task.scale, max);
                let at = ((item * task.tiles + tile) * 3 + warpgroup) as u64 * 128 + thread as u64;
                store_codes(task.buffers.output + at * 64, &codes);

                mbarrier::wait(stage.barrier(FULL_V), stage.parity);
                let v = wgmma::descriptor(stage.v(), wgmma::Swizzle::Bytes128);
                let mut sums = [0.0f32; 32];
                multiply!(wgmma::m64n64k32_e4m3, &mut sums, codes, v);
                promote(&mut low, &sums, alpha);
                // 64 rows of 128 bytes on.
                let mut sums = [0.0f32; 36];
                multiply!(wgmma::m64n72k32_e4m3, &mut sums, codes, v + 512);
                release(stage.barrier(EMPTY_V));
                promote(&mut high, &sums, alpha);
            }
            n += 1;
            tile += 1;
        }
        let row = item as u64 * QUERIES as u64 + (warpgroup * 64 + thread / 32 * 16 + thread % 32 / 4) as u64;
        // SAFETY: the warp is together; rows of its own item.
        unsafe { store(outputs + (row * 128 + (thread % 4 * 2) as u64) * 4, &low, &high) };
        item += thread::grid_dim_x();
    }
}

/// The warp gives a stage back.
///
/// # Safety
/// The warp is together and has finished reading; the barrier is one of the plan.
#[inline(always)]
unsafe fn release(barrier: u32) {
    if thread::thread_idx_x().is_multiple_of(32) {
        // SAFETY: forwarded contract.
        unsafe { mbarrier::arrive(barrier) };
    }
}

/// Scores of 64 queries and a tile of keys, complete.
///
/// # Safety
/// The warpgroup is together; both tiles are complete.
#[inline(always)]
unsafe fn scores(q: u64, k: u32) -> [u32; 64] {
    let k = wgmma::descriptor(k, wgmma::Swizzle::Bytes128);
    let mut scores = [0u32; 64];
    // SAFETY: forwarded contract.
    unsafe {
        wgmma::fence();
        wgmma::m64n128k32_s8(&mut scores, q, k, 0);
        wgmma::m64n128k32_s8(&mut scores, q + 2, k + 2, 1);
        wgmma::m64n128k32_s8(&mut scores, q + 4, k + 4, 1);
        wgmma::m64n128k32_s8(&mut scores, q + 6, k + 6, 1);
        wgmma::commit_group();
        wgmma::wait_group::<0>();
    }
    scores
}

/// `sums = P V` of a tile, complete.
macro_rules! multiply {
    ($instruction:path, $sums:expr, $p:ident, $v:expr) => {{
        let v = $v;
        wgmma::fence();
        $instruction($sums, [$p[0], $p[1], $p[2], $p[3]], v, 0);
        $instruction($sums, [$p[4], $p[5], $p[6], $p[7]], v + 2, 1);
        $instruction($sums, [$p[8], $p[9], $p[10], $p[11]], v + 4, 1);
        $instruction($sums, [$p[12], $p[13], $p[14], $p[15]], v + 6, 1);
        wgmma::commit_group();
        wgmma::wait_group::<0>();
    }};
}
use multiply;

/// # Safety
/// `address` is that of the thread's 16 words.
#[inline(always)]
unsafe fn store_codes(address: u64, codes: &[u32; 16]) {
    let mut i = 0;
    while i < 16 {
        // SAFETY: forwarded contract.
        unsafe { global::store_u32x4(address + i as u64 * 4, [codes[i], codes[i + 1], codes[i + 2], codes[i + 3]]) };
        i += 4;
    }
}

/// Divides by the row sums, which lane 0 of each quad holds, and stores.
///
/// # Safety
/// The warp is together; `address` is that of the lane's first element.
#[inline(always)]
unsafe fn store(address: u64, low: &[f32; 32], high: &[f32; 36]) {
    let mut row = 0;
    while row < 2 {
        // SAFETY: forwarded contract.
        unsafe {
            let sum = f(warp::shuffle_idx(high[32 + 2 * row].to_bits(), warp::lane_id() & 28));
            let inverse = math::reciprocal(sum);
            let mut block = 0;
            while block < 16 {
                let part = |e: usize| if block < 8 { low[4 * block + e] } else { high[4 * (block - 8) + e] };
                let pair = [part(2 * row) * inverse, part(2 * row + 1) * inverse].map(f32::to_bits);
                global::store_u32x2(address + (row * 8 * 128 + block * 8) as u64 * 4, pair);
                block += 1;
            }
        }
        row += 1;
    }
}
