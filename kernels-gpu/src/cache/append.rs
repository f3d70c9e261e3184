//! Quantizes new tokens into the cache: a CTA has the 16 tokens of a group of one head, of which some are new.
//! Eight threads share a token. V's codes change places through shared memory, because a word of V has one
//! feature of four tokens.

use cuda_std::{convert, global, math, shared, thread, warp};
use sage_spec::cache::{AppendParams, GROUP_TOKENS, PAGE_GROUPS, PAGE_TOKENS, inverse_v_scale, k_scale, scale_word};
use sage_spec::quant::SCORE_BIAS;

use super::{layout, page_address};
use crate::codes::low_bytes;
use crate::rows::{bytes, load, load8, row_address};

/// Threads of a token.
const SHARE: u32 = 8;
/// Most features of a thread.
const FEATURES: usize = 16;
const GROUP: u32 = GROUP_TOKENS as u32;

/// The thread's features of a row.
#[inline(always)]
unsafe fn read<const HEAD_DIM: u32>(row: u64, first: u32, dtype: u32, vectorized: bool) -> [f32; FEATURES] {
    let mut x = [0.0f32; FEATURES];
    let from = row + first as u64 * bytes(dtype);
    let count = (HEAD_DIM / SHARE) as usize;
    // SAFETY: the caller vouches for the row; alignment is what `vectorized` promises.
    unsafe {
        if vectorized {
            let mut i = 0;
            while i < count {
                let eight = load8(from + i as u64 * bytes(dtype), dtype);
                let mut j = 0;
                while j < 8 {
                    x[i + j] = eight[j];
                    j += 1;
                }
                i += 8;
            }
        } else {
            let mut i = 0;
            while i < count {
                x[i] = load(from + i as u64 * bytes(dtype), dtype);
                i += 1;
            }
        }
    }
    x
}

/// Largest magnitude of the token, in all of its threads.
#[inline(always)]
unsafe fn amax(x: &[f32; FEATURES]) -> f32 {
    let mut largest = 0.0f32;
    let mut i = 0;
    while i < FEATURES {
        largest = math::max_propagate_nan(largest, math::abs(x[i]));
        i += 1;
    }
    let mut mask = 1;
    while mask < SHARE {
        // SAFETY: all lanes are here.
        largest = math::max_propagate_nan(largest, unsafe { warp::shuffle_xor_f32(largest, mask) });
        mask *= 2;
    }
    largest
}

/// Words of codes of the thread's features of K, in the order of `PageLayout::k_byte`.
#[inline(always)]
fn k_words<const INT4: bool>(x: &[f32; FEATURES], inverse: f32) -> [u32; 4] {
    let code = |i: usize| math::fma(x[i], inverse, SCORE_BIAS).to_bits();
    let mut words = [0; 4];
    let mut i = 0;
    while i < FEATURES {
        if INT4 {
            let even = low_bytes([code(i), code(i + 2), code(i + 4), code(i + 6)]);
            let odd = low_bytes([code(i + 1), code(i + 3), code(i + 5), code(i + 7)]);
            words[i / 8] = even & 0x0f0f_0f0f | (odd << 4) & 0xf0f0_f0f0;
            i += 8;
        } else {
            words[i / 4] = low_bytes([code(i), code(i + 1), code(i + 2), code(i + 3)]);
            i += 4;
        }
    }
    words
}

/// Bytes of `word` that `mask` has, and of `other` where it has not.
#[inline(always)]
fn select(mask: u32, word: u32, other: u32) -> u32 {
    word & mask | other & !mask
}

