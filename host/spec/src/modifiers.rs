//! What attention may do to scores besides scaling them: which keys a row sees by its position, and the
//! parameters of kernels that also cap, bias and mask scores.
//!
//! A score is made in this order, each step optional:
//!
//! ```text
//! s = q · k · sm_scale
//! s = softcap · tanh(s / softcap)
//! s = s − slope · |i + offset − j|        ALiBi; row i, key j
//! s = s + bias[i, j]
//! s = −inf                                if j is outside the row's band, or mask[i, j] is false
//! weights = exp(s) / (Σ exp(s) + exp(sink))
//! ```

use crate::Dims;
use crate::params::AttentionParams;

/// Where a row stands among the keys. The causal mask, the window and ALiBi all count from there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Alignment {
    /// Row `i` stands at key `i + N − M`: the last row at the last key, as when the queries continue
    /// a cache.
    #[default]
    BottomRight,
    /// Row `i` stands at key `i`: the first row at the first key.
    TopLeft,
}

impl Alignment {
    /// Name on the command line and in messages.
    pub const fn name(self) -> &'static str {
        match self {
            Alignment::BottomRight => "bottom-right",
            Alignment::TopLeft => "top-left",
        }
    }

    /// Position of row 0.
    pub const fn offset(self, dims: &Dims) -> i64 {
        match self {
            Alignment::BottomRight => dims.seqlen_kv as i64 - dims.seqlen_q as i64,
            Alignment::TopLeft => 0,
        }
    }
}

/// A sliding window: a row at position `p` sees keys `p − left ..= p + right`; `None` is unbounded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Window {
    /// Keys before the row's position.
    pub left: Option<usize>,
    /// Keys after the row's position.
    pub right: Option<usize>,
}

impl Window {
    /// Every key.
    pub const UNBOUNDED: Window = Window { left: None, right: None };
}

/// The keys that rows see by position alone. Row `i` sees keys `max(0, i + first) .. min(N, i + end)`;
/// both ends rise with the row.
///
/// Bounds that exclude no key of any row are left out, so that equal bands are the same mask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Band {
    /// N.
    seqlen_kv: i64,
    /// First key of row 0.
    first: Option<i64>,
    /// End of the keys of row 0.
    end: Option<i64>,
}

impl Band {
    /// The band of a problem: the causal mask is a window without keys to the right.
    pub fn new(dims: &Dims, causal: bool, alignment: Alignment, window: Window) -> Band {
        let (offset, seqlen_kv) = (alignment.offset(dims), dims.seqlen_kv as i64);
        let last_row = (dims.seqlen_q as i64 - 1).max(0);
        let keys = |keys: usize| i64::try_from(keys).unwrap_or(i64::MAX);
        let right = match (causal, window.right) {
            (true, _) => Some(0),
            (false, right) => right.map(keys),
        };
        let first = window.left.map(|left| offset.saturating_sub(keys(left)));
        let end = right.map(|right| offset.saturating_add(right).saturating_add(1));
        Band {
            seqlen_kv,
            first: first.filter(|&first| last_row.saturating_add(first) > 0),
            end: end.filter(|&end| end < seqlen_kv),
        }
    }

    /// The keys of row `row`, as first and end; equal if there are none.
    pub fn keys(&self, row: usize) -> (usize, usize) {
        let row = row as i64;
        let end = self.end.map_or(self.seqlen_kv, |end| (row + end).clamp(0, self.seqlen_kv));
        let first = self.first.map_or(0, |first| (row + first).clamp(0, end));
        (first as usize, end as usize)
    }

    /// [`ModifierParams::first`] and [`ModifierParams::end`].
    pub fn params(&self) -> (i32, i32) {
        let narrow = |x: i64| x.clamp(i32::MIN as i64, i32::MAX as i64) as i32;
        (self.first.map_or(i32::MIN, narrow), self.end.map_or(i32::MAX, narrow))
    }

    /// Pairs of rows and visible keys.
    pub fn pairs(&self, seqlen_q: usize) -> f64 {
        if self.first.is_none() && self.end.is_none() {
            return seqlen_q as f64 * self.seqlen_kv as f64;
        }
        // Σ clamp(row + bound, 0, N) over all rows, for either bound.
        let (rows, keys) = (seqlen_q as f64, self.seqlen_kv as f64);
        let sum = |bound: f64| {
            let (begin, end) = ((-bound).clamp(0.0, rows), (keys - bound).clamp(0.0, rows));
            let rising = (end - begin) * (begin + bound + end - 1.0 + bound) / 2.0;
            rising + (rows - end) * keys
        };
        let ends = self.end.map_or(rows * keys, |end| sum(end as f64));
        // A window may end before it begins for rows far outside; those see nothing.
        let firsts = self.first.map_or(0.0, |first| sum(first as f64));
        (ends - firsts).max(0.0)
    }
}

