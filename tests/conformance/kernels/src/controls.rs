//! Kernels with one mistake each, of the kind that one tool of `compute-sanitizer` is there to find. A tool that
//! does not find its own has not looked, and its silence about the other kernels says nothing.

use cuda_std::{global, kernel, shared, thread};

use crate::Buffers;

/// memcheck: every thread stores one word too far on, the last one beyond the buffer.
///
/// # Safety
/// None is kept: that is the point.
#[kernel(max_threads = 64)]
pub unsafe fn control_out_of_bounds(p: Buffers) {
    // SAFETY: broken on purpose.
    unsafe { global::store_u32(p.output + (thread::index_1d() as u64 + 1) * 4, 1) };
}

/// racecheck: a warp reads what another has written, without a barrier.
///
/// # Safety
/// As for [`control_out_of_bounds`].
#[kernel(max_threads = 64)]
pub unsafe fn control_shared_race(p: Buffers) {
    let (thread, smem) = (thread::thread_idx_x(), shared::dynamic_shared_mem());
    // SAFETY: broken on purpose.
    unsafe {
        shared::store_u32(smem + thread * 4, 0);
        thread::sync_threads();
        shared::store_u32(smem + thread * 4, thread);
        let other = shared::load_u32(smem + (thread ^ 32) * 4);
        global::store_u32(p.output + thread as u64 * 4, other);
    }
}

/// initcheck: `image` has no values.
///
/// # Safety
/// As for [`control_out_of_bounds`].
#[kernel(max_threads = 64)]
pub unsafe fn control_uninitialised(p: Buffers) {
    let offset = thread::index_1d() as u64 * 4;
    // SAFETY: broken on purpose.
    unsafe { global::store_u32(p.output + offset, global::load_u32(p.image + offset)) };
}

/// synccheck: half of a warp goes to a barrier, the other half never does.
///
/// # Safety
/// As for [`control_out_of_bounds`].
#[kernel(max_threads = 64)]
pub unsafe fn control_divergent_barrier(p: Buffers) {
    let (thread, smem) = (thread::thread_idx_x(), shared::dynamic_shared_mem());
    // SAFETY: broken on purpose.
    unsafe {
        if thread < 48 {
            shared::store_u32(smem + thread * 4, thread);
            thread::sync_threads();
            global::store_u32(p.output + thread as u64 * 4, shared::load_u32(smem + (47 - thread) * 4));
        }
    }
}
