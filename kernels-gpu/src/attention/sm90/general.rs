//! The general kernels: the same tiles and products as [`super::consumer`], with modifiers between them.
//!
//! They are kernels of their own so that the plain ones pay nothing for them. Scores become f32 in log2 units, are
//! modified, and all take the exact exponential; ΔS, masks and each modifier are conditions of the launch or the tile,
//! so one loop serves all. Tiles that no row of a work item sees are never loaded.

use cuda_std::{convert, math, mbarrier, thread, warp, warpgroup, wgmma};
use sage_spec::quant::SCORE_BIAS_BITS;
use sage_spec::sm90::{
    BLOCK_KV, Exponential, GENERAL_WARPGROUPS, P_MAX_LOG2, Sm90AttentionParams, Sm90GeneralParams, WARPGROUP_Q,
    WORK_BYTES,
};

use super::config::{Barriers, CONSUMER_REGISTERS_OF_TWO, Config, QueryRing, TileRing};
use super::consumer::{Item, Lane, channels, pass, row_in_warpgroup};
use super::epilogue::{self, Weights};
use super::kernel::Algorithm;
use super::output::{self, Output};
use super::schedule::{Work, rows_end};
use super::scores;
use super::softmax::{P, ROW_MAX_START, References, RowState};
use crate::attention::modifiers::{self, Columns, Head, Place, Scope};

const KEYS: u32 = BLOCK_KV as u32;

/// Scores in log2 units, where [`scores::Scores`] has their steps.
type Modified = [f32; 64];

/// A kernel with modifiers, of a padded head dimension.
pub struct General<const HEAD_DIM: u32>;

impl<const HEAD_DIM: u32> Config for General<HEAD_DIM> {
    const HEAD_DIM: u32 = HEAD_DIM;
    const EXPONENTIAL: Exponential = Exponential::Exact;
    // It may be there: whether it is, the launch says.
    const DELTA_S: bool = true;
    const WARPGROUPS: usize = GENERAL_WARPGROUPS;
}

impl<const HEAD_DIM: u32> Algorithm for General<HEAD_DIM> {
    type Params = Sm90GeneralParams;

    #[inline(always)]
    fn attention(p: &Sm90GeneralParams) -> &Sm90AttentionParams {
        &p.attention
    }

    #[inline(always)]
    fn tiles(p: &Sm90GeneralParams, first_row: u32) -> (u32, u32) {
        tiles(p, first_row, Self::BLOCK_Q)
    }

    #[inline(always)]
    unsafe fn consume(p: &Sm90GeneralParams, smem: u32) {
        // SAFETY: forwarded contract.
        unsafe {
            warpgroup::increase_registers::<CONSUMER_REGISTERS_OF_TWO>();
            consume::<Self>(p, smem)
        }
    }
}

/// What the modifiers depend on.
#[inline(always)]
fn scope(p: &Sm90GeneralParams) -> Scope<'_> {
    let attention = &p.attention;
    Scope {
        modifiers: &p.modifiers,
        seqlen_q: attention.seqlen_q,
        seqlen_kv: attention.seqlen_kv,
        qk_mean: attention.qk_mean,
        sm_scale: attention.sm_scale,
    }
}

/// The head of a work item.
#[inline(always)]
fn head(p: &Sm90GeneralParams, head_q: u32) -> Head {
    // SAFETY: head counts of a launched problem are not zero.
    let batch = unsafe { math::div_u32(head_q, p.attention.num_heads_q) };
    Head { batch, head: head_q - batch * p.attention.num_heads_q, head_q }
}

/// The last of `rows` rows from `first_row` on that the launch covers.
#[inline(always)]
fn last_row(p: &Sm90GeneralParams, first_row: u32, rows: u32) -> u32 {
    (first_row + rows).min(rows_end(&p.attention)) - 1
}

/// Tiles that `rows` rows from `first_row` on see, as first and end.
#[inline(always)]
fn tiles(p: &Sm90GeneralParams, first_row: u32, rows: u32) -> (u32, u32) {
    scope(p).tiles(first_row, last_row(p, first_row, rows), KEYS)
}

/// Score steps in log2 units; `factor[h]` is that of keys `64 h ..`.
#[inline(always)]
fn dequantize<C: Config>(scores: &scores::Scores, factor: [f32; 2]) -> Modified {
    let mut x = [0.0f32; 64];
    let mut i = 0;
    while i < 64 {
        x[i] = scores::number::<C>(scores[i]) * factor[i / 32];
        i += 1;
    }
    x
}

/// Where part `part` of a lane's columns of a tile lies, from where its first part lies: rows `row`, `row + 8` of the
/// tile's first 64 keys, then of the others.
#[inline(always)]
fn place(first: Place, part: usize) -> Place {
    Place { row: first.row + 8 * (part % 2) as u32, key: first.key + 64 * (part / 2) as u32 }
}