/// A strided read-only `[B, Hq, M, N]` view whose last stride is 1; broadcast axes have stride 0.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PairArg {
    /// Nullable: address of element `[0, 0, 0, 0]`.
    pub ptr: u64,
    /// Elements from one batch entry to the next.
    pub stride_batch: i64,
    /// Elements from one query head to the next.
    pub stride_head: i64,
    /// Elements from one row to the next.
    pub stride_row: i64,
}

/// What the general attention kernels take beside [`AttentionParams`]; nothing in
/// `AttentionParams::causal` concerns them.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ModifierParams {
    /// Bias, of type `bias_dtype`.
    pub bias: PairArg,
    /// Mask: one byte for each pair, 0 where the key is hidden.
    pub mask: PairArg,
    /// Nullable: f32 `[B|1, Hq]` ALiBi slopes.
    pub alibi: u64,
    /// Nullable: f32 `[Hq]` logits of the sinks.
    pub sinks: u64,
    /// Slopes from one batch entry to the next: Hq or 0.
    pub alibi_stride_batch: u32,
    /// Type of the bias: 0 f16, 1 bf16, 2 f32.
    pub bias_dtype: u32,
    /// Row `i` sees keys from `max(0, i + first)` on, in saturating arithmetic.
    pub first: i32,
    /// Row `i` sees keys before `min(N, i + end)`, in saturating arithmetic.
    pub end: i32,
    /// Position of row 0.
    pub offset: i32,
    /// `softcap · log2(e)`; 0 is none.
    pub softcap_log2: f32,
    /// `2 / softcap`: turns a score in log2 units into the argument of 2^x in `1 − 2 / (1 + 2^x)`.
    pub softcap_argument: f32,
}

/// `<stem>_general_d<64|128|256>`: as `<stem>_d*`, with modifiers.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct GeneralAttentionParams {
    /// What all attention kernels take.
    pub attention: AttentionParams,
    /// What only these take.
    pub modifiers: ModifierParams,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dims(seqlen_q: usize, seqlen_kv: usize) -> Dims {
        Dims { batch: 1, num_heads_q: 1, num_heads_kv: 1, seqlen_q, seqlen_kv, head_dim: 64, head_dim_v: 64 }
    }

    /// Every band of small problems, key by key.
    #[test]
    fn a_band_is_its_definition() {
        let bounds = [None, Some(0), Some(1), Some(3), Some(usize::MAX)];
        for (m, n) in [(1, 1), (1, 9), (9, 1), (5, 9), (9, 5), (7, 7), (4, 0)] {
            let dims = dims(m, n);
            for alignment in [Alignment::BottomRight, Alignment::TopLeft] {
                for causal in [false, true] {
                    for left in bounds {
                        for right in bounds {
                            let band = Band::new(&dims, causal, alignment, Window { left, right });
                            let mut pairs = 0;
                            for row in 0..m {
                                let position = row as i128 + alignment.offset(&dims) as i128;
                                let sees = |key: i128| {
                                    left.is_none_or(|left| key >= position - left as i128)
                                        && right.is_none_or(|right| key <= position + right as i128)
                                        && (!causal || key <= position)
                                };
                                let (first, end) = band.keys(row);
                                for key in 0..n {
                                    assert_eq!(sees(key as i128), (first..end).contains(&key), "{dims:?} {band:?}");
                                }
                                pairs += end - first;
                            }
                            assert_eq!(band.pairs(m), pairs as f64, "{dims:?} {band:?}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn what_excludes_nothing_is_no_bound() {
        let unbounded = Band::new(&dims(5, 9), false, Alignment::BottomRight, Window::UNBOUNDED);
        let wide = Window { left: Some(8), right: Some(4) };
        assert_eq!(Band::new(&dims(5, 9), false, Alignment::BottomRight, wide), unbounded);
        let narrower = Window { left: Some(7), right: Some(4) };
        assert_ne!(Band::new(&dims(5, 9), false, Alignment::BottomRight, narrower), unbounded);
        assert_eq!(unbounded.params(), (i32::MIN, i32::MAX));
        // On a square both alignments are one.
        let [a, b] = [Alignment::BottomRight, Alignment::TopLeft];
        let causal = |alignment| Band::new(&dims(7, 7), true, alignment, Window::UNBOUNDED);
        assert_eq!(causal(a), causal(b));
    }
}
