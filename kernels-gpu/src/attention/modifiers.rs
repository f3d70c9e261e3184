//! What the general kernels do to scores: the order of the steps is in `sage_spec::modifiers`.

use cuda_std::{convert, global, math};
use sage_spec::modifiers::{ModifierParams, PairArg};
use sage_spec::quant::LOG2_E;
use sage_spec::tiling::BLOCK_Q;

/// What of a kernel's parameters its modifiers depend on.
#[derive(Clone, Copy)]
pub struct Scope<'a> {
    /// The modifiers.
    pub modifiers: &'a ModifierParams,
    /// M.
    pub seqlen_q: u32,
    /// N.
    pub seqlen_kv: u32,
    /// Nullable: f32 `[B, Hq, Mp]`, `q · k_mean` of each row.
    pub qk_mean: u64,
    /// `sm_scale`.
    pub sm_scale: f32,
}

/// A query head.
#[derive(Clone, Copy)]
pub struct Head {
    /// Batch entry.
    pub batch: u32,
    /// Head of the batch entry.
    pub head: u32,
    /// `batch * Hq + head`.
    pub head_q: u32,
}

/// One value for each of the sixteen columns a lane holds of a row and 64 keys: column `i` is key
/// `8 (i / 2) + i % 2` from the lane's first.
pub type Columns = [f32; 16];

/// Key of column `i`, from the lane's first.
#[inline(always)]
const fn column(i: usize) -> i32 {
    (8 * (i / 2) + i % 2) as i32
}

impl Scope<'_> {
    /// First key that row `row` may see; perhaps beyond the last.
    #[inline(always)]
    pub fn begin(&self, row: u32) -> u32 {
        (row as i32).saturating_add(self.modifiers.first).max(0) as u32
    }

    /// End of the keys that row `row` may see.
    #[inline(always)]
    pub fn end(&self, row: u32) -> u32 {
        (row as i32).saturating_add(self.modifiers.end).max(0).min(self.seqlen_kv as i32) as u32
    }

    /// Tiles of `keys` keys that rows `first_row ..= last_row` see, as first and end; none if the end is not greater.
    #[inline(always)]
    pub fn tiles(&self, first_row: u32, last_row: u32, keys: u32) -> (u32, u32) {
        (self.begin(first_row) / keys, self.end(last_row).div_ceil(keys))
    }

    /// `q · k_mean · sm_scale` of a row; 0 if K is not smoothed.
    ///
    /// # Safety
    /// As for [`Place::modify`]; `row` is inside the padded query block.
    #[inline(always)]
    unsafe fn shift(&self, head_q: u32, row: u32) -> f32 {
        if self.qk_mean == 0 {
            return 0.0;
        }
        let rows_padded = self.seqlen_q.div_ceil(BLOCK_Q as u32) as u64 * BLOCK_Q as u64;
        // SAFETY: f32 [B, Hq, Mp].
        unsafe { global::load_f32(self.qk_mean + (head_q as u64 * rows_padded + row as u64) * 4) * self.sm_scale }
    }

    /// The sink of `head` as it takes part in the denominator of row `row`, in log2 units; −inf if there is
    /// none. Scores of smoothed K lack what the sink must then lack too.
    ///
    /// # Safety
    /// As for [`Place::modify`]; `row` is inside the padded query block.
    #[inline(always)]
    pub unsafe fn sink_log2(&self, head: Head, row: u32) -> f32 {
        let m = self.modifiers;
        if m.sinks == 0 {
            return f32::NEG_INFINITY;
        }
        // SAFETY: f32 [Hq].
        unsafe {
            let sink = global::load_f32(m.sinks + head.head as u64 * 4);
            let shift = if m.softcap_log2 != 0.0 { 0.0 } else { self.shift(head.head_q, row) };
            (sink - shift) * LOG2_E
        }
    }
}

/// Where a lane's columns of 64 keys lie.
#[derive(Clone, Copy)]
pub struct Place {
    /// Their row, inside the padded query block.
    pub row: u32,
    /// Key of column 0.
    pub key: u32,
}

