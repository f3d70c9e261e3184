//! The tensor memory accelerator [cp.async.bulk, cp.async.bulk.tensor] (sm_90): copies by one thread that
//! complete on a [`crate::mbarrier`].

use core::arch::asm;

/// `fence.proxy.async.shared::cta` [membar/fence]: orders this thread's ordinary accesses to shared memory
/// before the asynchronous ones (tensor-core operands, bulk copies) that follow a barrier.
///
/// # Safety
/// None: orders memory, nothing else.
#[inline(always)]
pub unsafe fn fence_proxy_async() {
    // SAFETY: orders memory, nothing else.
    unsafe { asm!("fence.proxy.async.shared::cta;", options(nostack)) }
}

/// `prefetch.tensormap` [prefetch]: brings a tensor map to the descriptor cache.
///
/// # Safety
/// `map` is the 64-byte aligned global address of a tensor map.
#[inline(always)]
pub unsafe fn prefetch_map(map: u64) {
    // SAFETY: the caller vouches for the map.
    unsafe { asm!("prefetch.tensormap [{}];", in(reg64) map, options(nostack)) }
}

/// `cp.async.bulk.tensor.3d` from global to shared memory: the box at element `x`, row `y`, plane `z` of
/// `map`. Elements outside the tensor arrive as zeros and count as bytes.
///
/// # Safety
/// `map` is the 64-byte aligned global address of a tensor map of three dimensions; `shared` is aligned as
/// its swizzle wants and has room for a box; `barrier` expects the box's bytes.
#[inline(always)]
pub unsafe fn load_3d(shared: u32, map: u64, x: u32, y: u32, z: u32, barrier: u32) {
    // SAFETY: the caller vouches for all addresses.
    unsafe {
        asm!("cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [{}], [{}, {{{}, {}, {}}}], [{}];",
            in(reg32) shared, in(reg64) map, in(reg32) x, in(reg32) y, in(reg32) z, in(reg32) barrier, options(nostack));
    }
}

/// `cp.async.bulk` from global to shared memory: `bytes` contiguous bytes, a multiple of 16.
///
/// # Safety
/// Both addresses are 16-byte aligned and their ranges mapped; `barrier` expects the bytes.
#[inline(always)]
pub unsafe fn load_bulk(shared: u32, global: u64, bytes: u32, barrier: u32) {
    // SAFETY: the caller vouches for all addresses.
    unsafe {
        asm!("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [{}], [{}], {}, [{}];",
            in(reg32) shared, in(reg64) global, in(reg32) bytes, in(reg32) barrier, options(nostack));
    }
}
