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

/// Combines the sixteen lanes pairwise (`sage_spec::reduce`: lane r with lane r + 8, then + 4, ...), `N`
/// rows of values at once. Lane 0 holds the results.
///
/// # Safety
/// All threads of the CTA call it; `smem` has `N * LANES * HEAD_DIM` f32 that nobody else uses.
#[inline(always)]
pub unsafe fn reduce_lanes<const HEAD_DIM: u32, const N: usize>(
    smem: u32,
    position: Position,
    mut x: [[f32; 8]; N],
    combine: [fn(f32, f32) -> f32; N],
) -> [[f32; 8]; N] {
    let slot = |n: usize, lane: u32| smem + ((n as u32 * LANES + lane) * HEAD_DIM + position.first_feature) * 4;
    let mut stride = LANES / 2;
    while stride > 0 {
        // Lanes stride..2·stride hand over; the slots they write are not those read in this round or
        // the one before, so one barrier a round is enough.
        if position.lane >= stride && position.lane < 2 * stride {
            let mut n = 0;
            while n < N {
                let bits = x[n].map(f32::to_bits);
                // SAFETY: the lane's own slot.
                unsafe {
                    shared::store_u32x4(slot(n, position.lane), [bits[0], bits[1], bits[2], bits[3]]);
                    shared::store_u32x4(slot(n, position.lane) + 16, [bits[4], bits[5], bits[6], bits[7]]);
                }
                n += 1;
            }
        }
        // SAFETY: uniform loop.
        unsafe { thread::sync_threads() };
        if position.lane < stride {
            let mut n = 0;
            while n < N {
                // SAFETY: written before the barrier.
                let other = unsafe { load8(slot(n, position.lane + stride)) };
                let mut i = 0;
                while i < 8 {
                    x[n][i] = combine[n](x[n][i], other[i]);
                    i += 1;
                }
                n += 1;
            }
        }
        stride /= 2;
    }
    x
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
