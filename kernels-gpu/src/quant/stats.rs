//! Token mean of K; channel mean and largest magnitude of V. A tile's part first; whoever writes the last part
//! of a head reduces them all.

use cuda_std::{atomic, global, math, shared, thread};
use sage_spec::params::QuantizeParams;
#[cfg(any(feature = "sm_89", feature = "sm_90a"))]
use sage_spec::quant::v_offset;
use sage_spec::quant::{v_scale_f16, v_scale_fp8};
use sage_spec::schedule::Progress;

use super::element::Element;
use super::lanes::{PER_THREAD, Position, reduce_chunks, reduce_lanes};
use super::tile::{self, Job, smem};

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

/// Counts this tile at `counter` once all its results are written; whether it was the head's last.
#[inline(always)]
unsafe fn is_last(thread: u32, counter: u64, tiles: u32, word: u32) -> bool {
    // SAFETY: all threads are here; the barrier puts everybody's stores before the release, and the acquire
    // before everybody's reads.
    unsafe {
        thread::sync_threads();
        if thread == 0 {
            shared::store_u32(word, atomic::add_acq_rel(counter, 1));
        }
        thread::sync_threads();
        shared::load_u32(word) == tiles - 1
    }
}

/// Tells everybody that the head's statistics are written.
#[inline(always)]
unsafe fn publish(thread: u32, counter: u64) {
    // SAFETY: as in `is_last`.
    unsafe {
        thread::sync_threads();
        if thread == 0 {
            atomic::store_release(counter, Progress::READY);
        }
    }
}

/// Waits until a head's statistics are visible to this thread.
///
/// # Safety
/// `counter` is a word of `Progress`, whose statistics have smaller tickets than the work of this CTA.
#[inline(always)]
pub unsafe fn wait(counter: u64) {
    // SAFETY: forwarded contract.
    unsafe { while atomic::load_acquire(counter) != Progress::READY {} }
}

/// Sums of one tile of K; after the head's last one, its mean.
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
    let feature = position.thread;
    let tiles = p.schedule.tiles_kv;
    let parts = p.k_sum + job.head as u64 * tiles_row::<HEAD_DIM>(tiles);
    let counter = p.progress + Progress::k(job.head) * 4;
    let exists = |token| job.first_token() + token < p.seqlen_kv;
    // SAFETY: forwarded contract; `k_sum` has a row for every tile.
    unsafe {
        let sum = over_tokens::<E, HEAD_DIM>(cta, base, position, exists, 0.0, add_weighted, add);
        store_row::<HEAD_DIM>(position.thread, parts + tiles_row::<HEAD_DIM>(job.tile), sum);
        if is_last(position.thread, counter, tiles, cta + const { smem::<E, HEAD_DIM>() }.amax as u32) {
            let table = cta + const { smem::<E, HEAD_DIM>() }.lanes as u32;
            let sum = reduce_chunks::<HEAD_DIM>(table, position.thread, parts, tiles, 0.0, add);
            if feature < HEAD_DIM {
                let index = job.head as u64 * HEAD_DIM as u64 + feature as u64;
                global::store_f32(p.k_mean + index * 4, sum / p.seqlen_kv as f32);
            }
            publish(position.thread, counter);
        }
    }
}

