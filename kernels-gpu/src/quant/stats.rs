//! Token mean of K; channel mean and largest magnitude of V; what V was rounded by. A tile's part first; who begins a head's
//! last tile reduces them all.

use cuda_std::{global, math, thread};
use sage_spec::params::QuantizeParams;
#[cfg(any(feature = "sm_89", feature = "sm_90a"))]
use sage_spec::quant::v_offset;
use sage_spec::quant::{v_scale_f16, v_scale_fp8};
use sage_spec::reduce::token_mean;
use sage_spec::schedule::Statistic;

use super::element::Element;
use super::job::Job;
use super::lanes::{PER_THREAD, Position, reduce_chunks, reduce_lanes};
use super::posted::post;
#[cfg(any(feature = "sm_89", feature = "sm_90a"))]
use super::posted::wait;
use super::tile::{self, smem};

/// `a + b`, for reductions.
#[inline(always)]
pub fn add(a: f32, b: f32) -> f32 {
    a + b
}

/// `sum + x` if `weight` is 1, else `sum`, without a select per value. (A value that is not finite poisons the sum
/// either way, as it does where it exists.)
#[inline(always)]
fn add_weighted(sum: f32, x: f32, weight: f32) -> f32 {
    math::fma(x, weight, sum)
}

/// Accumulates the thread's tokens of the tile feature by feature, then combines the lanes; returns as
/// [`reduce_lanes`] does. `accumulate` gets the sum so far, an element, and 1 or 0 for whether it exists.
#[inline(always)]
unsafe fn over_tokens<E: Element, const HEAD_DIM: u32>(
    cta: u32,
    base: u32,
    position: Position,
    exists: impl Fn(u32) -> bool,
    start: f32,
    accumulate: impl Fn(f32, f32, f32) -> f32,
    combine: impl Fn(f32, f32) -> f32,
) -> f32 {
    let mut all = [start; 8];
    let mut i = 0;
    while i < PER_THREAD {
        let token = position.token(i);
        // SAFETY: the tile is there.
        let x = unsafe { tile::read::<E, HEAD_DIM>(base, position.first_feature, token) };
        let weight = if exists(token) { 1.0 } else { 0.0 };
        let mut j = 0;
        while j < 8 {
            all[j] = accumulate(all[j], x[j], weight);
            j += 1;
        }
        i += 1;
    }
    // SAFETY: all threads are here; the table is free.
    unsafe { reduce_lanes::<HEAD_DIM>(cta + const { smem::<E, HEAD_DIM>() }.lanes as u32, position, all, combine) }
}

/// Sums of one tile of K.
///
/// # Safety
/// All threads of the CTA call it; the tile is in shared memory at `base`, tables from `cta` on.
#[inline(always)]
pub unsafe fn k<E: Element, const HEAD_DIM: u32>(
    p: &QuantizeParams,
    job: &Job,
    cta: u32,
    base: u32,
    position: Position,
) {
    let row = parts::<HEAD_DIM>(p, p.k_sum, job.head) + tiles_row::<HEAD_DIM>(job.tile);
    let exists = |token| job.first_token() + token < p.seqlen_kv;
    // SAFETY: forwarded contract; `k_sum` has a row for every tile.
    unsafe {
        let sum = over_tokens::<E, HEAD_DIM>(cta, base, position, exists, 0.0, add_weighted, add);
        post_row::<HEAD_DIM>(position.thread, row, sum);
    }
}

