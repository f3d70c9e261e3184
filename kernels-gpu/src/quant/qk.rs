//! Q and K to INT4 or INT8, from a tile in shared memory.

use cuda_std::{global, math, shared, thread, warp};
use sage_spec::params::QuantizeParams;
use sage_spec::quant::{SCORE_BIAS, qk_scale};
use sage_spec::tiling::{BLOCK_KV, BLOCK_Q};

use super::element::Element;
use super::job::Job;
use super::lanes::{LANES, PER_THREAD, Position, TOKENS, amax, load8, reduce_lanes, reduce_row};
use super::posted::Eight;
use super::tile::{self, smem};
use crate::codes::low_bytes;

/// Whether this module has attention kernels that read two codes from a byte.
const MAY_PACK: bool = cfg!(any(feature = "sm_80", feature = "sm_89"));

const _: () = assert!(BLOCK_Q as u32 == TOKENS && 2 * BLOCK_KV as u32 == TOKENS);

/// Stores eight codes whose first has index `element`.
///
/// `x · inverse_scale + 1.5·2²³`, rounded once, has the nearest integer (ties to even) in its low bits; it
/// never exceeds the largest code, because `scale >= amax / max_code`.
#[inline(always)]
unsafe fn store_codes<const PACKED: bool>(codes: u64, element: u64, x: &[f32; 8], inverse_scale: f32) {
    let pack = |a: f32, b: f32, c: f32, d: f32| low_bytes([a, b, c, d].map(f32::to_bits));
    // SAFETY: the caller vouches for eight codes of the padded tensor.
    unsafe {
        if PACKED {
            // Both codes of a byte as one number, `(even + 8) + 16 · (odd + 8)`; flipping the top bit of
            // each nibble takes the 8 away again.
            let mut bytes = [0.0f32; 4];
            let mut i = 0;
            while i < 4 {
                let even = math::fma(x[2 * i], inverse_scale, SCORE_BIAS + 136.0);
                let odd = math::fma(x[2 * i + 1], inverse_scale, SCORE_BIAS) - SCORE_BIAS;
                bytes[i] = math::fma(odd, 16.0, even);
                i += 1;
            }
            global::stream_u32(codes + element / 2, pack(bytes[0], bytes[1], bytes[2], bytes[3]) ^ 0x8888_8888);
        } else {
            let z = x.map(|x| math::fma(x, inverse_scale, SCORE_BIAS));
            global::stream_u32x2(codes + element, [pack(z[0], z[1], z[2], z[3]), pack(z[4], z[5], z[6], z[7])]);
        }
    }
}

/// Maximum over a row's threads of one value per segment, all `SEGMENTS` at once: in the first steps a thread
/// hands over half of its segments and keeps the other, so 4 segments take 5 shuffles instead of 16. Returns
/// the maximum of one segment, and which.
///
/// # Safety
/// All lanes of the warp call it.
#[inline(always)]
unsafe fn reduce_segments<const HEAD_DIM: u32, const SEGMENTS: usize>(
    position: Position,
    mut x: [f32; SEGMENTS],
) -> (u32, f32) {
    let column = position.first_feature / 8;
    let mut mask = HEAD_DIM / 8 / 2;
    let (mut count, mut segment) = (SEGMENTS, 0);
    while mask > 0 {
        let upper = column & mask != 0;
        if count > 1 {
            count /= 2;
            segment += if upper { count as u32 } else { 0 };
            let mut i = 0;
            while i < count {
                let (keep, give) = if upper { (x[i + count], x[i]) } else { (x[i], x[i + count]) };
                // SAFETY: forwarded contract.
                x[i] = math::max_propagate_nan(keep, unsafe { warp::shuffle_xor_f32(give, mask) });
                i += 1;
            }
        } else {
            // SAFETY: forwarded contract.
            x[0] = math::max_propagate_nan(x[0], unsafe { warp::shuffle_xor_f32(x[0], mask) });
        }
        mask /= 2;
    }
    (segment, x[0])
}

/// Largest magnitudes of the thread's features of its units, see [`group_scales`].
#[inline(always)]
fn units_of<const SEGMENTS: usize>(
    position: Position,
    read: impl Fn(usize) -> [f32; 8],
    exists: impl Fn(u32) -> bool,
) -> [f32; SEGMENTS] {
    let mut units = [0.0f32; SEGMENTS];
    let mut i = 0;
    while i < PER_THREAD {
        let amax = if exists(position.token(i)) { amax(&read(i)) } else { 0.0 };
        let unit = &mut units[i / (PER_THREAD / SEGMENTS)];
        *unit = math::max_propagate_nan(*unit, amax);
        i += 1;
    }
    units
}