/// The columns of part `part` among the lane's scores.
#[inline(always)]
fn with_columns(x: &mut Modified, part: usize, change: impl Fn(&mut Columns)) {
    let at = |column: usize| 32 * (part / 2) + 4 * (column / 2) + 2 * (part % 2) + column % 2;
    let mut columns: Columns = [0.0; 16];
    let mut i = 0;
    while i < 16 {
        columns[i] = x[at(i)];
        i += 1;
    }
    change(&mut columns);
    let mut i = 0;
    while i < 16 {
        x[at(i)] = columns[i];
        i += 1;
    }
}

/// Bits of the mask, which there is, of each part of a tile ([`Place::mask_bits`]).
///
/// # Safety
/// The parameters are valid.
#[inline(always)]
unsafe fn mask_bits(p: &Sm90GeneralParams, head_q: u32, first: Place) -> [u32; 4] {
    let mut bits = [0; 4];
    let mut part = 0;
    while part < 4 {
        // SAFETY: forwarded contract.
        bits[part] = unsafe { place(first, part).mask_bits(&scope(p), || head(p, head_q)) };
        part += 1;
    }
    bits
}

/// Modifies the scores of the tile whose first part lies at `first` and whose mask, if there is one, has the bits
/// `mask`.
///
/// # Safety
/// The parameters are valid.
#[inline(always)]
unsafe fn modify(p: &Sm90GeneralParams, head_q: u32, first: Place, mask: [u32; 4], x: &mut Modified) {
    let (m, scope) = (&p.modifiers, &scope(p));
    // Asked once for all, as windows and sinks leave scores as they are.
    if m.softcap_log2 != 0.0 || m.alibi | m.bias.ptr | m.mask.ptr != 0 {
        let mut part = 0;
        while part < 4 {
            with_columns(x, part, |columns| {
                // SAFETY: forwarded contract.
                unsafe { place(first, part).modify(scope, || head(p, head_q), columns) };
                if m.mask.ptr != 0 {
                    modifiers::hide_unset(mask[part], columns);
                }
            });
            part += 1;
        }
    }
    // Whether one of the lane's rows does not see all of the lane's keys, which reach 122 beyond the first.
    if first.key < scope.begin(first.row + 8) || first.key + 122 > scope.end(first.row) {
        let mut part = 0;
        while part < 4 {
            with_columns(x, part, |columns| place(first, part).hide(scope, columns));
            part += 1;
        }
    }
}

/// Takes a tile's scores into the rows' maxima.
///
/// # Safety
/// The warp is converged.
#[inline(always)]
unsafe fn update_max(x: &Modified, state: &mut RowState) {
    let mut row = 0;
    while row < 2 {
        let mut max = [ROW_MAX_START; 2];
        let mut block = 0;
        while block < 16 {
            let mut e = 0;
            while e < 2 {
                max[e] = math::max_propagate_nan(max[e], x[4 * block + 2 * row + e]);
                e += 1;
            }
            block += 1;
        }
        // SAFETY: forwarded contract.
        unsafe { state.raise(row, math::max_propagate_nan(max[0], max[1])) };
        row += 1;
    }
}

/// P of a tile relative to the rows' maxima.
#[inline(always)]
fn probabilities(x: &Modified, max: [f32; 2]) -> P {
    let mut p = [0u32; 16];
    let mut i = 0;
    while i < 16 {
        // As in `softmax::probabilities`.
        let (pair, row) = (i / 2, i % 2);
        let at = 8 * pair + 2 * row;
        let offset = P_MAX_LOG2 - max[row];
        p[i] = convert::f32_to_e4m3x4([
            math::exp2(x[at] + offset),
            math::exp2(x[at + 1] + offset),
            math::exp2(x[at + 4] + offset),
            math::exp2(x[at + 5] + offset),
        ]);
        i += 1;
    }
    p
}

/// One tile.
///
/// # Safety
/// As for the plain kernels' step; `head_q` is the item's.
#[inline(always)]
unsafe fn step<C: Config>(
    p: &Sm90GeneralParams,
    item: &Item,
    head_q: u32,
    j: u32,
    tile: TileRing,
    state: &mut RowState,
    output: &mut Output,
) {
    let (plan, barriers) = (const { C::SMEM }, item.barriers);
    // SAFETY: forwarded contract.
    unsafe {
        let thread = thread::reread_thread_idx_x();
        let t = thread % 4;
        let first = Place { row: item.first_row + row_in_warpgroup(thread), key: j * KEYS + 2 * t };
        // Its bytes are under way while the products are.
        let mask = if p.modifiers.mask.ptr != 0 { mask_bits(p, head_q, first) } else { [0; 4] };
        mbarrier::wait(barriers.full(tile.index), tile.parity);
        // Biased with and without ΔS, so that the rest is the same.
        let mut s = [SCORE_BIAS_BITS; 64];
        if p.attention.delta_s != 0 {
            s = scores::delta_s(item.delta_s::<C>(tile), item.inverse_q_scale, t);
        }
        scores::start_product::<C>(&mut s, item.q, item.k + (tile.index * plan.k_bytes as u32 / 16) as u64);
        wgmma::wait_group::<0>();
        let factor = item.factor::<C>(j, tile, t);
        let mut x = dequantize::<C>(&s, factor);
        modify(p, head_q, first, mask, &mut x);
        update_max(&x, state);
        let probabilities = probabilities(&x, state.max);

        output::accumulate::<C>(output, &probabilities, item.v::<C>(tile), state.alpha);
        // Every lane has its scales and its ΔS, before one of them lets the stage go.
        warp::sync_warp();
        item.release(tile);
    }
}