/// Extremes of one tile of V, sums too if V is smoothed.
///
/// # Safety
/// As for [`k`].
#[inline(always)]
pub unsafe fn v<E: Element, const HEAD_DIM: u32>(
    p: &QuantizeParams,
    job: &Job,
    cta: u32,
    base: u32,
    position: Position,
) {
    let row = |tensor| parts::<HEAD_DIM>(p, tensor, job.head) + tiles_row::<HEAD_DIM>(job.tile);
    let exists = |token| job.first_token() + token < p.seqlen_kv;
    let (max, min) = (math::max_propagate_nan, math::min_propagate_nan);
    let feature = position.thread;
    // SAFETY: forwarded contract; the scratch tensors have a row for every tile. Between two reductions a
    // barrier frees the table.
    unsafe {
        if p.v_mean != 0 {
            let sum = over_tokens::<E, HEAD_DIM>(cta, base, position, exists, 0.0, add_weighted, add);
            post_row::<HEAD_DIM>(feature, row(p.v_sum), sum);
            thread::sync_threads();
            let largest =
                over_tokens::<E, HEAD_DIM>(cta, base, position, exists, f32::NEG_INFINITY, |a, x, _| max(a, x), max);
            post_row::<HEAD_DIM>(feature, row(p.v_max), largest);
            thread::sync_threads();
            let smallest =
                over_tokens::<E, HEAD_DIM>(cta, base, position, exists, f32::INFINITY, |a, x, _| min(a, x), min);
            post_row::<HEAD_DIM>(feature, row(p.v_min), smallest);
        } else {
            let mut largest = E::ZEROS;
            let mut i = 0;
            while i < PER_THREAD {
                // A token that does not exist is another one again.
                let x = tile::raw::<E, HEAD_DIM>(base, position.first_feature, position.token(i));
                largest = E::larger(largest, E::magnitudes(x, true));
                i += 1;
            }
            let table = cta + const { smem::<E, HEAD_DIM>() }.lanes as u32;
            let largest = reduce_lanes::<HEAD_DIM>(table, position, E::widen(largest), max);
            post_row::<HEAD_DIM>(feature, row(p.v_max), largest);
        }
    }
}

/// Posts `rounding`, which the first `HEAD_DIM` threads have of a tile of V: what was rounded less what became of it.
///
/// # Safety
/// `v_rounding` has a row for every tile.
#[cfg(any(feature = "sm_89", feature = "sm_90a"))]
#[inline(always)]
pub unsafe fn v_rounding<const HEAD_DIM: u32>(p: &QuantizeParams, job: &Job, feature: u32, rounding: f32) {
    let row = parts::<HEAD_DIM>(p, p.v_rounding, job.head) + tiles_row::<HEAD_DIM>(job.tile);
    // SAFETY: forwarded contract.
    unsafe { post_row::<HEAD_DIM>(feature, row, rounding) };
}

/// The token mean of K of a head.
///
/// # Safety
/// All threads of the CTA call it; all tiles are begun, and wait for smaller tickets only; the tables from `cta` on are free.
#[inline(always)]
pub unsafe fn reduce_k<E: Element, const HEAD_DIM: u32>(p: &QuantizeParams, head: u32, cta: u32, feature: u32) {
    let table = cta + const { smem::<E, HEAD_DIM>() }.lanes as u32;
    let rows = parts::<HEAD_DIM>(p, p.k_sum, head);
    // SAFETY: forwarded contract; statistics have a row for every head.
    unsafe {
        let sum = reduce_chunks::<HEAD_DIM>(table, feature, rows, p.schedule.tiles_kv, 0.0, add);
        let mean = token_mean(sum, p.seqlen_kv);
        post_row::<HEAD_DIM>(feature, statistic::<HEAD_DIM>(p, Statistic::KMean, head), mean);
        store_row::<HEAD_DIM>(feature, p.k_mean + tiles_row::<HEAD_DIM>(head), mean);
    }
}

