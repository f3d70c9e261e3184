//! Sums of parts of the keys, made one: of the warps of a CTA, then of the splits of a sequence.

use cuda_std::{atomic, global, math, shared, thread};
use sage_spec::decode::{self, DecodeParams, EMPTY_MAX, THREADS, TILE_ROWS, WARPS};

use super::keys::Sums;
use super::layout;
use super::query::Tile;
use crate::rows::{bytes, row_address, store4};

const ROWS: u32 = TILE_ROWS as u32;

/// Puts a warp's sums into shared memory.
///
/// # Safety
/// All threads call it; nobody uses the ring any more.
#[inline(always)]
pub unsafe fn warps<const HEAD_DIM: u32, const INT4: bool, const HALVES: usize>(
    base: u32,
    warp: u32,
    lane: u32,
    tile: &Tile,
    sums: &Sums,
) {
    let smem = const { decode::smem(&layout::<HEAD_DIM, INT4>()) };
    let mut half = 0;
    while half < HALVES {
        let mut sum = sums.sum[half];
        // SAFETY: the warp is whole.
        unsafe {
            sum += cuda_std::warp::shuffle_xor_f32(sum, 1);
            sum += cuda_std::warp::shuffle_xor_f32(sum, 2);
        }
        let row = lane / 4 + 8 * half as u32;
        if row < tile.rows {
            let to = base + smem.sums as u32 + ((warp * ROWS + row) * (HEAD_DIM + 4) + lane % 4 * 2) * 4;
            // SAFETY: the lane's own elements.
            unsafe {
                let mut block = 0;
                while block < (HEAD_DIM / 8) as usize {
                    shared::store_f32(to + block as u32 * 32, sums.out[block][2 * half]);
                    shared::store_f32(to + block as u32 * 32 + 4, sums.out[block][2 * half + 1]);
                    block += 1;
                }
                if lane % 4 == 0 {
                    let to = base + smem.rows as u32 + (warp * ROWS + row) * 8;
                    shared::store_f32(to, sums.max[half]);
                    shared::store_f32(to + 4, sum);
                }
            }
        }
        half += 1;
    }
}

/// Four features of a row.
#[derive(Clone, Copy)]
struct Part {
    max: f32,
    sum: f32,
    out: [f32; 4],
}

impl Part {
    const EMPTY: Part = Part { max: EMPTY_MAX, sum: 0.0, out: [0.0; 4] };

    /// Adds a part whose maximum is at most that of `self`.
    #[inline(always)]
    fn add(&mut self, max: f32, sum: f32, out: [f32; 4]) {
        let weight = math::exp2(max - self.max);
        self.sum = math::fma(sum, weight, self.sum);
        let mut i = 0;
        while i < 4 {
            self.out[i] = math::fma(out[i], weight, self.out[i]);
            i += 1;
        }
    }
}

/// Features `4 column..` of row `row` of the CTA.
#[inline(always)]
unsafe fn of_warps<const HEAD_DIM: u32, const INT4: bool>(base: u32, row: u32, column: u32) -> Part {
    let smem = const { decode::smem(&layout::<HEAD_DIM, INT4>()) };
    let state = |warp: u32| base + smem.rows as u32 + (warp * ROWS + row) * 8;
    let mut part = Part::EMPTY;
    // SAFETY: the sums of every warp are there.
    unsafe {
        let mut warp = 0;
        while warp < WARPS as u32 {
            part.max = math::max(part.max, shared::load_f32(state(warp)));
            warp += 1;
        }
        let mut warp = 0;
        while warp < WARPS as u32 {
            let at = base + smem.sums as u32 + ((warp * ROWS + row) * (HEAD_DIM + 4) + 4 * column) * 4;
            let out = shared::load_u32x4(at).map(f32::from_bits);
            part.add(shared::load_f32(state(warp)), shared::load_f32(state(warp) + 4), out);
            warp += 1;
        }
    }
    part
}

/// Stores four features of the result, and the log-sum-exp with the first ones.
#[inline(always)]
unsafe fn store(p: &DecodeParams, tile: &Tile, row: u32, column: u32, part: &Part, mean_score: f32) {
    let (head, token) = (tile.head_q(p, row), tile.token(p, row));
    let inverse = if part.sum == 0.0 { 0.0 } else { 1.0 / part.sum };
    let to = row_address(&p.out, p.out_dtype, tile.batch, head, token) + (4 * column) as u64 * bytes(p.out_dtype);
    // SAFETY: a row that exists; one thread has these features.
    unsafe {
        store4(to, part.out.map(|x| x * inverse), p.out_dtype);
        if p.lse != 0 && column == 0 {
            let index = (tile.batch as u64 * p.num_heads_q as u64 + head as u64) * p.seqlen_q as u64 + token as u64;
            let lse = if part.sum == 0.0 {
                f32::NEG_INFINITY
            } else {
                math::fma(part.max + math::log2(part.sum), core::f32::consts::LN_2, mean_score)
            };
            global::store_f32(p.lse + index * 4, lse);
        }
    }
}