/// [`units_of`] elements as they are.
#[inline(always)]
fn units_of_raw<E: Element, const SEGMENTS: usize>(
    position: Position,
    read: impl Fn(usize) -> E::Raw,
    exists: impl Fn(u32) -> bool,
) -> [f32; SEGMENTS] {
    let mut units = [0.0f32; SEGMENTS];
    let mut segment = 0;
    while segment < SEGMENTS {
        let mut largest = E::ZEROS;
        let mut i = segment * (PER_THREAD / SEGMENTS);
        while i < (segment + 1) * (PER_THREAD / SEGMENTS) {
            largest = E::larger(largest, E::magnitudes(read(i), exists(position.token(i))));
            i += 1;
        }
        units[segment] = E::largest(largest);
        segment += 1;
    }
    units
}

/// Maxima and scales of a tile, by *units*: unit (segment, lane) is the `PER_THREAD / SEGMENTS` tokens that token
/// lane `lane` holds of segment `segment` (a warp's 32 rows of Q, a block of 64 keys). Every group of every
/// granularity is a union of units. `units` are the thread's, of its features; `group_amax` yields, for a unit, the maximum of its group, `finish` turns
/// that into the scale. Afterwards the table at `inverse` holds each unit's reciprocal of its scale.
///
/// # Safety
/// All threads of the CTA call it; the tables are free.
#[inline(always)]
unsafe fn group_scales<const HEAD_DIM: u32, const SEGMENTS: usize>(
    table: u32,
    inverse: u32,
    position: Position,
    units: [f32; SEGMENTS],
    group_amax: impl Fn(u32, u32) -> f32,
    finish: impl Fn(u32, u32, f32) -> f32,
) {
    // SAFETY: all threads are here; threads that hold the same segment store the same value; tables are
    // written before a barrier and read after it.
    unsafe {
        let (segment, unit) = reduce_segments::<HEAD_DIM, SEGMENTS>(position, units);
        shared::store_f32(table + (segment * LANES + position.lane) * 4, unit);
        thread::sync_threads();
        let thread = position.thread;
        if thread < SEGMENTS as u32 * LANES {
            let (segment, lane) = (thread / LANES, thread % LANES);
            let scale = finish(segment, lane, group_amax(segment, lane));
            shared::store_f32(inverse + thread * 4, 1.0 / scale);
        }
        thread::sync_threads();
    }
}

/// Maximum of `count` units from unit `first` on, `step` apart.
#[inline(always)]
unsafe fn table_amax(table: u32, first: u32, step: u32, count: u32) -> f32 {
    let mut largest = 0.0f32;
    let mut i = 0;
    while i < count {
        // SAFETY: inside the table.
        largest = math::max_propagate_nan(largest, unsafe { shared::load_f32(table + (first + i * step) * 4) });
        i += 1;
    }
    largest
}

/// Quantizes and stores the thread's tokens with the scales left by [`group_scales`]. `codes` is the address of
/// the tile's codes.
#[inline(always)]
unsafe fn store_tokens<const PACKED: bool, const HEAD_DIM: u32, const SEGMENTS: usize>(
    inverse: u32,
    position: Position,
    read: impl Fn(usize) -> [f32; 8],
    codes: u64,
    exists: impl Fn(u32) -> bool,
) {
    let mut inverse_scale = 0.0;
    let mut i = 0;
    while i < PER_THREAD {
        if i % (PER_THREAD / SEGMENTS) == 0 {
            let segment = (i / (PER_THREAD / SEGMENTS)) as u32;
            // SAFETY: inside the table.
            inverse_scale = unsafe { shared::load_f32(inverse + (segment * LANES + position.lane) * 4) };
        }
        let token = position.token(i);
        let element = token as u64 * HEAD_DIM as u64 + position.first_feature as u64;
        // Padding rows are zero: so is any finite value times zero.
        let inverse_scale = if exists(token) { inverse_scale } else { 0.0 };
        // SAFETY: a row of the padded tensor.
        unsafe { store_codes::<PACKED>(codes, element, &read(i), inverse_scale) };
        i += 1;
    }
}

