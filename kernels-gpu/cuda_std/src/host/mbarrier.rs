//! Barriers in shared memory that count arrivals of threads and bytes of asynchronous copies [mbarrier].

use std::panic::Location;

use crate::executor::context::{call, call_waiting};

/// `mbarrier.init.shared::cta.b64`: a barrier that expects `arrivals` arrivals a phase.
///
/// # Safety
/// None is needed here: the executor checks what the PTX back end asks for.
#[inline]
#[track_caller]
pub unsafe fn init(barrier: u32, arrivals: u32) {
    call(Location::caller(), |machine, at| machine.init_phases(barrier, arrivals, at))
}

/// `fence.mbarrier_init.release.cluster` [membar/fence]: makes earlier [`init`]s visible to asynchronous
/// copies.
///
/// # Safety
/// As for [`init`].
#[inline]
#[track_caller]
pub unsafe fn fence_init() {
    call(Location::caller(), |machine, _| {
        machine.fence_phases();
        Ok(())
    })
}

/// `mbarrier.arrive.shared::cta.b64`: one arrival, releasing the thread's earlier accesses.
///
/// # Safety
/// As for [`init`].
#[inline]
#[track_caller]
pub unsafe fn arrive(barrier: u32) {
    call(Location::caller(), |machine, _| machine.arrive_phase(barrier, 0))
}

/// `mbarrier.arrive.expect_tx.shared::cta.b64`: announces `bytes` of asynchronous copies, then arrives.
///
/// # Safety
/// As for [`init`].
#[inline]
#[track_caller]
pub unsafe fn arrive_expect_tx(barrier: u32, bytes: u32) {
    call(Location::caller(), |machine, _| machine.arrive_phase(barrier, bytes))
}

/// `mbarrier.try_wait.parity.shared::cta.b64`: true, after the phase of parity `parity` has completed.
///
/// # Safety
/// As for [`init`].
#[inline]
#[track_caller]
pub unsafe fn try_wait(barrier: u32, parity: u32) -> bool {
    call_waiting(Location::caller(), |machine, at| machine.wait_phase(barrier, parity, false, at), |_| ());
    true
}

/// Waits until the phase of parity `parity` has completed, and acquires what its arrivals released.
///
/// # Safety
/// As for [`init`].
#[inline]
#[track_caller]
pub unsafe fn wait(barrier: u32, parity: u32) {
    call_waiting(Location::caller(), |machine, at| machine.wait_phase(barrier, parity, false, at), |_| ());
}

/// As [`wait`], for a phase that the thread may have waited for before: then it passes at once.
///
/// # Safety
/// As for [`init`].
#[inline]
#[track_caller]
pub unsafe fn wait_again(barrier: u32, parity: u32) {
    call_waiting(Location::caller(), |machine, at| machine.wait_phase(barrier, parity, true, at), |_| ());
}
