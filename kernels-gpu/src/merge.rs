//! Combines attention over two parts of the keys. Bound by memory: every element is read and written once.

use cuda_std::{convert, global, math, thread};
use sage_spec::merge::{FEATURES_PER_THREAD, MergeParams, THREADS};
use sage_spec::params::TensorArg;
use sage_spec::quant::LOG2_E;

const F16: u32 = 0;
const F32: u32 = 2;
const FEATURES: usize = FEATURES_PER_THREAD;

/// Bytes of an element.
#[inline(always)]
fn bytes(dtype: u32) -> u64 {
    if dtype == F32 { 4 } else { 2 }
}

/// Address of the first feature of a row.
#[inline(always)]
fn row_address(x: &TensorArg, dtype: u32, batch: u32, head: u32, token: u32) -> u64 {
    let offset = batch as i64 * x.stride_batch + head as i64 * x.stride_head + token as i64 * x.stride_token;
    x.ptr.wrapping_add((offset as u64).wrapping_mul(bytes(dtype)))
}

/// Eight neighbouring elements.
///
/// # Safety
/// `address` is 16-byte aligned and readable.
#[inline(always)]
unsafe fn load8(address: u64, dtype: u32) -> [f32; FEATURES] {
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
unsafe fn load(address: u64, dtype: u32) -> f32 {
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
fn pack(lo: f32, hi: f32, dtype: u32) -> u32 {
    if dtype == F16 { convert::f32_to_f16x2(lo, hi) } else { convert::f32_to_bf16x2(lo, hi) }
}

/// Stores eight neighbouring elements.
///
/// # Safety
/// `address` is 16-byte aligned, writable, and the thread's own.
#[inline(always)]
unsafe fn store8(address: u64, x: [f32; FEATURES], dtype: u32) {
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
unsafe fn store(address: u64, x: f32, dtype: u32) {
    // SAFETY: forwarded contract.
    unsafe {
        if dtype == F32 {
            global::store_f32(address, x)
        } else {
            global::store_u16(address, pack(x, 0.0, dtype) & 0xffff)
        }
    }
}

/// How much each part of a row counts, and the log-sum-exp of both.
struct Weights {
    first: f32,
    second: f32,
    lse: f32,
}

/// As on the CPU: the largest exponent is 0, and a part without keys weighs 0.
#[inline(always)]
fn weights(lse1: f32, lse2: f32) -> Weights {
    let (empty1, empty2) = (lse1 == f32::NEG_INFINITY, lse2 == f32::NEG_INFINITY);
    if empty1 && empty2 {
        return Weights { first: 0.0, second: 0.0, lse: f32::NEG_INFINITY };
    }
    // The number beside a NaN, whose own exponential then keeps it.
    let max = math::max(lse1, lse2);
    let e1 = if empty1 { 0.0 } else { math::exp2((lse1 - max) * LOG2_E) };
    let e2 = if empty2 { 0.0 } else { math::exp2((lse2 - max) * LOG2_E) };
    let sum = e1 + e2;
    let inverse = math::reciprocal(sum);
    Weights { first: e1 * inverse, second: e2 * inverse, lse: max + math::log2(sum) * core::f32::consts::LN_2 }
}

/// One thread: eight features of a row, and the next eight of its share if the row is longer than its threads.
///
/// # Safety
/// `sage_spec::merge::MergeParams`, `sage_spec::merge::CTA` and `sage_spec::merge::grid`.
#[inline(always)]
pub unsafe fn merge(p: &MergeParams) {
    let thread = thread::thread_idx_x();
    let row_threads = 1 << p.row_threads_log2;
    let row = thread::block_idx_x() * (THREADS as u32 >> p.row_threads_log2) + (thread >> p.row_threads_log2);
    if row >= p.rows {
        return;
    }
    // SAFETY: counts of a launched problem are not zero.
    let (head, batch) = unsafe {
        let head = math::div_u32(row, p.seqlen);
        (head, math::div_u32(head, p.num_heads))
    };
    let (token, head) = (row - head * p.seqlen, head - batch * p.num_heads);
    // SAFETY: an existing row.
    let (lse1, lse2) =
        unsafe { (global::load_f32(p.lse1 + row as u64 * 4), global::load_f32(p.lse2 + row as u64 * 4)) };
    let weights = weights(lse1, lse2);
    let (use1, use2) = (lse1 != f32::NEG_INFINITY, lse2 != f32::NEG_INFINITY);
    let lane = thread & (row_threads - 1);
    if lane == 0 && p.lse != 0 {
        // SAFETY: one thread of the row writes its value.
        unsafe { global::store_f32(p.lse + row as u64 * 4, weights.lse) };
    }
    let o1 = row_address(&p.o1, p.dtype1, batch, head, token);
    let o2 = row_address(&p.o2, p.dtype2, batch, head, token);
    let out = row_address(&p.out, p.out_dtype, batch, head, token);
    let mut feature = lane * FEATURES as u32;
    while feature < p.head_dim {
        let at = |row: u64, dtype: u32, feature: u32| row + feature as u64 * bytes(dtype);
        if p.vectorized != 0 {
            let mut sum = [0.0f32; FEATURES];
            // SAFETY: existing features; alignment is what `vectorized` promises.
            unsafe {
                if use1 {
                    let x = load8(at(o1, p.dtype1, feature), p.dtype1);
                    let mut i = 0;
                    while i < FEATURES {
                        sum[i] += weights.first * x[i];
                        i += 1;
                    }
                }
                if use2 {
                    let x = load8(at(o2, p.dtype2, feature), p.dtype2);
                    let mut i = 0;
                    while i < FEATURES {
                        sum[i] += weights.second * x[i];
                        i += 1;
                    }
                }
                store8(at(out, p.out_dtype, feature), sum, p.out_dtype);
            }
        } else {
            let end = (feature + FEATURES as u32).min(p.head_dim);
            let mut one = feature;
            while one < end {
                let mut sum = 0.0f32;
                // SAFETY: existing features.
                unsafe {
                    if use1 {
                        sum += weights.first * load(at(o1, p.dtype1, one), p.dtype1);
                    }
                    if use2 {
                        sum += weights.second * load(at(o2, p.dtype2, one), p.dtype2);
                    }
                    store(at(out, p.out_dtype, one), sum, p.out_dtype);
                }
                one += 1;
            }
        }
        feature += row_threads * FEATURES as u32;
    }
}