/// Address of the codes of flattened tile `tile`.
#[inline(always)]
fn tile_codes<const HEAD_DIM: u32>(p: &QuantizeParams, codes: u64, tile: u64) -> u64 {
    codes + ((tile * (TOKENS * HEAD_DIM) as u64) >> if MAY_PACK { p.packed } else { 0 })
}

/// Stores the codes in the storage that `p` asks for.
#[inline(always)]
unsafe fn store_tile<const HEAD_DIM: u32, const SEGMENTS: usize>(
    p: &QuantizeParams,
    inverse: u32,
    position: Position,
    read: impl Fn(usize) -> [f32; 8],
    codes: u64,
    exists: impl Fn(u32) -> bool,
) {
    // SAFETY: forwarded contract.
    unsafe {
        if MAY_PACK && p.packed != 0 {
            store_tokens::<true, HEAD_DIM, SEGMENTS>(inverse, position, read, codes, exists);
        } else {
            store_tokens::<false, HEAD_DIM, SEGMENTS>(inverse, position, read, codes, exists);
        }
    }
}

/// One query block. Smooths (subtracts the block's mean), quantizes, and computes `q · k_mean` of the original
/// rows for the LSE. `k_mean` is requested if they are wanted.
///
/// # Safety
/// All threads of the CTA call it; the tile is in shared memory at `base`, tables from `cta` on.
#[inline(always)]
pub unsafe fn q<E: Element, const HEAD_DIM: u32>(
    p: &QuantizeParams,
    job: &Job,
    cta: u32,
    base: u32,
    position: Position,
    k_mean: Option<Eight>,
) {
    let tables = const { smem::<E, HEAD_DIM>() };
    let (table, inverse) = (cta + tables.amax as u32, cta + tables.inverse_scale as u32);
    let block = job.head as u64 * p.seqlen_q.div_ceil(TOKENS) as u64 + job.tile as u64;
    let exists = |token: u32| job.first_token() + token < p.seqlen_q;
    // SAFETY: the tile is there.
    let raw = |i: usize| unsafe { tile::read::<E, HEAD_DIM>(base, position.first_feature, position.token(i)) };

    if let Some(k_mean) = k_mean {
        let k_mean = k_mean.wait();
        let mut i = 0;
        while i < PER_THREAD {
            let x = raw(i);
            let mut dot = 0.0f32;
            let mut j = 0;
            while j < 8 {
                dot += x[j] * k_mean[j];
                j += 1;
            }
            let token = position.token(i);
            // SAFETY: all lanes are here; a row of the padded tensor.
            unsafe {
                dot = reduce_row::<HEAD_DIM>(dot, |a, b| a + b);
                if position.first_feature == 0 {
                    let dot = if exists(token) { dot } else { 0.0 };
                    global::store_f32(p.qk_mean + (block * TOKENS as u64 + token as u64) * 4, dot);
                }
            }
            i += 1;
        }
    }

    let (mut scale_floor, mut mean) = (0.0f32, [0.0f32; 8]);
    if p.q_mean != 0 {
        let mut sum = [0.0f32; 8];
        let mut i = 0;
        while i < PER_THREAD {
            let x = raw(i);
            let weight = if exists(position.token(i)) { 1.0 } else { 0.0 };
            let mut j = 0;
            while j < 8 {
                sum[j] = math::fma(x[j], weight, sum[j]);
                j += 1;
            }
            i += 1;
        }
        // SAFETY: all threads are here; a thread writes its feature's mean, everybody reads after the barrier.
        unsafe {
            let sum = reduce_lanes::<HEAD_DIM>(cta + tables.lanes as u32, position, sum, |a, b| a + b);
            let feature = position.thread;
            let mean_slot = cta + tables.mean as u32;
            if feature < HEAD_DIM {
                let mean = sum / TOKENS.min(p.seqlen_q - job.first_token()) as f32;
                shared::store_f32(mean_slot + feature * 4, mean);
                global::store_f32(p.q_mean + (block * HEAD_DIM as u64 + feature as u64) * 4, mean);
            }
            thread::sync_threads();
            mean = load8(mean_slot + position.first_feature * 4);
        }
        let mut l1 = 0.0f32;
        let mut j = 0;
        while j < 8 {
            l1 += math::abs(mean[j]);
            j += 1;
        }
        // SAFETY: all lanes are here.
        l1 = unsafe { reduce_row::<HEAD_DIM>(l1, |a, b| a + b) };
        scale_floor = l1 * p.smooth_q_floor;
    }

    let smoothed = |i: usize| subtract(raw(i), &mean);
    let units = if p.q_mean != 0 {
        units_of(position, smoothed, exists)
    } else {
        // SAFETY: the tile is there.
        let read = |i: usize| unsafe { tile::raw::<E, HEAD_DIM>(base, position.first_feature, position.token(i)) };
        units_of_raw::<E, 4>(position, read, exists)
    };
    // Segments are the 32 rows of a warp: the tokens lane + 32 s and lane + 16 + 32 s.
    // SAFETY: all threads are here; tables are inside shared memory, scales inside p.q_scale.
    unsafe {
        group_scales::<HEAD_DIM, 4>(
            table,
            inverse,
            position,
            units,
            |segment, lane| match p.granularity {
                0 => table_amax(table, 0, 1, 4 * LANES),
                1 => table_amax(table, segment * LANES, 1, LANES),
                _ => table_amax(table, segment * LANES + lane % 8, 8, 2),
            },
            |segment, lane, amax| {
                let scale = math::max_propagate_nan(qk_scale(amax, p.max_code), scale_floor);
                let (index, first) = match p.granularity {
                    0 => (block, segment == 0 && lane == 0),
                    1 => (block * 4 + segment as u64, lane == 0),
                    _ => (block * 32 + (segment * 8 + lane) as u64, lane < 8),
                };
                if first {
                    global::store_f32(p.q_scale + index * 4, scale);
                }
                scale
            },
        );
        let codes = tile_codes::<HEAD_DIM>(p, p.q_codes, block);
        if p.q_mean != 0 {
            store_tile::<HEAD_DIM, 4>(p, inverse, position, smoothed, codes, exists);
        } else {
            store_tile::<HEAD_DIM, 4>(p, inverse, position, raw, codes, exists);
        }
    }
}