/// Extremes of one tile of V, sums too if V is smoothed; after the head's last one, its means, and its scales for
/// FP16 or FP8.
///
/// # Safety
/// As for [`k`].
#[inline(always)]
pub unsafe fn v<E: Element, const HEAD_DIM: u32, const V_IS_F16: bool>(
    p: &QuantizeParams,
    job: &Job,
    cta: u32,
    base: u32,
    position: Position,
) {
    let tiles = p.schedule.tiles_kv;
    let head = job.head as u64 * tiles_row::<HEAD_DIM>(tiles);
    let row = head + tiles_row::<HEAD_DIM>(job.tile);
    let smoothed = p.v_mean != 0;
    let exists = |token| job.first_token() + token < p.seqlen_kv;
    let (max, min) = (math::max_propagate_nan, math::min_propagate_nan);
    let counter = p.progress + Progress::v(job.head) * 4;
    let table = cta + const { smem::<E, HEAD_DIM>() }.lanes as u32;
    // SAFETY: forwarded contract; the scratch tensors have a row for every tile. Between two reductions a
    // barrier frees the table.
    unsafe {
        if smoothed {
            let sum = over_tokens::<E, HEAD_DIM>(cta, base, position, exists, 0.0, add_weighted, add);
            store_row::<HEAD_DIM>(position.thread, p.v_sum + row, sum);
            thread::sync_threads();
            let largest =
                over_tokens::<E, HEAD_DIM>(cta, base, position, exists, f32::NEG_INFINITY, |a, x, _| max(a, x), max);
            store_row::<HEAD_DIM>(position.thread, p.v_max + row, largest);
            thread::sync_threads();
            let smallest =
                over_tokens::<E, HEAD_DIM>(cta, base, position, exists, f32::INFINITY, |a, x, _| min(a, x), min);
            store_row::<HEAD_DIM>(position.thread, p.v_min + row, smallest);
        } else {
            let largest =
                over_tokens::<E, HEAD_DIM>(cta, base, position, exists, 0.0, |a, x, _| max(a, math::abs(x)), max);
            store_row::<HEAD_DIM>(position.thread, p.v_max + row, largest);
        }
        if is_last(position.thread, counter, tiles, cta + const { smem::<E, HEAD_DIM>() }.amax as u32) {
            let largest =
                reduce_chunks::<HEAD_DIM>(table, position.thread, p.v_max + head, tiles, f32::NEG_INFINITY, max);
            let (mut mean, mut amax) = (0.0, largest);
            if smoothed {
                thread::sync_threads();
                let smallest =
                    reduce_chunks::<HEAD_DIM>(table, position.thread, p.v_min + head, tiles, f32::INFINITY, min);
                thread::sync_threads();
                mean = reduce_chunks::<HEAD_DIM>(table, position.thread, p.v_sum + head, tiles, 0.0, add)
                    / p.seqlen_kv as f32;
                // Subtraction rounds monotonically: the extreme of the differences is the difference of
                // the extreme.
                amax = max(largest - mean, mean - smallest);
            }
            let feature = position.thread;
            if feature < HEAD_DIM {
                let index = job.head as u64 * HEAD_DIM as u64 + feature as u64;
                if smoothed {
                    global::store_f32(p.v_mean + index * 4, mean);
                }
                let scale = if V_IS_F16 { v_scale_f16(amax) } else { v_scale_fp8(amax) };
                global::store_f32(p.v_scale + index * 4, scale);
            }
            publish(position.thread, counter);
        }
    }
}

/// Takes `rounding`, which the first `HEAD_DIM` threads have of a tile of V: what was rounded less what became of it. After the
/// head's last one, its offsets.
///
/// # Safety
/// As for [`k`]; the head's statistics are visible, and nobody needs its sums any more.
#[cfg(any(feature = "sm_89", feature = "sm_90a"))]
#[inline(always)]
pub unsafe fn v_rounding<E: Element, const HEAD_DIM: u32>(
    p: &QuantizeParams,
    job: &Job,
    cta: u32,
    thread: u32,
    rounding: f32,
) {
    let tiles = p.schedule.tiles_kv;
    let parts = p.v_sum + job.head as u64 * tiles_row::<HEAD_DIM>(tiles);
    let counter = p.progress + Progress::v_codes(job.head) * 4;
    // SAFETY: forwarded contract; `v_sum` has a row for every tile.
    unsafe {
        store_row::<HEAD_DIM>(thread, parts + tiles_row::<HEAD_DIM>(job.tile), rounding);
        if is_last(thread, counter, tiles, cta + const { smem::<E, HEAD_DIM>() }.amax as u32) {
            let table = cta + const { smem::<E, HEAD_DIM>() }.lanes as u32;
            let rounding = reduce_chunks::<HEAD_DIM>(table, thread, parts, tiles, 0.0, add);
            if thread < HEAD_DIM {
                let channel = (job.head as u64 * HEAD_DIM as u64 + thread as u64) * 4;
                let mean = if p.v_mean == 0 { 0.0 } else { global::read_f32(p.v_mean + channel) };
                let scale = global::read_f32(p.v_scale + channel);
                global::store_f32(p.v_offset + channel, v_offset(mean, scale, rounding, p.seqlen_kv));
            }
        }
    }
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
