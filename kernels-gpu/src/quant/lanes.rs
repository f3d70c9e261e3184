//! The threads of a CTA as token lanes by columns of eight features, and reductions over both.

use cuda_std::{math, shared, thread, warp};
use sage_spec::reduce::{CHUNK_LANES, FEATURES_PER_THREAD, TOKEN_LANES};
use sage_spec::tiling::QUANTIZE_TILE;

use super::posted::Four;

/// Token lanes.
pub const LANES: u32 = TOKEN_LANES as u32;
/// Tokens of a tile.
pub const TOKENS: u32 = QUANTIZE_TILE as u32;
/// Tokens of a thread: `lane + LANES · i`.
pub const PER_THREAD: usize = QUANTIZE_TILE / TOKEN_LANES;
const FEATURES: u32 = FEATURES_PER_THREAD as u32;

/// Position of a thread.
#[derive(Clone, Copy)]
pub struct Position {
    /// Index of the thread.
    pub thread: u32,
    /// Token lane, 0..16.
    pub lane: u32,
    /// First of the thread's eight features.
    pub first_feature: u32,
}

impl Position {
    /// Of this thread, for a padded head dimension: threads along a row first.
    #[inline(always)]
    pub fn new<const HEAD_DIM: u32>() -> Self {
        let columns = HEAD_DIM / FEATURES;
        // Read anew for each tile: else the compiler keeps dozens of addresses in registers from tile to tile.
        let thread = thread::reread_thread_idx_x();
        Position { thread, lane: thread / columns, first_feature: thread % columns * FEATURES }
    }

    /// The thread's slot in the table `[LANES, HEAD_DIM]` of f32 at `table`.
    #[inline(always)]
    pub fn slot<const HEAD_DIM: u32>(&self, table: u32) -> u32 {
        table + (self.lane * HEAD_DIM + self.first_feature) * 4
    }

    /// The thread's token number `i` of a tile.
    #[inline(always)]
    pub fn token(&self, i: usize) -> u32 {
        self.lane + i as u32 * LANES
    }
}

/// Combines the token lanes pairwise (`sage_spec::reduce`: lane r with lane r + 8, then + 4, ...): thread
/// `feature` returns the result of its feature, threads from `HEAD_DIM` on return 0.
///
/// # Safety
/// All threads of the CTA call it; `table` has `LANES * HEAD_DIM` f32 that nobody else uses until a barrier.
#[inline(always)]
pub unsafe fn reduce_lanes<const HEAD_DIM: u32>(
    table: u32,
    position: Position,
    x: [f32; 8],
    combine: impl Fn(f32, f32) -> f32,
) -> f32 {
    let slot = position.slot::<HEAD_DIM>(table);
    // SAFETY: the thread's own slot, then a barrier that all threads reach.
    unsafe {
        store8(slot, x);
        thread::sync_threads();
    }
    // SAFETY: written before the barrier.
    unsafe { reduce_table::<HEAD_DIM, TOKEN_LANES>(table, position.thread, combine) }
}

/// Combines the rows of a table `[L, HEAD_DIM]` pairwise; see [`reduce_lanes`] for who returns what.
#[inline(always)]
unsafe fn reduce_table<const HEAD_DIM: u32, const L: usize>(
    table: u32,
    feature: u32,
    combine: impl Fn(f32, f32) -> f32,
) -> f32 {
    if feature >= HEAD_DIM {
        return 0.0;
    }
    let mut lanes = [0.0f32; L];
    let mut lane = 0;
    while lane < L {
        // SAFETY: inside the table; neighbouring threads read neighbouring words.
        lanes[lane] = unsafe { shared::load_f32(table + (lane as u32 * HEAD_DIM + feature) * 4) };
        lane += 1;
    }
    let mut stride = L / 2;
    while stride > 0 {
        let mut lane = 0;
        while lane < stride {
            lanes[lane] = combine(lanes[lane], lanes[lane + stride]);
            lane += 1;
        }
        stride /= 2;
    }
    lanes[0]
}