/// One thread.
///
/// # Safety
/// `sage_spec::cache::AppendParams`, `sage_spec::cache::append` and `sage_spec::cache::append_grid`.
#[inline(always)]
pub unsafe fn append<const HEAD_DIM: u32, const INT4: bool>(p: &AppendParams) {
    let layout = const { layout::<HEAD_DIM, INT4>() };
    let thread = thread::thread_idx_x();
    // SAFETY: there is a head; the lengths are there.
    let (batch, length) = unsafe {
        let batch = math::div_u32(thread::block_idx_y(), p.cache.num_heads_kv);
        (batch, global::load_u32(p.lengths + batch as u64 * 4))
    };
    let head = thread::block_idx_y() - batch * p.cache.num_heads_kv;
    let end = length + p.num_tokens;
    let first = (length / GROUP + thread::block_idx_x()) * GROUP;
    if first >= end {
        return;
    }
    let page = first / PAGE_TOKENS as u32;
    if page >= p.cache.pages_per_sequence {
        return;
    }
    let entry = batch * p.cache.pages_per_sequence + page;
    // SAFETY: a page that the sequence can have.
    let id = unsafe {
        if p.cache.block_table != 0 { global::load_u32(p.cache.block_table + entry as u64 * 4) } else { entry }
    };
    let base = page_address::<HEAD_DIM, INT4>(&p.cache, id, head);
    let group = first / GROUP % PAGE_GROUPS as u32;

    let (token, part) = (thread / SHARE, thread % SHARE);
    let is_new = first + token >= length && first + token < end;
    let features = HEAD_DIM / SHARE;
    let (mut k, mut v) = ([0.0f32; FEATURES], [0.0f32; FEATURES]);
    if is_new {
        let row = first + token - length;
        // SAFETY: a new token.
        unsafe {
            let (from_k, from_v) =
                (row_address(&p.k, p.dtype, batch, head, row), row_address(&p.v, p.dtype, batch, head, row));
            k = read::<HEAD_DIM>(from_k, part * features, p.dtype, p.vectorized != 0);
            v = read::<HEAD_DIM>(from_v, part * features, p.dtype, p.vectorized != 0);
            if p.cache.k_mean != 0 {
                let mean =
                    p.cache.k_mean + ((batch * p.cache.num_heads_kv + head) * HEAD_DIM + part * features) as u64 * 4;
                let mut i = 0;
                while i < features as usize {
                    k[i] -= global::load_f32(mean + i as u64 * 4);
                    i += 1;
                }
            }
        }
    }
    // SAFETY: all threads are here.
    let (k_amax, v_amax) = unsafe { (amax(&k), amax(&v)) };
    let (k_scale, inverse_v) = (k_scale(k_amax, layout.precision.max_code()), inverse_v_scale(v_amax));

    let row = thread::thread_idx_x() / SHARE * (HEAD_DIM + 4);
    let smem = shared::dynamic_shared_mem();
    let mut i = 0;
    while i < features {
        let at = i as usize;
        let x = [v[at] * inverse_v, v[at + 1] * inverse_v, v[at + 2] * inverse_v, v[at + 3] * inverse_v];
        // SAFETY: the thread's own features of the token's row.
        unsafe { shared::store_u32(smem + row + part * features + i, convert::f32_to_e4m3x4(x)) };
        i += 4;
    }
    if is_new {
        let to = base + layout.k_byte(0, 0) as u64 + (group * layout.k_group_bytes() as u32) as u64;
        let words = k_words::<INT4>(&k, 1.0 / k_scale);
        // The lane that owns the quarter of the features, and the thread's half of it.
        let lane = (token % 8 * 4 + part / 2) * 16;
        let count = const { if INT4 { HEAD_DIM / 64 } else { HEAD_DIM / 32 } };
        let word = token / 8 * 2 * count + part % 2 * count;
        let to = to + (word / 4 * 512 + lane + word % 4 * 4) as u64;
        // SAFETY: the token's own words, aligned to their number.
        unsafe {
            match count {
                4 => global::store_u32x4(to, words),
                2 => global::store_u32x2(to, [words[0], words[1]]),
                _ => global::store_u32(to, words[0]),
            }
            if part == 0 {
                let scales = base + layout.scales_offset() as u64 + (group * 64) as u64;
                let slot = token / 8 * 2 + token % 8 / 2 * 4 + token % 2;
                global::store_u32(scales + slot as u64 * 4, scale_word(k_scale, inverse_v));
            }
        }
    }
    // SAFETY: all threads are here.
    unsafe { thread::sync_threads() };
    if thread >= HEAD_DIM {
        return;
    }

    // Four features of the four tokens of one lane.
    let (column, t) = (thread / 4, thread % 4);
    let tokens = [2 * t, 2 * t + 1, 2 * t + 8, 2 * t + 9];
    // SAFETY: the rows are written.
    let rows = tokens.map(|token| unsafe { shared::load_u32(smem + token * (HEAD_DIM + 4) + column * 4) });
    // Bytes of new tokens, and of tokens that were there before.
    let (mut new, mut old) = (0, 0);
    let mut i = 0;
    while i < 4 {
        let token = first + tokens[i];
        let byte = 0xff << (8 * i);
        if token < length {
            old |= byte;
        } else if token < end {
            new |= byte;
        }
        i += 1;
    }
    let to = base + layout.v_offset() as u64 + (group * layout.v_group_bytes() as u32) as u64;
    let (lower, upper) = (
        [convert::permute_bytes::<0x5140>(rows[0], rows[1]), convert::permute_bytes::<0x7362>(rows[0], rows[1])],
        [convert::permute_bytes::<0x5140>(rows[2], rows[3]), convert::permute_bytes::<0x7362>(rows[2], rows[3])],
    );
    let words = [
        convert::permute_bytes::<0x5410>(lower[0], upper[0]),
        convert::permute_bytes::<0x7632>(lower[0], upper[0]),
        convert::permute_bytes::<0x5410>(lower[1], upper[1]),
        convert::permute_bytes::<0x7632>(lower[1], upper[1]),
    ];
    let mut i = 0;
    while i < 4 {
        let feature = column * 4 + i as u32;
        let word = feature / 8;
        let to = to + (word / 4 * 512 + (feature % 8 * 4 + t) * 16 + word % 4 * 4) as u64;
        // SAFETY: nobody else has this word; what it holds of earlier tokens stays.
        unsafe {
            let before = if old != 0 { global::read_f32(to).to_bits() } else { 0 };
            global::store_u32(to, select(new, words[i], before & old));
        }
        i += 1;
    }
}