/// Adds the sink to every row's denominator; returns the part of it that is the keys'.
///
/// # Safety
/// The parameters are valid and the warp is converged.
#[inline(always)]
unsafe fn add_sinks(p: &Sm90GeneralParams, work: &Work, state: &mut RowState, output: &mut Output) -> Weights {
    let mut weights = Weights { keys: [1.0; 2], shift_lse: p.modifiers.softcap_log2 == 0.0 };
    if p.modifiers.sinks == 0 {
        return weights;
    }
    // SAFETY: the warp is converged.
    let lane = unsafe { Lane::of_thread() };
    let first_row = work.first_row + lane.warpgroup * WARPGROUP_Q as u32 + lane.row;
    let mut alpha = [0.0f32; 2];
    let mut sums = [0.0f32; 2];
    let mut row = 0;
    while row < 2 {
        // SAFETY: forwarded contract; the row is inside the padded block.
        let sink = unsafe { scope(p).sink_log2(head(p, work.head_q), first_row + 8 * row as u32) };
        let max = math::max_propagate_nan(state.max[row], sink);
        alpha[row] = math::exp2(state.max[row] - max);
        state.max[row] = max;
        // As in the epilogue: the first lane of each quad holds the sum.
        let sum = output.high[32 + 2 * row].to_bits();
        // SAFETY: the warp is converged.
        let keys = f32::from_bits(unsafe { warp::shuffle_idx(sum, warp::lane_id() & 28) }) * alpha[row];
        sums[row] = keys + math::exp2(P_MAX_LOG2 + (sink - max));
        weights.keys[row] = if sums[row] == keys { 1.0 } else { keys * math::reciprocal(sums[row]) };
        row += 1;
    }
    let mut i = 0;
    while i < 32 {
        output.low[i] *= alpha[i / 2 % 2];
        output.high[i] *= alpha[i / 2 % 2];
        i += 1;
    }
    output.high[32] = sums[0];
    output.high[34] = sums[1];
    weights
}

/// Attends for every work item of the CTA.
///
/// # Safety
/// The four warps of a consumer warpgroup call it, after the barriers were initialised.
#[inline(always)]
unsafe fn consume<C: Config>(general: &Sm90GeneralParams, smem: u32) {
    let (p, barriers) = (&general.attention, Barriers::new::<C>(smem));
    let (mut tile, mut query) = (TileRing::start(), QueryRing::start());
    // SAFETY: as in `consumer::run`.
    unsafe {
        loop {
            let lane = Lane::of_thread();
            mbarrier::wait(barriers.full_q(query.index), query.parity);
            let slot = smem + const { C::SMEM.work_offset as u32 } + query.index * WORK_BYTES as u32;
            let Some(work) = Work::load(slot) else { break };
            let (mut j, end) = (Work::load_first_tile(slot), work.end_tile);
            // Without a tile nothing travelled with Q.
            let channels = if j < end { Some(channels::<C>(smem, query.index)) } else { None };
            let first_row = work.first_row + lane.warpgroup * WARPGROUP_Q as u32;
            if first_row < rows_end(p) {
                let mut state = RowState { max: [ROW_MAX_START; 2], alpha: [1.0; 2] };
                let mut output = Output::zero();
                let (own, own_end) = tiles(general, first_row, WARPGROUP_Q as u32);
                if own < own_end {
                    pass(barriers, lane, &mut j, own, &mut tile);
                    let item = Item::new::<C>(p, barriers, smem, lane, &work, query.index);
                    while j < own_end {
                        step::<C>(general, &item, work.head_q, j, tile, &mut state, &mut output);
                        tile.advance();
                        j += 1;
                    }
                }
                let weights = add_sinks(general, &work, &mut state, &mut output);
                let references = References([state.max[0] - P_MAX_LOG2, state.max[1] - P_MAX_LOG2]);
                epilogue::store::<C>(p, &work, Work::load_out(slot), references, &output, channels, weights);
            }
            pass(barriers, lane, &mut j, end, &mut tile);
            // Every lane has read the item, before one of them lets its slot go.
            warp::sync_warp();
            if lane.leads {
                mbarrier::arrive(barriers.empty_q(query.index));
            }
            query.advance();
        }
    }
}