impl Place {
    /// Modifies scores, in log2 units; what hides keys comes after it. In place, one step after the other: there are no registers for a second row
    /// of values. `head` computes the head, again and again, because registers are dearer.
    ///
    /// # Safety
    /// The buffers of the parameters are valid.
    #[inline(always)]
    pub unsafe fn modify(self, scope: &Scope, head: impl Fn() -> Head, x: &mut Columns) {
        let m = scope.modifiers;
        let (row, key) = (self.row as i32, self.key as i32);
        if m.softcap_log2 != 0.0 {
            // SAFETY: forwarded contract. The cap is on the whole score.
            let shift = unsafe { scope.shift(head().head_q, self.row) * LOG2_E };
            let mut i = 0;
            while i < 16 {
                x[i] = capped(x[i] + shift, m);
                i += 1;
            }
        }
        if m.alibi != 0 {
            let Head { batch, head, .. } = head();
            let slope = m.alibi + (batch as u64 * m.alibi_stride_batch as u64 + head as u64) * 4;
            // SAFETY: f32 [B|1, Hq].
            let slope = unsafe { global::load_f32(slope) } * LOG2_E;
            let distance = (row + m.offset - key) as f32;
            let mut i = 0;
            while i < 16 {
                x[i] = math::fma(-slope, math::abs(distance - column(i) as f32), x[i]);
                i += 1;
            }
        }
        if m.bias.ptr != 0 {
            let last = scope.seqlen_kv as i32 - 1 - key;
            // SAFETY: forwarded contract.
            unsafe {
                if m.bias_dtype == 2 {
                    let address = self.pair_row(scope, &m.bias, head(), 4);
                    add_bias(x, last, |column| global::load_f32(address.wrapping_add(column as u64 * 4)));
                } else {
                    let address = self.pair_row(scope, &m.bias, head(), 2);
                    let is_f16 = m.bias_dtype == 0;
                    add_bias(x, last, |column| {
                        let bits = global::load_u16(address.wrapping_add(column as u64 * 2));
                        if is_f16 { convert::f16_to_f32(bits) } else { convert::bf16_to_f32(bits) }
                    });
                }
            }
        }
    }

    /// Bit `i`: whether the mask, which there is, shows the key of column `i`, if that exists.
    ///
    /// # Safety
    /// As for [`Place::modify`].
    #[inline(always)]
    pub unsafe fn mask_bits(self, scope: &Scope, head: impl Fn() -> Head) -> u32 {
        let mask = &scope.modifiers.mask;
        let last = scope.seqlen_kv as i32 - 1 - self.key as i32;
        let address = self.pair_row(scope, mask, head(), 1);
        let (mut bits, mut i) = (0, 0);
        while i < 16 {
            // SAFETY: inside the view.
            let byte = unsafe { global::load_u8(address.wrapping_add(column(i).min(last) as u64)) };
            bits |= ((byte != 0) as u32) << i;
            i += 1;
        }
        bits
    }

    /// Hides the keys that the row does not see by position, or that do not exist: −inf.
    #[inline(always)]
    pub fn hide(self, scope: &Scope, x: &mut Columns) {
        let (begin, end) =
            (scope.begin(self.row) as i32 - self.key as i32, scope.end(self.row) as i32 - self.key as i32);
        let mut i = 0;
        while i < 16 {
            if column(i) < begin || column(i) >= end {
                x[i] = f32::NEG_INFINITY;
            }
            i += 1;
        }
    }

    /// Address of column 0 in a view whose elements have `bytes` bytes. Rows of padding get the last row.
    #[inline(always)]
    fn pair_row(self, scope: &Scope, pairs: &PairArg, head: Head, bytes: i64) -> u64 {
        let row = (self.row as i32).min(scope.seqlen_q as i32 - 1);
        let offset = head.batch as i64 * pairs.stride_batch
            + head.head as i64 * pairs.stride_head
            + row as i64 * pairs.stride_row;
        pairs.ptr.wrapping_add(((offset + self.key as i64) * bytes) as u64)
    }
}

/// Adds a bias, which `load` reads; keys beyond the one `last` from the first read that: their term does not count.
#[inline(always)]
fn add_bias(x: &mut Columns, last: i32, load: impl Fn(i32) -> f32) {
    let mut i = 0;
    while i < 16 {
        x[i] = math::fma(load(column(i).min(last)), LOG2_E, x[i]);
        i += 1;
    }
}

/// Hides the keys whose bit is not set: −inf.
#[inline(always)]
pub fn hide_unset(bits: u32, x: &mut Columns) {
    let mut i = 0;
    while i < 16 {
        if bits >> i & 1 == 0 {
            x[i] = f32::NEG_INFINITY;
        }
        i += 1;
    }
}

/// `softcap · tanh(x / softcap)`, both sides in log2 units.
#[inline(always)]
fn capped(x: f32, m: &ModifierParams) -> f32 {
    let power = math::exp2(x * m.softcap_argument);
    // 2 / (1 + 2^…) is 0 where the power is infinite; the Newton step of `reciprocal` would make it NaN.
    m.softcap_log2 * math::fma(-2.0, math::reciprocal_approx(1.0 + power), 1.0)
}