/// Scales of V's channels of a head for FP16 or FP8, and their means if V is smoothed.
///
/// # Safety
/// As for [`reduce_k`].
#[inline(always)]
pub unsafe fn reduce_v<E: Element, const HEAD_DIM: u32, const V_IS_F16: bool>(
    p: &QuantizeParams,
    head: u32,
    cta: u32,
    feature: u32,
) {
    let tiles = p.schedule.tiles_kv;
    let table = cta + const { smem::<E, HEAD_DIM>() }.lanes as u32;
    let rows = |tensor| parts::<HEAD_DIM>(p, tensor, head);
    let statistic = |which| statistic::<HEAD_DIM>(p, which, head);
    let row = tiles_row::<HEAD_DIM>(head);
    let (max, min) = (math::max_propagate_nan, math::min_propagate_nan);
    // SAFETY: forwarded contract; statistics have a row for every head. Between two reductions a barrier frees the table.
    unsafe {
        let largest = reduce_chunks::<HEAD_DIM>(table, feature, rows(p.v_max), tiles, f32::NEG_INFINITY, max);
        let mut amax = largest;
        if p.v_mean != 0 {
            thread::sync_threads();
            let smallest = reduce_chunks::<HEAD_DIM>(table, feature, rows(p.v_min), tiles, f32::INFINITY, min);
            thread::sync_threads();
            let sum = reduce_chunks::<HEAD_DIM>(table, feature, rows(p.v_sum), tiles, 0.0, add);
            let mean = token_mean(sum, p.seqlen_kv);
            // Subtraction rounds monotonically: the extreme of the differences is the difference of
            // the extreme.
            amax = max(largest - mean, mean - smallest);
            post_row::<HEAD_DIM>(feature, statistic(Statistic::VMean), mean);
            store_row::<HEAD_DIM>(feature, p.v_mean + row, mean);
        }
        let scale = if V_IS_F16 { v_scale_f16(amax) } else { v_scale_fp8(amax) };
        post_row::<HEAD_DIM>(feature, statistic(Statistic::VInverseScale), 1.0 / scale);
        post_row::<HEAD_DIM>(feature, statistic(Statistic::VScale), scale);
        store_row::<HEAD_DIM>(feature, p.v_scale + row, scale);
    }
}

/// The offsets of V's channels of a head ([`v_offset`]).
///
/// # Safety
/// As for [`reduce_k`].
#[cfg(any(feature = "sm_89", feature = "sm_90a"))]
#[inline(always)]
pub unsafe fn reduce_rounding<E: Element, const HEAD_DIM: u32>(p: &QuantizeParams, head: u32, cta: u32, feature: u32) {
    let table = cta + const { smem::<E, HEAD_DIM>() }.lanes as u32;
    let rows = parts::<HEAD_DIM>(p, p.v_rounding, head);
    // SAFETY: forwarded contract; statistics have a row for every head, and smaller tickets.
    unsafe {
        let rounding = reduce_chunks::<HEAD_DIM>(table, feature, rows, p.schedule.tiles_kv, 0.0, add);
        let statistic = |which| wait(statistic::<HEAD_DIM>(p, which, head) + (feature % HEAD_DIM * 4) as u64);
        let mean = if p.v_mean == 0 { 0.0 } else { statistic(Statistic::VMean) };
        let offset = v_offset(mean, statistic(Statistic::VScale), rounding, p.seqlen_kv);
        store_row::<HEAD_DIM>(feature, p.v_offset + tiles_row::<HEAD_DIM>(head), offset);
    }
}

/// Address of the first tile's row of a head in a scratch tensor.
#[inline(always)]
fn parts<const HEAD_DIM: u32>(p: &QuantizeParams, tensor: u64, head: u32) -> u64 {
    tensor + head as u64 * tiles_row::<HEAD_DIM>(p.schedule.tiles_kv)
}

/// Address of a row of the statistics of a head.
#[inline(always)]
pub fn statistic<const HEAD_DIM: u32>(p: &QuantizeParams, statistic: Statistic, head: u32) -> u64 {
    p.statistics + statistic.row(head) * tiles_row::<HEAD_DIM>(1)
}

/// Bytes of `tiles` rows of a scratch tensor.
#[inline(always)]
fn tiles_row<const HEAD_DIM: u32>(tiles: u32) -> u64 {
    tiles as u64 * (HEAD_DIM * 4) as u64
}

/// Stores a reduction's result, which the first `HEAD_DIM` threads have.
#[inline(always)]
unsafe fn store_row<const HEAD_DIM: u32>(feature: u32, address: u64, value: f32) {
    if feature < HEAD_DIM {
        // SAFETY: the caller vouches for the row.
        unsafe { global::store_f32(address + (feature * 4) as u64, value) };
    }
}

/// Posts a reduction's result, which the first `HEAD_DIM` threads have.
#[inline(always)]
unsafe fn post_row<const HEAD_DIM: u32>(feature: u32, address: u64, value: f32) {
    if feature < HEAD_DIM {
        // SAFETY: the caller vouches for the row.
        unsafe { post(address + (feature * 4) as u64, value) };
    }
}
