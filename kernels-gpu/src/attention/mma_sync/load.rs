//! Copies of tiles from global to shared memory. All buffers are padded, so no copy needs a guard.

use cuda_std::{cp_async, thread};
use sage_spec::tiling::ATTENTION_THREADS;

use crate::tile::swizzle::chunk_offset;

const THREADS: u32 = ATTENTION_THREADS as u32;

/// One thread's share of the copies of a tile of `ROWS` rows of `ROW_BYTES` bytes: consecutive threads
/// copy consecutive 16-byte chunks, and the tile is swizzled on its way.
#[derive(Clone, Copy)]
pub struct TileCopy<const ROWS: u32, const ROW_BYTES: u32> {
    /// Global address of the thread's second chunk, one pass after its first: the signed 12-bit offsets
    /// of `cp.async` in SASS then reach both from one address.
    src: u64,
    /// Offset of the thread's first chunk in the shared tile.
    dst: u32,
}

impl<const ROWS: u32, const ROW_BYTES: u32> TileCopy<ROWS, ROW_BYTES> {
    const CHUNKS_PER_ROW: u32 = ROW_BYTES / 16;
    /// A multiple of the swizzle's period of eight rows: a thread's chunk keeps its permutation.
    const ROWS_PER_PASS: u32 = THREADS / Self::CHUNKS_PER_ROW;

    /// For the tile at global address `src` whose rows are `row_pitch` bytes apart.
    #[inline(always)]
    pub fn new(src: u64, row_pitch: u64) -> Self {
        let thread = thread::thread_idx_x();
        let (row, chunk) = (thread / Self::CHUNKS_PER_ROW, thread % Self::CHUNKS_PER_ROW);
        TileCopy {
            src: src + (row + Self::ROWS_PER_PASS) as u64 * row_pitch + chunk as u64 * 16,
            dst: chunk_offset(ROW_BYTES, row, chunk),
        }
    }

    /// Starts the copies to the shared tile at `dst`.
    ///
    /// # Safety
    /// All `ATTENTION_THREADS` threads call it; the source is readable and 16-byte aligned; the tile
    /// fits at `dst`, which nobody is using.
    #[inline(always)]
    pub unsafe fn start(&self, dst: u32, row_pitch: u64) {
        let mut row = 0;
        while row < ROWS {
            // SAFETY: forwarded contract.
            unsafe {
                cp_async::copy16(
                    dst + self.dst + row * ROW_BYTES,
                    self.src + row as u64 * row_pitch - Self::ROWS_PER_PASS as u64 * row_pitch,
                )
            };
            row += Self::ROWS_PER_PASS;
        }
    }

    /// Copies the tile `index` tiles after this one, which are `bytes` bytes apart. Computed from the first
    /// tile each time: one wide multiply-add on a constant pair of registers, where an advancing
    /// 64-bit address costs four instructions (ptxas moves its halves about).
    #[inline(always)]
    pub fn tile(&self, index: u32, bytes: u32) -> Self {
        TileCopy { src: self.src + index as u64 * bytes as u64, dst: self.dst }
    }
}

/// Starts the copy of 64 ΔS values.
///
/// # Safety
/// As for [`TileCopy::start`].
#[inline(always)]
pub unsafe fn delta_s(dst: u32, src: u64) {
    let thread = thread::thread_idx_x();
    if thread < 16 {
        // SAFETY: forwarded contract.
        unsafe { cp_async::copy16(dst + thread * 16, src + thread as u64 * 16) };
    }
}
