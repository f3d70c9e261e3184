//! Q from the caller's tensor to codes in shared memory, by the warps of the producer's warpgroup that copy nothing. One
//! takes the items, an item ahead of the consumers; the others make what the producer would copy: codes, swizzled, and
//! scales, both bit-equal to the quantizer's (`crate::quant`).
//!
//! A warp has 32 rows in hand: it copies them to shared memory as they are, finds the largest magnitudes of the groups
//! that share a scale, and rounds. It has the producer's registers, 32 a thread, so it does so eight features at a time,
//! and reads the rows twice.

use cuda_std::{cp_async, hint, math, mbarrier, shared, thread, tma, warp};
use sage_spec::quant::{SCORE_BIAS, qk_scale};
use sage_spec::sm90::{Q_SCALE_BYTES, QUERY_ROWS, QUERY_WARPS, Sm90AttentionParams, WORK_BYTES};
use sage_spec::tiling;

use super::config::{Barriers, Config, QueryRing};
use super::kernel::Algorithm;
use super::schedule::{Items, Work};
use crate::codes::low_bytes;
use crate::element::{Bf16, Element, F16};
use crate::tile::swizzle::chunk_offset;

/// Rows in hand.
const ROWS: u32 = QUERY_ROWS as u32;
/// Features of a row; only kernels of so many quantize Q.
const HEAD_DIM: u32 = 128;
/// Features of a thread: one 16-byte copy.
const FEATURES: u32 = 8;
/// Threads that share a row.
const COLUMNS: u32 = HEAD_DIM / FEATURES;
/// From one of a thread's rows to the next.
const STEP: u32 = 32 / COLUMNS;
/// Groups of rows where not all in hand share a scale: every eighth row is in the same one.
const GROUPS: u32 = 8;
/// Groups of a thread: each has every eighth row.
const OWN_GROUPS: usize = (GROUPS / STEP) as usize;

/// Takes the CTA's work items, one ahead of the consumers.
///
/// # Safety
/// One thread of the CTA calls it, after the barriers were initialised.
#[inline(always)]
pub unsafe fn take_items<A: Algorithm>(params: &A::Params, smem: u32) {
    let (p, barriers) = (A::attention(params), Barriers::new::<A>(smem));
    let mut query = QueryRing::start();
    let mut items = Items::start();
    // SAFETY: an item's slot is written only after its buffer's empty barrier has completed: its consumers, and with them
    // all who fill the buffer for them, have read it.
    unsafe {
        loop {
            mbarrier::wait(barriers.empty_q(query.index), query.parity ^ 1);
            let work = items.take::<A>(params, slot::<A>(smem, query.index));
            mbarrier::arrive(barriers.full_item(query.index));
            if work.is_none() {
                break;
            }
            query.advance();
        }
        items.end(p);
    }
}

/// Quantizes the rows of each of the CTA's work items.
///
/// # Safety
/// The last [`QUERY_WARPS`] warps of the producer's warpgroup call it, after the barriers were initialised.
#[inline(always)]
pub unsafe fn run<A: Algorithm>(params: &A::Params, smem: u32) {
    const { assert!(!A::QUANTIZES_Q || A::HEAD_DIM == HEAD_DIM) };
    let (p, barriers) = (A::attention(params), Barriers::new::<A>(smem));
    let mut round = 0;
    // SAFETY: an item is known only after its buffer's empty barrier has completed.
    unsafe {
        loop {
            // From the round, again and again: there are few registers.
            let query = QueryRing::of_round(hint::opaque(round));
            mbarrier::wait(barriers.full_item(query.index), query.parity);
            let slot = slot::<A>(smem, query.index);
            let work = Work::load_alone(slot);
            if let Some(work) = work
                && work.end_tile > 0
            {
                let mut rows = number() * ROWS;
                while rows < hint::opaque(A::BLOCK_Q) {
                    if p.q_dtype == 0 {
                        quantize::<F16, A>(p, slot, rows, smem, query.index);
                    } else {
                        quantize::<Bf16, A>(p, slot, rows, smem, query.index);
                    }
                    rows += QUERY_WARPS as u32 * ROWS;
                }
                // Codes are read by the tensor core.
                tma::fence_proxy_async();
            }
            warp::sync_warp();
            if thread::reread_thread_idx_x() % 32 == 0 {
                mbarrier::arrive(barriers.full_q(QueryRing::of_round(hint::opaque(round)).index));
            }
            if work.is_none() {
                break;
            }
            round += 1;
        }
    }
}

/// Where the item of buffer `buffer` of Q lies.
#[inline(always)]
fn slot<C: Config>(smem: u32, buffer: u32) -> u32 {
    smem + const { C::SMEM.work_offset as u32 } + buffer * WORK_BYTES as u32
}

/// Number of this warp among those that quantize.
#[inline(always)]
fn number() -> u32 {
    thread::reread_thread_idx_x() / 32 - const { 4 - QUERY_WARPS as u32 }
}

