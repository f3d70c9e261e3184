//! Q and K to INT4 or INT8. A CTA holds its tokens in registers: each is read once and written once.

use cuda_std::{convert, global, math, shared, thread, warp};
use sage_spec::Precision;
use sage_spec::params::{QuantizeKParams, QuantizeQParams};
use sage_spec::quant::{SCORE_BIAS, qk_scale, smooth_q_scale_floor};
use sage_spec::tiling::{BLOCK_KV, BLOCK_Q, KV_PAD};

use super::element::{Element, Rows, add_weighted};
use super::lanes::{LANES, Position, amax, load8, reduce_lanes, reduce_row};

/// Tokens of a CTA of [`quantize_q`].
const TOKENS: u32 = BLOCK_Q as u32;
/// Tokens of a thread.
const PER_THREAD: usize = (TOKENS / LANES) as usize;

/// Bytes of a table of one f32 per unit, `[segment * LANES + lane]`: see [`group_scales`].
const TABLE_BYTES: u32 = 4 * LANES * 4;

/// Stores eight codes whose first has index `element`.
///
/// `x · inverse_scale + 1.5·2²³`, rounded once, has the nearest integer (ties to even) in its low bits; it
/// never exceeds the largest code, because `scale >= amax / max_code`.
#[inline(always)]
unsafe fn store_codes<const INT4: bool>(codes: u64, element: u64, x: &[f32; 8], inverse_scale: f32) {
    // Low bytes of four words.
    let pack = |a: f32, b: f32, c: f32, d: f32| {
        let [a, b, c, d] = [a, b, c, d].map(f32::to_bits);
        convert::permute_bytes::<0x5410>(convert::permute_bytes::<0x0040>(a, b), convert::permute_bytes::<0x0040>(c, d))
    };
    // SAFETY: the caller vouches for eight codes of the padded tensor.
    unsafe {
        if INT4 {
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
            global::store_u32(codes + element / 2, pack(bytes[0], bytes[1], bytes[2], bytes[3]) ^ 0x8888_8888);
        } else {
            let z = x.map(|x| math::fma(x, inverse_scale, SCORE_BIAS));
            global::store_u32x2(codes + element, [pack(z[0], z[1], z[2], z[3]), pack(z[4], z[5], z[6], z[7])]);
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

/// Scales of a CTA, from the maxima of its *units*: unit (segment, lane) is the `PER_THREAD / SEGMENTS` tokens
/// that token lane `lane` holds of segment `segment` (a warp's 32 rows of Q, a block of 64 keys). Every group
/// of every granularity is a union of units. `group_amax` yields, for a unit, the maximum of its group,
/// `finish` turns that into the scale. Afterwards the table at `table + TABLE_BYTES` holds each unit's
/// reciprocal of its scale.
#[inline(always)]
unsafe fn group_scales<const HEAD_DIM: u32, const LANES: u32, const SEGMENTS: usize>(
    table: u32,
    position: Position,
    x: &[[f32; 8]; PER_THREAD],
    exists: impl Fn(u32) -> bool,
    group_amax: impl Fn(u32, u32) -> f32,
    finish: impl Fn(u32, u32, f32) -> f32,
) {
    let mut units = [0.0f32; SEGMENTS];
    let mut token = 0;
    while token < PER_THREAD {
        let amax = if exists(position.lane + token as u32 * LANES) { amax(&x[token]) } else { 0.0 };
        let unit = &mut units[token / (PER_THREAD / SEGMENTS)];
        *unit = math::max_propagate_nan(*unit, amax);
        token += 1;
    }
    // SAFETY: all threads are here; threads that hold the same segment store the same value; tables are
    // written before a barrier and read after it.
    unsafe {
        let (segment, unit) = reduce_segments::<HEAD_DIM, SEGMENTS>(position, units);
        shared::store_f32(table + (segment * LANES + position.lane) * 4, unit);
        thread::sync_threads();
        let thread = thread::thread_idx_x();
        if thread < SEGMENTS as u32 * LANES {
            let (segment, lane) = (thread / LANES, thread % LANES);
            let scale = finish(segment, lane, group_amax(segment, lane));
            shared::store_f32(table + TABLE_BYTES + thread * 4, 1.0 / scale);
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

/// Quantizes and stores the thread's tokens with the scales left by [`group_scales`].
#[inline(always)]
unsafe fn store_tokens<const INT4: bool, const HEAD_DIM: u32, const LANES: u32, const SEGMENTS: usize>(
    table: u32,
    position: Position,
    x: &[[f32; 8]; PER_THREAD],
    codes: u64,
    first_row: u64,
    exists: impl Fn(u32) -> bool,
) {
    let mut inverse_scale = 0.0;
    let mut i = 0;
    while i < PER_THREAD {
        if i % (PER_THREAD / SEGMENTS) == 0 {
            let segment = (i / (PER_THREAD / SEGMENTS)) as u32;
            // SAFETY: inside the table.
            inverse_scale = unsafe { shared::load_f32(table + TABLE_BYTES + (segment * LANES + position.lane) * 4) };
        }
        let token = position.lane + i as u32 * LANES;
        let element = (first_row + token as u64) * HEAD_DIM as u64 + position.first_feature as u64;
        // Padding rows are zero: so is any finite value times zero.
        let inverse_scale = if exists(token) { inverse_scale } else { 0.0 };
        // SAFETY: a row of the padded tensor.
        unsafe { store_codes::<INT4>(codes, element, &x[i], inverse_scale) };
        i += 1;
    }
}

const fn precision(int4: bool) -> Precision {
    if int4 { Precision::Int4 } else { Precision::Int8 }
}

/// One CTA: one query block. Smooths (subtracts the block's mean), quantizes, and computes `q · k_mean`
/// of the original rows for the LSE.
///
/// # Safety
/// `sage_spec::params::QuantizeQParams`, `sage_spec::launch::quantize_q`.
#[inline(always)]
pub unsafe fn quantize_q<E: Element, const INT4: bool, const HEAD_DIM: u32>(p: &QuantizeQParams) {
    let position = Position::new::<HEAD_DIM>();
    let num_blocks = p.seqlen_q.div_ceil(TOKENS);
    let block_index = thread::block_idx_x();
    // SAFETY: counts of a launched problem are not zero.
    let (head, batch, head_kv) = unsafe {
        let head = math::div_u32(block_index, num_blocks);
        let batch = math::div_u32(head, p.num_heads_q);
        let group = math::div_u32(p.num_heads_q, p.num_heads_kv);
        (head, batch, batch * p.num_heads_kv + math::div_u32(head - batch * p.num_heads_q, group))
    };
    let first_token = (block_index - head * num_blocks) * TOKENS;
    let first_row = block_index as u64 * TOKENS as u64;
    let rows = Rows::new::<E>(
        &p.q,
        batch,
        head - batch * p.num_heads_q,
        p.seqlen_q,
        position.first_feature,
        p.head_dim,
        p.vectorized,
    );
    let smem = shared::dynamic_shared_mem();
    let mean_slot = smem + LANES * HEAD_DIM * 4;
    let table = mean_slot + HEAD_DIM * 4;

    // SAFETY: forwarded contract.
    let mut x = unsafe { rows.load::<E, PER_THREAD, LANES>(first_token + position.lane) };

    if p.qk_mean != 0 {
        let k_mean = p.k_mean + (head_kv as u64 * HEAD_DIM as u64 + position.first_feature as u64) * 4;
        // SAFETY: f32 [B, Hkv, Dp].
        let (a, b) = unsafe { (global::load_u32x4(k_mean), global::load_u32x4(k_mean + 16)) };
        let k_mean = [a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3]].map(f32::from_bits);
        let mut i = 0;
        while i < PER_THREAD {
            let mut dot = 0.0f32;
            let mut j = 0;
            while j < 8 {
                dot += x[i][j] * k_mean[j];
                j += 1;
            }
            // SAFETY: all lanes are here; a row of the padded tensor.
            let exists = rows.contains(first_token + position.lane + i as u32 * LANES);
            unsafe {
                dot = reduce_row::<HEAD_DIM>(dot, |a, b| a + b);
                if position.first_feature == 0 {
                    global::store_f32(
                        p.qk_mean + (first_row + (position.lane + i as u32 * LANES) as u64) * 4,
                        if exists { dot } else { 0.0 },
                    );
                }
            }
            i += 1;
        }
    }

    let mut scale_floor = 0.0f32;
    if p.mean != 0 {
        let mut sum = [0.0f32; 8];
        let mut i = 0;
        while i < PER_THREAD {
            let exists = rows.contains(first_token + position.lane + i as u32 * LANES);
            add_weighted(&mut sum, &x[i], if exists { 1.0 } else { 0.0 });
            i += 1;
        }
        // SAFETY: all threads are here; a thread writes its feature's mean, everybody reads after the barrier.
        let mean = unsafe {
            let sum = reduce_lanes::<HEAD_DIM, 1>(smem, position, [sum], |_, a, b| a + b);
            let feature = thread::thread_idx_x();
            if feature < HEAD_DIM {
                let mean = sum / TOKENS.min(p.seqlen_q - first_token) as f32;
                shared::store_f32(mean_slot + feature * 4, mean);
                global::store_f32(p.mean + (block_index as u64 * HEAD_DIM as u64 + feature as u64) * 4, mean);
            }
            thread::sync_threads();
            load8(mean_slot + position.first_feature * 4)
        };
        let mut l1 = 0.0f32;
        let mut j = 0;
        while j < 8 {
            l1 += math::abs(mean[j]);
            j += 1;
        }
        // SAFETY: all lanes are here.
        l1 = unsafe { reduce_row::<HEAD_DIM>(l1, |a, b| a + b) };
        scale_floor = smooth_q_scale_floor(l1, precision(INT4));
        subtract(&mut x, &mean);
    }

    // Segments are the 32 rows of a warp: the tokens lane + 32·s.
    // SAFETY: all threads are here; tables are inside shared memory, scales inside p.scale.
    unsafe {
        group_scales::<HEAD_DIM, LANES, 4>(
            table,
            position,
            &x,
            |token| rows.contains(first_token + token),
            |segment, lane| match p.granularity {
                0 => table_amax(table, 0, 1, 4 * LANES),
                1 => table_amax(table, segment * LANES, 1, LANES),
                _ => table_amax(table, segment * LANES + lane % 8, 8, 4),
            },
            |segment, lane, amax| {
                let scale = math::max_propagate_nan(qk_scale(amax, precision(INT4)), scale_floor);
                let block = block_index as u64;
                let (index, first) = match p.granularity {
                    0 => (block, segment == 0 && lane == 0),
                    1 => (block * 4 + segment as u64, lane == 0),
                    _ => (block * 32 + (segment * 8 + lane) as u64, lane < 8),
                };
                if first {
                    global::store_f32(p.scale + index * 4, scale);
                }
                scale
            },
        );
        store_tokens::<INT4, HEAD_DIM, LANES, 4>(table, position, &x, p.codes, first_row, |token| {
            rows.contains(first_token + token)
        });
    }
}

/// Token lanes of a CTA of [`quantize_k`]: it has no sums, so no order to keep to, and small CTAs overlap
/// better.
const K_LANES: u32 = sage_spec::launch::QUANTIZE_K_LANES as u32;

/// One CTA: one key block.
///
/// # Safety
/// `sage_spec::params::QuantizeKParams`, `sage_spec::launch::quantize_k`.
#[inline(always)]
pub unsafe fn quantize_k<E: Element, const INT4: bool, const HEAD_DIM: u32>(p: &QuantizeKParams) {
    const TOKENS: u32 = BLOCK_KV as u32;
    const { assert!(TOKENS / K_LANES == PER_THREAD as u32) };
    let position = Position::new::<HEAD_DIM>();
    let num_blocks = p.seqlen_kv.div_ceil(KV_PAD as u32) * (KV_PAD as u32 / TOKENS);
    let block_index = thread::block_idx_x();
    // SAFETY: counts of a launched problem are not zero.
    let (head, batch) = unsafe {
        let head = math::div_u32(block_index, num_blocks);
        (head, math::div_u32(head, p.num_heads_kv))
    };
    let first_token = (block_index - head * num_blocks) * TOKENS;
    let rows = Rows::new::<E>(
        &p.k,
        batch,
        head - batch * p.num_heads_kv,
        p.seqlen_kv,
        position.first_feature,
        p.head_dim,
        p.vectorized,
    );
    let table = shared::dynamic_shared_mem();

    // SAFETY: forwarded contract.
    let mut x = unsafe { rows.load::<E, PER_THREAD, K_LANES>(first_token + position.lane) };
    if p.mean != 0 {
        let mean = p.mean + (head as u64 * HEAD_DIM as u64 + position.first_feature as u64) * 4;
        // SAFETY: f32 [B, Hkv, Dp].
        let (a, b) = unsafe { (global::load_u32x4(mean), global::load_u32x4(mean + 16)) };
        subtract(&mut x, &[a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3]].map(f32::from_bits));
    }
    // SAFETY: all threads are here; tables are inside shared memory, scales inside p.scale.
    unsafe {
        group_scales::<HEAD_DIM, K_LANES, 1>(
            table,
            position,
            &x,
            |token| rows.contains(first_token + token),
            |_, lane| match p.granularity {
                0 | 1 => table_amax(table, 0, 1, K_LANES),
                _ => {
                    let first = lane % 8 / 2 * 2;
                    math::max_propagate_nan(table_amax(table, first, 8, 2), table_amax(table, first + 1, 8, 2))
                }
            },
            |_, lane, amax| {
                let scale = qk_scale(amax, precision(INT4));
                let block = block_index as u64;
                let (index, first) = match p.granularity {
                    0 | 1 => (block, lane == 0),
                    _ => (block * 4 + lane as u64 / 2, lane < 8 && lane % 2 == 0),
                };
                if first {
                    global::store_f32(p.scale + index * 4, scale);
                }
                scale
            },
        );
        let exists = |token| rows.contains(first_token + token);
        store_tokens::<INT4, HEAD_DIM, K_LANES, 1>(
            table,
            position,
            &x,
            p.codes,
            block_index as u64 * TOKENS as u64,
            exists,
        );
    }
}

/// Subtracts `mean` from every token.
#[inline(always)]
fn subtract(x: &mut [[f32; 8]; PER_THREAD], mean: &[f32; 8]) {
    let mut i = 0;
    while i < PER_THREAD {
        let mut j = 0;
        while j < 8 {
            x[i][j] -= mean[j];
            j += 1;
        }
        i += 1;
    }
}
