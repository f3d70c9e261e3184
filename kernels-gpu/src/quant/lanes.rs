//! The threads of a CTA as `TOKEN_LANES` lanes of tokens by columns of eight features, and reductions
//! over both.

use cuda_std::{math, shared, thread, warp};
use sage_spec::reduce::{FEATURES_PER_THREAD, TOKEN_LANES};

/// Token lanes.
pub const LANES: u32 = TOKEN_LANES as u32;
const FEATURES: u32 = FEATURES_PER_THREAD as u32;

/// Position of a thread.
#[derive(Clone, Copy)]
pub struct Position {
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
        let thread = thread::thread_idx_x();
        Position { lane: thread / columns, first_feature: thread % columns * FEATURES }
    }
}

/// Combines the token lanes pairwise (`sage_spec::reduce`: lane r with lane r + 16, then + 8, ...), `N` rows
/// of values at once, each by its own `HEAD_DIM` threads: thread `n * HEAD_DIM + feature` returns the result of
/// row `n`, the others return 0. `combine` gets the row.
///
/// # Safety
/// All threads of the CTA call it, at least `N * HEAD_DIM`; `smem` has `N * LANES * HEAD_DIM` f32 that nobody
/// else uses.
#[inline(always)]
pub unsafe fn reduce_lanes<const HEAD_DIM: u32, const N: usize>(
    smem: u32,
    position: Position,
    x: [[f32; 8]; N],
    combine: impl Fn(usize, f32, f32) -> f32,
) -> f32 {
    let mut n = 0;
    while n < N {
        let slot = smem + ((n as u32 * LANES + position.lane) * HEAD_DIM + position.first_feature) * 4;
        let bits = x[n].map(f32::to_bits);
        // SAFETY: the thread's own slot.
        unsafe {
            shared::store_u32x4(slot, [bits[0], bits[1], bits[2], bits[3]]);
            shared::store_u32x4(slot + 16, [bits[4], bits[5], bits[6], bits[7]]);
        }
        n += 1;
    }
    // SAFETY: all threads are here.
    unsafe { thread::sync_threads() };
    let (row, feature) = (thread::thread_idx_x() / HEAD_DIM, thread::thread_idx_x() % HEAD_DIM);
    let mut result = 0.0;
    let mut n = 0;
    while n < N {
        if row == n as u32 {
            let mut lanes = [0.0f32; TOKEN_LANES];
            let mut lane = 0;
            while lane < TOKEN_LANES {
                // SAFETY: written before the barrier; neighbouring threads read neighbouring words.
                lanes[lane] =
                    unsafe { shared::load_f32(smem + ((n * TOKEN_LANES + lane) as u32 * HEAD_DIM + feature) * 4) };
                lane += 1;
            }
            let mut stride = TOKEN_LANES / 2;
            while stride > 0 {
                let mut lane = 0;
                while lane < stride {
                    lanes[lane] = combine(n, lanes[lane], lanes[lane + stride]);
                    lane += 1;
                }
                stride /= 2;
            }
            result = lanes[0];
        }
        n += 1;
    }
    result
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