/// Combines the posted results of a head's chunks, f32 `[num_chunks, HEAD_DIM]` at `partial`, when they have come:
/// `CHUNK_LANES` strided lanes, each a row of threads of four features, then pairwise. See [`reduce_lanes`] for who returns what.
///
/// # Safety
/// All threads of the CTA call it; the chunks' tiles are begun; `table` has `CHUNK_LANES * HEAD_DIM` f32
/// that nobody else uses until a barrier. `neutral` changes nothing that starts from it.
#[inline(always)]
pub unsafe fn reduce_chunks<const HEAD_DIM: u32>(
    table: u32,
    thread: u32,
    partial: u64,
    num_chunks: u32,
    neutral: f32,
    combine: impl Fn(f32, f32) -> f32,
) -> f32 {
    /// Loads in flight.
    const BATCH: u32 = 4;
    let (lane, feature) = (thread / (HEAD_DIM / 4), thread % (HEAD_DIM / 4) * 4);
    let mut x = [neutral; 4];
    let mut chunk = lane;
    while chunk < num_chunks {
        let row = |i: u32| (chunk + i * CHUNK_LANES as u32).min(num_chunks - 1);
        // SAFETY: chunks that exist.
        let rows = [0, 1, 2, 3]
            .map(|i| unsafe { Four::request(partial + (row(i) as u64 * HEAD_DIM as u64 + feature as u64) * 4) });
        let rows = rows.map(Four::wait);
        let mut i = 0;
        while i < BATCH {
            let exists = chunk + i * (CHUNK_LANES as u32) < num_chunks;
            let mut j = 0;
            while j < 4 {
                x[j] = combine(x[j], if exists { rows[i as usize][j] } else { neutral });
                j += 1;
            }
            i += 1;
        }
        chunk += BATCH * CHUNK_LANES as u32;
    }
    // SAFETY: the thread's own slot, then a barrier that all threads reach.
    unsafe {
        shared::store_u32x4(table + (lane * HEAD_DIM + feature) * 4, x.map(f32::to_bits));
        thread::sync_threads();
        reduce_table::<HEAD_DIM, CHUNK_LANES>(table, thread, combine)
    }
}

/// Stores eight f32 to shared memory.
///
/// # Safety
/// As for [`load8`].
#[inline(always)]
pub unsafe fn store8(address: u32, x: [f32; 8]) {
    let bits = x.map(f32::to_bits);
    // SAFETY: forwarded contract.
    unsafe {
        shared::store_u32x4(address, [bits[0], bits[1], bits[2], bits[3]]);
        shared::store_u32x4(address + 16, [bits[4], bits[5], bits[6], bits[7]]);
    }
}

/// Eight f32 of shared memory.
///
/// # Safety
/// `address` is 16-byte aligned and inside shared memory.
#[inline(always)]
pub unsafe fn load8(address: u32) -> [f32; 8] {
    // SAFETY: forwarded contract.
    let (a, b) = unsafe { (shared::load_u32x4(address), shared::load_u32x4(address + 16)) };
    [a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3]].map(f32::from_bits)
}

/// Combines one value per thread along a row: butterfly over the `HEAD_DIM / 8` neighbouring lanes of the
/// warp, widest first. Every thread gets the same bits, because each step adds the same two numbers.
///
/// # Safety
/// All lanes of the warp call it.
#[inline(always)]
pub unsafe fn reduce_row<const HEAD_DIM: u32>(mut x: f32, combine: impl Fn(f32, f32) -> f32) -> f32 {
    let mut mask = HEAD_DIM / FEATURES / 2;
    while mask > 0 {
        // SAFETY: forwarded contract.
        x = combine(x, unsafe { warp::shuffle_xor_f32(x, mask) });
        mask /= 2;
    }
    x
}

/// Largest magnitude of eight values; NaN if one is NaN.
#[inline(always)]
pub fn amax(x: &[f32; 8]) -> f32 {
    let mut largest = math::abs(x[0]);
    let mut i = 1;
    while i < 8 {
        largest = math::max_propagate_nan(largest, math::abs(x[i]));
        i += 1;
    }
    largest
}
