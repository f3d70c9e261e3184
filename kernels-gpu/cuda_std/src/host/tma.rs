//! The tensor memory accelerator [cp.async.bulk, cp.async.bulk.tensor]: copies by one thread that complete on
//! a [`crate::mbarrier`]. They land at a time of the scheduler's choice.

use std::panic::Location;

use crate::executor::TensorMap;
use crate::executor::context::call;

/// `fence.proxy.async.shared::cta` [membar/fence].
///
/// # Safety
/// None is needed here: the executor checks what the PTX back end asks for.
#[inline]
#[track_caller]
pub unsafe fn fence_proxy_async() {
    call(Location::caller(), |machine, _| {
        machine.fence_proxy();
        Ok(())
    })
}

/// `prefetch.tensormap` [prefetch].
///
/// # Safety
/// `map` is the address of a [`TensorMap::encode`](crate::executor::TensorMap::encode) in host memory, a field
/// of the kernel's parameter for instance.
#[inline]
#[track_caller]
pub unsafe fn prefetch_map(map: u64) {
    // SAFETY: the caller vouches for the address.
    let map = unsafe { (map as usize as *const [u64; 16]).read_unaligned() };
    call(Location::caller(), |_, _| TensorMap::decode(&map).map(drop))
}

/// `cp.async.bulk.tensor.3d` from global to shared memory: the box at element `x`, row `y`, plane `z` of
/// `map`. Elements outside the tensor arrive as zeros and count as bytes.
///
/// # Safety
/// As for [`prefetch_map`].
#[inline]
#[track_caller]
pub unsafe fn load_3d(shared: u32, map: u64, x: u32, y: u32, z: u32, barrier: u32) {
    // SAFETY: the caller vouches for the address.
    let map = unsafe { (map as usize as *const [u64; 16]).read_unaligned() };
    call(Location::caller(), |machine, at| machine.copy_tensor(shared, &map, [x, y, z], barrier, at))
}

/// `cp.async.bulk` from global to shared memory: `bytes` contiguous bytes, a multiple of 16.
///
/// # Safety
/// As for [`fence_proxy_async`].
#[inline]
#[track_caller]
pub unsafe fn load_bulk(shared: u32, global: u64, bytes: u32, barrier: u32) {
    call(Location::caller(), |machine, at| machine.copy_bulk(shared, global, bytes, barrier, at))
}
