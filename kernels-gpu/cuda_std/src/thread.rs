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
