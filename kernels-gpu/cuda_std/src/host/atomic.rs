//! Words of global memory through which the CTAs of a grid talk to each other [atom, ld, st].

use std::panic::Location;

use crate::executor::context::{call, call_waiting};
use crate::executor::grid::Order;
use crate::executor::numeric::{canonical, flush};

/// `atom.relaxed.gpu.global.add.u32` [atom]: adds, returns what was there, orders nothing.
///
/// # Safety
/// None is needed here: the executor checks what the PTX back end asks for.
#[inline]
#[track_caller]
pub unsafe fn add_relaxed(address: u64, value: u32) -> u32 {
    call(Location::caller(), |machine, _| machine.atomic(address, Order::Relaxed, |old| old.wrapping_add(value)))
}

/// `atom.acq_rel.gpu.global.add.u32` [atom]: adds and returns what was there, an acquire and a release.
///
/// # Safety
/// As for [`add_relaxed`].
#[inline]
#[track_caller]
pub unsafe fn add_acq_rel(address: u64, value: u32) -> u32 {
    call(Location::caller(), |machine, _| machine.atomic(address, Order::AcquireRelease, |old| old.wrapping_add(value)))
}

/// `atom.relaxed.gpu.global.add.f32` [atom]: adds and returns what was there. "Current implementation of
/// `atom.add.f32` on global memory flushes subnormal inputs and results to sign-preserving zero."
///
/// # Safety
/// As for [`add_relaxed`].
#[inline]
#[track_caller]
pub unsafe fn add_f32(address: u64, value: f32) -> f32 {
    let sum = |old| canonical(flush(flush(f32::from_bits(old)) + flush(value))).to_bits();
    f32::from_bits(call(Location::caller(), |machine, _| machine.atomic(address, Order::Relaxed, sum)))
}

/// `ld.relaxed.gpu.global.v4.u32` [ld]: four words, each as somebody has written it. Other threads go on first.
///
/// # Safety
/// As for [`add_relaxed`].
#[inline]
#[track_caller]
pub unsafe fn load_relaxed_x4(address: u64) -> [u32; 4] {
    let at = Location::caller();
    call_waiting(at, |machine, at| machine.spin(address, at), |_| ());
    [0, 4, 8, 12].map(|byte| call(at, |machine, _| machine.atomic(address + byte, Order::Relaxed, |old| old)))
}

/// `st.relaxed.gpu.global.u32` [st]: others see it some time; orders nothing.
///
/// # Safety
/// As for [`add_relaxed`].
#[inline]
#[track_caller]
pub unsafe fn store_relaxed(address: u64, value: u32) {
    call(Location::caller(), |machine, _| machine.atomic(address, Order::Relaxed, |_| value).map(drop))
}

/// `ld.acquire.gpu.global.u32` [ld]. Other threads go on first.
///
/// # Safety
/// As for [`add_relaxed`].
#[inline]
#[track_caller]
pub unsafe fn load_acquire(address: u64) -> u32 {
    let at = Location::caller();
    call_waiting(at, |machine, at| machine.spin(address, at), |_| ());
    call(at, |machine, _| machine.atomic(address, Order::Acquire, |old| old))
}

/// `st.release.gpu.global.u32` [st]: whoever acquires the value sees what was written before.
///
/// # Safety
/// As for [`add_relaxed`].
#[inline]
#[track_caller]
pub unsafe fn store_release(address: u64, value: u32) {
    call(Location::caller(), |machine, _| machine.atomic(address, Order::Release, |_| value).map(drop))
}
