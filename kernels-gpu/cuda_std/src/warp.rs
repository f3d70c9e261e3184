//! Exchange between the lanes of a warp. All lanes must take part (`membermask` is all ones).

use core::arch::asm;

/// Threads of a warp.
pub const WARP_SIZE: u32 = 32;

unsafe extern "C" {
    #[link_name = "llvm.nvvm.shfl.sync.bfly.i32"]
    fn shfl_sync_bfly(membermask: i32, value: i32, lane_mask: i32, clamp: i32) -> i32;
    #[link_name = "llvm.nvvm.shfl.sync.idx.i32"]
    fn shfl_sync_idx(membermask: i32, value: i32, lane: i32, clamp: i32) -> i32;
    #[link_name = "llvm.nvvm.vote.all.sync"]
    fn vote_all_sync(membermask: i32, predicate: bool) -> bool;
    #[link_name = "llvm.nvvm.vote.any.sync"]
    fn vote_any_sync(membermask: i32, predicate: bool) -> bool;
    #[link_name = "llvm.nvvm.vote.ballot.sync"]
    fn vote_ballot_sync(membermask: i32, predicate: bool) -> i32;
    #[link_name = "llvm.nvvm.bar.warp.sync"]
    fn bar_warp_sync(membermask: i32);
}

/// `%laneid` [Special Registers].
#[inline(always)]
pub fn lane_id() -> u32 {
    let lane: u32;
    // SAFETY: reads a special register.
    unsafe { asm!("mov.u32 {}, %laneid;", out(reg32) lane, options(pure, nomem, nostack)) };
    lane
}

/// `shfl.sync.bfly.b32` [shfl.sync]: the value of lane `lane ^ mask`.
///
/// # Safety
/// All 32 lanes must reach this same call.
#[inline(always)]
pub unsafe fn shuffle_xor(value: u32, mask: u32) -> u32 {
    // SAFETY: the caller keeps the warp converged.
    unsafe { shfl_sync_bfly(-1, value as i32, mask as i32, 0x1f) as u32 }
}

/// [`shuffle_xor`] of an `f32`.
///
/// # Safety
/// As for [`shuffle_xor`].
#[inline(always)]
pub unsafe fn shuffle_xor_f32(value: f32, mask: u32) -> f32 {
    // SAFETY: forwarded contract.
    f32::from_bits(unsafe { shuffle_xor(value.to_bits(), mask) })
}

/// `shfl.sync.idx.b32` [shfl.sync]: the value of lane `lane`.
///
/// # Safety
/// All 32 lanes must reach this same call.
#[inline(always)]
pub unsafe fn shuffle_idx(value: u32, lane: u32) -> u32 {
    // SAFETY: the caller keeps the warp converged.
    unsafe { shfl_sync_idx(-1, value as i32, lane as i32, 0x1f) as u32 }
}

/// `vote.sync.all.pred` [vote.sync]: whether `predicate` holds in every lane.
///
/// # Safety
/// All 32 lanes must reach this same call.
#[inline(always)]
pub unsafe fn vote_all(predicate: bool) -> bool {
    // SAFETY: the caller keeps the warp converged.
    unsafe { vote_all_sync(-1, predicate) }
}

/// `vote.sync.any.pred` [vote.sync]: whether `predicate` holds in a lane.
///
/// # Safety
/// All 32 lanes must reach this same call.
#[inline(always)]
pub unsafe fn vote_any(predicate: bool) -> bool {
    // SAFETY: the caller keeps the warp converged.
    unsafe { vote_any_sync(-1, predicate) }
}

/// `vote.sync.ballot.b32` [vote.sync]: bit `l` is the predicate of lane `l`.
///
/// # Safety
/// All 32 lanes must reach this same call.
#[inline(always)]
pub unsafe fn vote_ballot(predicate: bool) -> u32 {
    // SAFETY: the caller keeps the warp converged.
    unsafe { vote_ballot_sync(-1, predicate) as u32 }
}

/// `bar.warp.sync` [bar.warp.sync]: converges the warp and orders its memory accesses.
///
/// # Safety
/// All 32 lanes must reach this same call.
#[inline(always)]
pub unsafe fn sync_warp() {
    // SAFETY: the caller keeps the warp converged.
    unsafe { bar_warp_sync(-1) }
}