/// A thread's place among the rows in hand.
struct Place {
    /// First of its rows; the others are [`STEP`] apart.
    row: u32,
    /// First of its features.
    feature: u32,
}

impl Place {
    /// Of this thread. Read again and again: there are few registers.
    #[inline(always)]
    fn of_thread() -> Self {
        let lane = thread::reread_thread_idx_x() % 32;
        Place { row: lane / COLUMNS, feature: lane % COLUMNS * FEATURES }
    }
}

/// Where this warp's rows lie as they are.
#[inline(always)]
fn raw<C: Config>(smem: u32) -> u32 {
    let plan = const { C::SMEM };
    smem + plan.query_offset as u32 + number() * plan.query_bytes as u32
}

/// Rows `rows .. rows + 32` of the item at `slot`, whose first is in Q's buffer `buffer`.
///
/// # Safety
/// The whole warp calls it; buffer and item are this item's.
#[inline(always)]
unsafe fn quantize<E: Element<Raw = [u32; 4]>, C: Config>(
    p: &Sm90AttentionParams,
    slot: u32,
    rows: u32,
    smem: u32,
    buffer: u32,
) {
    let plan = const { C::SMEM };
    // SAFETY: forwarded contract. What the parts have in common they work out again: there are few registers.
    unsafe {
        copy::<E>(p, slot, rows, raw::<C>(smem));
        let largest = largest::<E>(exist(p, slot, rows), raw::<C>(smem));
        let scales = smem + plan.q_scale_offset as u32 + buffer * Q_SCALE_BYTES as u32;
        let inverse = scale::<E>(p, slot, rows, scales, largest);
        let codes = smem + buffer * plan.q_bytes as u32;
        store::<E>(exist(p, slot, rows), raw::<C>(smem), codes, rows, inverse);
    }
}

/// How many rows from `rows` of the item at `slot` on exist.
#[inline(always)]
unsafe fn exist(p: &Sm90AttentionParams, slot: u32, rows: u32) -> u32 {
    // SAFETY: the caller vouches for the item.
    p.seqlen_q.saturating_sub(unsafe { Work::load_first_row(slot) } + rows)
}

/// Rows from `rows` of the item on, as they are; the last one again where one does not exist, zeros where a feature does
/// not.
///
/// # Safety
/// The whole warp calls it; there are rows; `raw` is the warp's own.
#[inline(always)]
unsafe fn copy<E: Element<Raw = [u32; 4]>>(p: &Sm90AttentionParams, slot: u32, rows: u32, raw: u32) {
    let place = Place::of_thread();
    let (mut row, mut to) = (place.row, raw + (place.row * HEAD_DIM + place.feature) * E::BYTES);
    // SAFETY: head counts of a launched problem are not zero; rows that exist.
    unsafe {
        let head_q = Work::load_head_q(slot);
        let first_row = Work::load_first_row(slot) + rows;
        let batch = math::div_u32(head_q, p.num_heads_q);
        let head = head_q - batch * p.num_heads_q;
        let first = batch as i64 * p.q.stride_batch + head as i64 * p.q.stride_head + place.feature as i64;
        let base = p.q.ptr.wrapping_add((first * E::BYTES as i64) as u64);
        // The warp's last reads of the rows before.
        warp::sync_warp();
        while row < hint::opaque(ROWS) {
            let token = (first_row + row).min(p.seqlen_q - 1);
            let from = base.wrapping_add((token as i64 * p.q.stride_token * E::BYTES as i64) as u64);
            if place.feature >= p.head_dim {
                shared::store_u32x4(to, [0; 4]);
            } else if p.q_vectorized != 0 {
                cp_async::copy16(to, from);
            } else {
                // Compact: this path is for odd strides, not for speed.
                let mut word = 0;
                while word < hint::opaque(4) {
                    let exist = p.head_dim.saturating_sub(place.feature + 2 * word);
                    shared::store_u32(to + word * 4, E::load_word(from.wrapping_add((word * 4) as u64), exist));
                    word += 1;
                }
            }
            row += STEP;
            to += const { 32 * FEATURES } * E::BYTES;
            // Meeting keeps the compiler from unrolling the loop: there are few registers.
            warp::sync_warp();
        }
        cp_async::commit_group();
        cp_async::wait_group::<0>();
        warp::sync_warp();
    }
}

/// A value for each group of a thread.
type Groups<T> = [T; OWN_GROUPS];

