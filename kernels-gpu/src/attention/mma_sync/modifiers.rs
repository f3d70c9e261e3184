//! What the general kernels do to scores: the order of the steps is in `sage_spec::modifiers`.

use cuda_std::{convert, global, math, thread};
use sage_spec::modifiers::{GeneralAttentionParams, ModifierParams, PairArg};
use sage_spec::params::AttentionParams;
use sage_spec::quant::LOG2_E;
use sage_spec::tiling::{BLOCK_KV, BLOCK_Q};

use super::general::HalfBlock;

/// Tiles of keys that rows `first_row ..= last_row` see, as first and end.
#[inline(always)]
pub fn tiles(p: &GeneralAttentionParams, first_row: u32, last_row: u32) -> (u32, u32) {
    let (first, end) = (begin(&p.modifiers, first_row as i32), end(p, last_row as i32));
    (first as u32 / BLOCK_KV as u32, (end as u32).div_ceil(BLOCK_KV as u32))
}

/// First key that row `row` may see; perhaps beyond the last.
#[inline(always)]
fn begin(m: &ModifierParams, row: i32) -> i32 {
    row.saturating_add(m.first).max(0)
}

/// End of the keys that row `row` may see.
#[inline(always)]
fn end(p: &GeneralAttentionParams, row: i32) -> i32 {
    row.saturating_add(p.modifiers.end).max(0).min(p.attention.seqlen_kv as i32)
}

/// What a lane needs to know about its rows and columns of one tile.
pub struct TileModifiers {
    /// The lane's first row.
    row: i32,
    /// The lane's first key of the tile.
    key: i32,
}

/// Batch entry, head, and `batch * Hq + head` of the CTA. Computed again for each row, because registers
/// through the main loop are dearer.
#[inline(always)]
fn heads(p: &AttentionParams) -> (u32, u32, u32) {
    let work = HalfBlock::reread(p).work;
    let (batch, _) = work.batch_and_head_kv(p);
    (batch, work.head_q - batch * p.num_heads_q, work.head_q)
}

/// One value for each of the sixteen columns a lane holds of a row: column `i` is key
/// `8 (i / 2) + i % 2` from the lane's first.
type Columns = [f32; 16];

/// Key of column `i`, from the lane's first.
#[inline(always)]
const fn column(i: usize) -> i32 {
    (8 * (i / 2) + i % 2) as i32
}

impl TileModifiers {
    /// For tile `kv_block` of the CTA's query block.
    #[inline(always)]
    pub fn new(p: &AttentionParams, kv_block: u32) -> Self {
        let thread = thread::reread_thread_idx_x();
        TileModifiers {
            row: HalfBlock::reread(p).lane_row(thread) as i32,
            key: (kv_block * BLOCK_KV as u32 + 2 * (thread % 4)) as i32,
        }
    }

    /// Address of the lane's first key in row `row` of a view whose elements have `bytes` bytes. Rows of
    /// padding get the last row.
    #[inline(always)]
    fn pair_row(&self, p: &GeneralAttentionParams, pairs: &PairArg, row: i32, bytes: i64) -> u64 {
        let row = row.min(p.attention.seqlen_q as i32 - 1);
        let (batch, head, _) = heads(&p.attention);
        let offset =
            batch as i64 * pairs.stride_batch + head as i64 * pairs.stride_head + row as i64 * pairs.stride_row;
        pairs.ptr.wrapping_add(((offset + self.key as i64) * bytes) as u64)
    }

