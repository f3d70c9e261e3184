//! Where a thread is in its CTA and grid, and the CTA barrier. Names as in rust-cuda's `thread`.

use core::arch::{asm, nvptx};

/// `%tid.x` [Special Registers].
#[inline(always)]
pub fn thread_idx_x() -> u32 {
    // SAFETY: reads a special register.
    unsafe { nvptx::_thread_idx_x() as u32 }
}

/// `%ctaid.x` [Special Registers].
#[inline(always)]
pub fn block_idx_x() -> u32 {
    // SAFETY: reads a special register.
    unsafe { nvptx::_block_idx_x() as u32 }
}

/// `%ctaid.y` [Special Registers].
#[inline(always)]
pub fn block_idx_y() -> u32 {
    // SAFETY: reads a special register.
    unsafe { nvptx::_block_idx_y() as u32 }
}

/// `%ntid.x` [Special Registers].
#[inline(always)]
pub fn block_dim_x() -> u32 {
    // SAFETY: reads a special register.
    unsafe { nvptx::_block_dim_x() as u32 }
}

/// `%nctaid.x` [Special Registers].
#[inline(always)]
pub fn grid_dim_x() -> u32 {
    // SAFETY: reads a special register.
    unsafe { nvptx::_grid_dim_x() as u32 }
}

/// `%tid.y` [Special Registers].
#[inline(always)]
pub fn thread_idx_y() -> u32 {
    // SAFETY: reads a special register.
    unsafe { nvptx::_thread_idx_y() as u32 }
}

/// `%tid.z` [Special Registers].
#[inline(always)]
pub fn thread_idx_z() -> u32 {
    // SAFETY: reads a special register.
    unsafe { nvptx::_thread_idx_z() as u32 }
}

/// `%ctaid.z` [Special Registers].
#[inline(always)]
pub fn block_idx_z() -> u32 {
    // SAFETY: reads a special register.
    unsafe { nvptx::_block_idx_z() as u32 }
}

/// `%ntid.y` [Special Registers].
#[inline(always)]
pub fn block_dim_y() -> u32 {
    // SAFETY: reads a special register.
    unsafe { nvptx::_block_dim_y() as u32 }
}

/// `%ntid.z` [Special Registers].
#[inline(always)]
pub fn block_dim_z() -> u32 {
    // SAFETY: reads a special register.
    unsafe { nvptx::_block_dim_z() as u32 }
}

/// `%nctaid.y` [Special Registers].
#[inline(always)]
pub fn grid_dim_y() -> u32 {
    // SAFETY: reads a special register.
    unsafe { nvptx::_grid_dim_y() as u32 }
}

/// `%nctaid.z` [Special Registers].
#[inline(always)]
pub fn grid_dim_z() -> u32 {
    // SAFETY: reads a special register.
    unsafe { nvptx::_grid_dim_z() as u32 }
}

/// Global thread index along x.
#[inline(always)]
pub fn index_1d() -> u32 {
    block_idx_x() * block_dim_x() + thread_idx_x()
}

/// `bar.sync 0` [bar.sync]: waits for all threads of the CTA and orders their memory accesses.
///
/// # Safety
/// Every thread of the CTA must reach this same call.
#[inline(always)]
pub unsafe fn sync_threads() {
    // SAFETY: the caller keeps control flow uniform; the intrinsic is convergent.
    unsafe { nvptx::_syncthreads() }
}

unsafe extern "C" {
    #[link_name = "llvm.nvvm.barrier.cta.sync.aligned.count"]
    fn barrier_sync(barrier: i32, threads: i32);
    #[link_name = "llvm.nvvm.barrier.cta.arrive.aligned.count"]
    fn barrier_arrive(barrier: i32, threads: i32);
    #[link_name = "llvm.nvvm.barrier.cta.red.or.aligned.count"]
    fn barrier_or(barrier: i32, threads: i32, condition: bool) -> bool;
}

/// `bar.sync barrier, threads` [bar]: waits until `threads` threads, a multiple of 32, have arrived at barrier
/// 0 to 15, and orders their memory accesses.
///
/// # Safety
/// Whole warps reach this same call; all that use the barrier name the same number of threads.
#[inline(always)]
pub unsafe fn sync_named(barrier: u32, threads: u32) {
    // SAFETY: the caller keeps control flow uniform; the intrinsic is convergent.
    unsafe { barrier_sync(barrier as i32, threads as i32) }
}

/// `bar.arrive barrier, threads` [bar]: arrives without waiting; earlier accesses come before what follows the
/// others' [`sync_named`].
///
/// # Safety
/// As for [`sync_named`].
#[inline(always)]
pub unsafe fn arrive_named(barrier: u32, threads: u32) {
    // SAFETY: the caller keeps control flow uniform; the intrinsic is convergent.
    unsafe { barrier_arrive(barrier as i32, threads as i32) }
}

/// `bar.red.or.pred condition, barrier, threads` [bar]: as [`sync_named`]; whether `condition` holds in any of the threads.
///
/// # Safety
/// As for [`sync_named`].
#[inline(always)]
pub unsafe fn any_named(barrier: u32, threads: u32, condition: bool) -> bool {
    // SAFETY: the caller keeps control flow uniform; the intrinsic is convergent.
    unsafe { barrier_or(barrier as i32, threads as i32, condition) }
}

/// `%tid.x`, read again: unlike [`thread_idx_x`] the compiler may not reuse an earlier result, so that
/// the index and what derives from it need not stay in registers across a main loop.
#[inline(always)]
pub fn reread_thread_idx_x() -> u32 {
    let index: u32;
    // SAFETY: reads a special register.
    unsafe { asm!("mov.u32 {}, %tid.x;", out(reg32) index, options(nomem, nostack)) };
    index
}

/// `%ctaid.x`, read again; see [`reread_thread_idx_x`].
#[inline(always)]
pub fn reread_block_idx_x() -> u32 {
    let index: u32;
    // SAFETY: reads a special register.
    unsafe { asm!("mov.u32 {}, %ctaid.x;", out(reg32) index, options(nomem, nostack)) };
    index
}

/// `%ctaid.y`, read again; see [`reread_thread_idx_x`].
#[inline(always)]
pub fn reread_block_idx_y() -> u32 {
    let index: u32;
    // SAFETY: reads a special register.
    unsafe { asm!("mov.u32 {}, %ctaid.y;", out(reg32) index, options(nomem, nostack)) };
    index
}