/// Combines the warps; then, if the sequence has several splits, leaves the sums for the CTA that comes last, which
/// combines those. `pages` is how many the sequence has.
///
/// # Safety
/// All threads call it, after [`warps`] and a barrier.
#[inline(always)]
pub unsafe fn finish<const HEAD_DIM: u32, const INT4: bool>(
    p: &DecodeParams,
    base: u32,
    tile: &Tile,
    split: u32,
    row_tile: u32,
    pages: u32,
) {
    let smem = const { decode::smem(&layout::<HEAD_DIM, INT4>()) };
    let columns = HEAD_DIM / 4;
    let (mean_scores, is_last) = (base + smem.mean_scores as u32, base + smem.is_last as u32);
    let index = thread::block_idx_y() * p.row_tiles + row_tile;
    // SAFETY: a split has pages.
    let splits = unsafe { math::div_u32(pages + p.split_pages - 1, p.split_pages) };
    let partial_rows = (p.gqa_group * p.seqlen_q).min(ROWS);
    let partial = |split: u32| (index as u64 * p.splits as u64 + split as u64) * partial_rows as u64;
    let grid_tiles = thread::grid_dim_y() as u64 * p.row_tiles as u64;
    let states = p.partials + grid_tiles * p.splits as u64 * partial_rows as u64 * (HEAD_DIM * 4) as u64;
    let thread = thread::thread_idx_x();
    // SAFETY: all threads are here; rows exist; partial results have room for every split.
    unsafe {
        let mut item = thread;
        while item < tile.rows * columns {
            let (row, column) = (item / columns, item % columns);
            let part = of_warps::<HEAD_DIM, INT4>(base, row, column);
            if splits <= 1 {
                let mean_score = if p.lse != 0 { shared::load_f32(mean_scores + row * 4) } else { 0.0 };
                store(p, tile, row, column, &part, mean_score);
            } else {
                let at = partial(split) + row as u64;
                global::store_u32x4(
                    p.partials + at * (HEAD_DIM * 4) as u64 + (column * 16) as u64,
                    part.out.map(f32::to_bits),
                );
                if column == 0 {
                    global::store_u32x2(states + at * 8, [part.max.to_bits(), part.sum.to_bits()]);
                }
            }
            item += THREADS as u32;
        }
        if splits <= 1 {
            return;
        }
        // The barrier puts everybody's stores before the release, and the acquire before everybody's reads.
        thread::sync_threads();
        if thread == 0 {
            let counter = p.counters + index as u64 * 4;
            let last = atomic::add_acq_rel(counter, 1) == splits - 1;
            if last {
                atomic::store_release(counter, 0);
            }
            shared::store_u32(is_last, last as u32);
        }
        thread::sync_threads();
        if shared::load_u32(is_last) == 0 {
            return;
        }
        let mut item = thread;
        while item < tile.rows * columns {
            let (row, column) = (item / columns, item % columns);
            let part = of_splits::<HEAD_DIM>(p, partial, states, row, column, splits);
            let mean_score = if p.lse != 0 { shared::load_f32(mean_scores + row * 4) } else { 0.0 };
            store(p, tile, row, column, &part, mean_score);
            item += THREADS as u32;
        }
    }
}

/// Splits that a thread reads at a time: all of these reads are under way together, and so is the end of the kernel
/// when few of its CTAs are left.
const AT_A_TIME: usize = 16;

/// Features `4 column..` of row `row` of all splits, in their order.
#[inline(always)]
unsafe fn of_splits<const HEAD_DIM: u32>(
    p: &DecodeParams,
    partial: impl Fn(u32) -> u64,
    states: u64,
    row: u32,
    column: u32,
    splits: u32,
) -> Part {
    let mut part = Part::EMPTY;
    let mut split = 0;
    while split < splits {
        let mut state = [[0.0f32; 2]; AT_A_TIME];
        let mut out = [[0.0f32; 4]; AT_A_TIME];
        let mut i = 0;
        while i < AT_A_TIME {
            // Reads of the last split in place of those that do not exist change no maximum and are not added.
            let at = partial((split + i as u32).min(splits - 1)) + row as u64;
            // SAFETY: the splits have written their sums.
            unsafe {
                state[i] = [global::read_f32(states + at * 8), global::read_f32(states + at * 8 + 4)];
                out[i] = global::read_f32x4(p.partials + at * (HEAD_DIM * 4) as u64 + (column * 16) as u64);
            }
            i += 1;
        }
        let before = part;
        part = Part::EMPTY;
        part.max = state.iter().fold(before.max, |max, state| math::max(max, state[0]));
        part.add(before.max, before.sum, before.out);
        let mut i = 0;
        while i < AT_A_TIME {
            if split + (i as u32) < splits {
                part.add(state[i][0], state[i][1], out[i]);
            }
            i += 1;
        }
        split += AT_A_TIME as u32;
    }
    part
}
