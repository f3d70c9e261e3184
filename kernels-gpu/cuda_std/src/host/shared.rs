//! Dynamic shared memory, addressed by 32-bit `.shared` addresses.

use std::panic::Location;

use super::global::{bytes, words};
use crate::executor::context::call;
use crate::executor::shared::BASE;

/// Declares nothing: the launch says how much shared memory there is.
#[macro_export]
macro_rules! declare_dynamic_shared_memory {
    () => {};
}

/// Address of the first parameter of kernel `$kernel`, which is `$value`, from which tensor maps may be used.
#[macro_export]
macro_rules! parameter_address {
    ($kernel:ident, $value:ident) => {
        &raw const $value as u64
    };
}

/// Address of the first byte of the CTA's dynamic shared memory; 1024-byte aligned.
#[inline]
pub fn dynamic_shared_mem() -> u32 {
    BASE
}

#[inline]
fn load<const N: usize>(at: &'static Location<'static>, address: u32) -> [u8; N] {
    call(at, |machine, at| machine.load_shared(address, at))
}

#[inline]
fn store(at: &'static Location<'static>, address: u32, data: &[u8]) {
    call(at, |machine, at| machine.store_shared(address, data, at))
}

/// `ld.shared.b32` [ld].
///
/// # Safety
/// None is needed here: the executor checks what the PTX back end asks for.
#[inline]
#[track_caller]
pub unsafe fn load_u32(address: u32) -> u32 {
    u32::from_le_bytes(load(Location::caller(), address))
}

/// `ld.shared.b32` [ld] of an `f32`.
///
/// # Safety
/// As for [`load_u32`].
#[inline]
#[track_caller]
pub unsafe fn load_f32(address: u32) -> f32 {
    f32::from_le_bytes(load(Location::caller(), address))
}

/// `ld.shared.v4.b32` [ld].
///
/// # Safety
/// As for [`load_u32`].
#[inline]
#[track_caller]
pub unsafe fn load_u32x4(address: u32) -> [u32; 4] {
    words(load(Location::caller(), address))
}

/// `st.shared.b32` [st].
///
/// # Safety
/// As for [`load_u32`].
#[inline]
#[track_caller]
pub unsafe fn store_u32(address: u32, value: u32) {
    store(Location::caller(), address, &value.to_le_bytes());
}

/// `st.shared.b32` [st] of an `f32`.
///
/// # Safety
/// As for [`load_u32`].
#[inline]
#[track_caller]
pub unsafe fn store_f32(address: u32, value: f32) {
    store(Location::caller(), address, &value.to_le_bytes());
}

/// `st.shared.v4.b32` [st].
///
/// # Safety
/// As for [`load_u32`].
#[inline]
#[track_caller]
pub unsafe fn store_u32x4(address: u32, value: [u32; 4]) {
    store(Location::caller(), address, &bytes(value));
}