/// Two key blocks. `k_mean` is requested if K is smoothed.
///
/// # Safety
/// As for [`q`].
#[inline(always)]
pub unsafe fn k<E: Element, const HEAD_DIM: u32>(
    p: &QuantizeParams,
    job: &Job,
    cta: u32,
    base: u32,
    position: Position,
    k_mean: Option<Eight>,
) {
    let tables = const { smem::<E, HEAD_DIM>() };
    let (table, inverse) = (cta + tables.amax as u32, cta + tables.inverse_scale as u32);
    let tile = job.head as u64 * p.schedule.tiles_kv as u64 + job.tile as u64;
    let exists = |token: u32| job.first_token() + token < p.seqlen_kv;
    let mean = k_mean.map_or([0.0; 8], Eight::wait);
    let read = |i: usize| {
        // SAFETY: the tile is there.
        let x = unsafe { tile::read::<E, HEAD_DIM>(base, position.first_feature, position.token(i)) };
        subtract(x, &mean)
    };
    // SAFETY: all threads are here; tables are inside shared memory, scales inside p.k_scale.
    unsafe {
        group_scales::<HEAD_DIM, 2>(
            table,
            inverse,
            position,
            units_of(position, read, exists),
            |segment, lane| match p.granularity {
                0 | 1 => table_amax(table, segment * LANES, 1, LANES),
                _ => {
                    let first = segment * LANES + lane % 8 / 2 * 2;
                    math::max_propagate_nan(table_amax(table, first, 8, 2), table_amax(table, first + 1, 8, 2))
                }
            },
            |segment, lane, amax| {
                let scale = qk_scale(amax, p.max_code);
                let block = tile * 2 + segment as u64;
                let (index, first) = match p.granularity {
                    0 | 1 => (block, lane == 0),
                    _ => (block * 4 + lane as u64 / 2, lane < 8 && lane % 2 == 0),
                };
                if first {
                    global::store_f32(p.k_scale + index * 4, scale);
                }
                scale
            },
        );
        let codes = tile_codes::<HEAD_DIM>(p, p.k_codes, tile);
        store_tile::<HEAD_DIM, 2>(p, inverse, position, read, codes, exists);
    }
}

#[inline(always)]
fn subtract(mut x: [f32; 8], mean: &[f32; 8]) -> [f32; 8] {
    let mut j = 0;
    while j < 8 {
        x[j] -= mean[j];
        j += 1;
    }
    x
}
