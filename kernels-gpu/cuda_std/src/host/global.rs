//! Global memory, addressed by 64-bit device addresses of [`Memory`](crate::executor::Memory).

use std::panic::Location;

use crate::executor::context::call;
use crate::executor::memory::Read;

#[inline]
fn load<const N: usize>(at: &'static Location<'static>, address: u64) -> [u8; N] {
    call(at, |machine, _| machine.load_global(address, Read::Constant))
}

#[inline]
fn store(at: &'static Location<'static>, address: u64, data: &[u8]) {
    call(at, |machine, _| machine.store_global(address, data))
}

/// `ld.global.nc.b8` [ld.global.nc], zero-extended.
///
/// # Safety
/// None is needed here: the executor checks what the PTX back end asks for.
#[inline]
#[track_caller]
pub unsafe fn load_u8(address: u64) -> u32 {
    let [byte] = load(Location::caller(), address);
    byte.into()
}

/// `ld.global.nc.b16` [ld.global.nc], zero-extended.
///
/// # Safety
/// None is needed here: the executor checks what the PTX back end asks for.
#[inline]
#[track_caller]
pub unsafe fn load_u16(address: u64) -> u32 {
    u16::from_le_bytes(load(Location::caller(), address)).into()
}

/// `ld.global.nc.b32` [ld.global.nc].
///
/// # Safety
/// As for [`load_u16`].
#[inline]
#[track_caller]
pub unsafe fn load_u32(address: u64) -> u32 {
    u32::from_le_bytes(load(Location::caller(), address))
}

/// `ld.global.nc.b32` [ld.global.nc] of an `f32`.
///
/// # Safety
/// As for [`load_u16`].
#[inline]
#[track_caller]
pub unsafe fn load_f32(address: u64) -> f32 {
    f32::from_le_bytes(load(Location::caller(), address))
}

/// `ld.global.nc.v4.b32` [ld.global.nc].
///
/// # Safety
/// As for [`load_u16`].
#[inline]
#[track_caller]
pub unsafe fn load_u32x4(address: u64) -> [u32; 4] {
    words(load(Location::caller(), address))
}

#[inline]
fn read<const N: usize>(at: &'static Location<'static>, address: u64) -> [u8; N] {
    call(at, |machine, _| machine.load_global(address, Read::Weak))
}

/// `ld.global.b32` [ld] of an `f32`, ordered with the other memory accesses of the thread.
///
/// # Safety
/// As for [`load_u16`].
#[inline]
#[track_caller]
pub unsafe fn read_f32(address: u64) -> f32 {
    f32::from_le_bytes(read(Location::caller(), address))
}

/// `ld.global.v4.b32` [ld] of four `f32`.
///
/// # Safety
/// As for [`load_u16`].
#[inline]
#[track_caller]
pub unsafe fn read_f32x4(address: u64) -> [f32; 4] {
    words(read(Location::caller(), address)).map(f32::from_bits)
}

/// `st.global.b16` [st].
///
/// # Safety
/// As for [`load_u16`].
#[inline]
#[track_caller]
pub unsafe fn store_u16(address: u64, value: u32) {
    store(Location::caller(), address, &(value as u16).to_le_bytes());
}

/// `st.global.b32` [st].
///
/// # Safety
/// As for [`load_u16`].
#[inline]
#[track_caller]
pub unsafe fn store_u32(address: u64, value: u32) {
    store(Location::caller(), address, &value.to_le_bytes());
}

/// `st.global.b32` [st] of an `f32`.
///
/// # Safety
/// As for [`load_u16`].
#[inline]
#[track_caller]
pub unsafe fn store_f32(address: u64, value: f32) {
    store(Location::caller(), address, &value.to_le_bytes());
}

/// `st.global.v2.b32` [st].
///
/// # Safety
/// As for [`load_u16`].
#[inline]
#[track_caller]
pub unsafe fn store_u32x2(address: u64, value: [u32; 2]) {
    let value = u64::from(value[1]) << 32 | u64::from(value[0]);
    store(Location::caller(), address, &value.to_le_bytes());
}

/// `st.global.cs.b32` [st]: [`store_u32`] of what is read late, if at all.
///
/// # Safety
/// As for [`load_u16`].
#[inline]
#[track_caller]
pub unsafe fn stream_u32(address: u64, value: u32) {
    // SAFETY: forwarded contract.
    unsafe { store_u32(address, value) }
}

/// `st.global.cs.v2.b32` [st], as [`stream_u32`].
///
/// # Safety
/// As for [`load_u16`].
#[inline]
#[track_caller]
pub unsafe fn stream_u32x2(address: u64, value: [u32; 2]) {
    // SAFETY: forwarded contract.
    unsafe { store_u32x2(address, value) }
}

/// `st.global.cs.v4.b32` [st], as [`stream_u32`].
///
/// # Safety
/// As for [`load_u16`].
#[inline]
#[track_caller]
pub unsafe fn stream_u32x4(address: u64, value: [u32; 4]) {
    // SAFETY: forwarded contract.
    unsafe { store_u32x4(address, value) }
}

/// `st.global.v4.b32` [st].
///
/// # Safety
/// As for [`load_u16`].
#[inline]
#[track_caller]
pub unsafe fn store_u32x4(address: u64, value: [u32; 4]) {
    store(Location::caller(), address, &bytes(value));
}

/// Four words of 16 bytes.
pub(super) fn words(bytes: [u8; 16]) -> [u32; 4] {
    std::array::from_fn(|i| u32::from_le_bytes(std::array::from_fn(|byte| bytes[4 * i + byte])))
}

/// 16 bytes of four words.
pub(super) fn bytes(words: [u32; 4]) -> [u8; 16] {
    std::array::from_fn(|byte| words[byte / 4].to_le_bytes()[byte % 4])
}