/// Largest magnitudes of the thread's features in its rows, group by group, as bits that compare like them: the
/// magnitude's fifteen, then others that decide nothing.
///
/// # Safety
/// The whole warp calls it; the rows are there.
#[inline(always)]
unsafe fn largest<E: Element<Raw = [u32; 4]>>(exist: u32, raw: u32) -> Groups<u32> {
    let place = Place::of_thread();
    let mut largest = [0; OWN_GROUPS];
    let mut first = place.row;
    while first < hint::opaque(ROWS) {
        // SAFETY: forwarded contract.
        unsafe {
            // As in `copy`. Opaque, so that the row is all that is kept from round to round.
            warp::sync_warp();
            let from = hint::opaque(first);
            let mut i = 0;
            while i < OWN_GROUPS {
                let row = from + i as u32 * STEP;
                if row < exist {
                    let x = E::raw8(raw + (row * HEAD_DIM + place.feature) * E::BYTES);
                    // The signs fall out.
                    let x = x.map(|pair| (pair << 1).max(pair << 17));
                    largest[i] = largest[i].max(x[0]).max(x[1]).max(x[2]).max(x[3]);
                }
                i += 1;
            }
        }
        first += GROUPS;
    }
    largest
}

/// The scales of the groups, which are left for the consumers at `scales`; returns their reciprocals.
///
/// # Safety
/// The whole warp calls it; `scales` is the item's.
#[inline(always)]
unsafe fn scale<E: Element<Raw = [u32; 4]>>(
    p: &Sm90AttentionParams,
    slot: u32,
    rows: u32,
    scales: u32,
    mut largest: Groups<u32>,
) -> Groups<f32> {
    let place = Place::of_thread();
    let column = place.feature / FEATURES;
    // With four scales a block all rows in hand share one.
    let all = p.q_scales_per_block == 4;
    // SAFETY: forwarded contract.
    unsafe {
        // A step at a time half of the groups go to the other half of a row's threads, until each quad has one.
        let mut mask = COLUMNS / 2;
        let mut count = OWN_GROUPS;
        while count > 1 {
            count /= 2;
            let upper = column & mask != 0;
            let mut i = 0;
            while i < count {
                let (keep, give) =
                    if upper { (largest[i + count], largest[i]) } else { (largest[i], largest[i + count]) };
                largest[i] = keep.max(warp::shuffle_xor(give, mask));
                i += 1;
            }
            mask /= 2;
        }
        let mut amax = largest[0];
        while mask > 0 {
            amax = amax.max(warp::shuffle_xor(amax, mask));
            mask /= 2;
        }
        if all {
            let mut mask = 4;
            while mask < 32 {
                amax = amax.max(warp::shuffle_xor(amax, mask));
                mask *= 2;
            }
        }
        let scale = qk_scale(E::element(&[amax >> 17, 0, 0, 0], 0), p.max_code);
        // Where the consumers look: see `Item::new`.
        let segment = (Work::load_first_row(slot) % tiling::BLOCK_Q as u32 + rows) / ROWS;
        let group = column / 4 * STEP + place.row;
        if all {
            if place.row + column == 0 {
                shared::store_f32(scales + segment * 4, scale);
            }
        } else if column % 4 == 0 {
            shared::store_f32(scales + (segment * GROUPS + group) * 4, scale);
        }
        let inverse = (1.0 / scale).to_bits();
        let row_lane = warp::lane_id() & !(COLUMNS - 1);
        let mut i = 0;
        while i < OWN_GROUPS {
            largest[i] = warp::shuffle_idx(inverse, row_lane + 4 * i as u32);
            i += 1;
        }
    }
    largest.map(f32::from_bits)
}

/// Codes of the rows, to Q's buffer at `codes`, from its row `rows` on; zeros where a row does not exist.
///
/// # Safety
/// The whole warp calls it; the rows are there; the buffer is this item's.
#[inline(always)]
unsafe fn store<E: Element<Raw = [u32; 4]>>(
    exist: u32,
    raw: u32,
    codes: u32,
    rows: u32,
    inverse: Groups<f32>,
) {
    let place = Place::of_thread();
    let mut first = place.row;
    while first < hint::opaque(ROWS) {
        // SAFETY: forwarded contract; the thread's own words.
        unsafe {
            // As in `largest`.
            warp::sync_warp();
            let from = hint::opaque(first);
            let mut i = 0;
            while i < OWN_GROUPS {
                let row = from + i as u32 * STEP;
                let inverse = if row < exist { inverse[i] } else { 0.0 };
                let to = codes + chunk_offset(HEAD_DIM, rows + row, place.feature / 16) + place.feature % 16;
                let x = E::raw8(raw + (row * HEAD_DIM + place.feature) * E::BYTES);
                let mut half = 0;
                while half < 2 {
                    // As in `crate::quant::qk`: the low bytes of numbers near 1.5 · 2²³.
                    let z =
                        [0, 1, 2, 3].map(|i| math::fma(E::element(&x, 4 * half + i), inverse, SCORE_BIAS).to_bits());
                    shared::store_u32(to + half as u32 * 4, low_bytes(z));
                    half += 1;
                }
                i += 1;
            }
        }
        first += GROUPS;
    }
}
