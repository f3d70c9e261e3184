//! Ampere's asynchronous copies from global to shared memory. A copy lands when it is waited for.

use std::panic::Location;

use crate::executor::context::call;

/// `cp.async.cg.shared.global [dst], [src], 16` [cp.async].
///
/// # Safety
/// None is needed here: the executor checks what the PTX back end asks for.
#[inline]
#[track_caller]
pub unsafe fn copy16(dst_shared: u32, src_global: u64) {
    call(Location::caller(), |machine, at| machine.copy_async(dst_shared, src_global, at))
}

/// How long a line stays in the L2 cache. There is none here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CachePolicy(pub u64);

/// `createpolicy.fractional.L2::evict_first.b64` [createpolicy].
#[inline]
pub fn evict_first() -> CachePolicy {
    CachePolicy(0)
}

/// `createpolicy.fractional.L2::evict_last.b64` [createpolicy].
#[inline]
pub fn evict_last() -> CachePolicy {
    CachePolicy(1)
}

/// `cp.async.cg.shared.global.L2::cache_hint [dst], [src], 16, policy` [cp.async]; a policy changes no result.
///
/// # Safety
/// As for [`copy16`].
#[inline]
#[track_caller]
pub unsafe fn copy16_with_policy(dst_shared: u32, src_global: u64, _policy: CachePolicy) {
    call(Location::caller(), |machine, at| machine.copy_async(dst_shared, src_global, at))
}

/// `cp.async.commit_group` [cp.async.commit_group].
#[inline]
#[track_caller]
pub fn commit_group() {
    call(Location::caller(), |machine, _| {
        machine.commit_copies();
        Ok(())
    })
}

/// `cp.async.wait_group N` [cp.async.wait_group].
#[inline]
#[track_caller]
pub fn wait_group<const N: u32>() {
    call(Location::caller(), |machine, _| {
        machine.wait_copies(N as usize);
        Ok(())
    })
}
