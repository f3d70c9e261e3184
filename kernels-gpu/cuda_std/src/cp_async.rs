//! Ampere's asynchronous copies from global to shared memory (sm_80). Only the 16-byte form exists
//! here, and only over padded buffers: the form that leaves a tail unfilled has caused NaN in peers.

use core::arch::asm;

/// `cp.async.cg.shared.global [dst], [src], 16` [cp.async]: starts one 16-byte copy past L1.
///
/// # Safety
/// Both addresses are 16-byte aligned and valid; `dst` is not accessed before a later
/// [`wait_group`] of this thread and, for other threads, a barrier after it.
#[inline(always)]
pub unsafe fn copy16(dst_shared: u32, src_global: u64) {
    // SAFETY: the caller vouches for both addresses.
    unsafe {
        asm!("cp.async.cg.shared.global [{}], [{}], 16;", in(reg32) dst_shared, in(reg64) src_global, options(nostack))
    };
}

/// How long a line stays in the L2 cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CachePolicy(pub u64);

/// `createpolicy.fractional.L2::evict_first.b64 1.0` [createpolicy]: leaves the cache before other lines. For what
/// nobody reads again.
#[inline(always)]
pub fn evict_first() -> CachePolicy {
    let policy: u64;
    // SAFETY: makes a number.
    unsafe {
        asm!("createpolicy.fractional.L2::evict_first.b64 {}, 1.0;", out(reg64) policy, options(pure, nomem, nostack))
    };
    CachePolicy(policy)
}

/// `createpolicy.fractional.L2::evict_last.b64 1.0` [createpolicy]: stays in the cache longer than other lines. For
/// what is read again soon.
#[inline(always)]
pub fn evict_last() -> CachePolicy {
    let policy: u64;
    // SAFETY: makes a number.
    unsafe {
        asm!("createpolicy.fractional.L2::evict_last.b64 {}, 1.0;", out(reg64) policy, options(pure, nomem, nostack))
    };
    CachePolicy(policy)
}

/// [`copy16`] with a cache policy: `cp.async.cg.shared.global.L2::cache_hint` [cp.async].
///
/// Where the shared address is a register plus a uniform register, the driver's ptxas (13.0) makes an instruction of it
/// that an H200 refuses as illegal. Let the address be one register; a test looks at the machine code of all kernels.
///
/// # Safety
/// As for [`copy16`].
#[inline(always)]
pub unsafe fn copy16_with_policy(dst_shared: u32, src_global: u64, policy: CachePolicy) {
    // SAFETY: the caller vouches for both addresses.
    unsafe {
        asm!("cp.async.cg.shared.global.L2::cache_hint [{}], [{}], 16, {};", in(reg32) dst_shared, in(reg64) src_global, in(reg64) policy.0, options(nostack))
    };
}

/// `cp.async.commit_group` [cp.async.commit_group]: closes the group of copies started so far.
#[inline(always)]
pub fn commit_group() {
    // SAFETY: bookkeeping only.
    unsafe { asm!("cp.async.commit_group;", options(nostack)) };
}

/// `cp.async.wait_group N` [cp.async.wait_group]: waits until at most the `N` newest groups of this
/// thread are in flight.
#[inline(always)]
pub fn wait_group<const N: u32>() {
    // SAFETY: waits; the memory clobber keeps later reads behind it.
    unsafe { asm!("cp.async.wait_group {};", const N, options(nostack)) };
}
