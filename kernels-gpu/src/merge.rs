//! Combines attention over two parts of the keys. Bound by memory: every element is read and written once.

use cuda_std::{global, math, thread};
use sage_spec::merge::{FEATURES_PER_THREAD, MergeParams, THREADS};
use sage_spec::quant::LOG2_E;

use crate::rows::{bytes, load, load8, row_address, store, store8};

const FEATURES: usize = FEATURES_PER_THREAD;

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
