//! Rows of strided tensors whose element type is known when the kernel runs: 0 f16, 1 bf16, 2 f32.

// Each module has kernels that use a part of these.
#![allow(dead_code)]

use cuda_std::{convert, global};
use sage_spec::params::TensorArg;

const F16: u32 = 0;
const F32: u32 = 2;
/// Features of [`load8`] and [`store8`].
const FEATURES: usize = 8;

/// Bytes of an element.
#[inline(always)]
pub fn bytes(dtype: u32) -> u64 {
    if dtype == F32 { 4 } else { 2 }
}

/// Address of the first feature of a row.
#[inline(always)]
pub fn row_address(x: &TensorArg, dtype: u32, batch: u32, head: u32, token: u32) -> u64 {
    let offset = batch as i64 * x.stride_batch + head as i64 * x.stride_head + token as i64 * x.stride_token;
    x.ptr.wrapping_add((offset as u64).wrapping_mul(bytes(dtype)))
}

/// Eight neighbouring elements.
///
/// # Safety
/// `address` is 16-byte aligned and readable.
#[inline(always)]
pub unsafe fn load8(address: u64, dtype: u32) -> [f32; FEATURES] {
    // SAFETY: forwarded contract.
    let a = unsafe { global::load_u32x4(address) };
    if dtype == F32 {
        // SAFETY: eight f32 are 32 bytes.
        let b = unsafe { global::load_u32x4(address + 16) };
        return [a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3]].map(f32::from_bits);
    }
    let (lo, hi) = if dtype == F16 {
        (a.map(convert::f16_to_f32), a.map(|w| convert::f16_to_f32(w >> 16)))
    } else {
        (a.map(convert::bf16_to_f32), a.map(|w| f32::from_bits(w & 0xffff_0000)))
    };
    [lo[0], hi[0], lo[1], hi[1], lo[2], hi[2], lo[3], hi[3]]
}

/// One element.
///
/// # Safety
/// `address` is aligned and readable.
#[inline(always)]
pub unsafe fn load(address: u64, dtype: u32) -> f32 {
    // SAFETY: forwarded contract.
    unsafe {
        match dtype {
            F32 => global::load_f32(address),
            F16 => convert::f16_to_f32(global::load_u16(address)),
            _ => convert::bf16_to_f32(global::load_u16(address)),
        }
    }
}

/// Two values as 16-bit elements, rounded to nearest even.
#[inline(always)]
pub fn pack(lo: f32, hi: f32, dtype: u32) -> u32 {
    if dtype == F16 { convert::f32_to_f16x2(lo, hi) } else { convert::f32_to_bf16x2(lo, hi) }
}

/// Stores eight neighbouring elements.
///
/// # Safety
/// `address` is 16-byte aligned, writable, and the thread's own.
#[inline(always)]
pub unsafe fn store8(address: u64, x: [f32; FEATURES], dtype: u32) {
    // SAFETY: forwarded contract.
    unsafe {
        if dtype == F32 {
            let bits = x.map(f32::to_bits);
            global::store_u32x4(address, [bits[0], bits[1], bits[2], bits[3]]);
            global::store_u32x4(address + 16, [bits[4], bits[5], bits[6], bits[7]]);
        } else {
            let pairs = [[x[0], x[1]], [x[2], x[3]], [x[4], x[5]], [x[6], x[7]]];
            global::store_u32x4(address, pairs.map(|[lo, hi]| pack(lo, hi, dtype)));
        }
    }
}

/// Stores one element.
///
/// # Safety
/// `address` is aligned, writable, and the thread's own.
#[inline(always)]
pub unsafe fn store(address: u64, x: f32, dtype: u32) {
    // SAFETY: forwarded contract.
    unsafe {
        if dtype == F32 {
            global::store_f32(address, x)
        } else {
            global::store_u16(address, pack(x, 0.0, dtype) & 0xffff)
        }
    }
}

/// Stores four neighbouring elements.
///
/// # Safety
/// `address` is aligned to four elements, writable, and the thread's own.
#[inline(always)]
pub unsafe fn store4(address: u64, x: [f32; 4], dtype: u32) {
    // SAFETY: forwarded contract.
    unsafe {
        if dtype == F32 {
            global::store_u32x4(address, x.map(f32::to_bits));
        } else {
            global::store_u32x2(address, [pack(x[0], x[1], dtype), pack(x[2], x[3], dtype)]);
        }
    }
}
