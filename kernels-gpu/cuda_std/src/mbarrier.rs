//! Barriers in shared memory that count arrivals of threads and bytes of asynchronous copies [mbarrier]
//! (sm_90). A barrier is 8 bytes, 8-byte aligned. Its phase completes when the expected arrivals and all
//! announced bytes have come; phases alternate in parity, the first one being phase 0.

use core::arch::asm;

/// `mbarrier.init.shared::cta.b64`: a barrier that expects `arrivals` arrivals a phase.
///
/// # Safety
/// `barrier` is aligned, inside the CTA's shared memory, and used by nobody yet.
#[inline(always)]
pub unsafe fn init(barrier: u32, arrivals: u32) {
    // SAFETY: the caller vouches for the address.
    unsafe { asm!("mbarrier.init.shared::cta.b64 [{}], {};", in(reg32) barrier, in(reg32) arrivals, options(nostack)) }
}

/// `fence.mbarrier_init.release.cluster` [membar/fence]: makes earlier [`init`]s visible to asynchronous
/// copies; the CTA's barrier makes them visible to its threads.
///
/// # Safety
/// None beyond that of the barriers.
#[inline(always)]
pub unsafe fn fence_init() {
    // SAFETY: orders memory, nothing else.
    unsafe { asm!("fence.mbarrier_init.release.cluster;", options(nostack)) }
}

/// `mbarrier.arrive.shared::cta.b64`: one arrival, releasing the thread's earlier accesses.
///
/// # Safety
/// `barrier` is initialised and expects this arrival.
#[inline(always)]
pub unsafe fn arrive(barrier: u32) {
    // SAFETY: the caller vouches for the barrier.
    unsafe { asm!("mbarrier.arrive.shared::cta.b64 _, [{}];", in(reg32) barrier, options(nostack)) }
}

/// `mbarrier.arrive.expect_tx.shared::cta.b64`: announces `bytes` of asynchronous copies, then arrives.
///
/// # Safety
/// As for [`arrive`].
#[inline(always)]
pub unsafe fn arrive_expect_tx(barrier: u32, bytes: u32) {
    // SAFETY: the caller vouches for the barrier.
    unsafe {
        asm!("mbarrier.arrive.expect_tx.shared::cta.b64 _, [{}], {};", in(reg32) barrier, in(reg32) bytes, options(nostack))
    }
}

/// `mbarrier.try_wait.parity.shared::cta.b64`: whether the phase of parity `parity` has completed, waiting
/// for a while if it has not.
///
/// # Safety
/// `barrier` is initialised; the current phase or the one before it has this parity.
#[inline(always)]
pub unsafe fn try_wait(barrier: u32, parity: u32) -> bool {
    let done: u32;
    // SAFETY: the caller vouches for the barrier.
    unsafe {
        asm!("{{ .reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [{1}], {2}; selp.b32 {0}, 1, 0, p; }}",
            out(reg32) done, in(reg32) barrier, in(reg32) parity, options(nostack));
    }
    done != 0
}

/// Waits until the phase of parity `parity` has completed, and acquires what its arrivals released.
///
/// # Safety
/// As for [`try_wait`].
#[inline(always)]
pub unsafe fn wait(barrier: u32, parity: u32) {
    // SAFETY: forwarded contract.
    while !unsafe { try_wait(barrier, parity) } {}
}

/// As [`wait`], for a phase that the thread may have waited for before: then it passes at once.
///
/// # Safety
/// As for [`try_wait`].
#[inline(always)]
pub unsafe fn wait_again(barrier: u32, parity: u32) {
    // SAFETY: forwarded contract.
    unsafe { wait(barrier, parity) }
}