    /// Modifies the scores of the row `8 * index` after the lane's first, in log2 units; −inf where the
    /// key is hidden or does not exist. In place, one step after the other: there are no registers for a
    /// second row of values.
    ///
    /// # Safety
    /// The buffers of the parameters are valid.
    #[inline(always)]
    pub unsafe fn modify(&self, p: &GeneralAttentionParams, index: usize, x: &mut Columns) {
        let m = &p.modifiers;
        let row = self.row + 8 * index as i32;
        if m.softcap_log2 != 0.0 {
            // SAFETY: forwarded contract. The cap is on the whole score.
            let shift = unsafe { shift(p, heads(&p.attention).2, row as u32) * LOG2_E };
            let mut i = 0;
            while i < 16 {
                x[i] = capped(x[i] + shift, m);
                i += 1;
            }
        }
        if m.alibi != 0 {
            let (batch, head, _) = heads(&p.attention);
            let slope = m.alibi + (batch as u64 * m.alibi_stride_batch as u64 + head as u64) * 4;
            // SAFETY: f32 [B|1, Hq].
            let slope = unsafe { global::load_f32(slope) } * LOG2_E;
            let distance = (row + m.offset - self.key) as f32;
            let mut i = 0;
            while i < 16 {
                x[i] = math::fma(-slope, math::abs(distance - column(i) as f32), x[i]);
                i += 1;
            }
        }
        // Keys beyond the last read the last one: their term does not count.
        let last = p.attention.seqlen_kv as i32 - 1 - self.key;
        if m.bias.ptr != 0 {
            let bytes = if m.bias_dtype == 2 { 4 } else { 2 };
            let address = self.pair_row(p, &m.bias, row, bytes);
            let mut i = 0;
            while i < 16 {
                // SAFETY: inside the view.
                let bias = unsafe { load_bias(address, column(i).min(last) as i64 * bytes, m.bias_dtype) };
                x[i] = math::fma(bias, LOG2_E, x[i]);
                i += 1;
            }
        }
        if m.mask.ptr != 0 {
            let address = self.pair_row(p, &m.mask, row, 1);
            let mut i = 0;
            while i < 16 {
                // SAFETY: inside the view.
                if unsafe { global::load_u8(address.wrapping_add(column(i).min(last) as u64)) } == 0 {
                    x[i] = f32::NEG_INFINITY;
                }
                i += 1;
            }
        }
        let (begin, end) = (begin(m, row) - self.key, end(p, row) - self.key);
        let mut i = 0;
        while i < 16 {
            if column(i) < begin || column(i) >= end {
                x[i] = f32::NEG_INFINITY;
            }
            i += 1;
        }
    }
}

/// `q · k_mean · sm_scale` of a row; 0 if K is not smoothed.
///
/// # Safety
/// As for [`TileModifiers::modify`]; `row` is inside the padded query block.
#[inline(always)]
unsafe fn shift(p: &GeneralAttentionParams, head_q: u32, row: u32) -> f32 {
    let p = &p.attention;
    if p.qk_mean == 0 {
        return 0.0;
    }
    let rows_padded = p.seqlen_q.div_ceil(BLOCK_Q as u32) as u64 * BLOCK_Q as u64;
    // SAFETY: f32 [B, Hq, Mp].
    unsafe { global::load_f32(p.qk_mean + (head_q as u64 * rows_padded + row as u64) * 4) * p.sm_scale }
}

/// The element of a bias `offset` bytes from `address`.
#[inline(always)]
unsafe fn load_bias(address: u64, offset: i64, dtype: u32) -> f32 {
    let address = address.wrapping_add(offset as u64);
    // SAFETY: the caller vouches for the element.
    unsafe {
        match dtype {
            0 => convert::f16_to_f32(global::load_u16(address)),
            1 => convert::bf16_to_f32(global::load_u16(address)),
            _ => global::load_f32(address),
        }
    }
}

/// `softcap · tanh(x / softcap)`, both sides in log2 units.
#[inline(always)]
fn capped(x: f32, m: &ModifierParams) -> f32 {
    let power = math::exp2(x * m.softcap_argument);
    // 2 / (1 + 2^…) is 0 where the power is infinite; the Newton step of `reciprocal` would make it NaN.
    m.softcap_log2 * math::fma(-2.0, math::reciprocal_approx(1.0 + power), 1.0)
}

/// The sink of a head as it takes part in the denominator of row `row`, in log2 units; −inf if there is
/// none. Scores of smoothed K lack what the sink must then lack too.
///
/// # Safety
/// As for [`TileModifiers::modify`].
#[inline(always)]
pub unsafe fn sink_log2(p: &GeneralAttentionParams, row: u32) -> f32 {
    let m = &p.modifiers;
    if m.sinks == 0 {
        return f32::NEG_INFINITY;
    }
    let (_, head, head_q) = heads(&p.attention);
    // SAFETY: f32 [Hq].
    unsafe {
        let sink = global::load_f32(m.sinks + head as u64 * 4);
        let shift = if m.softcap_log2 != 0.0 { 0.0 } else { shift(p, head_q, row) };
        (sink - shift) * LOG2_E
    }
}
