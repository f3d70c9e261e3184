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
