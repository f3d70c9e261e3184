//! Kernels with one mistake each, of the kind that one tool of `compute-sanitizer` is there to find. A tool that
//! does not find its own has not looked, and its silence about the other kernels says nothing. `synccheck` has three,
//! of which it must find one: what it looks at is not said anywhere.

use cuda_std::{atomic, global, kernel, shared, thread, warp};

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

/// synccheck: half of a warp waits at a barrier of the CTA while the other half, still there, does something else. A
/// half that has ended would be legal since Volta: the barrier is for those that have not.
///
/// # Safety
/// As for [`control_out_of_bounds`].
#[kernel(max_threads = 64)]
pub unsafe fn control_divergent_barrier(p: Buffers) {
    let (thread, smem) = (thread::thread_idx_x(), shared::dynamic_shared_mem());
    let flag = p.output + 63 * 4;
    // SAFETY: broken on purpose.
    unsafe {
        if thread < 48 {
            shared::store_u32(smem + thread * 4, thread);
            atomic::store_release(flag, 1);
            thread::sync_threads();
            global::store_u32(p.output + thread as u64 * 4, shared::load_u32(smem + (47 - thread) * 4));
        } else {
            // Until the others are at the barrier, and a while longer; not for ever, or the GPU would hang.
            let mut turns = 0;
            while turns < 1 << 20 && atomic::load_acquire(flag) == 0 {
                turns += 1;
            }
            turns = 0;
            while turns < 256 && atomic::load_acquire(flag) != 0 {
                turns += 1;
            }
        }
    }
}

/// synccheck: the seventeenth lane calls a barrier of lanes 0 to 15.
///
/// # Safety
/// As for [`control_out_of_bounds`].
#[kernel(max_threads = 64)]
pub unsafe fn control_lanes_of_a_barrier(p: Buffers) {
    let (thread, smem) = (thread::thread_idx_x(), shared::dynamic_shared_mem());
    let lane = thread % warp::WARP_SIZE;
    // SAFETY: broken on purpose.
    unsafe {
        shared::store_u32(smem + thread * 4, thread);
        let lanes = warp::vote_ballot(lane < 16);
        if lane <= 16 {
            sync_lanes(lanes);
        }
        global::store_u32(p.output + thread as u64 * 4, shared::load_u32(smem + thread * 4));
    }
}

// `bar.warp.sync` of some lanes [bar.warp.sync], which no other kernel has a use for.
#[cfg(target_arch = "nvptx64")]
unsafe extern "C" {
    #[link_name = "llvm.nvvm.bar.warp.sync"]
    fn sync_lanes(lanes: u32);
}

/// The executor knows the barrier of all lanes only, to which some do not come either.
#[cfg(not(target_arch = "nvptx64"))]
unsafe fn sync_lanes(_: u32) {
    // SAFETY: broken on purpose.
    unsafe { warp::sync_warp() }
}

/// synccheck: arrivals at an mbarrier that nobody has made.
///
/// # Safety
/// As for [`control_out_of_bounds`].
#[cfg(feature = "sm_90a")]
#[kernel(max_threads = 64)]
pub unsafe fn control_barrier_without_init(p: Buffers) {
    // SAFETY: broken on purpose.
    unsafe {
        cuda_std::mbarrier::arrive(shared::dynamic_shared_mem());
        global::store_u32(p.output + thread::thread_idx_x() as u64 * 4, 1);
    }
}
